"""The Pareto front of scored candidates, and how much it dominates."""

import math
from collections.abc import Iterable

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import Candidate, CandidateOrigin

REFERENCE_BITS = 16.0
"""Bits at and above which a candidate dominates nothing."""

REFERENCE_KL = 10.0
"""Nats per token at and above which a candidate dominates nothing."""

KL_FLOOR = 1e-6
"""Nats per token added to every KL before its logarithm, so that 0 has one."""


def pareto_front(candidates: Iterable[Candidate], objective: Objective = Objective.MEAN_KL) -> tuple[Candidate, ...]:
    """The searched candidates that no other one dominates, fewest effective bits first.

    Both effective bits and the objective's calibration loss are minimised. Of candidates equal in
    both the one that was evaluated first stays; baselines and infinite losses take no part.
    """
    searched = [c for c in candidates if c.origin is CandidateOrigin.SEARCH and math.isfinite(c.loss(objective))]
    searched.sort(key=lambda c: (c.effective_bits, c.loss(objective), c.order))
    front: list[Candidate] = []
    for candidate in searched:
        if not front or candidate.loss(objective) < front[-1].loss(objective):
            front.append(candidate)
    return tuple(front)


def hypervolume(candidates: Iterable[Candidate], objective: Objective = Objective.MEAN_KL) -> float:
    """Share of the plane that the searched candidates dominate, 0 to 1.

    The plane spans effective bits from 0 to 16 and log10 of (1e-6 + loss) from a loss of 0 to the
    objective's worst, 10 nats for the KL; a candidate dominates all of it that has no fewer bits
    and no smaller loss. Losses below 0 count as 0.
    """
    points = ((c.effective_bits, c.loss(objective)) for c in pareto_front(candidates, objective))
    return dominated_share(points, worst=objective.worst)


def dominated_share(points: Iterable[tuple[float, float]], *, worst: float = REFERENCE_KL) -> float:
    """`hypervolume` of plain points of (effective bits, loss in the objective's unit)."""
    top = math.log10(KL_FLOOR + worst)
    bottom = math.log10(KL_FLOOR)
    area = 0.0
    lowest = top
    for bits, kl in sorted(points):
        if not (bits < REFERENCE_BITS and kl < worst):
            continue
        height = math.log10(KL_FLOOR + max(0.0, kl))
        if height < lowest:
            area += (lowest - height) * (REFERENCE_BITS - max(0.0, bits))
            lowest = height
    return area / (REFERENCE_BITS * (top - bottom))
