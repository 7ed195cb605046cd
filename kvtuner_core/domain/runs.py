"""Stored runs and live jobs."""

from dataclasses import dataclass, field
from enum import StrEnum


class RunKind(StrEnum):
    """What a run or job does."""

    SWEEP = "sweep"
    SEARCH = "search"
    EVALUATION = "evaluation"
    GENERATION = "generation"
    INSPECTION = "inspection"


class RunStatus(StrEnum):
    """Where a run stands. ``INTERRUPTED`` means its process ended before it did; it can be resumed."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_live(self) -> bool:
        """Whether the job is waiting or at work."""
        return self in (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: Readable part of the work, such as ``sweep`` or ``search``.
        done: Units finished in this stage.
        total: Units of this stage, 0 where unknown.
        reused: How many of ``done`` were in the store already.
        together: How many units are under way at once, one per worker.
        message: One readable line, or empty.
        event: A value for live views (a `TokenEvent`, an `ErrorProfile`, a `Candidate`), or ``None``.
    """

    stage: str
    done: int
    total: int
    reused: int = 0
    together: int = 1
    message: str = ""
    event: object | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One stored run, also what a queue shows of a job.

    Attributes:
        id: Short id, unique in the store.
        kind: What it does.
        status: Where it stands.
        title: One readable line.
        spec: The request as JSON text; the same request started again goes on from there.
        created: UTC, ISO 8601.
        started: UTC, or empty.
        finished: UTC, or empty.
        stage: Stage of the last progress.
        done: Units finished.
        total: Units in all, 0 where unknown.
        error: One line where it failed, else empty.
    """

    id: str
    kind: RunKind
    status: RunStatus
    title: str
    spec: str
    created: str
    started: str = ""
    finished: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A live job as the pages see it.

    Attributes:
        record: The stored record.
        position: Jobs ahead of it in its queue; 0 when it runs.
        progress: The last progress, or ``None`` before the first.
        rate: Newly computed units per second, 0 where unknown.
        seconds_left: Honest estimate for this stage, or ``None`` where unknown.
        events: The latest events, oldest first, at most a few thousand.
        stopping: Whether somebody asked it to stop.
    """

    record: RunRecord
    position: int
    progress: Progress | None
    rate: float = 0.0
    seconds_left: float | None = None
    events: tuple[object, ...] = field(default=())
    stopping: bool = False
