"""How far a search can be trusted: checks, additive prediction, overfit, regret, and solvers side by side."""

from collections.abc import Sequence

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.services.results import list_runs, load_search
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.tuning.checks import Check, Overfit, distinguishable, health_checks, overfit
from kvtuner_core.tuning.comparison import SolverRow, compare, is_comparable
from kvtuner_core.tuning.front import REFERENCE_BITS, REFERENCE_KL
from kvtuner_core.tuning.kinds import kind_checks
from kvtuner_core.tuning.prediction import Prediction, Regret, group_regret, prediction, regret

__all__ = [
    "REFERENCE_BITS", "REFERENCE_KL", "Check", "Overfit", "Prediction", "Regret", "SolverRow", "alike", "checks",
    "comparable", "differ", "group_regret", "kind_checks", "overfit", "prediction", "regret", "solvers", "stops",
]  # fmt: skip

_MOST_COMPARED = 24


def checks(result: SearchResult) -> tuple[Check, ...]:
    """The health checks of a search; empty where it has no front."""
    return health_checks(result)


def differ(one: Candidate, other: Candidate, objective: Objective = Objective.MEAN_KL) -> bool:
    """Whether two policies differ in the objective by more than chance, on evaluation prompts where both have them."""
    if one.evaluation and other.evaluation:
        return distinguishable(one.evaluation, other.evaluation, objective=objective)
    return distinguishable(one.calibration, other.calibration, objective=objective)


def alike(
    picked: Candidate, others: Sequence[Candidate], objective: Objective = Objective.MEAN_KL
) -> tuple[Candidate, ...]:
    """The other candidates that cannot be told from the picked one in the objective, fewest bits first."""
    same = (item for item in others if item.policy != picked.policy and not differ(picked, item, objective))
    return tuple(sorted(same, key=lambda item: item.effective_bits))


def comparable(ws: Workspace, result: SearchResult) -> tuple[SearchResult, ...]:
    """The finished searches of the same model, prompts, scheme and bounds, this one first, at most 24."""
    found = [result]
    for record in list_runs(ws):
        if len(found) == _MOST_COMPARED:
            break
        if record.kind is not RunKind.SEARCH or record.status is not RunStatus.DONE or record.id == result.run:
            continue
        other = load_search(ws, record.id)
        if other is not None and is_comparable(result, other):
            found.append(other)
    return tuple(found)


def stops(result: SearchResult) -> str:
    """What stopping early spared, in one line; empty where it was not asked for."""
    if not result.spec.stop_early:
        return ""
    spared, whole = result.spared
    return (
        f"Stopped early: {len(result.stopped):,} of {result.evaluations:,} policies, beaten for certain; "
        f"{spared:,} of {whole:,} prompts spared."
    )


def solvers(ws: Workspace, result: SearchResult) -> tuple[SolverRow, ...]:
    """One row per comparable search, the best first."""
    return compare(comparable(ws, result))
