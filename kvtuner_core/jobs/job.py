"""One job: its record, its last progress, its events, and whether it is to stop."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from kvtuner_core.domain.runs import JobView, Progress, RunRecord
from kvtuner_core.jobs.pace import Pace

Body = Callable[[Callable[[], bool]], Iterator[Progress]]
"""The work: given a function that says whether to stop, yields a progress after each saved step."""

_EVENTS = 4000


class Job:
    """The queue's own notes on one job; every access holds the queue's lock."""

    def __init__(self, record: RunRecord, body: Body, *, queue: str) -> None:
        self.record = record
        self.body = body
        self.queue = queue
        self.stopping = False
        self._progress: Progress | None = None
        self._pace = Pace()
        self._events: deque[object] = deque(maxlen=_EVENTS)

    def begin(self) -> None:
        """The body starts now."""
        self._pace.start(time.monotonic())

    def advance(self, progress: Progress) -> None:
        """Take in one progress."""
        self._progress = progress
        self._pace.record(progress, now=time.monotonic())
        self.record = replace(self.record, stage=progress.stage, done=progress.done, total=progress.total)
        if progress.event is not None:
            self._events.append(progress.event)

    def view(self, position: int) -> JobView:
        """The job as it stands, with ``position`` jobs ahead of it."""
        live = self.record.status.is_live
        return JobView(
            record=self.record,
            position=position,
            progress=self._progress,
            rate=self._pace.rate,
            seconds_left=self._pace.seconds_left(time.monotonic()) if live else None,
            events=tuple(self._events),
            stopping=self.stopping,
        )
