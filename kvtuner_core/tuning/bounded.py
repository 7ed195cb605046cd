"""The additive optimum under a second bound: least loss of every cost, where weights must not exceed a limit.

Costs are what is minimised beside the loss (effective bits), weights what is bounded (bytes of a cache
at a batch and context). In most models the two are the same up to a factor, and a budget on the costs
says it all; layers with sliding windows hold fewer tokens than the others, so there a program over
both sums is needed. Sums that another one of the same cost beats in weight and loss are dropped.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.errors import InputError
from kvtuner_core.tuning.additive_problem import Solution

_MOST_SUMS = 4_000_000

Rows = Sequence[Sequence[int]]
"""Per unit, a whole number for each option."""


def equivalent_budget(costs: Rows, weights: Rows, limit: int) -> Fraction | None:
    """The budget on costs that is the limit on weights, where one is; ``None`` where none is.

    There is one where each option adds weight in proportion to the cost it adds, by one factor for
    all units. Where all options weigh the same, the budget is unlimited (or below every cost).
    """
    factor: Fraction | None = None
    for cost_row, weight_row in zip(costs, weights, strict=True):
        for cost, weight in zip(cost_row, weight_row, strict=True):
            extra, heavier = cost - cost_row[0], weight - weight_row[0]
            if extra == 0 and heavier == 0:
                continue
            own = Fraction(heavier, extra) if extra else None
            if own is None or own < 0 or (factor is not None and own != factor):
                return None
            factor = own
    first_cost, first_weight = sum(row[0] for row in costs), sum(row[0] for row in weights)
    if not factor:
        dearest = sum(max(row) for row in costs)
        return Fraction(dearest if first_weight <= limit else -1)
    return first_cost + Fraction(limit - first_weight) / factor


def bounded_front(
    costs: Rows, losses: Sequence[Sequence[float]], weights: Rows, *, limit: int, budget: float | None
) -> tuple[Solution, ...]:
    """The non-dominated sums of costs and losses within the limit, the cheapest first; empty where none is.

    Args:
        costs: Whole numbers from 0.
        losses: Finite numbers, likewise.
        weights: Whole numbers from 0, likewise.
        limit: Largest sum of the weights.
        budget: Largest sum of the costs, or ``None``.

    Raises:
        InputError: If there are too many different sums.
    """
    most = float("inf") if budget is None else budget
    cost, weight, loss = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for unit in range(len(costs)):
        options = len(costs[unit])
        costs_now = (cost[:, None] + np.array(costs[unit], dtype=np.int64)).ravel()
        weights_now = (weight[:, None] + np.array(weights[unit], dtype=np.int64)).ravel()
        losses_now = (loss[:, None] + np.array(losses[unit])).ravel()
        left_weight = sum(min(row) for row in weights[unit + 1 :])
        left_cost = sum(min(row) for row in costs[unit + 1 :])
        fitting = np.flatnonzero((weights_now + left_weight <= limit) & (costs_now + left_cost <= most))
        kept = fitting[_unbeaten(costs_now[fitting], weights_now[fitting], losses_now[fitting])]
        if len(kept) > _MOST_SUMS:
            raise InputError(
                f"At most {_MOST_SUMS} sums of bits and bytes are followed; got {len(kept)}. Sweep fewer bit widths."
            )
        steps.append((kept // options, kept % options))
        cost, weight, loss = costs_now[kept], weights_now[kept], losses_now[kept]
    return _read(steps, cost, loss)


def _unbeaten(costs: NDArray[np.int64], weights: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the sums that none of the same cost beats in weight and loss."""
    if not len(costs):
        return np.zeros(0, dtype=np.int64)
    ranks = np.unique(losses, return_inverse=True)[1].astype(np.int64)
    order = np.lexsort((ranks, weights, costs))
    group = np.concatenate(([0], np.cumsum(np.diff(costs[order]) > 0)))
    # Each cost's ranks lie below those of the cost before, so that one running minimum serves them all.
    level = ranks[order] - group * (int(ranks.max()) + 1)
    before = np.concatenate(([np.iinfo(np.int64).max], np.minimum.accumulate(level)[:-1]))
    kept: NDArray[np.int64] = order[level < before]
    return kept


def _read(
    steps: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], cost: NDArray[np.int64], loss: NDArray[np.float64]
) -> tuple[Solution, ...]:
    found: list[Solution] = []
    for place in np.lexsort((loss, cost)):
        if found and loss[place] >= found[-1].loss:
            continue
        options, at = [], int(place)
        for parents, taken in reversed(steps):
            options.append(int(taken[at]))
            at = int(parents[at])
        found.append(Solution(choice=tuple(reversed(options)), cost=int(cost[place]), loss=float(loss[place])))
    return tuple(found)
