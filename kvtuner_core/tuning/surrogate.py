"""A cheap stand-in for a true evaluation: isolated KLs summed over the layers, corrected by true evaluations.

Uncorrected it is the additive model of NVIDIA ModelOpt: the KL of a policy is the sum of the KLs of
quantising one layer at a time. Layers interact, so every isolated KL gets a factor 1 + c, and c is
the sum of a part of its own, one of its pair, one of its layer and one that all share. A ridge
regression finds the smallest such parts that explain the true KLs in proportion; how much each part
may move is a prior, how far evaluations are trusted is chosen by leaving each of them out in turn.
The corrected model is still a sum, so its front is still solved exactly. Pairwise terms (`coupling`)
are added only where evaluations that were left out are predicted clearly better with them.

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
from kvtuner_core.tuning.coupling import Pairwise, coupling_of, interaction, pair_features
from kvtuner_core.tuning.profiles import by_layer, widest_first

_FLOOR = 1e-7
_SMALLEST_FACTOR = 0.1
_PRIOR = MappingProxyType({"cell": 0.35, "pair": 0.25, "layer": 0.25, "all": 0.5})
_NOISES = (0.02, 0.05, 0.1, 0.2, 0.4)
_MOST_OBSERVED = 800
_SMALLEST_SHARE = 0.1
_LEAST_PAIRWISE = 24
_CLEARLY = 0.8

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
        if pair.is_full and pair not in self.pairs:
            return 0.0
        column = self.pairs.index(pair)
        return float(sum(self.isolated[layer, column] * self.factors[layer, column] for layer in layers))

    def root(self, layer: int, pair: PrecisionPair) -> float:
        """Square root of the isolated KL of a layer under ``pair``; 0 for an unquantised one that was not swept."""
        if pair.is_full and pair not in self.pairs:
            return 0.0
        return math.sqrt(float(self.isolated[layer, self.pairs.index(pair)]))

    @staticmethod
    def bounded_below(alone: NDArray[np.float64], pairwise: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of layers and their pairwise terms, which take away nine tenths of the sum at most."""
        total: NDArray[np.float64] = np.maximum(alone + pairwise, _SMALLEST_FACTOR * alone)
        return total

    def knows(self, policy: KVPolicy) -> bool:
        """Whether every pair of ``policy`` was measured (or is unquantised)."""
        used = {pair for layer in policy.layers for pair in layer.pairs}
        return not policy.has_heads and all(pair.is_full or pair in self.pairs for pair in used)

    def predict(self, policy: KVPolicy) -> float:
        """Predicted KL of ``policy`` in nats per token."""
        alone = sum(self.loss((index,), layer.pair) for index, layer in enumerate(policy.layers))
        if self.coupling is None:
            return alone
        pairwise = interaction(self._roots([policy]), self.coupling)
        return float(self.bounded_below(np.array([alone]), pairwise)[0])

    def corrected(
        self, observed: Sequence[Observation], *, rng: np.random.Generator | None = None, pairwise: bool = True
    ) -> "Surrogate":
        """The model refitted to true evaluations; those that are not finite or not known are left out.

        Args:
            observed: Policies and their true losses.
            rng: Where given, one draw from the posterior in place of its mean: plausible given the
                evaluations, and different where they say little.
            pairwise: Whether pairwise terms may be added where they are shown to help.
        """
        usable = self._usable(observed)
        if not usable:
            return self
        return self._scaled(usable)._fitted(usable, rng, pairwise=pairwise)

    def _fitted(self, usable: Sequence[Observation], rng: np.random.Generator | None, *, pairwise: bool) -> "Surrogate":
        fit = self._fit(usable, kinds=tuple(Pairwise) if pairwise else (Pairwise.NONE,))
        design, targets, noise = fit.design, fit.targets, fit.noise
        if rng is None:
            weights = _ridge(design, targets, noise)
        else:
            drawn = rng.standard_normal(design.shape[1])
            wrong = noise * rng.standard_normal(len(targets))
            weights = drawn + _ridge(design, targets - design @ drawn - wrong, noise)
        coupling = coupling_of(fit.kind, weights[self._parts :], len(self.isolated))
        return replace(self, factors=self._factors(weights[: self._parts]), coupling=coupling)

    def _scaled(self, observed: Sequence[Observation]) -> "Surrogate":
        if self.objective is Objective.MEAN_KL:
            return self
        sums = [(loss, self.predict(policy)) for policy, loss in observed]
        ratios = [loss / predicted for loss, predicted in sums if loss > 0 and predicted > 0]
        return replace(self, isolated=self.isolated * float(np.median(ratios))) if ratios else self

    def evidence(self, observed: Sequence[Observation]) -> "Evidence":
        """Which pairwise terms true evaluations ask for, and how well each kind predicts those left out."""
        usable = self._usable(observed)
        if len(usable) < _LEAST_PAIRWISE:
            return Evidence(kind=Pairwise.NONE, errors=())
        fits = self._scaled(usable)._fits(usable, tuple(Pairwise))
        return Evidence(kind=_preferred(fits).kind, errors=tuple((fit.kind, fit.error) for fit in fits))

    def _usable(self, observed: Sequence[Observation]) -> list[Observation]:
        known = [(policy, kl) for policy, kl in observed if math.isfinite(kl) and self.knows(policy)]
        return [item for item in known if not item[0].is_full][-_MOST_OBSERVED:]

    def _fit(self, usable: Sequence[Observation], *, kinds: tuple[Pairwise, ...]) -> "_Fit":
        few = len(usable) < _LEAST_PAIRWISE
        return _preferred(self._fits(usable, (Pairwise.NONE,) if few else kinds))

    def _fits(self, usable: Sequence[Observation], kinds: tuple[Pairwise, ...]) -> list["_Fit"]:
        """A design, its noise, and the error of evaluations left out, for each kind of pairwise terms."""
        shares, targets = self._shares(usable)
        roots = self._roots([policy for policy, _ in usable])
        true = np.array([max(loss, self._least(policy)) for policy, loss in usable])
        found = []
        for kind in kinds:
            design = np.concatenate([self._design(shares), pair_features(kind, roots) / true[:, None]], axis=1)
            noise, error = _chosen_noise(design, targets)
            found.append(_Fit(kind=kind, design=design, targets=targets, noise=noise, error=error))
        return found

    @property
    def _parts(self) -> int:
        """Number of weights without those of pairwise terms."""
        return self.isolated.size + len(self.pairs) + len(self.isolated) + 1

    def _roots(self, policies: Sequence[KVPolicy]) -> NDArray[np.float64]:
        columns = self._chosen(policies)
        roots = np.sqrt(self.isolated[np.arange(len(self.isolated)), columns])
        return np.where(columns < 0, 0.0, roots)

    def _chosen(self, policies: Sequence[KVPolicy]) -> NDArray[np.int64]:
        """The column of each layer's pair ``[n, layers]``; -1 for an unquantised one that was not swept."""
        columns = {pair: column for column, pair in enumerate(self.pairs)}
        rows = [[columns.get(layer.pair, -1) for layer in policy.layers] for policy in policies]
        return np.array(rows, dtype=np.int64).reshape(len(policies), len(self.isolated))

    def _shares(self, observed: Sequence[Observation]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each cell's part of each true KL ``[n, layers, pairs]``, and what the sum leaves unexplained."""
        shares = np.zeros((len(observed), *self.isolated.shape))
        targets = np.zeros(len(observed))
        layers = np.arange(len(self.isolated))
        chosen = self._chosen([policy for policy, _ in observed])
        for row, (policy, loss) in enumerate(observed):
            swept = chosen[row] >= 0
            places = layers[swept], chosen[row][swept]
            shares[row][places] = self.isolated[places] / max(loss, self._least(policy))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Whether pairwise terms help to predict.

    Attributes:
        kind: The terms that evaluations ask for.
        errors: Each kind with its root mean square relative error on evaluations left out, one at a
            time; empty where there are too few to tell.
    """

    kind: Pairwise
    errors: tuple[tuple[Pairwise, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    kind: Pairwise
    design: NDArray[np.float64]
    targets: NDArray[np.float64]
    noise: float
    error: float


def _preferred(fits: Sequence[_Fit]) -> _Fit:
    """The first fit, the one without pairwise terms, unless another leaves clearly smaller errors."""
    best = min(fits, key=lambda fit: fit.error)
    return best if best.error < _CLEARLY * fits[0].error else fits[0]


def _bounded(kl: float) -> float:
    return min(max(kl, 0.0), LARGEST_LOSS) if math.isfinite(kl) else LARGEST_LOSS


def _ridge(design: NDArray[np.float64], targets: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Weights with a standard normal prior, given targets with this noise."""
    kernel = design @ design.T + noise**2 * np.eye(len(targets))
    weights: NDArray[np.float64] = design.T @ np.linalg.solve(kernel, targets)
    return weights


def _chosen_noise(design: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[float, float]:
    """The noise with the smallest squared error on evaluations left out, one at a time, and that error's root."""
    if len(targets) < 4:
        return _NOISES[len(_NOISES) // 2], math.inf
    values, vectors = np.linalg.eigh(design @ design.T)
    turned = vectors.T @ targets

    def left_out(noise: float) -> float:
        inverse = 1.0 / (np.maximum(values, 0.0) + noise**2)
        residual = (vectors @ (inverse * turned)) / ((vectors**2) @ inverse)
        return float((residual**2).mean())

    errors = {noise: left_out(noise) for noise in _NOISES}
    chosen = min(_NOISES, key=errors.__getitem__)
    return chosen, math.sqrt(errors[chosen])
