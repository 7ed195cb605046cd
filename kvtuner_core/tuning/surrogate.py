"""A cheap stand-in for a true evaluation: isolated KLs summed over the layers, corrected by true evaluations.

Uncorrected it is the additive model of NVIDIA ModelOpt: the KL of a policy is the sum of the KLs of
quantising one layer at a time. Layers interact, so every isolated KL gets a factor 1 + c, and c is
the sum of a part of its own, one of its pair, one of its layer and one that all share. A ridge
regression finds the smallest such parts that explain the true KLs in proportion; how much each part
may move is a prior, how far evaluations are trusted is chosen by leaving each of them out in turn.
The corrected model is still a sum, so its front is still solved exactly.

Another objective than the mean KL is modelled by the same isolated KLs, first brought to its scale by
the median ratio of measured to predicted, then corrected in the same way.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.tuning.additive import LARGEST_LOSS
from kvtuner_core.tuning.profiles import by_layer, widest_first

_FLOOR = 1e-7
_SMALLEST_FACTOR = 0.1
_PRIOR = MappingProxyType({"cell": 0.35, "pair": 0.25, "layer": 0.25, "all": 0.5})
_NOISES = (0.02, 0.05, 0.1, 0.2, 0.4)
_MOST_OBSERVED = 800
_SMALLEST_SHARE = 0.1

Observation = tuple[KVPolicy, float]
"""A policy and its true loss: the KL in nats per token, or another objective's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Predicted KL contributions of every layer under every pair.

    Attributes:
        pairs: The pairs, most bits first.
        isolated: Measured KL of one layer quantised alone, ``[layers, pairs]``, nats per token.
        factors: What true evaluations multiply it by, ``[layers, pairs]``.
        objective: What the true evaluations measure.
    """

    pairs: tuple[PrecisionPair, ...]
    isolated: NDArray[np.float64]
    factors: NDArray[np.float64]
    objective: Objective = Objective.MEAN_KL

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
        if pair.is_full and pair not in self.pairs:
            return 0.0
        column = self.pairs.index(pair)
        return float(sum(self.isolated[layer, column] * self.factors[layer, column] for layer in layers))

    def knows(self, policy: KVPolicy) -> bool:
        """Whether every pair of ``policy`` was measured (or is unquantised)."""
        used = {pair for layer in policy.layers for pair in layer.pairs}
        return not policy.has_heads and all(pair.is_full or pair in self.pairs for pair in used)

    def predict(self, policy: KVPolicy) -> float:
        """Predicted KL of ``policy`` in nats per token."""
        return sum(self.loss((index,), layer.pair) for index, layer in enumerate(policy.layers))

    def corrected(self, observed: Sequence[Observation], *, rng: np.random.Generator | None = None) -> "Surrogate":
        """The model refitted to true evaluations; those that are not finite or not known are left out.

        Args:
            observed: Policies and their true losses.
            rng: Where given, one draw from the posterior in place of its mean: plausible given the
                evaluations, and different where they say little.
        """
        usable = [(policy, kl) for policy, kl in observed if math.isfinite(kl) and self.knows(policy)]
        usable = [item for item in usable if not item[0].is_full][-_MOST_OBSERVED:]
        if not usable:
            return self
        return self._scaled(usable)._fitted(usable, rng)

    def _fitted(self, usable: Sequence[Observation], rng: np.random.Generator | None) -> "Surrogate":
        shares, targets = self._shares(usable)
        design = self._design(shares)
        noise = _chosen_noise(design, targets)
        if rng is None:
            weights = _ridge(design, targets, noise)
        else:
            drawn = rng.standard_normal(design.shape[1])
            wrong = noise * rng.standard_normal(len(targets))
            weights = drawn + _ridge(design, targets - design @ drawn - wrong, noise)
        return replace(self, factors=self._factors(weights))

    def _scaled(self, observed: Sequence[Observation]) -> "Surrogate":
        if self.objective is Objective.MEAN_KL:
            return self
        sums = [(loss, self.predict(policy)) for policy, loss in observed]
        ratios = [loss / predicted for loss, predicted in sums if loss > 0 and predicted > 0]
        return replace(self, isolated=self.isolated * float(np.median(ratios))) if ratios else self

    def _shares(self, observed: Sequence[Observation]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each cell's part of each true KL ``[n, layers, pairs]``, and what the sum leaves unexplained."""
        shares = np.zeros((len(observed), *self.isolated.shape))
        targets = np.zeros(len(observed))
        for row, (policy, loss) in enumerate(observed):
            true = max(loss, self._least(policy))
            for index, layer in enumerate(policy.layers):
                if layer.pair in self.pairs:
                    column = self.pairs.index(layer.pair)
                    shares[row, index, column] = self.isolated[index, column] / true
            targets[row] = 1.0 - shares[row].sum()
        return shares, targets

    def _least(self, policy: KVPolicy) -> float:
        """The smallest loss that a share is taken of: a change of likelihood may be negative by chance."""
        if self.objective is Objective.MEAN_KL:
            return _FLOOR
        return max(_FLOOR, _SMALLEST_SHARE * self.predict(policy))

    def _design(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        count = len(shares)
        return np.concatenate(
            [
                _PRIOR["cell"] * shares.reshape(count, -1),
                _PRIOR["pair"] * shares.sum(axis=1),
                _PRIOR["layer"] * shares.sum(axis=2),
                _PRIOR["all"] * shares.sum(axis=(1, 2))[:, None],
            ],
            axis=1,
        )

    def _factors(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        layers, pairs = self.isolated.shape
        cells, rest = weights[: layers * pairs], weights[layers * pairs :]
        change = (
            _PRIOR["cell"] * cells.reshape(layers, pairs)
            + _PRIOR["pair"] * rest[:pairs][None, :]
            + _PRIOR["layer"] * rest[pairs : pairs + layers][:, None]
            + _PRIOR["all"] * rest[-1]
        )
        factors: NDArray[np.float64] = np.maximum(1.0 + change, _SMALLEST_FACTOR)
        return factors


def _bounded(kl: float) -> float:
    return min(max(kl, 0.0), LARGEST_LOSS) if math.isfinite(kl) else LARGEST_LOSS


def _ridge(design: NDArray[np.float64], targets: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Weights with a standard normal prior, given targets with this noise."""
    kernel = design @ design.T + noise**2 * np.eye(len(targets))
    weights: NDArray[np.float64] = design.T @ np.linalg.solve(kernel, targets)
    return weights


def _chosen_noise(design: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """The noise with the smallest squared error on evaluations that were left out, one at a time."""
    if len(targets) < 4:
        return _NOISES[len(_NOISES) // 2]
    values, vectors = np.linalg.eigh(design @ design.T)
    turned = vectors.T @ targets

    def left_out(noise: float) -> float:
        inverse = 1.0 / (np.maximum(values, 0.0) + noise**2)
        residual = (vectors @ (inverse * turned)) / ((vectors**2) @ inverse)
        return float((residual**2).mean())

    return min(_NOISES, key=left_out)
