"""How fast a job goes, and how long the rest of its stage takes."""

import statistics
from collections import deque

from kvtuner_core.domain.runs import Progress

_RECENT = 32
_KNOWN_AFTER = 2
_AT_ONCE = 0.002
"""Seconds within which progresses were fetched together: what came before them took them all."""


class Pace:
    """Durations of the last newly computed units of one stage.

    Units from the store cost nothing, so they are counted neither in the rate nor in the
    estimate's unit time; time that passes between two progresses counts for the units in between.
    Units that are under way together end in bursts, so that many of them share their time.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._computed = 0
        self._reused = 0
        self._left = 0
        self._together = 1
        self._since = 0.0
        self._burst = (0, 0.0)
        self._durations: deque[float] = deque(maxlen=_RECENT)

    def start(self, now: float) -> None:
        """The work begins at ``now``, in seconds of a monotonic clock."""
        self._since = now

    def record(self, progress: Progress, *, now: float) -> None:
        """Take in one progress."""
        if progress.stage != self._stage:
            self._stage, self._computed, self._reused = progress.stage, 0, 0
            self._durations.clear()
            self._burst = (0, 0.0)
        computed = progress.done - progress.reused
        new = computed - self._computed
        if new > 0:
            self._add(new, now - self._since)
        if new > 0 or progress.reused > self._reused:
            self._since = now
        self._computed, self._reused = computed, progress.reused
        self._left = max(0, progress.total - progress.done)
        self._together = min(max(1, progress.together), _RECENT // _KNOWN_AFTER)

    def _add(self, units: int, seconds: float) -> None:
        if seconds < _AT_ONCE and self._durations:
            for _ in range(min(self._burst[0], len(self._durations))):
                self._durations.pop()
            units, seconds = units + self._burst[0], seconds + self._burst[1]
        self._burst = (units, seconds)
        self._durations.extend([seconds / units] * min(units, _RECENT))

    @property
    def rate(self) -> float:
        """Newly computed units per second, 0 before two bursts of them are known."""
        spent = sum(self._durations)
        return len(self._durations) / spent if self._known and spent > 0 else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Median duration x units left, less what the unit under way has had; ``None`` before two bursts."""
        if not self._known or self._left == 0:
            return None
        unit = statistics.median_low(self._shares())
        return self._left * unit - min(unit, max(0.0, now - self._since))

    def _shares(self) -> list[float]:
        """Mean duration of each burst, the newest first."""
        newest, size = list(self._durations)[::-1], self._together
        return [sum(newest[at : at + size]) / size for at in range(0, len(newest) - size + 1, size)]

    @property
    def _known(self) -> bool:
        return len(self._durations) >= _KNOWN_AFTER * self._together
