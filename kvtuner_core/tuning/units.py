"""The units of an additive problem with the options that are left of each, and their fronts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.errors import InputError
from kvtuner_core.tuning.additive_problem import AdditiveProblem, Solution, Sums
from kvtuner_core.tuning.bounded import bounded_front
from kvtuner_core.tuning.program import least_sums

_MOST_COSTS = 4_000_000

Tables = Sequence[NDArray[np.float64]]
"""Per unit, the loss of each option in every table ``[tables, options]``; finite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """What each unit may choose from.

    Attributes:
        options: Per unit, the options that are left, by their index in the problem.
        costs: Their costs.
        losses: Their losses ``[tables, options]``.
        weights: Their weights; empty where there is no limit.
        limit: Largest sum of the weights, or ``None``.
    """

    options: tuple[NDArray[np.int64], ...]
    costs: tuple[NDArray[np.int64], ...]
    losses: tuple[NDArray[np.float64], ...]
    weights: tuple[NDArray[np.int64], ...]
    limit: int | None

    @classmethod
    def of(cls, problem: AdditiveProblem, tables: Tables, options: Sequence[Sequence[int]] | None = None) -> "Units":
        """Those of a problem with the losses of some tables: all options, or some of each unit."""
        kept = tuple(np.array(row) for row in options or [range(len(costs)) for costs in problem.costs])

        def of_kept(table: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], ...]:
            return tuple(np.array(row, dtype=np.int64)[own] for row, own in zip(table, kept, strict=True))

        return cls(
            options=kept,
            costs=of_kept(problem.costs),
            losses=tuple(row[:, own] for row, own in zip(tables, kept, strict=True)),
            weights=() if problem.limit is None else of_kept(problem.weights),
            limit=problem.limit,
        )

    @property
    def cheapest(self) -> int:
        """Least sum of costs."""
        return sum(int(row.min()) for row in self.costs)

    @property
    def dearest(self) -> int:
        """Largest sum of costs."""
        return sum(int(row.max()) for row in self.costs)


def solved(units: Units, budget: float | None) -> Sums:
    """The non-dominated sums of each table within the bounds, one table after the other, the cheapest first.

    Raises:
        InputError: If the costs span too many values to solve.
    """
    count = len(units.costs)
    if budget is not None and units.cheapest > budget:
        return Sums.of((), units=count)
    if units.limit is not None:
        tables = range(len(units.losses[0]))
        return Sums.of([item for table in tables for item in _within(units, table, budget)], units=count)
    extra = [row - row.min() for row in units.costs]
    step = math.gcd(*(int(value) for row in extra for value in row)) or 1
    shifts = [row // step for row in extra]
    reach = sum(int(row.max()) for row in shifts)
    if budget is not None:
        reach = min(reach, int((budget - units.cheapest) // step))
    if reach > _MOST_COSTS:
        raise InputError(
            f"The costs of all policies may take at most {_MOST_COSTS} values; got {reach}. Sweep fewer bit widths."
        )
    found = least_sums(shifts, units.losses, reach=reach)
    return Sums(
        choices=_in_problem(units, found.options),
        costs=units.cheapest + step * found.shifts,
        losses=found.losses,
    )


def _in_problem(units: Units, options: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices among the options that are left as indices in the problem."""
    if all(len(kept) == kept[-1] + 1 for kept in units.options):
        return options
    return np.stack([kept[options[:, unit]] for unit, kept in enumerate(units.options)], axis=1)


def _within(units: Units, table: int, budget: float | None) -> list[Solution]:
    """The front of one table under the limit on weights."""
    costs, weights = ([row.tolist() for row in rows] for rows in (units.costs, units.weights))
    losses = [row[table].tolist() for row in units.losses]
    found = bounded_front(costs, losses, weights, limit=units.limit or 0, budget=budget)
    return [
        Solution(
            choice=tuple(int(units.options[unit][index]) for unit, index in enumerate(item.choice)),
            cost=item.cost,
            loss=item.loss,
        )
        for item in found
    ]
