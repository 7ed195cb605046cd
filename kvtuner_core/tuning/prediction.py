"""How far the additive model predicts what was measured, and how far a search ended from the model's own front."""

import math
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpace
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.constraints import constrained, layer_space
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.front import dominated_share
from kvtuner_core.tuning.guided import surrogate_front
from kvtuner_core.tuning.refitting import Evidence, corrected, evidence
from kvtuner_core.tuning.spread import Point
from kvtuner_core.tuning.surrogate import Surrogate

MOST_ENUMERATED = 500_000
"""Configurations up to which a space is enumerated one by one."""

_GROUPED = frozenset((SearchStrategy.NSGA2, SearchStrategy.NSGA2_WARM, SearchStrategy.MOEAD))
"""Strategies that choose one pair for a whole layer group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The measured objective against the sum of isolated KLs, on calibration prompts.

    Attributes:
        candidates: The policies of which every pair was swept; searched ones first, then baselines.
        predicted: Their additive prediction, nats per token.
        measured: Their measured loss, in the objective's unit.
        rank_correlation: Spearman's, over all of them; ``None`` where there are too few.
        ratio: Median of measured / predicted; 1 means that layers do not interact on balance.
        evidence: Whether pairwise terms predict evaluations that were left out better.
    """

    candidates: tuple[Candidate, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    rank_correlation: float | None
    ratio: float | None
    evidence: Evidence


def prediction(result: SearchResult) -> Prediction:
    """The additive prediction of everything that a search evaluated."""
    objective = result.spec.objective
    model = Surrogate.additive(result.sweep.profiles)
    known = tuple(
        item
        for item in (*result.candidates, *result.baselines)
        if model.knows(item.policy) and not item.policy.is_full and math.isfinite(item.loss(objective))
    )
    predicted = tuple(model.predict(item.policy) for item in known)
    measured = tuple(item.loss(objective) for item in known)
    ratios = [true / sums for true, sums in zip(measured, predicted, strict=True) if sums > 0]
    return Prediction(
        candidates=known,
        predicted=predicted,
        measured=measured,
        rank_correlation=spearman(predicted, measured),
        ratio=median(ratios) if ratios else None,
        evidence=evidence(
            Surrogate.additive(result.sweep.profiles, objective),
            [(item.policy, item.loss(objective)) for item in known],
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """What a search left on the table, as its refitted surrogate sees it.

    Attributes:
        best: Hypervolume of the surrogate's exact front over the policies of ``space``, 0 to 1.
        found: Hypervolume, in the surrogate's predictions, of the policies that were evaluated.
        configurations: Log10 of the number of policies the front was taken over.
        space: Whose pairs were chosen from: ``layers``, each alone among all swept pairs, or
            ``groups``, the layer groups that a strategy was bound to.
        enumerated: Number of policies that were looked at one by one, within the bounds or not;
            ``None`` where a dynamic program took their place.
    """

    best: float
    found: float
    configurations: float
    space: str = "layers"
    enumerated: int | None = None

    @property
    def regret(self) -> float:
        """Hypervolume that was not reached, 0 or more."""
        return max(0.0, self.best - self.found)

    @property
    def text(self) -> str:
        """The number and how it was computed, in one line."""
        how = (
            f"exact, dynamic program over 10^{self.configurations:.1f} policies"
            if self.enumerated is None
            else f"exact, {self.enumerated:,} policies enumerated"
        )
        return f"{self.regret:.5f} of the hypervolume over the {self.space} ({how}) under the refitted additive model"


def regret(result: SearchResult) -> Regret:
    """The regret of a search under the model refitted to all that it evaluated, within its bounds.

    The model has no pairwise terms, so that its front is exact.
    """
    return _regret(result, layer_space(result.sweep.space), "layers")


def group_regret(result: SearchResult) -> Regret | None:
    """The same over the layer groups, where the strategy could choose from nothing else; ``None`` for the others."""
    return _regret(result, result.sweep.space, "groups") if result.spec.strategy in _GROUPED else None


def _regret(result: SearchResult, space: SearchSpace, name: str) -> Regret:
    objective = result.spec.objective
    model = Surrogate.additive(result.sweep.profiles, objective)
    seen = [item for item in result.candidates if model.knows(item.policy)]
    model = corrected(model, [(item.policy, item.loss(objective)) for item in seen], pairwise=False)
    choices = Choices(
        constrained(space, result.spec.constraints),
        result.spec.sweep.scheme,
        result.sweep.model.layers,
        max_bits=result.spec.max_bits,
        max_pairs=result.spec.constraints.max_pairs,
        memory=result.spec.constraints.memory,
    )
    count = math.prod(choices.sizes)
    few = count <= MOST_ENUMERATED
    front = enumerated_front(choices, model) if few else [point[1:] for point in surrogate_front(choices, model)]
    return Regret(
        best=dominated_share(front, worst=objective.worst),
        found=dominated_share(
            ((item.effective_bits, model.predict(item.policy)) for item in seen), worst=objective.worst
        ),
        configurations=sum(math.log10(size) for size in choices.sizes),
        space=name,
        enumerated=count if few else None,
    )


def enumerated_front(choices: Choices, model: Surrogate) -> tuple[Point, ...]:
    """The surrogate's front, found by looking at every configuration: what the exact solver must agree with.

    Raises:
        InputError: If there are more than `MOST_ENUMERATED` configurations.
    """
    count = math.prod(choices.sizes)
    if count > MOST_ENUMERATED:
        raise InputError(
            f"At most {MOST_ENUMERATED} configurations are enumerated; these groups allow {count}. "
            "Use larger groups, or the exact solver."
        )
    costs: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    losses: NDArray[np.float64] = np.zeros(1)
    weights: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    used = [frozenset[object]()]
    limited = choices.max_pairs is not None
    for layers, pairs, row, heavy in zip(choices.layers, choices.pairs, choices.costs, choices.weights, strict=True):
        values = np.array([model.loss(layers, pair) for pair in pairs])
        costs = (costs[:, None] + np.array(row)[None, :]).ravel()
        losses = (losses[:, None] + values[None, :]).ravel()
        weights = (weights[:, None] + np.array(heavy)[None, :]).ravel()
        if limited:
            used = [kept | {pair} for kept in used for pair in pairs]
    fits = np.ones(len(costs), dtype=bool) if choices.budget is None else costs <= choices.budget
    if choices.limit is not None:
        fits &= weights <= choices.limit
    if choices.max_pairs is not None:
        fits &= np.array([len(kept) for kept in used]) <= choices.max_pairs
    return _lower(choices, costs[fits], losses[fits])


def _lower(choices: Choices, costs: NDArray[np.int64], losses: NDArray[np.float64]) -> tuple[Point, ...]:
    front: list[tuple[int, float]] = []
    for index in np.lexsort((losses, costs)):
        if not front or losses[index] < front[-1][1]:
            front.append((int(costs[index]), float(losses[index])))
    return tuple((choices.bits_of(cost), loss) for cost, loss in front)
