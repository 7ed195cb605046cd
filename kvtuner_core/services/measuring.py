"""Measurements that are taken once: from the store where they are known, else from the live model."""

from dataclasses import dataclass, field, replace

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Compute
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.tasks import EvaluationSpec, ModelReport, ProfileTask, ScoreTask
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.clock import utc_now
from kvtuner_core.services.work import Cancelled, never
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import SessionIdentity, Store


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
        reused: How many came from the store so far.
        identity: Makes the content addresses.
    """

    store: Store
    compute: Compute
    evaluation: EvaluationSpec
    report: ModelReport
    cancelled: Cancelled = never
    objective: Objective = Objective.MEAN_KL
    reused: int = 0
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
        known = self.store.get_score(self.identity.score(policy).key)
        return known if known is not None and known.measures(self.objective) else None

    def known_profile(self, layer: int, pair: PrecisionPair) -> ErrorProfile | None:
        """The stored errors, or ``None``."""
        return self.store.get_profile(self.identity.profile(layer, pair).key)

    def score(self, policy: KVPolicy) -> PolicyScore:
        """The policy's score; a new one is stored before it is returned.

        Raises:
            CancelledError: If somebody asked to stop before a new measurement.
            KVTunerError: What the model work raised.
        """
        known = self.known_score(policy)
        if known is not None:
            self.reused += 1
            return known
        self._go_on()
        answer = self.compute.run(ScoreTask(evaluation=self.evaluation, policy=policy), cancelled=self.cancelled)
        if not isinstance(answer, PolicyScore):
            raise ComputeError(f"A worker must answer a score with a PolicyScore; got {type(answer).__name__}.")
        self.store.put_score(self.identity.score(policy), answer, stamped(self.report))
        return answer

    def profile(self, layer: int, pairs: tuple[PrecisionPair, ...]) -> tuple[ErrorProfile, ...]:
        """One layer's errors under each pair, in order; only those not known yet are measured, and stored.

        Raises:
            CancelledError: If somebody asked to stop before a new measurement.
            KVTunerError: What the model work raised.
        """
        known = {pair: self.known_profile(layer, pair) for pair in pairs}
        missing = tuple(pair for pair in pairs if known[pair] is None)
        self.reused += len(pairs) - len(missing)
        if missing:
            known.update(zip(missing, self._measure(layer, missing), strict=True))
        return tuple(profile for profile in known.values() if profile is not None)

    def _measure(self, layer: int, pairs: tuple[PrecisionPair, ...]) -> tuple[ErrorProfile, ...]:
        self._go_on()
        task = ProfileTask(evaluation=self.evaluation, layer=layer, pairs=pairs)
        answer = self.compute.run(task, cancelled=self.cancelled)
        if not isinstance(answer, tuple) or len(answer) != len(pairs):
            raise ComputeError(f"A worker must answer a profile with {len(pairs)} of them; got {answer!r:.80}.")
        provenance = stamped(self.report)
        for profile in answer:
            self.store.put_profile(self.identity.profile(layer, profile.pair), profile, provenance)
        return answer

    def _go_on(self) -> None:
        if self.cancelled():
            raise CancelledError("The work was stopped on request; what was finished is kept.")
