import threading
from dataclasses import replace

import pytest

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.domain.strategy import Constraints, MemoryBound
from kvtuner_core.domain.study import SearchSpec
from kvtuner_core.errors import InputError, ModelError
from kvtuner_core.services import studies
from kvtuner_core.services.results import list_runs, load_search, load_sweep
from kvtuner_core.services.work import run_here
from kvtuner_core.store import from_json, to_json
from tests.fakes.compute import Killed
from tests.services.drive import drive


def test_a_started_search_runs_to_its_end(ws, search_spec):
    run = studies.start_search(ws, search_spec)
    view = ws.queue.wait(run, 120)
    assert (view.record.status, view.record.error) == (RunStatus.DONE, "")
    assert load_search(ws, run).run == run
    assert [record.id for record in list_runs(ws) if record.id != "demo"] == [run]
    assert any(getattr(event, "effective_bits", None) for event in view.events)


def test_a_started_sweep_runs_to_its_end(ws, sweep_spec):
    run = studies.start_sweep(ws, sweep_spec)
    assert ws.queue.wait(run, 120).record.status is RunStatus.DONE
    assert load_sweep(ws, run).spec == sweep_spec


def test_a_cancelled_search_can_be_resumed_under_its_id(ws, search_spec):
    run = studies.start_search(ws, search_spec)
    while ws.compute.profiles < 9:
        threading.Event().wait(0.01)
    studies.cancel(ws, run)
    studies.cancel(ws, run)
    assert ws.queue.wait(run, 120).record.status is RunStatus.CANCELLED
    done = len(ws.compute.tasks)
    assert studies.resume(ws, run) == run
    assert ws.queue.wait(run, 120).record.status is RunStatus.DONE
    assert load_search(ws, run).spec == search_spec
    assert ws.compute.profiles == 27
    assert len(ws.compute.tasks) > done


def test_a_run_whose_process_died_is_interrupted_and_goes_on(open_workspace, sweep_spec):
    ws = open_workspace()
    record = studies.sweep_record(sweep_spec)
    ws.store.add_run(record)
    ws.store.update_run(record.id, status=RunStatus.RUNNING)
    ws.compute.dies_at = 1 + 3
    with pytest.raises(Killed):
        drive(studies.sweep(ws, sweep_spec, run=record.id))
    ws = open_workspace()
    assert ws.store.run(record.id).status is RunStatus.INTERRUPTED
    studies.resume(ws, record.id)
    assert ws.queue.wait(record.id, 120).record.status is RunStatus.DONE
    assert ws.compute.profiles == 18


def test_only_a_stopped_study_can_be_resumed(ws, sweep_spec):
    with pytest.raises(InputError, match="must be one of the stored ones"):
        studies.resume(ws, "nothing")
    record = studies.sweep_record(sweep_spec)
    ws.store.add_run(record)
    with pytest.raises(InputError, match="must have stopped"):
        studies.resume(ws, record.id)


def test_a_failure_is_one_line_in_the_record(ws, sweep_spec):
    run = studies.start_sweep(ws, replace(sweep_spec, model=ModelSpec(reference="/gone")))
    record = ws.queue.wait(run, 120).record
    assert record.status is RunStatus.FAILED
    assert "/gone" in record.error
    wrong = replace(sweep_spec, model=ModelSpec(reference="/gone"))
    mine = studies.sweep_record(wrong)
    steps = run_here(ws, mine, lambda run, cancelled: studies.sweep(ws, wrong, cancelled, run=run))
    with pytest.raises(ModelError):
        drive(steps)
    assert ws.store.run(mine.id).status is RunStatus.FAILED
    assert ws.store.run(mine.id).error == record.error


def test_bad_requests_do_not_reach_the_queue(ws, search_spec):
    with pytest.raises(InputError):
        studies.start_search(ws, replace(search_spec, evaluations=0))
    with pytest.raises(InputError):
        studies.start_sweep(ws, replace(search_spec.sweep, prompts="nothing"))
    assert not ws.store.runs(kinds=(RunKind.SWEEP, RunKind.SEARCH))


def test_work_left_early_is_cancelled(ws, sweep_spec):
    record = studies.sweep_record(sweep_spec)
    steps = run_here(ws, record, lambda run, cancelled: studies.sweep(ws, sweep_spec, cancelled, run=run))
    while next(steps).stage != "sweep":
        pass
    steps.close()
    assert ws.store.run(record.id).status is RunStatus.CANCELLED


def test_a_title_names_the_memory_bound():
    bound = MemoryBound(max_gib=1.5, batch=8, context=32_768)
    spec = SearchSpec(constraints=Constraints(memory=bound))
    assert studies.search_title(spec).endswith("200 evaluations, at most 1.5 GiB at batch 8 x 32,768 tokens")
    assert from_json(SearchSpec, to_json(spec)) == spec
