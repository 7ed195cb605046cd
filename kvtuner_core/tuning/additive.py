"""The additive optimum, solved exactly: one option per unit, costs and losses that add up, the whole Pareto front.

A unit is a layer, or a group of layers that share a choice. Costs are whole numbers (bytes), so a
dynamic program over the costs that can be reached gives the least loss of every one of them, not
only of those on the convex hull that a Lagrange multiplier finds. NVIDIA ModelOpt solves the same
sum as an integer program, one budget at a time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.errors import InputError
from kvtuner_core.tuning.bounded import bounded_front, equivalent_budget

LARGEST_LOSS = 1e6
"""Nats per token that stand for a loss that is not a finite number."""

_MOST_COSTS = 4_000_000
_MOST_SUBSETS = 20_000
_MULTIPLIERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveProblem:
    """One option is chosen per unit; costs and losses are summed.

    Attributes:
        costs: Per unit, the cost of each option: whole numbers from 0.
        losses: Per unit, the loss of each option; what is not finite counts as `LARGEST_LOSS`.
        labels: Per unit, what each option is (equal labels are the same pair); only ``most_labels``
            looks at them.
        budget: Largest cost of a solution, or ``None``.
        most_labels: Most different labels in a solution, or ``None``.
        weights: Per unit, what each option adds to a second sum, whole numbers from 0; only
            ``limit`` looks at them.
        limit: Largest sum of the weights, or ``None``.
    """

    costs: tuple[tuple[int, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    labels: tuple[tuple[object, ...], ...] = ()
    budget: float | None = None
    most_labels: int | None = None
    weights: tuple[tuple[int, ...], ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A point of the additive front.

    Attributes:
        choice: Index of the chosen option of each unit.
        cost: Sum of the costs.
        loss: Sum of the losses.
    """

    choice: tuple[int, ...]
    cost: int
    loss: float


def additive_front(problem: AdditiveProblem) -> tuple[Solution, ...]:
    """Every non-dominated sum of costs and losses, the cheapest first; of equals one, always the same.

    Empty where nothing fits the budget or the number of labels.

    Raises:
        InputError: If units or options are missing, or the costs span too many values to solve.
    """
    _check(problem)
    problem = _simplified(problem)
    if problem.most_labels is None:
        return _front(_Units.all_of(problem), problem.budget)
    return _front_of_sets(problem, list(_few_labels(problem, problem.most_labels)))


def _simplified(problem: AdditiveProblem) -> AdditiveProblem:
    """The problem without its weights where a budget on the costs says the same."""
    if problem.limit is None:
        return replace(problem, weights=())
    budget = equivalent_budget(problem.costs, problem.weights, problem.limit)
    if budget is None:
        return problem
    # Costs are whole numbers, so nothing is lost by rounding down.
    whole = math.floor(budget)
    return replace(
        problem, weights=(), limit=None, budget=whole if problem.budget is None else min(whole, problem.budget)
    )


