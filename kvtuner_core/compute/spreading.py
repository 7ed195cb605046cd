"""Spreads tasks over all workers, so that each has its next one at hand and shares no preparation with another.

Every task is sent to one worker by its address, three at a time: while one is at work, the next
ones wait there, so that no worker waits for an answer to travel. Tasks of one layer go to one worker,
one after the other, for what they have in common is kept there. When a worker is gone, what it had
goes back to the front and to another worker.
"""

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from kvtuner_core.compute.agreement import check_agreement
from kvtuner_core.compute.connection import Connection, NotHandedOverError, Pending, died
from kvtuner_core.domain.tasks import Answer, InspectTask, MeasureTask, ModelReport, ProfileTask
from kvtuner_core.errors import CancelledError, ComputeError, KVTunerError

AT_HAND = 3
"""Tasks that a worker has: one at work, the others waiting for it."""

MOST_DEATHS = 4
"""A task is given up after so many workers died while they had it."""

_POLL = 0.1
_EVERY = 1.0
_HAND_OVER = 1.0

Agreed = MutableMapping[tuple[str, object], ModelReport]
"""What the worker at an address found when it loaded a model."""


@dataclass(slots=True, eq=False)
class _Lane:
    """One worker: tasks set aside for it, and those it has, by index (``None``: the look at its model)."""

    address: str
    aside: deque[int] = field(default_factory=deque)
    at_hand: dict[Pending, int | None] = field(default_factory=dict)


class Spread:
    """One set of tasks on its way over the workers.

    Args:
        connection: The workers.
        tasks: What to do; neighbours of the same layer stay together.
        report: What every worker must find when it loads the model.
        agreed: What workers found before; grows.
    """

    def __init__(
        self, connection: Connection, tasks: Sequence[MeasureTask], *, report: ModelReport, agreed: Agreed
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._report = report
        self._agreed = agreed
        self._waiting = deque(deque(group) for group in _together(tasks))
        self._deaths: Counter[int | None] = Counter()
        self._lanes: dict[str, _Lane] = {}
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._looked = -_EVERY

    def answers(self, cancelled: Callable[[], bool] | None) -> Generator[tuple[int, str, Answer], None, None]:
        """Yield the index of each task, the address of its worker and its answer, as they come in.

        Raises:
            CancelledError: Once ``cancelled`` is true.
            ComputeError: If a worker disagrees with the report, or a task's workers died.
            LostConnectionError: If the workers cannot be reached any more.
        """
        left = len(self._tasks)
        try:
            while left:
                if cancelled is not None and cancelled():
                    raise CancelledError("Cancelled; the workers finish the steps under way by themselves.")
                self._look()
                self._fill()
                for answer in self._done():
                    left -= 1
                    yield answer
        finally:
            for lane in self._lanes.values():
                for pending in lane.at_hand:
                    self._connection.release(pending)

    def _look(self) -> None:
        """See from time to time which workers are there."""
        now = time.monotonic()
        if now - self._looked < _EVERY:
            return
        self._looked = now
        there = self._connection.addresses()
        for address in [known for known in self._lanes if known not in there]:
            self._take_back(self._lanes.pop(address))
        for address in there:
            self._lanes.setdefault(address, _Lane(address))

    def _take_back(self, lane: _Lane) -> None:
        """Put what a lost worker had back in front of what waits."""
        for pending in lane.at_hand:
            self._connection.release(pending)
        self._deaths.update(lane.at_hand.values())
        if self._deaths and max(self._deaths.values()) >= MOST_DEATHS:
            raise died(MOST_DEATHS)
        back = deque(index for index in (*lane.at_hand.values(), *lane.aside) if index is not None)
        if back:
            self._waiting.appendleft(back)

    def _fill(self) -> None:
        for count in range(AT_HAND):
            # What waits at hand of one worker would be missing when another has looked at its model.
            if count and any(None in lane.at_hand.values() for lane in self._lanes.values()):
                return
            for lane in self._lanes.values():
                if len(lane.at_hand) == count:
                    self._give(lane)

    def _give(self, lane: _Lane) -> None:
        """Send the next task to a worker, or first a look at its model."""
        if not lane.aside and self._waiting:
            lane.aside = self._waiting.popleft()
        if not lane.aside:
            return
        model = self._tasks[lane.aside[0]].evaluation.model
        known = self._agreed.get((lane.address, model))
        if known is None:
            if not lane.at_hand:
                look = self._connection.submit_to(lane.address, InspectTask(model=model), inbox=self._inbox)
                lane.at_hand[look] = None
            return
        check_agreement(known, self._report, worker=f"the worker at {lane.address}")
        index = lane.aside.popleft()
        lane.at_hand[self._connection.submit_to(lane.address, self._tasks[index], inbox=self._inbox)] = index

    def _done(self) -> Iterator[tuple[int, str, Answer]]:
        """Wait a moment for a call; its index, worker and answer, or nothing."""
        try:
            pending = self._inbox.get(timeout=_POLL)
        except queue.Empty:
            return
        lane = next((lane for lane in self._lanes.values() if pending in lane.at_hand), None)
        if lane is None or not isinstance(pending, Pending):
            return
        try:
            reply = self._connection.reply(pending, timeout=_HAND_OVER)
        except NotHandedOverError:
            # The worker may have died with the answer in its hands; a look will tell.
            self._inbox.put(pending)
            return
        index = lane.at_hand.pop(pending)
        self._connection.release(pending)
        if isinstance(reply.answer, KVTunerError):
            raise reply.answer
        if index is not None:
            yield index, lane.address, reply.answer
        elif isinstance(pending.task, InspectTask):
            self._agreed[lane.address, pending.task.model] = _report(reply.answer)


def _report(answer: Answer) -> ModelReport:
    if not isinstance(answer, ModelReport):
        raise ComputeError(f"A worker must answer a look at its model with a ModelReport; got {answer!r:.80}.")
    return answer


def _together(tasks: Sequence[MeasureTask]) -> Iterator[Iterator[int]]:
    """Indices of neighbours that share what a worker prepares."""

    def key(index: int) -> object:
        task = tasks[index]
        return (task.evaluation, task.layer) if isinstance(task, ProfileTask) else index

    for _, group in groupby(range(len(tasks)), key):
        yield group
