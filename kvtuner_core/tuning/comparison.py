"""Searches of the same model, prompts and scheme side by side: what each solver found for its evaluations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.tuning.front import dominated_share, hypervolume
from kvtuner_core.tuning.prediction import regret


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverRow:
    """What one search found.

    Attributes:
        run: Id of the run.
        strategy: The solver.
        seed: Its seed.
        evaluations: Policies it scored, to the end or not.
        seconds: Seconds that scoring them takes, measured once where several runs shared a score.
        front: Policies on its front.
        hypervolume: Of calibration losses, below 16 bits and the objective's worst (10 nats for the
            KL), as a share (0 to 1).
        at_equal: The same of as many policies, those asked for first, as the shortest of the compared
            runs of iterative solvers had; of a run that ended earlier, at its end.
        unseen: Hypervolume of its front in losses on evaluation prompts.
        regret: Hypervolume that its refitted surrogate says it did not reach.
    """

    run: str
    strategy: str
    seed: int
    evaluations: int
    seconds: float
    front: int
    hypervolume: float
    at_equal: float
    unseen: float
    regret: float


def is_comparable(one: SearchResult, other: SearchResult) -> bool:
    """Whether two searches scored policies of the same model on the same prompts, cut alike, within the same bounds."""
    return _identity(one) == _identity(other)


def _identity(result: SearchResult) -> tuple[object, ...]:
    sweep, spec = result.sweep, result.spec
    measured = (sweep.model.fingerprint, sweep.prompts_digest, result.evaluation_digest, spec.sweep.scheme)
    cut = (spec.sweep.prefix_tokens, spec.sweep.suffix_tokens, spec.evaluation_suffix_tokens)
    where = (result.provenance.device_type, result.provenance.dtype)
    return (*measured, *cut, *where, spec.max_bits, spec.constraints, spec.objective)


def compare(results: Sequence[SearchResult]) -> tuple[SolverRow, ...]:
    """One row per search, the largest hypervolume at equal evaluations first."""
    full = [result.evaluations for result in results if result.evaluations == result.spec.evaluations]
    equal = min(full, default=0)
    rows = (_row(result, equal or result.evaluations) for result in results)
    return tuple(sorted(rows, key=lambda row: (-row.at_equal, -row.hypervolume, row.run)))


def _row(result: SearchResult, equal: int) -> SolverRow:
    return SolverRow(
        run=result.run,
        strategy=str(result.spec.strategy),
        seed=result.spec.sweep.seed,
        evaluations=result.evaluations,
        seconds=sum(
            [item.calibration.seconds for item in result.candidates] + [item.partial.seconds for item in result.stopped]
        ),
        front=len(result.front),
        hypervolume=result.hypervolume,
        at_equal=hypervolume((item for item in result.candidates if _place(item) < equal), result.spec.objective),
        unseen=_unseen(result.front, result.spec.objective),
        regret=regret(result).regret,
    )


def _place(candidate: Candidate) -> int:
    """Among what was asked for: what a solver asks first is what it would have asked for with fewer evaluations."""
    return candidate.order if candidate.asked is None else candidate.asked


def _unseen(front: Iterable[Candidate], objective: Objective) -> float:
    points = ((item.effective_bits, objective.loss(item.value(objective).mean)) for item in front)
    return dominated_share(points, worst=objective.worst)
