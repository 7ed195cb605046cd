"""Two real worker processes share a study; what they find is what one process finds."""

import functools
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from kvtuner_core.compute import DaskCompute, InlineCompute
from kvtuner_core.domain.runs import RunStatus
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.jobs import JobQueue
from kvtuner_core.services.planning import plan_search
from kvtuner_core.services.results import load_search
from kvtuner_core.services.searching import search
from kvtuner_core.services.studies import cancel, resume, start_search
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.store import Store
from tests.services.drive import drive

LONG = 120.0


class SigningRunner:
    """The model runtime; each process signs for what it does."""

    def __init__(self, folder):
        from kvtuner_core.runtime.worker import Runtime

        self.folder = Path(folder)
        self.runtime = Runtime(cache_dir=self.folder)

    def run(self, task, **rest):
        with (self.folder / f"{type(task).__name__} {os.getpid()}").open("a") as book:
            book.write("x")
        return self.runtime.run(task, **rest)

    def close(self):
        self.runtime.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def workers(folder):
    compute = DaskCompute(cache_dir=folder, processes=2, runner_factory=functools.partial(SigningRunner, str(folder)))
    yield compute
    compute.close()


@pytest.fixture(scope="module")
def one_process(folder):
    compute = InlineCompute(cache_dir=folder)
    yield compute
    compute.close()


@pytest.fixture
def search_spec(search_spec):
    return replace(search_spec, evaluations=40)


@pytest.fixture
def one_thread():
    """As many threads as a worker has that shares two cores: sums of floats depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def opened(tmp_path):
    """Opens workspaces, each with a store of its own unless named alike."""
    open_now = []

    def open_one(compute, name):
        settings = Settings(home=tmp_path, store_path=tmp_path / f"{name}.duckdb")
        store = Store.open(settings.store_path)
        open_now.append(Workspace(settings=settings, store=store, compute=compute, queue=JobQueue(store)))
        return open_now[-1]

    yield open_one
    for ws in open_now:
        ws.queue.close()
        ws.store.close()


def found(result):
    """Everything that a search found, as bytes, without times and where it ran."""
    scores = result.sweep.scores
    bare = replace(
        result,
        run="",
        provenance=replace(result.provenance, created=""),
        seconds=(),
        candidates=_untimed(result.candidates),
        front=_untimed(result.front),
        baselines=_untimed(result.baselines),
        sweep=replace(
            result.sweep,
            seconds=0.0,
            provenance=replace(result.sweep.provenance, created=""),
            profiles=tuple(replace(one, local_seconds=0.0, kl_seconds=0.0) for one in result.sweep.profiles),
            scores=replace(
                scores,
                errors=replace(scores.errors, gradient_seconds=0.0, fisher_seconds=0.0),
                weights=replace(scores.weights, gradient_seconds=0.0, weight_seconds=0.0),
            ),
        ),
    )
    return TypeAdapter(SearchResult).dump_json(bare)


def _untimed(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    return tuple(
        replace(
            item,
            calibration=replace(item.calibration, seconds=0.0),
            evaluation=item.evaluation and replace(item.evaluation, seconds=0.0),
        )
        for item in candidates
    )


@pytest.fixture
def expected(one_thread, one_process, opened, search_spec):  # noqa: ARG001
    """What one process finds, and what it reported."""
    seen, result = drive(search(opened(one_process, "inline"), search_spec))
    return found(result), [_reported(step.event) for step in seen if step.event is not None]


def _reported(event):
    return _untimed((event,))[0] if isinstance(event, Candidate) else event


def signed(folder, task):
    """How often each process did a kind of task."""
    return {int(path.name.split()[1]): path.stat().st_size for path in folder.glob(f"{task} *")}


@pytest.mark.slow
def test_two_workers_find_and_report_what_one_process_does(workers, folder, opened, search_spec, expected):
    for path in folder.glob("*Task *"):
        path.unlink()
    seen, result = drive(search(opened(workers, "workers"), search_spec))
    assert found(result) == expected[0]
    assert [_reported(step.event) for step in seen if step.event is not None] == expected[1]
    for stage in ("sweep", "search", "evaluation"):
        done = [step.done for step in seen if step.stage == stage]
        assert done == sorted(done)
    pids = {worker.pid for worker in workers.workers()}
    assert set(signed(folder, "ScoreTask")) == set(signed(folder, "ProfileTask")) == pids
    distinct = {item.policy for item in (*result.candidates, *result.baselines)}
    checked = {item.policy for item in (*result.front, *result.baselines)}
    assert sum(signed(folder, "ScoreTask").values()) == len(distinct) + len(checked)
    # The nine pairs of each layer are three tasks.
    assert 3 * sum(signed(folder, "ProfileTask").values()) == len(result.sweep.profiles)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_workers_stop_what_one_process_stops(workers, one_process, opened, search_spec):
    # So long that each prompt is a pass of its own.
    sweep = replace(search_spec.sweep, limit=3, suffix_tokens=264, bits=(2, 8), scores=False)
    spec = replace(search_spec, sweep=sweep, strategy=SearchStrategy.NSGA2, stop_early=True, evaluations=20)
    _, one = drive(search(opened(one_process, "one stops"), spec))
    _, two = drive(search(opened(workers, "two stop"), spec))
    assert two.stopped == one.stopped
    assert one.stopped
    assert _untimed(two.candidates) == _untimed(one.candidates)
    assert _untimed(two.front) == _untimed(one.front)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing(workers, opened, search_spec, expected):
    victim = []

    def step_on(progress):
        if not victim and progress.stage == "search" and progress.done >= 5:
            victim.append(workers.workers()[0].pid)
            os.kill(victim[0], signal.SIGKILL)

    steps = search(opened(workers, "killed"), search_spec)
    try:
        while True:
            step_on(next(steps))
    except StopIteration as finished:
        result = finished.value
    assert victim
    assert found(result) == expected[0]
    assert victim[0] not in [worker.pid for worker in workers.workers()]


@pytest.mark.slow
def test_a_cancelled_search_is_resumed_with_what_was_stored(workers, opened, search_spec, expected):
    ws = opened(workers, "cancelled")
    reached = threading.Event()
    run = start_search(ws, search_spec)
    while not reached.wait(0.01):
        view = ws.queue.view(run)
        assert view.record.status.is_live, view.record.error
        if view.progress and view.progress.stage == "search" and view.progress.done >= 6:
            reached.set()
    cancel(ws, run)
    stopped = ws.queue.wait(run, LONG)
    assert stopped.record.status is RunStatus.CANCELLED
    known = plan_search(ws, search_spec).known
    assert known >= 27 + 6, "What was reported must be in the store."
    assert resume(ws, run) == run
    assert ws.queue.wait(run, LONG).record.status is RunStatus.DONE
    assert found(load_search(ws, run)) == expected[0]


@pytest.mark.slow
def test_two_jobs_wait_for_each_other(workers, opened, search_spec):
    ws = opened(workers, "queue")
    first = start_search(ws, search_spec)
    second = start_search(ws, replace(search_spec, sweep=replace(search_spec.sweep, seed=1)))
    assert ws.queue.wait(second, LONG).record.status is RunStatus.DONE
    assert ws.queue.view(first).record.status is RunStatus.DONE
