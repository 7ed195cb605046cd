"""Whether a layer's own output error predicts the end-to-end effect of quantising it.

KVTuner prunes by output error within a layer, which is sound where the two rank pairs alike. They
need not rank *layers* alike: a small error of an early layer can matter more than a large one of a
late layer. Spearman's rank correlation, computed for both directions, shows how far it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.tuning.profiles import by_layer, widest_first


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of output error and KL, -1 to 1; ``None`` where it is undefined.

    Attributes:
        overall: Over all layers and pairs together.
        layers: Between layers, of the errors and KLs summed over all pairs.
        within: Per layer, over its pairs.
        between: Per pair, over the layers.
    """

    overall: float | None
    layers: float | None
    within: tuple[float | None, ...]
    between: tuple[tuple[PrecisionPair, float | None], ...]


def rank_correlation(profiles: Sequence[ErrorProfile]) -> RankCorrelation:
    """How well output errors rank what quantising one layer does to the model's output.

    Raises:
        InputError: Unless every layer has a profile of every pair.
    """
    tables = by_layer(profiles)
    pairs = widest_first(tables[0])
    errors = [[table[pair].output_error for pair in pairs] for table in tables]
    kls = [[table[pair].kl for pair in pairs] for table in tables]
    return RankCorrelation(
        overall=spearman(list(chain.from_iterable(errors)), list(chain.from_iterable(kls))),
        layers=spearman([sum(row) for row in errors], [sum(row) for row in kls]),
        within=tuple(spearman(error, kl) for error, kl in zip(errors, kls, strict=True)),
        between=tuple(
            (pair, spearman([row[column] for row in errors], [row[column] for row in kls]))
            for column, pair in enumerate(pairs)
        ),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank.

    Pairs of numbers of which one is not finite are left out; ``None`` where fewer than three are
    left or one side is constant.
    """
    from scipy.stats import rankdata

    finite = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(finite) < 3:
        return None
    ranks = rankdata(np.array(finite, dtype=np.float64), axis=0)
    centred = ranks - ranks.mean(axis=0)
    norm = math.sqrt(float((centred**2).sum(axis=0).prod()))
    return float((centred[:, 0] * centred[:, 1]).sum()) / norm if norm else None
