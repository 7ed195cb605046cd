"""The Pareto front of scored candidates, and how much it dominates."""

import math
from collections.abc import Iterable

from kvtuner_core.domain.study import Candidate, CandidateOrigin

REFERENCE_BITS = 16.0
"""Bits at and above which a candidate dominates nothing."""

REFERENCE_KL = 10.0
"""Nats per token at and above which a candidate dominates nothing."""

KL_FLOOR = 1e-6
"""Nats per token added to every KL before its logarithm, so that 0 has one."""


def calibration_kl(candidate: Candidate) -> float:
    """The KL the search saw, in nats per token; infinity where it is not a number."""
    value = candidate.calibration.kl.mean
    return math.inf if math.isnan(value) else value


def pareto_front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The searched candidates that no other one dominates, fewest effective bits first.

    Both effective bits and calibration KL are minimised. Of candidates equal in both the one that
    was evaluated first stays; baselines and infinite KLs take no part.
    """
    searched = [c for c in candidates if c.origin is CandidateOrigin.SEARCH and math.isfinite(calibration_kl(c))]
    searched.sort(key=lambda c: (c.effective_bits, calibration_kl(c), c.order))
    front: list[Candidate] = []
    for candidate in searched:
        if not front or calibration_kl(candidate) < calibration_kl(front[-1]):
            front.append(candidate)
    return tuple(front)


def hypervolume(candidates: Iterable[Candidate]) -> float:
    """Share of the plane that the searched candidates dominate, 0 to 1.

    The plane spans effective bits from 0 to 16 and log10 of (1e-6 + KL) from KL 0 to 10 nats; a
    candidate dominates all of it that has no fewer bits and no smaller KL.
    """
    return dominated_share((c.effective_bits, calibration_kl(c)) for c in pareto_front(candidates))


def dominated_share(points: Iterable[tuple[float, float]]) -> float:
    """`hypervolume` of plain points of (effective bits, KL in nats per token)."""
    top = math.log10(KL_FLOOR + REFERENCE_KL)
    bottom = math.log10(KL_FLOOR)
    area = 0.0
    lowest = top
    for bits, kl in sorted(points):
        if not (bits < REFERENCE_BITS and kl < REFERENCE_KL):
            continue
        height = math.log10(KL_FLOOR + max(0.0, kl))
        if height < lowest:
            area += (lowest - height) * (REFERENCE_BITS - max(0.0, bits))
            lowest = height
    return area / (REFERENCE_BITS * (top - bottom))
