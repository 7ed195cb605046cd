"""Measurements that are taken once: from the store where they are known, else from the live model."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Compute
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.tasks import Answer, EvaluationSpec, MeasureTask, ModelReport, ProfileTask, ScoreTask
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.clock import utc_now
from kvtuner_core.services.work import Cancelled, answer_of, never
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import Identity, SessionIdentity, Store

T = TypeVar("T")


def stamped(report: ModelReport) -> Provenance:
    """The worker's provenance with the present time."""
    return replace(report.provenance, created=utc_now())


@dataclass(slots=True, kw_only=True)
class Measurements:
    """Profiles and scores of one model on one prompt set, cut one way (a `Profiler` and a `Scorer`).

    Attributes:
        store: Where they are kept.
        compute: Where the model is.
        evaluation: The model, the prompts and how they are cut.
        report: What is known of the loaded model; its fingerprint is part of every key.
        cancelled: Polled before each new measurement.
        objective: What a score must hold; a stored one without it is measured again.
        reused: How many that were yielded came from the store so far.
        ahead: How many are measured and stored, but wait for an earlier one to be yielded.
        identity: Makes the content addresses.
    """

    store: Store
    compute: Compute
    evaluation: EvaluationSpec
    report: ModelReport
    cancelled: Cancelled = never
    objective: Objective = Objective.MEAN_KL
    reused: int = 0
    ahead: int = 0
    identity: SessionIdentity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = SessionIdentity.of(self.report, self.evaluation)

    @classmethod
    def of(
        cls, ws: Workspace, evaluation: EvaluationSpec, report: ModelReport, cancelled: Cancelled = never
    ) -> "Measurements":
        """Measurements that a workspace keeps and takes."""
        return cls(store=ws.store, compute=ws.compute, evaluation=evaluation, report=report, cancelled=cancelled)

    def known_score(self, policy: KVPolicy) -> PolicyScore | None:
        """The stored score, or ``None`` where there is none that holds the objective."""
        return self._score_at(self.identity.score(policy).key)

    def _score_at(self, key: str) -> PolicyScore | None:
        known = self.store.get_score(key)
        return known if known is not None and known.measures(self.objective) else None

    def known_profile(self, layer: int, pair: PrecisionPair) -> ErrorProfile | None:
        """The stored errors, or ``None``."""
        return self.store.get_profile(self.identity.profile(layer, pair).key)

    def score(self, policy: KVPolicy) -> PolicyScore:
        """One policy's score; see `score_many`."""
        with closing(self.score_many((policy,))) as scores:
            return next(scores)

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        """Yield each policy's score, in order; new ones are measured on all workers and stored as they come in.

        Raises:
            CancelledError: If somebody asked to stop; what is done by then is stored.
            KVTunerError: What the model work raised.
        """
        wanted = [
            _Wanted(identity=self.identity.score(policy), task=ScoreTask(evaluation=self.evaluation, policy=policy))
            for policy in policies
        ]
        yield from self._in_order(wanted, _Kind(known=self._score_at, accept=_score, keep=self.store.put_score))

    def profile_many(
        self, layers: Sequence[int], pairs: Sequence[PrecisionPair]
    ) -> Generator[ErrorProfile, None, None]:
        """Yield the errors of each layer under each pair, in order; new ones are measured and stored as they come in.

        Raises:
            CancelledError: If somebody asked to stop; what is done by then is stored.
            KVTunerError: What the model work raised.
        """
        wanted = [
            _Wanted(
                identity=self.identity.profile(layer, pair),
                task=ProfileTask(evaluation=self.evaluation, layer=layer, pairs=(pair,)),
            )
            for layer in layers
            for pair in pairs
        ]
        kind = _Kind(known=self.store.get_profile, accept=_profile, keep=self.store.put_profile)
        yield from self._in_order(wanted, kind)

    def progress(self, stage: str, given: int, total: int, *, message: str, event: object) -> Progress:
        """How far a stage is once ``given`` of its measurements were yielded; those done ahead of them count too."""
        done = given + self.ahead
        return Progress(
            stage=stage,
            done=done,
            total=total,
            reused=min(self.reused, done),
            together=max(1, len(self.compute.workers())),
            message=message,
            event=event,
        )

    def _in_order(self, wanted: Sequence["_Wanted"], kind: "_Kind[T]") -> Generator[T, None, None]:
        """Yield what is wanted in its order, each thing measured once; ``ahead`` counts what waits for its turn."""
        keys = [one.identity.key for one in wanted]
        found = {key: kind.known(key) for key in dict.fromkeys(keys)}
        missing = {key: one for key, one in zip(keys, wanted, strict=True) if found[key] is None}
        order, fresh = list(missing), set(missing)
        with closing(self._measured([one.task for one in missing.values()])) as answers:
            for key in keys:
                while (value := found[key]) is None:
                    index, answer = next(answers)
                    measured = kind.accept(answer)
                    kind.keep(missing[order[index]].identity, measured, stamped(self.report))
                    found[order[index]] = measured
                    self.ahead += 1
                if key in fresh:
                    fresh.remove(key)
                    self.ahead -= 1
                else:
                    self.reused += 1
                yield value

    def _measured(self, tasks: Sequence[MeasureTask]) -> Generator[tuple[int, Answer], None, None]:
        if tasks and self.cancelled():
            raise CancelledError("The work was stopped on request; what was finished is kept.")
        yield from self.compute.run_many(tasks, report=self.report, cancelled=self.cancelled)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A measurement: its content address, and the task that makes it."""

    identity: Identity
    task: MeasureTask


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind(Generic[T]):
    """How one kind of measurement is looked up, read from an answer, and stored."""

    known: Callable[[str], T | None]
    accept: Callable[[Answer], T]
    keep: Callable[[Identity, T, Provenance], object]


def _score(answer: Answer) -> PolicyScore:
    return answer_of(PolicyScore, answer)


def _profile(answer: Answer) -> ErrorProfile:
    if not isinstance(answer, tuple) or len(answer) != 1:
        raise ComputeError(f"A worker must answer a profile of one pair with one of them; got {answer!r:.80}.")
    return answer[0]