@dataclass(frozen=True, slots=True)
class _Units:
    """The options that are left of each unit, by their index in the problem."""

    options: tuple[tuple[int, ...], ...]
    costs: tuple[tuple[int, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[int, ...], ...]
    limit: int | None

    @classmethod
    def of(cls, problem: AdditiveProblem, options: Sequence[Sequence[int]]) -> "_Units":
        rows = list(zip(options, problem.costs, problem.losses, strict=True))
        weights = zip(options, problem.weights, strict=True) if problem.weights else ()
        return cls(
            tuple(tuple(kept) for kept in options),
            tuple(tuple(costs[index] for index in kept) for kept, costs, _ in rows),
            tuple(tuple(_finite(losses[index]) for index in kept) for kept, _, losses in rows),
            tuple(tuple(row[index] for index in kept) for kept, row in weights),
            problem.limit,
        )

    @classmethod
    def all_of(cls, problem: AdditiveProblem) -> "_Units":
        return cls.of(problem, [range(len(costs)) for costs in problem.costs])


def _finite(loss: float) -> float:
    return min(max(loss, -LARGEST_LOSS), LARGEST_LOSS) if math.isfinite(loss) else LARGEST_LOSS


def _check(problem: AdditiveProblem) -> None:
    shapes = [[len(row) for row in table] for table in (problem.costs, problem.losses)]
    if not shapes[0] or not all(shapes[0]) or shapes[0] != shapes[1]:
        raise InputError("Every unit needs a cost and a loss for each of its options; got tables that differ.")
    if problem.most_labels is not None:
        if problem.most_labels < 1:
            raise InputError(f"At least one pair must be allowed; got {problem.most_labels}. Use 2 or 3.")
        if [len(row) for row in problem.labels] != shapes[0]:
            raise InputError("A bound on different pairs needs the pair of every option; some are missing.")
    if problem.limit is not None and [len(row) for row in problem.weights] != shapes[0]:
        raise InputError("A limit on weights needs the weight of every option; some are missing.")


def _few_labels(problem: AdditiveProblem, most: int) -> Iterator[_Units]:
    """The problem once for each set of labels that leaves every unit an option."""
    labels = tuple(_useful_labels(problem))
    chosen = min(most, len(labels))
    if math.comb(len(labels), chosen) > _MOST_SUBSETS:
        raise InputError(
            f"At most {_MOST_SUBSETS} sets of {most} out of {len(labels)} pairs can be tried. Sweep fewer bit widths."
        )
    for kept in combinations(labels, chosen):
        options = [[index for index, label in enumerate(row) if label in kept] for row in problem.labels]
        if all(options):
            yield _Units.of(problem, options)


def _front_of_sets(problem: AdditiveProblem, sets: Sequence[_Units]) -> tuple[Solution, ...]:
    """The front over all sets of labels; a set whose lower bound lies above what others reach is not solved."""
    slopes = _slopes(problem)
    relaxed = [_relaxed(units, slopes) for units in sets]
    front: tuple[Solution, ...] = ()
    for place in sorted(range(len(sets)), key=lambda index: float(np.log(np.maximum(relaxed[index], 1e-12)).sum())):
        if _may_improve(sets[place], relaxed[place], slopes, front=front, budget=problem.budget):
            front = _non_dominated((*front, *_front(sets[place], problem.budget)))
    return front


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


def _relaxed(units: _Units, slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least sum of loss + slope x cost, one for each slope: a solution of cost c loses at least this less slope x c."""
    total = np.zeros(len(slopes))
    for costs, losses in zip(units.costs, units.losses, strict=True):
        total += (np.array(losses)[:, None] + np.array(costs, dtype=np.float64)[:, None] * slopes).min(axis=0)
    return total


def _may_improve(
    units: _Units,
    relaxed: NDArray[np.float64],
    slopes: NDArray[np.float64],
    *,
    front: Sequence[Solution],
    budget: float | None,
) -> bool:
    cheapest = sum(min(row) for row in units.costs)
    if budget is not None and cheapest > budget:
        return False
    if not front or cheapest < front[0].cost:
        return True
    # Between two points of the front the bound falls with the cost, so it is lowest just before the second.
    dearest = float(sum(max(row) for row in units.costs))
    ends = np.array([*(solution.cost - 1.0 for solution in front[1:]), dearest if budget is None else budget])
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
        yield [(cost, _finite(loss)) for cost, loss in zip(costs, losses, strict=True)]


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


def _front(units: _Units, budget: float | None) -> tuple[Solution, ...]:
    base = sum(min(row) for row in units.costs)
    if budget is not None and base > budget:
        return ()
    if units.weights and units.limit is not None:
        return _front_within(units, budget, units.limit)
    extra = [np.array(row, dtype=np.int64) - min(row) for row in units.costs]
    step = math.gcd(*(int(value) for row in extra for value in row)) or 1
    shifts = [row // step for row in extra]
    reach = sum(int(row.max()) for row in shifts)
    if budget is not None:
        reach = min(reach, int((budget - base) // step))
    if reach > _MOST_COSTS:
        raise InputError(
            f"The costs of all policies may take at most {_MOST_COSTS} values; got {reach}. Sweep fewer bit widths."
        )
    least, taken = _least_losses(shifts, units.losses, reach)
    return _read(units, least, taken, shifts=shifts, cost_of=(base, step))


def _front_within(units: _Units, budget: float | None, limit: int) -> tuple[Solution, ...]:
    found = bounded_front(units.costs, units.losses, units.weights, limit=limit, budget=budget)
    return tuple(
        Solution(
            choice=tuple(units.options[unit][index] for unit, index in enumerate(item.options)),
            cost=item.cost,
            loss=item.loss,
        )
        for item in found
    )


def _least_losses(
    shifts: Sequence[NDArray[np.int64]], losses: Sequence[Sequence[float]], reach: int
) -> tuple[NDArray[np.float64], list[NDArray[np.int16]]]:
    """Least loss at every cost from 0 to ``reach``, and per unit the option that was taken for it."""
    least = np.full(reach + 1, np.inf)
    least[0] = 0.0
    taken = []
    top = 0
    for row, values in zip(shifts, losses, strict=True):
        new = np.full(reach + 1, np.inf)
        option = np.zeros(reach + 1, dtype=np.int16)
        for index, (shift, loss) in enumerate(zip(row, values, strict=True)):
            width = min(top, reach - int(shift)) + 1
            if width < 1:
                continue
            target = new[shift : shift + width]
            reached = least[:width] + loss
            better = reached < target
            target[better] = reached[better]
            option[shift : shift + width][better] = index
        top = min(reach, top + int(row.max()))
        least = new
        taken.append(option)
    return least, taken


def _read(
    units: _Units,
    least: NDArray[np.float64],
    taken: Sequence[NDArray[np.int16]],
    *,
    shifts: Sequence[NDArray[np.int64]],
    cost_of: tuple[int, int],
) -> tuple[Solution, ...]:
    before = np.concatenate(([np.inf], np.minimum.accumulate(least)[:-1]))
    places = np.flatnonzero(least < before)
    chosen = np.zeros((len(taken), len(places)), dtype=np.int64)
    at = places.copy()
    for unit in range(len(taken) - 1, -1, -1):
        chosen[unit] = taken[unit][at]
        at = at - shifts[unit][chosen[unit]]
    base, step = cost_of
    return tuple(
        Solution(
            choice=tuple(units.options[unit][int(index)] for unit, index in enumerate(column)),
            cost=base + step * int(place),
            loss=float(least[place]),
        )
        for place, column in zip(places, chosen.T, strict=True)
    )


def _non_dominated(solutions: Iterable[Solution]) -> tuple[Solution, ...]:
    front: list[Solution] = []
    for solution in sorted(solutions, key=lambda item: (item.cost, item.loss, item.choice)):
        if not front or solution.loss < front[-1].loss:
            front.append(solution)
    return tuple(front)
