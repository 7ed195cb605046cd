"""Measurements that are taken once: from the store where they are known, else from the live model."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Generic, TypeVar, cast

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Compute
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance, utc_now
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.stopping import PartialScore, Stopping
from kvtuner_core.domain.tasks import (
    PROFILED_TOKENS,
    Answer,
    EvaluationSpec,
    MeasureTask,
    ModelReport,
    ProfileTask,
    ScoreManyTask,
    ScoreTask,
)
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.work import Cancelled, never
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import Identity, SessionIdentity, Store

S = TypeVar("S")
T = TypeVar("T")

_PASS = 8
"""Policies in a task are a multiple of it where there are enough: a pass of them takes as long as one with fewer."""

_PAIRS = 4
"""Pairs of a layer in a task on a CPU at most: more would seldom be stored, and stopped."""

_BUNCH_SECONDS = 1.0
_PASS_SECONDS = 60.0


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
        telling: Share of the loss that each prompt usually has, for evaluations that may be stopped.
        reused: How many that were yielded came from the store so far.
        ahead: How many are measured and stored, but wait for an earlier one to be yielded.
        pace: Seconds that the latest scores took each, or ``None`` before the first.
        identity: Makes the content addresses.
    """

    store: Store
    compute: Compute
    evaluation: EvaluationSpec
    report: ModelReport
    cancelled: Cancelled = never
    objective: Objective = Objective.MEAN_KL
    telling: tuple[float, ...] = ()
    reused: int = 0
    ahead: int = 0
    pace: float | None = None
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
        key = self.identity.score(policy).key
        return self._scores_at([key]).get(key)

    def _scores_at(self, keys: Sequence[str]) -> dict[str, PolicyScore]:
        return {key: score for key, score in self.store.get_scores(keys).items() if score.measures(self.objective)}

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
        wanted = [_Wanted(identity=self.identity.score(policy), subject=policy) for policy in policies]
        kind = _Kind(known=self._scores_at, bunches=self._bunches, ask=self._ask_scores, keep=self.store.put_scores)
        yield from self._in_order(wanted, kind)

    def known_until(self, policy: KVPolicy, bar: float) -> PolicyScore | PartialScore | None:
        """The stored score, else what a stored part of one says: where it would have been stopped; or ``None``."""
        key = self.identity.score(policy).key
        return self._known_until({key: (policy, bar)}).get(key)

    def _known_until(self, subjects: Mapping[str, tuple[KVPolicy, float]]) -> dict[str, PolicyScore | PartialScore]:
        """The same of policies by the key of their score."""
        known: dict[str, PolicyScore | PartialScore] = {**self._scores_at(tuple(subjects))}
        partly = {
            self.identity.partial(policy, self.objective).key: (key, bar)
            for key, (policy, bar) in subjects.items()
            if key not in known
        }
        for place, partial in (self.store.get_partials(tuple(partly)) if partly else {}).items():
            key, bar = partly[place]
            within = partial.within(bar)
            known |= {} if within is None else {key: within}
        return known

    def score_until(
        self, policies: Sequence[KVPolicy], bars: Sequence[float]
    ) -> Generator[PolicyScore | PartialScore, None, None]:
        """As `score_many`, but a policy whose lower bound exceeds its bar is left unfinished.

        Args:
            policies: What is scored.
            bars: For each policy the loss of another one that is no wider; infinity where there is none.

        Raises:
            CancelledError: If somebody asked to stop; what is done by then is stored.
            KVTunerError: What the model work raised.
        """
        wanted = [
            _Wanted(identity=self.identity.score(policy), subject=(policy, bar))
            for policy, bar in zip(policies, bars, strict=True)
        ]
        subjects = {one.identity.key: one.subject for one in wanted}

        def known(keys: Sequence[str]) -> dict[str, PolicyScore | PartialScore]:
            return self._known_until({key: subjects[key] for key in keys})

        def keep(measured: Sequence[tuple[Identity, PolicyScore | PartialScore]], provenance: Provenance) -> None:
            whole = [(identity, score) for identity, score in measured if isinstance(score, PolicyScore)]
            self.store.put_scores(whole, provenance)
            partial = [
                (self.identity.partial(subjects[identity.key][0], self.objective), score)
                for identity, score in measured
                if isinstance(score, PartialScore)
            ]
            self.store.put_partials(partial, provenance)

        kind: _Kind[tuple[KVPolicy, float], PolicyScore | PartialScore] = _Kind(
            known=known, bunches=self._bunches, ask=self._ask_until, keep=keep
        )
        yield from self._in_order(wanted, kind)

    def profile_many(
        self, layers: Sequence[int], pairs: Sequence[PrecisionPair]
    ) -> Generator[ErrorProfile, None, None]:
        """Yield the errors of each layer under each pair, in order; new ones are measured and stored as they come in.

        Raises:
            CancelledError: If somebody asked to stop; what is done by then is stored.
            KVTunerError: What the model work raised.
        """
        wanted = [
            _Wanted(identity=self.identity.profile(layer, pair), subject=(layer, pair))
            for layer in layers
            for pair in pairs
        ]
        kind = _Kind(
            known=self.store.get_profiles, bunches=self._layers, ask=self._ask_profiles, keep=self.store.put_profiles
        )
        yield from self._in_order(wanted, kind)

    def _bunches(self, wanted: Sequence["_Wanted[S]"]) -> list[tuple["_Wanted[S]", ...]]:
        """What is asked for in one task: on a GPU about a second of it, with as much for one worker as for another."""
        if self.report.together == 1 or not wanted:
            return [(one,) for one in wanted]
        pace = _BUNCH_SECONDS / _PASS if self.pace is None else max(self.pace, 1e-9)
        # Fewer than fill a pass are not faster, so that a slow pass is asked for whole.
        most = max(1, int(_BUNCH_SECONDS / pace), min(_PASS, int(_PASS_SECONDS / pace)))
        sizes = bunch_sizes(
            len(wanted), workers=max(1, len(self.compute.workers())), most=min(self.report.together, most)
        )
        ends = list(accumulate(sizes))
        return [tuple(wanted[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def _layers(
        self, wanted: Sequence["_Wanted[tuple[int, PrecisionPair]]"]
    ) -> list[tuple["_Wanted[tuple[int, PrecisionPair]]", ...]]:
        """Pairs of one layer in a task where they are measured in one pass."""
        tokens = len(self.evaluation.prompts.prompts) * self.evaluation.suffix_tokens
        size = max(self.report.together, min(_PAIRS, PROFILED_TOKENS // tokens))
        layers = [tuple(group) for _, group in groupby(wanted, key=lambda one: one.subject[0])]
        return [layer[start : start + size] for layer in layers for start in range(0, len(layer), size)]

    def _ask_scores(self, bunch: Sequence["_Wanted[KVPolicy]"]) -> MeasureTask:
        policies = tuple(one.subject for one in bunch)
        if len(policies) == 1:
            return ScoreTask(evaluation=self.evaluation, policy=policies[0])
        return ScoreManyTask(evaluation=self.evaluation, policies=policies)

    def _ask_until(self, bunch: Sequence["_Wanted[tuple[KVPolicy, float]]"]) -> MeasureTask:
        policies, bars = zip(*(one.subject for one in bunch), strict=True)
        stopping = Stopping(objective=self.objective, bars=bars, telling=self.telling)
        return ScoreManyTask(evaluation=self.evaluation, policies=policies, stopping=stopping)

    def _ask_profiles(self, bunch: Sequence["_Wanted[tuple[int, PrecisionPair]]"]) -> MeasureTask:
        pairs = tuple(one.subject[1] for one in bunch)
        return ProfileTask(evaluation=self.evaluation, layer=bunch[0].subject[0], pairs=pairs)

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

    def _in_order(self, wanted: Sequence["_Wanted[S]"], kind: "_Kind[S, T]") -> Generator[T, None, None]:
        """Yield what is wanted in its order, each thing measured once; ``ahead`` counts what waits for its turn."""
        keys = [one.identity.key for one in wanted]
        found = kind.known(tuple(dict.fromkeys(keys)))
        missing = {key: one for key, one in zip(keys, wanted, strict=True) if key not in found}
        bunches, fresh = kind.bunches(tuple(missing.values())), set(missing)
        with closing(self._measured([kind.ask(bunch) for bunch in bunches])) as answers:
            for key in keys:
                while (value := found.get(key)) is None:
                    index, answer = next(answers)
                    measured = self._accepted(bunches[index], answer, kind)
                    found.update(measured)
                    self.ahead += len(measured)
                if key in fresh:
                    fresh.remove(key)
                    self.ahead -= 1
                else:
                    self.reused += 1
                yield value

    def _accepted(self, bunch: Sequence["_Wanted[S]"], answer: Answer, kind: "_Kind[S, T]") -> dict[str, T]:
        """The measurements of an answer by their address, stored."""
        each = answer if isinstance(answer, tuple) else (answer,)
        if len(each) != len(bunch) or not all(
            isinstance(one, ErrorProfile | PolicyScore | PartialScore) for one in each
        ):
            raise ComputeError(f"A worker must answer with {len(bunch)} measurements; got {answer!r:.80}.")
        measured = [(one.identity, cast("T", value)) for one, value in zip(bunch, each, strict=True)]
        kind.keep(measured, stamped(self.report))
        scores = [value.seconds for value in each if isinstance(value, PolicyScore)]
        self.pace = max(scores, default=self.pace)
        return {identity.key: value for identity, value in measured}

    def _measured(self, tasks: Sequence[MeasureTask]) -> Generator[tuple[int, Answer], None, None]:
        if tasks and self.cancelled():
            raise CancelledError("The work was stopped on request; what was finished is kept.")
        yield from self.compute.run_many(tasks, report=self.report, cancelled=self.cancelled)


def bunch_sizes(count: int, *, workers: int, most: int) -> list[int]:
    """How many of ``count`` measurements each task has, in rounds of a task for every worker.

    Args:
        count: Measurements, at least one.
        workers: Workers that share them; none has more than one unit of work beyond another.
        most: Most measurements of a task that is larger than a unit; a unit is `_PASS` of them, or
            less where there are too few for all workers.
    """
    unit = max(1, min(_PASS, most, -(-count // workers)))
    units = -(-count // unit)
    shares = [units // workers + (worker < units % workers) for worker in range(workers)]
    sizes = []
    while any(shares):
        given = [min(share, max(1, most // unit)) for share in shares]
        sizes += [unit * own for own in given if own]
        shares = [share - own for share, own in zip(shares, given, strict=True)]
    # The last one has what is left.
    sizes[-1] -= sum(sizes) - count
    return sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted(Generic[S]):
    """A measurement: its content address, and what is measured."""

    identity: Identity
    subject: S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind(Generic[S, T]):
    """How one kind of measurement is looked up, asked for, and stored."""

    known: Callable[[Sequence[str]], dict[str, T]]
    bunches: Callable[[Sequence[_Wanted[S]]], list[tuple[_Wanted[S], ...]]]
    ask: Callable[[Sequence[_Wanted[S]]], MeasureTask]
    keep: Callable[[Sequence[tuple[Identity, T]], Provenance], object]
