import logging
import threading
import time

import pytest

from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.errors import CancelledError, ComputeError, InputError, ModelError, StoreError
from kvtuner_core.jobs import JobQueue
from tests.fakes.run_log import FakeRunLog

WAIT = 10


def record(run="a", *, kind=RunKind.SEARCH, spec=None, status=RunStatus.QUEUED):
    spec = f'{{"of": "{run}"}}' if spec is None else spec
    return RunRecord(id=run, kind=kind, status=status, title=run, spec=spec, created="2026-11-01T10:00:00+00:00")


def step(done, total=3, **rest):
    return Progress(stage="search", done=done, total=total, **rest)


def three(_cancelled):
    for done in range(1, 4):
        yield step(done, event=f"event {done}")


class Held:
    """A body that goes one step each time it is let go, and knows when it began and was closed."""

    def __init__(self, steps=3):
        self.steps = steps
        self.began = threading.Event()
        self.gate = threading.Semaphore(0)
        self.closed = False

    def __call__(self, cancelled):
        try:
            self.began.set()
            for done in range(1, self.steps + 1):
                while not self.gate.acquire(timeout=0.01):
                    if cancelled():
                        raise CancelledError("stopped")
                yield step(done, self.steps)
        finally:
            self.closed = True


@pytest.fixture
def log():
    return FakeRunLog()


@pytest.fixture
def jobs(log):
    queue = JobQueue(log)
    yield queue
    queue.close()


def test_a_job_runs_to_its_end(jobs, log):
    assert jobs.submit(record(), three) == "a"
    view = jobs.wait("a", WAIT)
    assert view.record.status is RunStatus.DONE
    assert view.progress == step(3, event="event 3")
    assert view.events == ("event 1", "event 2", "event 3")
    assert (view.position, view.seconds_left) == (0, None)
    assert view.record.started
    assert view.record.finished
    kept = log.run("a")
    assert (kept.status, kept.done, kept.total, kept.stage) == (RunStatus.DONE, 3, 3, "search")


def test_unknown_runs_are_nothing(jobs):
    jobs.cancel("unknown")
    assert jobs.view("unknown") is None
    assert jobs.wait("unknown") is None
    assert jobs.views() == ()


def test_jobs_of_one_queue_run_in_turn_and_know_their_place(jobs):
    bodies = [Held(1) for _ in range(3)]
    for name, body in zip("abc", bodies, strict=True):
        jobs.submit(record(name), body)
    assert bodies[0].began.wait(WAIT)
    assert [view.position for view in jobs.views()] == [0, 1, 2]
    assert jobs.view("c").record.status is RunStatus.QUEUED
    assert not bodies[1].began.is_set()
    for body in bodies:
        body.gate.release()
    assert jobs.wait("c", WAIT).record.status is RunStatus.DONE
    assert [view.record.status for view in jobs.views()] == [RunStatus.DONE] * 3


def test_queues_do_not_wait_for_each_other(jobs):
    first, second = Held(1), Held(1)
    jobs.submit(record("a"), first, queue="gpu 0")
    jobs.submit(record("b"), second, queue="gpu 1")
    assert first.began.wait(WAIT)
    assert second.began.wait(WAIT)
    second.gate.release()
    assert jobs.wait("b", WAIT).record.status is RunStatus.DONE
    assert jobs.view("a").record.status is RunStatus.RUNNING


def test_a_waiting_job_is_cancelled_at_once(jobs, log):
    first, second = Held(1), Held(1)
    jobs.submit(record("a"), first)
    jobs.submit(record("b"), second)
    assert first.began.wait(WAIT)
    jobs.cancel("b")
    jobs.cancel("b")
    assert jobs.view("b").record.status is RunStatus.CANCELLED
    assert log.run("b").status is RunStatus.CANCELLED
    first.gate.release()
    assert jobs.wait("a", WAIT).record.status is RunStatus.DONE
    assert not second.began.is_set()


def test_a_running_job_is_cancelled_and_its_body_closed(jobs):
    body = Held()
    jobs.submit(record(), body)
    body.gate.release()
    assert body.began.wait(WAIT)
    jobs.cancel("a")
    jobs.cancel("a")
    view = jobs.wait("a", WAIT)
    assert view.record.status is RunStatus.CANCELLED
    assert view.record.error == ""
    assert body.closed
    jobs.cancel("a")
    assert jobs.view("a").record.status is RunStatus.CANCELLED


