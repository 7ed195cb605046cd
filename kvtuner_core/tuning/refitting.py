"""What true evaluations correct of the surrogate.

Every isolated KL gets a factor 1 + c, and c is the sum of a part of its own, one of its pair, one of
its layer and one that all share. A ridge regression finds the smallest such parts that explain the
true KLs in proportion; how much each part may move is a prior, how far evaluations are trusted is
chosen by leaving each of them out in turn. Pairwise terms (`coupling`) are added only where
evaluations that were left out are predicted clearly better with them.

Another objective than the mean KL is modelled by the same isolated KLs, first brought to its scale by
the median ratio of measured to predicted, then corrected in the same way.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.tuning.coupling import Pairwise, coupling_of, pair_features
from kvtuner_core.tuning.ridge import Fit, Ridge, one_thread
from kvtuner_core.tuning.surrogate import SMALLEST_FACTOR, Surrogate

_FLOOR = 1e-7
_PRIOR = MappingProxyType({"cell": 0.35, "pair": 0.25, "layer": 0.25, "all": 0.5})
_NOISES = (0.02, 0.05, 0.1, 0.2, 0.4)
_FEW = 4
_MOST_OBSERVED = 800
_SMALLEST_SHARE = 0.1
_LEAST_PAIRWISE = 24
_CLEARLY = 0.8

Observation = tuple[KVPolicy, float]
"""A policy and its true loss: the KL in nats per token, or another objective's."""

Array = NDArray[np.float64]


def corrected(model: Surrogate, observed: Iterable[Observation], *, pairwise: bool = True) -> Surrogate:
    """The model refitted to true evaluations; those that are not finite or not known are left out.

    Args:
        model: The uncorrected model.
        observed: Policies and their true losses.
        pairwise: Whether pairwise terms may be added where they are shown to help.
    """
    return Observations(model, observed).refitted(pairwise=pairwise).mean()


def evidence(model: Surrogate, observed: Iterable[Observation]) -> "Evidence":
    """Which pairwise terms true evaluations ask for, and how well each kind predicts those left out."""
    return Observations(model, observed).evidence()


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


