import pytest

from kvtuner_core.domain.runs import RunKind
from tests.fakes.models import save_tiny

RECALL = ("--task", "recall", "--items", "2", "--pairs", "4", "--scheme", "per-token")
CUT = ("--prefix-tokens", "48", "--suffix-tokens", "8", "--items", "1")


@pytest.fixture(scope="session")
def long_tiny(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "long", max_position_embeddings=2048))


def test_recall_of_a_policy_stands_beside_full_precision(cli, tiny):
    done = cli("evaluate", "--policy", "K2V2", *RECALL, "--model", tiny, "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert (document["task"], document["items"], document["pairs"], document["length"]) == ("recall", 2, 4, None)
    for name in ("score", "full_precision", "difference"):
        assert set(document[name]["accuracy"]) == {"mean", "low", "high"}
    assert {"lost", "gained"} < set(document["difference"])
    assert len(document["replies"]) == 2
    assert document["reused"] == 0
    assert cli("evaluate", "--policy", "K2V2", *RECALL, "--model", tiny, "--json").document()["reused"] == 4


def test_a_task_as_text(cli, tiny):
    done = cli("evaluate", "--policy", "K4V4", *RECALL, "--model", tiny)
    assert done.code == 0
    assert "right answers" in done.out
    assert "of 2 questions lost" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--items", "0"), "items must be from 1"), (("--length", "5"), "longer than the wanted length"),
     (("--questions", "a.jsonl"), "made from a seed"), (("--task", "guess"), "invalid")],
)  # fmt: skip
def test_bad_options_are_one_line(cli, tiny, options, said):
    done = cli("evaluate", "--policy", "K4V4", *RECALL, "--model", tiny, *options)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_kinds_of_a_uniform_policy_are_a_document_and_a_run(cli, long_tiny):
    done = cli("kinds", "--policy", "K4V2", "--scheme", "per-token", "--model", long_tiny, *CUT, "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert [row["kind"] for row in document["kinds"]] == ["prose", "maths", "chat", "retrieval"]
    assert [row["task"] and row["task"]["name"] for row in document["kinds"]] == [
        "multiple-choice", None, None, "recall",
    ]  # fmt: skip
    assert document["tuned_kl"] is None
    assert document["checks"]
    runs = cli("runs", "--json").document()["runs"]
    assert (runs[0]["run"], runs[0]["kind"]) == (document["run"], RunKind.EVALUATION)
    text = cli("kinds", "--policy", "K4V2", "--scheme", "per-token", "--model", long_tiny, *CUT)
    assert "retrieval" in text.out
    assert "kinds: KL is highest on" in text.out


def test_kinds_of_a_searched_policy_are_held_against_its_evaluation_prompts(cli, long_tiny):
    cut = ("--limit", "2", "--prefix-tokens", "48", "--suffix-tokens", "8", "--no-pruning")
    few = ("--evaluations", "4", "--population", "4", "--evaluation-limit", "2", "--evaluation-suffix-tokens", "8")
    searched = cli("search", "--model", long_tiny, *cut, *few, "--kinds", "16", "--kinds-items", "1", "--json")
    assert searched.code == 0, searched.err
    first = searched.document()
    assert [row["kind"] for row in first["kinds"]["kinds"]] == ["prose", "maths", "chat", "retrieval"]
    done = cli("kinds", "--run", first["run"], "--max-bits", "16", "--items", "1", "--json").document()
    assert done["kinds"] == first["kinds"]["kinds"]
    assert done["tuned_kl"] == first["kinds"]["tuned_kl"] != None  # noqa: E711


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "either --policy"), (("--run", "demo"), "either --policy"), (("--run", "none", "--max-bits", "4"), "none"),
     (("--policy", "K4V4", "--max-bits", "4"), "either --policy")],
)  # fmt: skip
def test_kinds_need_a_policy_or_a_search(cli, options, said):
    done = cli("kinds", *options)
    assert done.code == 2
    assert said in done.err
