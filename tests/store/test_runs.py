from datetime import UTC, datetime, timedelta

import pytest

from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.store import Store


@pytest.fixture
def store():
    with Store.open(None) as opened:
        yield opened


def record(run="a", *, kind=RunKind.SWEEP, status=RunStatus.QUEUED, created="2026-11-01T10:00:00Z"):
    return RunRecord(id=run, kind=kind, status=status, title=f"Run {run} 'quoted' é", spec='{"x": 1}', created=created)


def is_now(text):
    return abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(seconds=5)


def test_a_record_comes_back_equal(store):
    store.add_run(record())
    assert store.run("a") == record()
    assert store.run("b") is None


def test_runs_come_newest_first_and_filtered(store):
    store.add_run(record("old", created="2026-11-01T09:00:00Z"))
    store.add_run(record("first", kind=RunKind.SEARCH))
    store.add_run(record("second", status=RunStatus.DONE))
    assert [run.id for run in store.runs()] == ["second", "first", "old"]
    assert [run.id for run in store.runs(kinds=(RunKind.SWEEP,))] == ["second", "old"]
    assert [run.id for run in store.runs(statuses=(RunStatus.QUEUED, RunStatus.RUNNING))] == ["first", "old"]
    assert store.runs(kinds=(RunKind.SEARCH,), statuses=(RunStatus.DONE,)) == ()


def test_all_times_are_written_alike(store):
    store.add_run(record(created="2026-11-01T10:00:00+00:00"))
    store.update_run("a", status=RunStatus.RUNNING)
    store.update_run("a", status=RunStatus.DONE)
    run = store.run("a")
    assert run.created == "2026-11-01T10:00:00Z"
    assert run.started.endswith("Z")
    assert run.finished.endswith("Z")


def test_times_follow_the_status(store):
    store.add_run(record())
    store.update_run("a", status=RunStatus.RUNNING)
    running = store.run("a")
    assert is_now(running.started)
    assert running.finished == ""
    store.update_run("a", status=RunStatus.FAILED, error="It broke.")
    failed = store.run("a")
    assert failed.started == running.started
    assert is_now(failed.finished)
    assert failed.error == "It broke."
    store.update_run("a", status=RunStatus.RUNNING)
    again = store.run("a")
    assert (again.finished, again.error) == ("", "")


def test_progress_is_kept(store):
    store.add_run(record())
    store.update_run("a", progress=Progress(stage="search", done=7, total=200, reused=3))
    kept = store.run("a")
    assert (kept.stage, kept.done, kept.total, kept.status) == ("search", 7, 200, RunStatus.QUEUED)
    store.update_run("a")
    assert store.run("a") == kept


def test_a_run_begun_afresh_keeps_its_result(store):
    store.add_run(record())
    store.put_result("a", "{}")
    store.update_run("a", status=RunStatus.CANCELLED)
    store.add_run(record())
    assert store.run("a") == record()
    assert store.get_result("a") == "{}"


def test_a_result_replaces_the_one_before(store):
    store.put_result("a", "1")
    store.put_result("a", "2")
    assert store.get_result("a") == "2"
    assert store.get_result("b") is None


def test_a_deleted_run_is_gone_and_stays_gone(store):
    store.add_run(record("a"))
    store.add_run(record("b"))
    store.put_result("a", "{}")
    store.delete_run("a")
    store.delete_run("a")
    store.update_run("a", status=RunStatus.DONE)
    assert [run.id for run in store.runs()] == ["b"]
    assert store.get_result("a") is None