def test_a_body_that_does_not_listen_is_stopped_between_two_steps(jobs):
    closed = threading.Event()

    def endless(_cancelled):
        try:
            for done in range(1_000_000):
                time.sleep(0.001)
                yield step(done, 0)
        finally:
            closed.set()

    jobs.submit(record(), endless)
    time.sleep(0.05)
    jobs.cancel("a")
    assert jobs.wait("a", WAIT).record.status is RunStatus.CANCELLED
    assert closed.is_set()


def test_a_refusal_fails_with_its_own_line(jobs, log):
    def refuse(_cancelled):
        yield step(1)
        raise ModelError("No such model.")

    jobs.submit(record(), refuse)
    view = jobs.wait("a", WAIT)
    assert (view.record.status, view.record.error, view.record.done) == (RunStatus.FAILED, "No such model.", 1)
    assert log.run("a").error == "No such model."


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ValueError("bad\nsecond line" + "x" * 500), "ValueError: bad"),
        (MemoryError(), "MemoryError"),
        (SystemExit(3), "3"),
    ],
)
def test_any_other_error_fails_with_one_line_and_a_logged_traceback(jobs, caplog, error, named):
    def explode(_cancelled):
        yield step(1)
        raise error

    with caplog.at_level(logging.ERROR):
        jobs.submit(record(), explode)
        view = jobs.wait("a", WAIT)
    assert view.record.status is RunStatus.FAILED
    assert named in view.record.error
    assert "\n" not in view.record.error
    assert len(view.record.error) < 400
    assert caplog.records[0].exc_info[1] is error
    jobs.submit(record("b"), three)
    assert jobs.wait("b", WAIT).record.status is RunStatus.DONE


def test_a_body_that_fails_before_its_first_step_fails_the_job(jobs):
    def no_generator(_cancelled):
        raise ModelError("Refused at once.")

    jobs.submit(record(), no_generator)
    assert jobs.wait("a", WAIT).record.error == "Refused at once."


def test_the_same_request_is_not_started_twice(jobs):
    body = Held(1)
    jobs.submit(record("a", spec="same"), body)
    assert jobs.submit(record("b", spec="same"), three) == "a"
    assert jobs.submit(record("c", spec="same", kind=RunKind.SWEEP), Held(1)) == "c"
    assert [view.record.id for view in jobs.views()] == ["a", "c"]
    body.gate.release()
    jobs.wait("a", WAIT)
    assert jobs.submit(record("d", spec="same"), three) == "d"


def test_a_request_that_is_stopping_can_be_made_again(jobs):
    body = Held()
    jobs.submit(record("a", spec="same"), body)
    assert body.began.wait(WAIT)
    jobs.cancel("a")
    assert jobs.submit(record("b", spec="same"), three) == "b"
    assert jobs.wait("b", WAIT).record.status is RunStatus.DONE


def test_generations_are_always_new(jobs):
    assert jobs.submit(record("a", kind=RunKind.GENERATION, spec="same"), Held(1)) == "a"
    assert jobs.submit(record("b", kind=RunKind.GENERATION, spec="same"), Held(1)) == "b"


def test_a_run_that_is_over_starts_afresh_under_its_id(jobs, log):
    def refuse(_cancelled):
        raise ModelError("No.")

    jobs.submit(record(), refuse)
    old = jobs.wait("a", WAIT).record
    assert jobs.submit(old, three) == "a"
    assert jobs.wait("a", WAIT).record.status is RunStatus.DONE
    assert log.run("a").error == ""
    assert len(jobs.views()) == 1


def test_a_run_that_is_still_stopping_is_not_doubled(jobs):
    stay = threading.Event()

    def slow(_cancelled):
        stay.wait(WAIT)
        yield step(1)

    jobs.submit(record(), slow)
    while jobs.view("a").record.status is not RunStatus.RUNNING:
        time.sleep(0.001)
    jobs.cancel("a")
    with pytest.raises(InputError, match="a is still stopping"):
        jobs.submit(record(), three)
    stay.set()
    assert jobs.wait("a", WAIT).record.status is RunStatus.CANCELLED


