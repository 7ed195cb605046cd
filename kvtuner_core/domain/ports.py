"""The protocols between folders that do not see each other; `services` joins them."""

from collections.abc import Callable, Iterator
from typing import Protocol

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.domain.study import Candidate
from kvtuner_core.domain.tasks import Answer, Task, WorkerInfo

Emit = Callable[[object], None]
"""Receives what a task reports while it runs, such as a `TokenEvent`."""


class Compute(Protocol):
    """Where model work runs."""

    def run(self, task: Task, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None) -> Answer:
        """Run one task to its end and return its answer.

        Args:
            task: What to do.
            emit: Called in the caller's process with each event of the task.
            cancelled: Polled while the task runs; once true, a generation stops early.

        Raises:
            KVTunerError: What the task raised, unchanged, or `ComputeError` if the worker died.
        """
        ...

    def describe(self, reference: str, *, version: str = "") -> ModelInfo:
        """Geometry of a model from its configuration alone, without loading it or waiting for other work.

        Args:
            reference: As in a `ModelSpec`.
            version: Changes when the model's files do, so that an answer may be kept; empty if not known.

        Raises:
            ModelError: If there is no such model, or its cache cannot be quantised.
        """
        ...

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The processes that are there now; empty where none was needed yet."""
        ...

    def close(self) -> None:
        """Release the workers or the loaded models."""
        ...


class Profiler(Protocol):
    """Measures one layer under some pairs."""

    def profile(self, layer: int, pairs: tuple[PrecisionPair, ...]) -> tuple[ErrorProfile, ...]:
        """One profile per pair, in order."""
        ...


class Scorer(Protocol):
    """Scores a policy, from the store where it is known already."""

    def score(self, policy: KVPolicy) -> PolicyScore:
        """The policy's score."""
        ...


class Searcher(Protocol):
    """An ask-and-tell search over policies."""

    def candidates(self, scorer: Scorer) -> Iterator[Candidate]:
        """Yield each new candidate once it is scored, until the evaluations are used up."""
        ...


class RunLog(Protocol):
    """Where the job queue keeps its records (the store implements it)."""

    def add_run(self, record: RunRecord) -> None:
        """Keep a new record."""
        ...

    def update_run(
        self,
        run: str,
        *,
        status: RunStatus | None = None,
        progress: Progress | None = None,
        error: str | None = None,
    ) -> None:
        """Change a record; times are set from the status."""
        ...

    def run(self, run: str) -> RunRecord | None:
        """One record, or ``None``."""
        ...

    def runs(self, *, kinds: tuple[RunKind, ...] = (), statuses: tuple[RunStatus, ...] = ()) -> tuple[RunRecord, ...]:
        """Records, newest first; empty filters mean all."""
        ...
