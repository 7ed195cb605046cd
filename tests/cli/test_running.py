import re

import pytest

from kvtuner_core.services.policies import plain_document, save_policy
from tests.cli.conftest import SMALL
from tests.services.test_policies import _mixed


def test_a_uniform_policy_is_evaluated(cli, tiny):
    done = cli("evaluate", "--policy", "K4V2", "--scheme", "per-token", "--model", tiny, *SMALL, "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert set(document["kl"]) == {"mean", "low", "high"}
    assert (document["nominal_bits"], document["effective_bits"]) == (3, 5)
    assert (document["tokens"], document["prompts"]) == (16, 2)
    assert 0 <= document["top1_agreement"] <= 1
    assert isinstance(document["nll_change"], float)
    assert document["cache_bytes"] > 0


def test_a_picked_file_is_evaluated_and_generates(cli, tiny, searched, tmp_path):
    path = tmp_path / "policy.json"
    assert cli("pick", "--run", searched["run"], "--max-bits", "16", "-o", path).code == 0
    prompts = tmp_path / "mine.txt"
    prompts.write_text("some text of mine that is long enough to be cut, " * 4)
    done = cli("evaluate", "--policy", path, "--model", tiny, "--prompts", prompts, *SMALL)
    assert done.code == 0
    assert "nats per token" in done.out
    done = cli("generate", "--policy", path, "--model", tiny, "--prompt", "Hello", "--max-new-tokens", 5, "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert document["tokens"] == len(document["token_ids"]) <= 5
    assert 0 < document["cache_bytes"] < document["full_precision_bytes"]
    assert document["tokens_per_second"] > 0
    assert isinstance(document["text"], str)


def test_text_is_shown_and_the_numbers_beside_it(cli, tiny):
    arguments = ("--model", tiny, "--prompt", "Hello", "--max-new-tokens", "4")
    done = cli("generate", "--policy", "KV4", "--scheme", "kivi", "--group-size", "8", *arguments)
    assert done.code == 0
    assert "full precision" in done.err
    assert cli("generate", "--policy", "full", *arguments, "--temperature", "1", "--no-chat").code == 0


def test_a_policy_for_another_model_is_refused(cli, tiny, tmp_path):
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed(5)), path)
    done = cli("generate", "--policy", path, "--model", tiny, "--prompt", "Hello")
    assert done.code == 2
    assert "one entry per cached layer (3); got 5" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--sinks", 4), r"sink_length \(0\); got 4"), (("--residual", 0), r"residual_length \(8\); got 0"),
     (("--rotation", "keys"), r"rotation \(none\); got keys"),
     (("--residual-share", 0.1), r"residual_share \(0.0\); got 0.1"),
     (("--symmetric",), r"symmetric \(False\); got True"),
     (("--scheme", "kivi", "--group-size", 16), r"group_size \(8\); got 16")],
)  # fmt: skip
def test_options_that_contradict_a_policy_file_are_refused(cli, tiny, tmp_path, options, said):
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed()), path)
    done = cli("generate", "--policy", path, "--model", tiny, "--prompt", "Hello", *options)
    assert done.code == 2
    assert re.search(said, done.err)


def test_options_that_say_what_a_policy_file_says_are_welcome(cli, tiny, tmp_path):
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed()), path)
    same = ("--scheme", "kivi", "--group-size", 8, "--residual", 8, "--max-new-tokens", 2)
    assert cli("generate", "--policy", path, "--model", tiny, "--prompt", "Hello", *same).code == 0


@pytest.mark.model
@pytest.mark.slow
def test_the_bundled_model_answers_from_a_packed_cache_and_shows_what_bits_cost(cli):
    question = ("--prompt", "What is the capital of France?", "--max-new-tokens", "10", "--json")
    full = cli("generate", "--policy", "full", *question).document()
    packed = cli("generate", "--policy", "K8V4", "--scheme", "per-token", *question).document()
    assert "Paris" in full["text"]
    assert "Paris" in packed["text"]
    assert packed["cache_bytes"] < 0.25 * packed["full_precision_bytes"]
    cut = ("--limit", "1", "--prefix-tokens", "256", "--suffix-tokens", "32", "--json")
    kl = {name: cli("evaluate", "--policy", name, *cut).document()["kl"]["mean"] for name in ("KV8", "K4V2", "K2V4")}
    assert kl["KV8"] < kl["K4V2"] < kl["K2V4"]
