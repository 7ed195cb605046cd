"""Queues of long work, one thread each, seen alike from every browser session."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import cast

from kvtuner_core.domain.ports import RunLog
from kvtuner_core.domain.provenance import utc_now
from kvtuner_core.domain.runs import JobView, Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.errors import CancelledError, ComputeError, InputError, KVTunerError
from kvtuner_core.jobs.job import Body, Job

DEFAULT_QUEUE = "default"

_WRITE_EVERY = 1.0
_KEPT = 100
_logger = logging.getLogger(__name__)


class JobQueue:
    """Runs job bodies, one at a time per queue, and records where they stand.

    A body saves each step before it yields it, so that stopping between two progresses, or a kill
    at any moment, loses at most the step under way. Views are immediate; the log hears of a
    progress when the stage changes and otherwise once a second.
    """

    def __init__(self, log: RunLog) -> None:
        """Runs that the log calls queued or running belong to a dead process: they become interrupted."""
        self._log = log
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, list[Job]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False
        for record in log.runs(statuses=(RunStatus.QUEUED, RunStatus.RUNNING)):
            log.update_run(record.id, status=RunStatus.INTERRUPTED)

    def submit(self, record: RunRecord, body: Body, *, queue: str = DEFAULT_QUEUE) -> str:
        """Put a job at the end of a queue and return the id of its run.

        Where the same request (kind and spec) is waiting or at work already, nothing is added and
        that run's id is returned; only generations are always new. The id of a run that is over
        may be given again: it starts afresh under its old id.

        Raises:
            ComputeError: If the queue is closed.
            InputError: If a run of this id is still stopping.
        """
        with self._changed:
            if self._closed:
                raise ComputeError("No job can start because the program is closing. Start it again.")
            twin = self._live_twin(record)
            if twin is not None:
                return twin.record.id
            known = self._jobs.get(record.id)
            if known is not None and known.record.status.is_live:
                raise InputError(
                    f"A run can start again once it has stopped; {record.id} is still stopping. Wait for it."
                )
            queued = replace(
                record, status=RunStatus.QUEUED, started="", finished="", stage="", done=0, total=0, error=""
            )
            self._log.add_run(queued)
            job = Job(queued, body, queue=queue)
            self._forget_oldest()
            self._jobs.pop(record.id, None)
            self._jobs[record.id] = job
            self._waiting.setdefault(queue, []).append(job)
            self._start_thread(queue)
            self._changed.notify_all()
            return record.id

    def cancel(self, run: str) -> None:
        """Ask a job to stop; one that waits is over at once. Asking twice, or too late, does nothing."""
        with self._changed:
            job = self._jobs.get(run)
            if job is None or not job.record.status.is_live or job.stopping:
                return
            job.stopping = True
            if job in self._waiting.get(job.queue, []):
                self._waiting[job.queue].remove(job)
                self._settle(job, RunStatus.CANCELLED)

    def view(self, run: str) -> JobView | None:
        """One job, or ``None`` where this process never ran it."""
        with self._changed:
            job = self._jobs.get(run)
            return None if job is None else job.view(self._position(job))

    def views(self) -> tuple[JobView, ...]:
        """Every job of this process in order of submission, the last hundred that are over included."""
        with self._changed:
            return tuple(job.view(self._position(job)) for job in self._jobs.values())

    def wait(self, run: str, timeout: float | None = None) -> JobView | None:
        """Block until a job is over or ``timeout`` seconds have passed; its view then, or ``None`` if unknown."""
        with self._changed:
            job = self._jobs.get(run)
            if job is None:
                return None
            self._changed.wait_for(lambda: not job.record.status.is_live, timeout)
            return job.view(self._position(job))

    def close(self, timeout: float = 5.0) -> None:
        """Stop everything; what was not over becomes interrupted. A second call does nothing.

        Args:
            timeout: Seconds to wait for the steps under way.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for job in self._jobs.values():
                job.stopping = True
            threads = tuple(self._threads.values())
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            for job in self._jobs.values():
                self._settle(job, RunStatus.INTERRUPTED)

    def _live_twin(self, record: RunRecord) -> Job | None:
        if record.kind is RunKind.GENERATION:
            return None
        for job in self._jobs.values():
            same = (job.record.kind, job.record.spec) == (record.kind, record.spec)
            if same and job.record.status.is_live and not job.stopping:
                return job
        return None

    def _forget_oldest(self) -> None:
        over = [run for run, job in self._jobs.items() if not job.record.status.is_live]
        for run in over[: max(0, len(over) - _KEPT)]:
            del self._jobs[run]

    def _position(self, job: Job) -> int:
        waiting = self._waiting.get(job.queue, [])
        if job not in waiting:
            return 0
        running = any(
            other.queue == job.queue and other.record.status is RunStatus.RUNNING for other in self._jobs.values()
        )
        return waiting.index(job) + running

    def _start_thread(self, queue: str) -> None:
        if queue not in self._threads:
            thread = threading.Thread(target=self._work, args=(queue,), name=f"jobs-{queue}", daemon=True)
            self._threads[queue] = thread
            thread.start()

    def _work(self, queue: str) -> None:
        while (job := self._next(queue)) is not None:
            status, error = self._perform(job)
            with self._changed:
                self._settle(job, status, error)

    def _next(self, queue: str) -> Job | None:
        """Wait for the next job of a queue and mark it running; ``None`` once everything is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._waiting[queue]))
            if self._closed:
                return None
            job = self._waiting[queue].pop(0)
            job.record = replace(job.record, status=RunStatus.RUNNING, started=utc_now())
            job.begin()
            return job

    def _perform(self, job: Job) -> tuple[RunStatus, str]:
        """Run a body to its end; the status it ends with, and one line where it failed."""
        try:
            self._log.update_run(job.record.id, status=RunStatus.RUNNING)
            stopped = self._drive(job)
        except CancelledError:
            stopped = True
        except KVTunerError as error:
            return RunStatus.FAILED, str(error)
        # A body may call libraries that raise anything or try to exit; the queue outlives them all.
        except (Exception, SystemExit) as error:
            _logger.exception("Job %s (%s) stopped on an unexpected error", job.record.id, job.record.title)
            return RunStatus.FAILED, _one_line(error)
        if not stopped:
            return RunStatus.DONE, ""
        return (RunStatus.INTERRUPTED if self._closed else RunStatus.CANCELLED), ""

    def _drive(self, job: Job) -> bool:
        """Advance the body until it ends or is to stop; whether it was stopped."""
        written, stage = time.monotonic(), None

        def cancelled() -> bool:
            return job.stopping

        # A generator is closed at once when it is left early, so that its own clean-up runs here.
        with closing(_Steps(job.body(cancelled))) as steps:
            for progress in steps:
                with self._changed:
                    job.advance(progress)
                now = time.monotonic()
                if job.stopping:
                    return True
                if progress.stage != stage or now - written >= _WRITE_EVERY:
                    self._log.update_run(job.record.id, progress=progress)
                    written, stage = now, progress.stage
        return False

    def _settle(self, job: Job, status: RunStatus, error: str = "") -> None:
        """Write how a job ended, once; called with the lock held."""
        if not job.record.status.is_live:
            return
        job.record = replace(job.record, status=status, finished=utc_now(), error=error)
        record = job.record
        last = Progress(stage=record.stage, done=record.done, total=record.total)
        try:
            self._log.update_run(record.id, status=status, progress=last, error=error)
        except KVTunerError:
            _logger.exception("The end of job %s could not be stored", record.id)
        self._changed.notify_all()


class _Steps:
    """An iterator that can be closed, whether or not it is a generator."""

    def __init__(self, steps: Iterator[Progress]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def close(self) -> None:
        close = cast(Callable[[], None] | None, getattr(self._steps, "close", None))
        if close is not None:
            close()


def _one_line(error: BaseException) -> str:
    words = str(error).strip().split("\n")[0][:200]
    what = type(error).__name__ + (f": {words}" if words else "")
    return f"The job stopped on an unexpected error ({what}). The program's log has the details."
