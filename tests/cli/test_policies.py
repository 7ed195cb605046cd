import json

import pytest

from kvtuner_core.services.picking import GIB
from kvtuner_core.services.policies import load_policy, plain_document, save_policy
from tests.services.test_policies import _mixed


def test_a_budget_in_bits_picks_a_file(cli, searched, tmp_path):
    path = tmp_path / "policy.json"
    bound = searched["front"][-1]["effective_bits"]
    done = cli("pick", "--run", searched["run"], "--max-bits", bound, "-o", path, "--json")
    assert done.code == 0, done.err
    picked = done.document()
    assert picked["effective_bits"] <= bound
    assert picked["kl"] == min(item["kl"] for item in searched["front"])
    assert picked["policy"] == json.loads(path.read_text())
    assert load_policy(path).document.evidence.evaluation_kl.mean == picked["kl"]
    assert picked["output"] == str(path)


def test_a_budget_in_gib_picks_too(cli, searched):
    done = cli("pick", "--run", searched["run"], "--max-gib", "1", "--batch", "2", "--context", "64", "--json")
    picked = done.document()
    assert 0 < picked["gib"] < 1
    assert (picked["batch"], picked["context"]) == (2, 64)


def test_without_a_file_the_policy_itself_is_printed(cli, searched):
    done = cli("pick", "--run", searched["run"], "--max-bits", "16")
    assert done.document()["format"] == "kvtuner-policy"


def test_with_a_file_one_line_sums_it_up(cli, searched, tmp_path):
    done = cli("pick", "--run", searched["run"], "--max-bits", "16", "--output", tmp_path / "p.json")
    assert done.out.count("\n") == 1
    assert "effective bits" in done.out


def test_when_nothing_fits_the_exit_code_is_two(cli, searched, tmp_path):
    path = tmp_path / "p.json"
    done = cli("pick", "--run", searched["run"], "--max-gib", 1 / GIB, "-o", path)
    assert (done.code, done.out) == (2, "")
    assert "The smallest has" in done.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "nothing", "--max-bits", "4"), "must be one of the stored ones"),
        (("--run", "demo"), "needs max_bits or max_gib"),
        (("--max-bits", "4"), "--run"),
        (("--run", "demo", "--max-bits", "0"), "max_bits must be a number above 0"),
    ],
)
def test_bad_picks_are_bad_usage(cli, arguments, message):
    done = cli("pick", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_export_and_import_lose_nothing(cli, tmp_path):
    policy, yaml, back = tmp_path / "policy.json", tmp_path / "bits.yaml", tmp_path / "back.json"
    save_policy(plain_document(_mixed()), policy)
    done = cli("export", "--policy", policy, "--to", "kvtuner-yaml", "-o", yaml)
    assert (done.code, done.out) == (0, f"Wrote {yaml}\n")
    scheme = ("--scheme", "kivi", "--group-size", "8", "--residual", "8")
    done = cli("import", "--from", "kvtuner-yaml", yaml, *scheme, "-o", back, "--json")
    assert done.code == 0
    assert done.document()["policy"] == json.loads(back.read_text())
    assert load_policy(back).policy == _mixed()
    assert cli("export", "--policy", policy, "--to", "kvtuner-yaml").out == yaml.read_text()
    assert cli("export", "--policy", policy, "--to", "kvtuner-yaml", "--json").document()["content"] == yaml.read_text()


def test_import_needs_a_scheme_and_a_good_file(cli, tmp_path):
    path = tmp_path / "bits.yaml"
    path.write_text("0: {nbits_key: 8}\n")
    assert "--scheme per-token" in cli("import", "--from", "kvtuner-yaml", path).err
    done = cli("import", "--from", "kvtuner-yaml", path, "--scheme", "kivi", "-o", tmp_path / "p.json")
    assert done.code == 2
    assert not (tmp_path / "p.json").exists()
    assert cli("export", "--policy", tmp_path / "gone.json", "--to", "kvtuner-yaml").code == 2
