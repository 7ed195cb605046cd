"""Scores of layers as one kind of value: how much each layer loses under each pair.

A score that knows the error of each pair says so by itself. The norms know none: of them a layer's
loss under a pair is score of its keys x 4^-(key bits) + score of its values x 4^-(value bits), each
side's scores divided by their mean, for the energy of a rounding error falls by four with each bit.
Losses rank layers, and they add up, so each score implies a policy for every bound on bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_BITS, PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.scores import LayerNorms, ScoreName, SweepScores
from kvtuner_core.domain.study import LayerGroup, SearchSpace
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.guided import surrogate_front
from kvtuner_core.tuning.profiles import by_layer, finite_error, widest_first
from kvtuner_core.tuning.surrogate import Surrogate

Losses = NDArray[np.float64]
"""``[layers, pairs]``, in a unit of the score's own."""

Sides = tuple[tuple[float, ...], tuple[float, ...]]
"""A number per layer of its keys, and one of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """What every score says of every layer and pair.

    Attributes:
        pairs: The pairs, most bits first.
        losses: Losses by score, those that a sweep has.
    """

    pairs: tuple[PrecisionPair, ...]
    losses: Mapping[ScoreName, Losses]

    @property
    def names(self) -> tuple[ScoreName, ...]:
        """The scores there are, isolated KL first."""
        return tuple(name for name in ScoreName if name in self.losses)

    def correlation(self, one: ScoreName, other: ScoreName) -> float | None:
        """Spearman's rank correlation over the layers, the mean of all pairs; ``None`` where it is undefined."""
        columns = zip(self.losses[one].T, self.losses[other].T, strict=True)
        found = [spearman(list(first), list(second)) for first, second in columns]
        defined = [value for value in found if value is not None]
        return sum(defined) / len(defined) if defined else None

    def layers(self, name: ScoreName) -> tuple[float, ...]:
        """One number per layer: its share of the score's losses, in the mean of all pairs.

        Every pair counts alike, and the shares of all layers add up to 1; 0 where a score says nothing.
        """
        losses = self.losses[name]
        totals = losses.sum(axis=0)
        useful = totals > 0
        if not useful.any():
            return (0.0,) * len(losses)
        return tuple(float(share) for share in (losses[:, useful] / totals[useful]).mean(axis=1))


def score_table(profiles: Sequence[ErrorProfile], scores: SweepScores | None) -> ScoreTable:
    """Every score that a sweep has.

    Args:
        profiles: One per layer and pair.
        scores: What gradients and weights say, or ``None``.

    Raises:
        InputError: If a profile is missing.
    """
    tables = by_layer(profiles)
    pairs = widest_first(tables[0])
    losses: dict[ScoreName, Losses] = {
        ScoreName.KL: _of([[table[pair].kl for pair in pairs] for table in tables]),
        ScoreName.OUTPUT_ERROR: _of([[table[pair].output_error for pair in pairs] for table in tables]),
    }
    if scores is not None:
        known = {(found.layer, found.pair): found for found in scores.errors.pairs}
        cells = [[known[layer, pair] for pair in pairs] for layer in range(len(tables))]
        losses[ScoreName.FISHER_ERROR] = _of([[cell.fisher_error for cell in row] for row in cells])
        losses[ScoreName.GRADIENT_ERROR] = _of([[cell.gradient_error for cell in row] for row in cells])
        if scores.weights.layers:
            losses[ScoreName.GRADIENT_NORM] = _from_norms(gradient_norms(scores.weights.layers), pairs)
            losses[ScoreName.WEIGHT_NORM] = _from_norms(weight_norms(scores.weights.layers), pairs)
    return ScoreTable(pairs=pairs, losses=losses)


def gradient_norms(layers: Sequence[LayerNorms]) -> Sides:
    """||dL/dW_k|| and ||dL/dW_v|| of each layer."""
    return tuple(layer.key_gradient for layer in layers), tuple(layer.value_gradient for layer in layers)


def weight_norms(layers: Sequence[LayerNorms]) -> Sides:
    """||W_k|| and ||W_v|| of each layer."""
    return tuple(layer.key_weight for layer in layers), tuple(layer.value_weight for layer in layers)


def implied_policy(
    table: ScoreTable,
    name: ScoreName,
    *,
    scheme: QuantScheme,
    geometry: Sequence[LayerGeometry],
    max_bits: float,
) -> KVPolicy:
    """The policy with the least sum of a score's losses within a bound on effective bits, every layer free.

    Raises:
        InputError: If no policy is within the bound.
    """
    groups = tuple(LayerGroup(layers=(layer,), pairs=table.pairs) for layer in range(len(geometry)))
    space = SearchSpace(candidates=table.pairs, kept=tuple(table.pairs for _ in geometry), groups=groups)
    choices = Choices(space, scheme, geometry, max_bits=max_bits)
    losses = table.losses[name]
    # The solver's losses have a bound of their own, which a score's unit knows nothing of.
    scaled = losses / max(float(losses.max()), np.finfo(np.float64).tiny)
    model = Surrogate(pairs=table.pairs, isolated=scaled, factors=np.ones_like(losses))
    return choices.policy(surrogate_front(choices, model)[-1][0])


def _of(rows: Sequence[Sequence[float]]) -> Losses:
    values = np.array([[finite_error(value) for value in row] for row in rows], dtype=np.float64)
    finite = values[np.isfinite(values)]
    worst = float(finite.max()) if finite.size else 1.0
    # What is not finite is worse than everything that is.
    return np.where(np.isfinite(values), values, 10.0 * max(worst, 1e-300))


def _from_norms(sides: Sides, pairs: Sequence[PrecisionPair]) -> Losses:
    keys, values = (_mean_one(side) for side in sides)
    key_steps = np.array([_energy(pair.key_bits) for pair in pairs])
    value_steps = np.array([_energy(pair.value_bits) for pair in pairs])
    losses: Losses = keys[:, None] * key_steps + values[:, None] * value_steps
    return losses


def _energy(bits: int) -> float:
    return 0.0 if bits == FULL_BITS else 4.0**-bits


def _mean_one(side: Sequence[float]) -> Losses:
    values = np.array(side, dtype=np.float64)
    mean = float(values.mean())
    return values / mean if mean > 0 else np.ones_like(values)