def test_runs_of_a_dead_process_are_interrupted():
    log = FakeRunLog([record(status.value, status=status) for status in RunStatus])
    JobQueue(log).close()
    assert log.run("queued").status is RunStatus.INTERRUPTED
    assert log.run("running").status is RunStatus.INTERRUPTED
    for status in (RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED):
        assert log.run(status.value).status is status


def test_closing_interrupts_what_runs_and_what_waits(log):
    queue = JobQueue(log)
    body = Held()
    queue.submit(record("a"), body)
    queue.submit(record("b"), three)
    assert body.began.wait(WAIT)
    queue.close()
    queue.close()
    assert body.closed
    assert [log.run(run).status for run in "ab"] == [RunStatus.INTERRUPTED] * 2
    with pytest.raises(ComputeError, match="closing"):
        queue.submit(record("c"), three)


def test_closing_does_not_wait_for_a_step_that_never_ends(log):
    queue, stay = JobQueue(log), threading.Event()

    def stuck(_cancelled):
        stay.wait(WAIT)
        yield step(1)

    queue.submit(record(), stuck)
    while queue.view("a").record.status is not RunStatus.RUNNING:
        time.sleep(0.001)
    started = time.monotonic()
    queue.close(timeout=0.1)
    assert time.monotonic() - started < 2
    assert log.run("a").status is RunStatus.INTERRUPTED
    stay.set()
    assert queue.wait("a", WAIT).record.status is RunStatus.INTERRUPTED


def test_progress_is_written_once_a_second_and_at_each_stage(jobs, log):
    def quick(_cancelled):
        for stage in ("sweep", "search"):
            for done in range(1, 201):
                yield Progress(stage=stage, done=done, total=200)

    jobs.submit(record(), quick)
    jobs.wait("a", WAIT)
    written = [progress for _, status, progress in log.updates if status is None]
    assert [progress.stage for progress in written if progress.done == 1] == ["sweep", "search"]
    assert len(written) < 20
    assert log.run("a").done == 200


def test_events_are_bounded(jobs):
    def chatty(_cancelled):
        for number in range(10_000):
            yield step(number, 0, event=number)

    jobs.submit(record(), chatty)
    events = jobs.wait("a", WAIT).events
    assert len(events) <= 5000
    assert events[-1] == 9_999


def test_only_the_last_jobs_that_are_over_are_kept(jobs):
    for number in range(130):
        jobs.submit(record(f"run {number}"), three)
    jobs.wait("run 129", WAIT)
    jobs.submit(record("one more"), three)
    assert len(jobs.views()) <= 102
    assert jobs.view("run 0") is None
    assert jobs.view("run 129") is not None


def test_a_log_that_fails_fails_the_job_and_not_the_queue(jobs, log):
    body = Held(1)
    jobs.submit(record("a"), body)
    assert body.began.wait(WAIT)
    log.failing = StoreError("The disk is full.")
    body.gate.release()
    view = jobs.wait("a", WAIT)
    assert (view.record.status, view.record.error) == (RunStatus.FAILED, "The disk is full.")
    log.failing = None
    jobs.submit(record("b"), three)
    assert jobs.wait("b", WAIT).record.status is RunStatus.DONE


def test_waiting_gives_up_after_its_time(jobs):
    jobs.submit(record(), Held(1))
    assert jobs.wait("a", 0.01).record.status.is_live


def test_many_threads_at_once_leave_every_job_settled_once(log):
    queue = JobQueue(log)

    def busy(number):
        for turn in range(20):
            run = f"{number}-{turn}"
            queue.submit(record(run, spec=run if turn % 2 else f"shared {turn}"), three, queue=f"q{turn % 3}")
            queue.views()
            if turn % 4 == 0:
                queue.cancel(run)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in list(log.records):
        queue.wait(run, WAIT)
    queue.close()
    ends = [run for run, status, _ in log.updates if status is not None and not status.is_live]
    assert sorted(ends) == sorted(log.records)
    assert all(kept.status in (RunStatus.DONE, RunStatus.CANCELLED) for kept in log.records.values())
