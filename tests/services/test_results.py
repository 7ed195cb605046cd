import csv
import io
from dataclasses import replace

import pytest

from kvtuner_core.domain.runs import RunStatus
from kvtuner_core.errors import InputError, StoreError
from kvtuner_core.services import results
from kvtuner_core.services.results import candidates_csv, delete_run, list_runs, load_search, load_sweep, runs_csv
from kvtuner_core.services.studies import search_record, sweep_record
from kvtuner_core.services.work import new_record
from kvtuner_core.store import to_json
from tests.fakes.studies import search_result


@pytest.fixture
def demo(tmp_path, monkeypatch):
    study = search_result(run="demo", shipped=True)
    path = tmp_path / "demo_study.json"
    path.write_text(to_json(study))
    monkeypatch.setattr(results, "DEMO_FILE", path)
    return study


@pytest.fixture
def stored(ws):
    result = search_result()
    record = replace(search_record(result.spec), id="synthetic")
    ws.store.add_run(record)
    ws.store.update_run("synthetic", status=RunStatus.DONE)
    ws.store.put_result("synthetic", to_json(result))
    return result


@pytest.mark.usefixtures("stored")
def test_the_demo_study_is_the_last_run(ws, demo):
    assert [record.id for record in list_runs(ws)] == ["synthetic", "demo"]
    record = list_runs(ws)[-1]
    assert record.status is RunStatus.DONE
    assert record.title.startswith("Demo study of SmolLM2-135M-Instruct")
    assert load_search(ws, "demo") == demo
    assert load_sweep(ws, "demo") == demo.sweep


def test_without_its_file_there_is_no_demo_study(ws, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DEMO_FILE", tmp_path / "gone.json")
    assert list_runs(ws) == ()
    with pytest.raises(InputError, match="got 'demo'"):
        load_search(ws, "demo")


def test_a_damaged_demo_study_is_one_line(ws, monkeypatch, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"run": 3}')
    monkeypatch.setattr(results, "DEMO_FILE", path)
    with pytest.raises(StoreError):
        list_runs(ws)


def test_results_come_back_as_they_were(ws, stored):
    assert load_search(ws, "synthetic") == stored
    assert load_sweep(ws, "synthetic") == stored.sweep


def test_unfinished_runs_have_no_result(ws, stored):
    record = search_record(stored.spec)
    ws.store.add_run(record)
    assert load_search(ws, record.id) is None
    assert load_sweep(ws, record.id) is None
    swept = sweep_record(stored.spec.sweep)
    ws.store.add_run(swept)
    assert load_search(ws, swept.id) is None


def test_generations_are_listed_and_inspections_are_not(ws, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DEMO_FILE", tmp_path / "gone.json")
    ws.store.add_run(new_record(results.RunKind.INSPECTION, title="x", spec="{}"))
    kept = new_record(results.RunKind.GENERATION, title="x", spec="{}")
    ws.store.add_run(kept)
    assert [record.id for record in list_runs(ws)] == [kept.id]


@pytest.mark.usefixtures("demo")
def test_deleting(ws, stored):
    ws.store.put_result(results.sweep_part("synthetic"), to_json(stored.sweep))
    delete_run(ws, "synthetic")
    assert [record.id for record in list_runs(ws)] == ["demo"]
    assert ws.store.get_result("synthetic") is None
    assert ws.store.get_result(results.sweep_part("synthetic")) is None
    with pytest.raises(InputError, match="cannot be deleted"):
        delete_run(ws, "demo")
    with pytest.raises(InputError, match="must be one of the stored ones"):
        delete_run(ws, "synthetic")
    live = search_record(stored.spec)
    ws.store.add_run(live)
    with pytest.raises(InputError, match="Cancel it first"):
        delete_run(ws, live.id)


def test_candidates_as_csv():
    result = search_result()
    rows = list(csv.DictReader(io.StringIO(candidates_csv(result))))
    assert len(rows) == len(result.candidates) + len(result.baselines)
    on_front = [row for row in rows if row["on_front"] == "true" and row["origin"] == "search"]
    assert len(on_front) == len(result.front)
    first = next(row for row in on_front if int(row["order"]) == result.front[0].order)
    assert float(first["evaluation_kl"]) == result.front[0].evaluation.kl.mean
    assert first["layer_29"] == result.front[0].policy.layers[29].name


def test_profiles_as_csv():
    result = search_result().sweep
    rows = list(csv.DictReader(io.StringIO(results.sweep_csv(result))))
    assert len(rows) == len(result.profiles)
    assert float(rows[5]["output_error"]) == result.profiles[5].output_error
    assert {row["kept"] for row in rows} == {"true", "false"}


def test_text_that_a_spreadsheet_would_run_is_defused(ws, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DEMO_FILE", tmp_path / "gone.json")
    record = replace(search_record(search_result().spec), title="=cmd()", error="-1")
    ws.store.add_run(record)
    row = next(csv.DictReader(io.StringIO(runs_csv(ws))))
    assert row["title"] == "'=cmd()"
    assert row["error"] == "-1"
