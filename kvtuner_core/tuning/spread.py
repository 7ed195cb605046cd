"""Which of many points to evaluate first: those that add most dominated area to what is known."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.tuning.front import KL_FLOOR, REFERENCE_BITS, REFERENCE_KL

Point = tuple[float, float]
"""Effective bits, and KL in nats per token."""

_LEAST_GAIN = 1e-9


def spread(points: Sequence[Point], known: Sequence[Point], *, most: int) -> tuple[int, ...]:
    """Indices of up to ``most`` points, each the one that adds most area to those before it.

    The area is that of `front.hypervolume`. Points that add nothing are never taken; of equals the
    first is. The order makes every beginning of the answer a good spread by itself.
    """
    heights = np.array([_height(kl) for _, kl in points])
    bits = np.array([min(max(bits, 0.0), REFERENCE_BITS) for bits, _ in points])
    stairs = [(min(max(bits, 0.0), REFERENCE_BITS), _height(kl)) for bits, kl in known]
    chosen: list[int] = []
    while len(chosen) < min(most, len(points)):
        gains = _gains(stairs, bits, heights)
        best = int(np.argmax(gains))
        if not gains[best] > _LEAST_GAIN:
            break
        chosen.append(best)
        stairs.append((float(bits[best]), float(heights[best])))
    return tuple(chosen)


def _height(kl: float) -> float:
    """Log10 of 1e-6 + KL above that of 0; no more than that of the reference point."""
    bounded = min(max(kl, 0.0), REFERENCE_KL) if math.isfinite(kl) else REFERENCE_KL
    return math.log10(KL_FLOOR + bounded) - math.log10(KL_FLOOR)


def _gains(stairs: Sequence[Point], bits: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area that each point alone would add below the staircase of the known ones."""
    top = _height(REFERENCE_KL)
    ordered = sorted(stairs)
    starts = np.array([0.0, *(start for start, _ in ordered)])
    ends = np.array([*starts[1:], REFERENCE_BITS])
    levels = np.minimum.accumulate(np.array([top, *(level for _, level in ordered)]))
    widths = np.clip(ends[None, :] - np.maximum(starts[None, :], bits[:, None]), 0.0, None)
    drops = np.clip(levels[None, :] - heights[:, None], 0.0, None)
    area: NDArray[np.float64] = (widths * drops).sum(axis=1)
    return area
