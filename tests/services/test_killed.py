"""The app or its worker is really killed in the middle of a search; the same request goes on from there."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kvtuner_core.domain.runs import RunStatus
from kvtuner_core.services.planning import plan_search
from kvtuner_core.services.results import list_runs, load_search
from kvtuner_core.services.studies import resume, search_record, start_search
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.store import to_json

ROOT = Path(__file__).parents[2]
LONG = 180.0

APP = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from kvtuner_core.domain.study import SearchSpec
from kvtuner_core.services.studies import start_search
from kvtuner_core.services.workspace import Settings, Workspace

if __name__ == "__main__":
    home, spec = Path(sys.argv[1]), TypeAdapter(SearchSpec).validate_json(sys.argv[2])
    ws = Workspace.open(Settings(home=home, store_path=home / "store.duckdb"), inline=False)
    run = start_search(ws, spec)
    while not (view := ws.queue.view(run)).progress or view.progress.stage != "search" or view.progress.done < 8:
        ws.queue.wait(run, 0.01)
    print(*(worker.pid for worker in ws.compute.workers()), flush=True)
    ws.queue.wait(run)
"""


@pytest.fixture
def long_search(search_spec):
    return replace(search_spec, evaluations=60)


def _open(home: Path) -> Workspace:
    return Workspace.open(Settings(home=home, store_path=home / "store.duckdb"), inline=False)


def _wait_for_search(ws: Workspace, run: str, done: int) -> None:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        view = ws.queue.view(run)
        if view and view.progress and view.progress.stage == "search" and view.progress.done >= done:
            return
        time.sleep(0.01)
    raise AssertionError("The search did not begin in time.")


@pytest.mark.slow
def test_a_killed_app_loses_at_most_the_evaluation_under_way(tmp_path, long_search):
    script = tmp_path / "app_under_test.py"
    script.write_text(APP)
    app = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), to_json(long_search)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        workers = [int(pid) for pid in app.stdout.readline().split()]
    finally:
        app.send_signal(signal.SIGKILL)
        app.wait()
    assert workers
    psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=30)
    assert not any(psutil.pid_exists(pid) for pid in workers)

    ws = _open(tmp_path)
    try:
        (stopped,) = [record for record in list_runs(ws) if record.id != "demo"]
        assert stopped.status is RunStatus.INTERRUPTED
        assert stopped.spec == search_record(long_search).spec
        known = plan_search(ws, long_search).known
        assert known >= 8, "What was reported before the kill must be in the store."
        assert resume(ws, stopped.id) == stopped.id
        view = ws.queue.wait(stopped.id, LONG)
        assert view.record.status is RunStatus.DONE, view.record.error
        result = load_search(ws, stopped.id)
        assert len(result.candidates) == long_search.evaluations
    finally:
        ws.close()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_search_ends(tmp_path, long_search):
    ws = _open(tmp_path)
    try:
        run = start_search(ws, long_search)
        _wait_for_search(ws, run, 8)
        before = {worker.pid for worker in ws.compute.workers()}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        view = ws.queue.wait(run, LONG)
        assert view.record.status is RunStatus.DONE, view.record.error
        assert len(load_search(ws, run).candidates) == long_search.evaluations
        assert not before & {worker.pid for worker in ws.compute.workers()}
    finally:
        ws.close()