class Observations:
    """True evaluations as the surrogate sees them; more may come in.

    Args:
        model: The uncorrected model.
        observed: Policies and their true losses; those that are not finite, not known or not
            quantised are left out.
    """

    def __init__(self, model: Surrogate, observed: Iterable[Observation] = ()) -> None:
        self._model = model
        self._known = {pair: column for column, pair in enumerate(model.pairs)}
        self._columns: list[list[int]] = []
        self._losses: list[float] = []
        for policy, loss in observed:
            self.add(policy, loss)

    def add(self, policy: KVPolicy, loss: float) -> None:
        """Take in one more."""
        if math.isfinite(loss) and self._model.knows(policy) and not policy.is_full:
            self._columns.append([self._known.get(layer.pair, -1) for layer in policy.layers])
            self._losses.append(loss)

    def refitted(self, *, pairwise: bool = True) -> "Refit":
        """The model as the evaluations correct it, with pairwise terms where they are allowed and shown to help."""
        if not self._losses:
            return Refit(self._model)
        few = len(self._losses) < _LEAST_PAIRWISE
        model, fits = self._fits((Pairwise.NONE,) if few or not pairwise else tuple(Pairwise))
        return Refit(model, *_preferred(fits))

    def evidence(self) -> Evidence:
        """Which pairwise terms they ask for, and how well each kind predicts those left out."""
        if len(self._losses) < _LEAST_PAIRWISE:
            return Evidence(kind=Pairwise.NONE, errors=())
        _, fits = self._fits(tuple(Pairwise))
        kind, _ = _preferred(fits)
        return Evidence(kind=kind, errors=tuple((kind, fit.error) for kind, fit in fits))

    def _fits(self, kinds: Sequence[Pairwise]) -> tuple[Surrogate, list["_Kind"]]:
        """The model on the scale of the evaluations, and a fit for each kind of pairwise terms."""
        with one_thread():
            return self._fitted(kinds)

    def _fitted(self, kinds: Sequence[Pairwise]) -> tuple[Surrogate, list["_Kind"]]:
        columns = np.array(self._columns[-_MOST_OBSERVED:], dtype=np.int64)
        losses = np.array(self._losses[-_MOST_OBSERVED:])
        layers = np.arange(columns.shape[1])
        model = self._scaled(columns, losses)
        cells = model.alone()[layers, columns]
        true = np.maximum(losses, self._least(cells))
        shares = np.zeros((len(losses), len(layers), len(model.pairs) + 1))
        shares[np.arange(len(losses))[:, None], layers, columns] = cells / true[:, None]
        # The last column is that of unquantised layers, which share nothing.
        design = _design(shares[:, :, :-1])
        ridge = Ridge(design, 1.0 - shares.sum(axis=(1, 2)))
        roots = model.roots()[layers, columns]
        noises = (_NOISES[len(_NOISES) // 2],) if len(losses) < _FEW else _NOISES
        return model, [(kind, ridge.chosen(pair_features(kind, roots) / true[:, None], noises)) for kind in kinds]

    def _scaled(self, columns: NDArray[np.int64], losses: Array) -> Surrogate:
        if self._model.objective is Objective.MEAN_KL:
            return self._model
        predicted = self._model.alone()[np.arange(columns.shape[1]), columns].sum(axis=1)
        usable = (losses > 0) & (predicted > 0)
        if not usable.any():
            return self._model
        return replace(
            self._model, isolated=self._model.isolated * float(np.median(losses[usable] / predicted[usable]))
        )

    def _least(self, cells: Array) -> Array:
        """The smallest losses that shares are taken of: a change of likelihood may be negative by chance."""
        floor = np.full(len(cells), _FLOOR)
        if self._model.objective is Objective.MEAN_KL:
            return floor
        least: Array = np.maximum(floor, _SMALLEST_SHARE * cells.sum(axis=1))
        return least


_Kind = tuple[Pairwise, Fit]


class Refit:
    """A model that was refitted to evaluations.

    Args:
        model: The model on the scale of the evaluations.
        kind: Its pairwise terms.
        fit: The regression, or ``None`` where there was nothing to fit.
    """

    def __init__(self, model: Surrogate, kind: Pairwise = Pairwise.NONE, fit: Fit | None = None) -> None:
        self._model = model
        self._kind = kind
        self._fit = fit

    def mean(self) -> Surrogate:
        """The most plausible model."""
        return self._model if self._fit is None else self._with(self._fit.mean())

    def drawn(self, rng: np.random.Generator) -> Surrogate:
        """One draw from the posterior: plausible given the evaluations, and different where they say little."""
        return self._model if self._fit is None else self._with(self._fit.drawn(rng))

    def _with(self, weights: Array) -> Surrogate:
        layers, pairs = self._model.isolated.shape
        parts = layers * pairs + pairs + layers + 1
        cells, rest = weights[: layers * pairs], weights[layers * pairs : parts]
        change = (
            _PRIOR["cell"] * cells.reshape(layers, pairs)
            + _PRIOR["pair"] * rest[:pairs][None, :]
            + _PRIOR["layer"] * rest[pairs : pairs + layers][:, None]
            + _PRIOR["all"] * rest[-1]
        )
        factors = np.maximum(1.0 + change, SMALLEST_FACTOR)
        return replace(self._model, factors=factors, coupling=coupling_of(self._kind, weights[parts:], layers))


def _design(shares: Array) -> Array:
    """The columns of cells, pairs, layers and of all; from each cell's part of true losses ``[n, layers, pairs]``."""
    return np.concatenate(
        [
            _PRIOR["cell"] * shares.reshape(len(shares), -1),
            _PRIOR["pair"] * shares.sum(axis=1),
            _PRIOR["layer"] * shares.sum(axis=2),
            _PRIOR["all"] * shares.sum(axis=(1, 2))[:, None],
        ],
        axis=1,
    )


def _preferred(fits: Sequence[_Kind]) -> _Kind:
    """The first fit, the one without pairwise terms, unless another leaves clearly smaller errors."""
    best = min(fits, key=lambda item: item[1].error)
    return best if best[1].error < _CLEARLY * fits[0][1].error else fits[0]
