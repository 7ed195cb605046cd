from kvtuner_core.domain.model import BUNDLED_MODEL


def test_models_are_listed(cli):
    assert cli("models", "--json").document()["models"][0]["reference"] == BUNDLED_MODEL
    assert BUNDLED_MODEL in cli("models").out


def test_a_model_is_described_with_its_memory(cli, tiny):
    done = cli("models", "--model", tiny, "--batch", "2", "--context", "100", "--json")
    document = done.document()
    assert document["model"]["cached_layers"] == 3
    full = next(row for row in document["memory"] if row["name"] == "K16V16")
    assert full["bytes"] == 2 * 100 * 3 * 2 * 2 * 16 * 2
    assert "KV heads" in cli("models", "--model", tiny).out


def test_runs_are_listed_shown_and_deleted(cli, searched):
    run = searched["run"]
    listed = cli("runs", "--json").document()["runs"]
    assert (listed[0]["run"], listed[0]["status"]) == (run, "done")
    assert run in cli("runs").out
    shown = cli("runs", "--run", run, "--json").document()
    assert shown["result"]["front"] == searched["front"]
    assert "Search on" in cli("runs", "--run", run).out
    assert cli("runs", "--delete", run, "--json").document() == {"deleted": run}
    assert cli("runs", "--run", run).code == 2
    assert cli("runs", "--delete", "demo").code == 2
