"""A cheap stand-in for a true evaluation: isolated KLs summed over the layers, corrected by true evaluations.

Uncorrected it is the additive model of NVIDIA ModelOpt: the KL of a policy is the sum of the KLs of
quantising one layer at a time. Layers interact, so every isolated KL gets a factor, and where
evaluations ask for it, two layers get a term together (`refitting` finds both). Without such terms
the model is still a sum, so its front is still solved exactly.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.tuning.additive_problem import LARGEST_LOSS
from kvtuner_core.tuning.coupling import interaction
from kvtuner_core.tuning.profiles import by_layer, widest_first

SMALLEST_FACTOR = 0.1
"""No factor is smaller, and pairwise terms leave at least this share of the sum over layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Predicted KL contributions of every layer under every pair.

    Attributes:
        pairs: The pairs, most bits first.
        isolated: Measured KL of one layer quantised alone, ``[layers, pairs]``, nats per token.
        factors: What true evaluations multiply it by, ``[layers, pairs]``.
        objective: What the true evaluations measure.
        coupling: Coefficients of the pairwise terms, ``[layers, layers]``, or ``None`` without any.
    """

    pairs: tuple[PrecisionPair, ...]
    isolated: NDArray[np.float64]
    factors: NDArray[np.float64]
    objective: Objective = Objective.MEAN_KL
    coupling: NDArray[np.float64] | None = None

    @classmethod
    def additive(cls, profiles: Sequence[ErrorProfile], objective: Objective = Objective.MEAN_KL) -> "Surrogate":
        """The uncorrected model: of any objective, the isolated KLs.

        Raises:
            InputError: Unless every layer has a profile of every pair.
        """
        tables = by_layer(profiles)
        pairs = widest_first(tables[0])
        isolated = np.array([[_bounded(table[pair].kl) for pair in pairs] for table in tables])
        return cls(pairs=pairs, isolated=isolated, factors=np.ones_like(isolated), objective=objective)

    def loss(self, layers: Iterable[int], pair: PrecisionPair) -> float:
        """Predicted KL of some layers under ``pair``, everything else in full precision; 0 for K16V16."""
        column = self.column(pair)
        return float(sum(self.isolated[layer, column] * self.factors[layer, column] for layer in layers if column >= 0))

    def column(self, pair: PrecisionPair) -> int:
        """The column of a pair; -1 for the unquantised one where it was not swept.

        Raises:
            ValueError: If any other pair was not swept.
        """
        return -1 if pair.is_full and pair not in self.pairs else self.pairs.index(pair)

    def alone(self) -> NDArray[np.float64]:
        """Predicted KL of each layer under each pair, and in a last column 0 ``[layers, pairs + 1]``.

        A column of -1 thus stands for an unquantised layer.
        """
        return np.pad(self.isolated * self.factors, ((0, 0), (0, 1)))

    def roots(self) -> NDArray[np.float64]:
        """Square roots of the isolated KLs, and in a last column 0 ``[layers, pairs + 1]``."""
        return np.pad(np.sqrt(self.isolated), ((0, 0), (0, 1)))

    @staticmethod
    def bounded_below(alone: NDArray[np.float64], pairwise: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of layers and their pairwise terms, which take away nine tenths of the sum at most."""
        total: NDArray[np.float64] = np.maximum(alone + pairwise, SMALLEST_FACTOR * alone)
        return total

    def knows(self, policy: KVPolicy) -> bool:
        """Whether every pair of ``policy`` was measured (or is unquantised)."""
        used = {pair for layer in policy.layers for pair in layer.pairs}
        return not policy.has_heads and all(pair.is_full or pair in self.pairs for pair in used)

    def predict(self, policy: KVPolicy) -> float:
        """Predicted KL of ``policy`` in nats per token; every pair of it must be one that `knows` knows."""
        columns = [self.column(layer.pair) for layer in policy.layers]
        layers = np.arange(len(columns))
        alone = self.alone()[layers, columns].sum(keepdims=True)
        if self.coupling is None:
            return float(alone[0])
        pairwise = interaction(self.roots()[layers, columns][None, :], self.coupling)
        return float(self.bounded_below(alone, pairwise)[0])


def _bounded(kl: float) -> float:
    return min(max(kl, 0.0), LARGEST_LOSS) if math.isfinite(kl) else LARGEST_LOSS
