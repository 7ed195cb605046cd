import json

from kvtuner_core.domain.study import SearchResult
from kvtuner_core.runtime import capture
from kvtuner_core.store import from_json
from tests.cli.conftest import FEW, SMALL


def test_a_sweep_as_json(cli, tiny):
    done = cli("sweep", "--model", tiny, "--scheme", "kivi", "--group-size", "8", "--residual", "8", *SMALL, "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert [layer["layer"] for layer in document["layers"]] == [0, 1, 2]
    errors = document["layers"][1]["pairs"]["K4V2"]
    assert set(errors) == {"key_error", "value_error", "score_error", "output_error", "kl"}
    assert all(value > 0 for value in errors.values())
    assert set(document["layers"][0]["kept"]) <= set(document["layers"][0]["pairs"])
    for layer in document["layers"]:
        assert layer["layer"] in document["groups"][layer["group"]]["layers"]
    assert document["scheme"]["group_size"] == 8
    assert document["scheme"]["residual_length"] == 8
    assert document["space"]["log10_after"] <= document["space"]["log10_before"]
    assert document["seconds"] > 0


def test_a_sweep_as_a_table(cli, tiny):
    done = cli("sweep", "--model", tiny, *SMALL, "--bits", "4,8", "--noise", "together", "--eps", "0.5")
    assert done.code == 0
    assert "K8V4" in done.out
    assert "layer groups" in done.out


def test_a_search_as_json(searched):
    assert searched["run"]
    assert searched["evaluations"] == 8
    assert 0 < searched["hypervolume"] < 1
    assert searched["seconds"] > 0
    assert {item["name"] for item in searched["baselines"]} == {"K16V16", "K8V8", "K8V4", "K4V4", "K4V2", "K2V2"}
    for item in (*searched["front"], *searched["baselines"]):
        assert item["kl_low"] <= item["kl"] <= item["kl_high"]
        assert item["policy"]["format"] == "kvtuner-policy"
        assert len(item["policy"]["layers"]) == 3
        assert item["nominal_bits"] <= item["effective_bits"]


def test_the_same_search_again_is_free_and_the_same(cli, tiny, searched):
    again = cli("search", "--model", tiny, *SMALL, *FEW, "--no-pruning", "--json").document()
    assert again["run"] != searched["run"]
    assert [item["kl"] for item in again["front"]] == [item["kl"] for item in searched["front"]]


def test_a_search_as_a_table_says_what_to_do_next(cli, tiny):
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--max-bits", "7")
    assert done.code == 0
    assert "Uniform policies" in done.out
    assert "of the hypervolume over the layers (exact, 729 policies enumerated)" in done.out
    assert "pick --run" in done.out


def test_a_demo_study_is_written_as_shipped(cli, tiny, tmp_path):
    path = tmp_path / "demo.json"
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--demo", path, "--json")
    assert done.code == 0
    study = from_json(SearchResult, path.read_text())
    assert (study.run, study.shipped) == ("demo", True)
    assert json.loads(path.read_text())["front"]


def test_a_search_says_how_far_it_can_be_trusted(searched):
    assert searched["strategy"] == "auto"
    assert [item["over"] for item in searched["regrets"]] == ["layers"]
    assert searched["regrets"][0]["regret"] == searched["regret"]
    assert searched["regrets"][0]["enumerated"] == 9**3
    assert searched["additive"]["pairwise"] == {"kind": "none", "left_out_errors": {}}
    assert searched["constraints"] == {
        "max_bits": None,
        "max_pairs": None,
        "forbidden": [],
        "pinned": [],
        "memory": None,
    }
    assert searched["hypervolume_reference"] == {"effective_bits": 16.0, "kl": 10.0}
    assert searched["regret"] >= 0
    points = searched["additive"]["points"]
    assert len(points) == 8 + 5
    assert all(point["predicted_kl"] > 0 and point["measured_kl"] >= 0 for point in points)
    assert -1 <= searched["additive"]["rank_correlation"] <= 1
    assert searched["overfit"]["front"] == len(searched["front"])
    assert {check["name"] for check in searched["checks"]} >= {"tokens", "prompts", "overfit", "prefill", "window"}


def test_strategies_and_bounds_are_options(cli, tiny):
    bounds = ("--strategy", "nsga2", "--pin", "0:K8V8", "--forbid", "1:K2V2", "--forbid", "2:KV2", "--max-pairs", "2")
    document = cli("search", "--model", tiny, *SMALL, *FEW, "--no-pruning", *bounds, "--json").document()
    assert document["strategy"] == "nsga2"
    assert document["constraints"]["forbidden"] == ["1:K2V2", "2:K2V2"]
    for item in document["front"]:
        layers = [(layer["key_bits"], layer["value_bits"]) for layer in item["policy"]["layers"]]
        assert layers[0] == (8, 8)
        assert (2, 2) not in layers[1:]
        assert len(set(layers)) <= 2
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--pin", "K8V8")
    assert (done.code, done.out) == (2, "")
    assert "written like 3:K8V4" in done.err


def test_solvers_are_compared(cli, tiny, searched):
    other = cli("search", "--model", tiny, *SMALL, *FEW, "--no-pruning", "--strategy", "random", "--json").document()
    rows = cli("solvers", "--run", searched["run"], "--json").document()["solvers"]
    assert {row["run"]: row["strategy"] for row in rows} == {searched["run"]: "auto", other["run"]: "random"}
    assert {row["hypervolume"] for row in rows} == {searched["hypervolume"], other["hypervolume"]}
    text = cli("solvers", "--run", searched["run"])
    assert "random" in text.out
    assert cli("solvers", "--run", "nobody").code != 0


def test_a_search_keeps_to_a_memory_bound_and_says_so(cli, tiny):
    bound = ("--max-gib", "0.0002", "--batch", "2", "--context", "300")
    document = cli("search", "--model", tiny, *SMALL, *FEW, *bound, "--json").document()
    assert document["constraints"]["memory"] == {"max_gib": 0.0002, "batch": 2, "context": 300}
    scalars = sum(layer["kv_heads"] * (layer["key_dim"] + layer["value_dim"]) for layer in document["model"]["layers"])
    most = 8 * 0.0002 * 2**30 / (2 * 300 * scalars)
    assert document["front"]
    assert all(item["effective_bits"] <= most for item in document["front"])
    assert max(item["effective_bits"] for item in document["baselines"]) > most


def test_a_memory_bound_that_leaves_nothing_is_one_line(cli, tiny):
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--max-gib", "0.00001")
    assert done.code == 2
    assert "max_gib must be at least" in done.err
    assert "at batch 1 x 8,192 tokens" in done.err
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--batch", "4")
    assert done.code == 2
    assert "--batch says where --max-gib holds" in done.err


def test_scores_of_layers_as_json_and_as_a_table(cli, tiny):
    names = ["kl", "fisher_error", "gradient_error", "output_error", "gradient_norm", "weight_norm"]
    document = cli("sweep", "--model", tiny, *SMALL, "--compare-scores", "--json").document()["scores"]
    assert [row["score"] for row in document["table"]] == names
    assert all(row["seconds"] > 0 for row in document["table"])
    assert document["table"][0]["rank_correlation_to_kl"] == 1.0
    assert list(document["rank_correlation"]["weight_norm"]) == names
    layer = document["layers"][1]
    assert set(layer["shares"]) == set(names)
    assert layer["pairs"]["K4V2"]["fisher_error"] > 0
    assert layer["gradient_norm"]["keys"] > 0
    assert document["absent"] == ""
    for row in document["table"]:
        assert [len(pick["layers"]) for pick in row["picks"]] == [3, 3]
        assert all(pick["effective_bits"] <= pick["max_bits"] for pick in row["picks"])
        assert all(pick["calibration_kl"]["mean"] > 0 and pick["evaluation_kl"] is None for pick in row["picks"])
    text = cli("sweep", "--model", tiny, *SMALL, "--compare-scores").out
    assert "Scores of layers; the last columns" in text
    assert "gradient_norm" in text
    without = cli("sweep", "--model", tiny, *SMALL, "--no-scores", "--json").document()["scores"]
    assert [row["score"] for row in without["table"]] == ["kl", "output_error"]


def test_kvmix_says_what_it_ranked_by(cli, tiny):
    document = cli("search", "--model", tiny, *SMALL, *FEW, "--strategy", "kvmix", "--json").document()
    assert document["ranked_by"] == "gradient_norm"


def test_stopping_early_says_what_it_spared(cli, tiny, monkeypatch):
    monkeypatch.setitem(capture._SUFFIX_TOKENS, "cpu", 8)
    asked = ("search", "--model", tiny, *SMALL, *FEW, "--strategy", "nsga2", "--no-scores", "--evaluations", "24")
    document = cli(*asked, "--no-pruning", "--stop-early", "--json").document()
    assert document["stop_early"]
    assert document["evaluations"] == 24
    assert document["prompts_spared"]["of"] == 48
    assert document["prompts_spared"]["spared"] == len(document["stopped"]) > 0
    for item in document["stopped"]:
        assert set(item) == {"name", "order", "effective_bits", "at_least", "estimate", "dominated_by", "prompts"}
        assert item["estimate"] >= item["at_least"] > 0
        assert item["dominated_by"] < item["order"]
    text = cli(*asked, "--no-pruning", "--stop-early").out
    assert f"Stopped early: {len(document['stopped'])} of 24 policies, beaten for certain; " in text
    without = cli(*asked, "--no-stop-early", "--json").document()
    assert (without["stop_early"], without["stopped"]) == (False, [])
    refused = cli(*asked, "--stop-early", "--objective", "p95-kl")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "got p95-kl. Leave out --stop-early" in refused.err
