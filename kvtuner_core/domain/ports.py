"""The protocols between folders that do not see each other; `services` joins them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.domain.study import Candidate
from kvtuner_core.domain.tasks import Answer, MeasureTask, ModelReport, Task, WorkerInfo

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

    def run_many(
        self,
        tasks: Sequence[MeasureTask],
        *,
        report: ModelReport,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generator[tuple[int, Answer], None, None]:
        """Run independent tasks, on all workers at once; closing the generator lets go what has not begun.

        Answers do not depend on how many workers there are, nor on which of them gave which. Where
        there is one process only, a task is run when its answer is asked for.

        Args:
            tasks: What to do; those that share preparation (the pairs of one layer) stand together.
            report: What every worker must find when it loads the model.
            cancelled: Polled while tasks run.

        Yields:
            The index of a task and its answer, as soon as it is there, whichever is done first.

        Raises:
            CancelledError: Once ``cancelled`` is true; what is under way ends by itself.
            ComputeError: If a worker has other weights, another kind of device or another dtype than
                ``report`` says, or if a task's workers died.
            KVTunerError: What a task raised, unchanged.
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
    """Measures layers under some pairs, from the store where they are known already."""

    def profile_many(
        self, layers: Sequence[int], pairs: Sequence[PrecisionPair]
    ) -> Generator[ErrorProfile, None, None]:
        """Yield one profile per layer and pair, in order, each as soon as it and those before it are known."""
        ...


class Scorer(Protocol):
    """Scores policies, from the store where they are known already."""

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        """Yield each policy's score, in order, as soon as it and those before it are known."""
        ...


class StoppingScorer(Scorer, Protocol):
    """A `Scorer` that need not go on with a policy once it is dominated for certain."""

    def score_until(
        self, policies: Sequence[KVPolicy], bars: Sequence[float]
    ) -> Generator[PolicyScore | PartialScore, None, None]:
        """Yield each policy's score, or what was seen of it when its lower bound exceeded its bar; as `score_many`."""
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
