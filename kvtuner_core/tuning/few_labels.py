"""The additive optimum with few different labels: each set of labels is solved that may add to the front."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.errors import InputError
from kvtuner_core.tuning.additive_problem import AdditiveProblem, Solution, Sums
from kvtuner_core.tuning.units import Tables, Units, solved

_MOST_SUBSETS = 20_000
_MULTIPLIERS = 64

Sets = NDArray[np.bool_]
"""Per unit, which of its options each set of labels leaves ``[sets, options]``."""


def front_of_few(problem: AdditiveProblem, tables: Tables, *, most: int) -> Sums:
    """The front of one table of losses over all sets of ``most`` labels, the cheapest first.

    A set whose lower bound lies above what others reach is not solved.

    Raises:
        InputError: If there are too many sets, or the costs span too many values to solve.
    """
    problem = replace(problem, losses=tuple(tuple(row[0].tolist()) for row in tables))
    kept = _sets(problem, most)
    slopes = _slopes(problem)
    relaxed = _relaxed(problem, kept, slopes)
    front: tuple[Solution, ...] = ()
    order = np.log(np.maximum(relaxed, 1e-12)).sum(axis=1).tolist()
    for place in sorted(range(len(order)), key=order.__getitem__):
        units = Units.of(problem, tables, [np.flatnonzero(row[place]).tolist() for row in kept])
        if _may_improve(units, relaxed[place], slopes, front=front, budget=problem.budget):
            front = _non_dominated((*front, *solved(units, problem.budget).solutions()))
    return Sums.of(front, units=len(tables))


def _sets(problem: AdditiveProblem, most: int) -> list[Sets]:
    """The sets of labels that leave every unit an option, by the options that they leave."""
    labels = tuple(_useful_labels(problem))
    chosen = min(most, len(labels))
    if math.comb(len(labels), chosen) > _MOST_SUBSETS:
        raise InputError(
            f"At most {_MOST_SUBSETS} sets of {most} out of {len(labels)} pairs can be tried. Sweep fewer bit widths."
        )
    sets = list(combinations(labels, chosen))
    kept = [np.array([[label in one for label in row] for one in sets], dtype=bool) for row in problem.labels]
    whole = np.logical_and.reduce([row.any(axis=1) for row in kept])
    return [row[whole] for row in kept]


def _slopes(problem: AdditiveProblem) -> NDArray[np.float64]:
    """Multipliers, loss per cost, from 0 to the steepest step of any unit."""
    steps = [
        (one_loss - other_loss) / (other_cost - one_cost)
        for points in _points(problem)
        for one_cost, one_loss in points
        for other_cost, other_loss in points
        if other_cost > one_cost and one_loss > other_loss
    ]
    spaced = np.quantile(np.array(steps), np.linspace(0.0, 1.0, _MULTIPLIERS)) if steps else np.zeros(0)
    return np.concatenate(([0.0], spaced))


def _relaxed(problem: AdditiveProblem, kept: Sequence[Sets], slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least sum of loss + slope x cost of each set ``[sets, slopes]``.

    A solution of cost c loses at least this less slope x c.
    """
    total = np.zeros((len(kept[0]), len(slopes)))
    for costs, losses, own in zip(problem.costs, problem.losses, kept, strict=True):
        values = np.array(losses)[:, None] + np.array(costs, dtype=np.float64)[:, None] * slopes
        least = np.full_like(total, np.inf)
        for option, value in enumerate(values):
            np.minimum(least, np.where(own[:, option, None], value, np.inf), out=least)
        total += least
    return total


def _may_improve(
    units: Units,
    relaxed: NDArray[np.float64],
    slopes: NDArray[np.float64],
    *,
    front: Sequence[Solution],
    budget: float | None,
) -> bool:
    if budget is not None and units.cheapest > budget:
        return False
    if not front or units.cheapest < front[0].cost:
        return True
    # Between two points of the front the bound falls with the cost, so it is lowest just before the second.
    last = float(units.dearest) if budget is None else budget
    ends = np.array([*(solution.cost - 1.0 for solution in front[1:]), last])
    bounds = (relaxed[None, :] - slopes[None, :] * ends[:, None]).max(axis=1)
    return bool((bounds < np.array([solution.loss for solution in front])).any())


def _useful_labels(problem: AdditiveProblem) -> Iterator[object]:
    """Labels that no other one beats in every unit: replacing a beaten one never adds a label."""
    weights = problem.weights or [[0] * len(row) for row in problem.costs]
    rows = zip(problem.labels, _points(problem), weights, strict=True)
    tables = [
        {label: (*point, weight) for label, point, weight in zip(labels, points, own, strict=True)}
        for labels, points, own in rows
    ]
    order = list(dict.fromkeys(label for row in problem.labels for label in row))
    for place, label in enumerate(order):
        if not any(_beats(tables, other, label, other_first=order.index(other) < place) for other in order):
            yield label


def _points(problem: AdditiveProblem) -> Iterator[list[tuple[int, float]]]:
    for costs, losses in zip(problem.costs, problem.losses, strict=True):
        yield list(zip(costs, losses, strict=True))


def _beats(
    tables: Sequence[dict[object, tuple[int, float, int]]], other: object, label: object, *, other_first: bool
) -> bool:
    if other == label:
        return False
    equal = True
    for table in tables:
        if label not in table:
            continue
        if other not in table or any(one > own for one, own in zip(table[other], table[label], strict=True)):
            return False
        equal = equal and table[other] == table[label]
    return not equal or other_first


def _non_dominated(solutions: Iterable[Solution]) -> tuple[Solution, ...]:
    front: list[Solution] = []
    for solution in sorted(solutions, key=lambda item: (item.cost, item.loss, item.choice)):
        if not front or solution.loss < front[-1].loss:
            front.append(solution)
    return tuple(front)
