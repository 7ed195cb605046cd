"""The additive optimum, solved exactly: one option per unit, costs and losses that add up, the whole Pareto front.

A unit is a layer, or a group of layers that share a choice. Costs are whole numbers (bytes), so a
dynamic program over the costs that can be reached gives the least loss of every one of them, not
only of those on the convex hull that a Lagrange multiplier finds. NVIDIA ModelOpt solves the same
sum as an integer program, one budget at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.tuning.additive_problem import LARGEST_LOSS, AdditiveProblem, Solution, Sums
from kvtuner_core.tuning.bounded import equivalent_budget
from kvtuner_core.tuning.few_labels import front_of_few
from kvtuner_core.tuning.units import Units, solved


def additive_front(problem: AdditiveProblem) -> tuple[Solution, ...]:
    """Every non-dominated sum of costs and losses, the cheapest first; of equals one, always the same.

    Empty where nothing fits the budget or the number of labels.

    Raises:
        InputError: If units or options are missing, or the costs span too many values to solve.
    """
    problem.check()
    return additive_sums(problem, [np.array([row], dtype=np.float64) for row in problem.losses]).solutions()


def additive_sums(problem: AdditiveProblem, tables: Sequence[NDArray[np.float64]]) -> Sums:
    """The additive fronts of several tables of losses, one front after the other.

    Args:
        problem: Costs and bounds, as `AdditiveProblem.check` allows them; its losses are not looked at.
        tables: Per unit, the loss of each option in every table ``[tables, options]``.

    Raises:
        InputError: If the costs span too many values to solve.
    """
    problem = _simplified(problem)
    finite = [np.where(np.isfinite(row), np.clip(row, -LARGEST_LOSS, LARGEST_LOSS), LARGEST_LOSS) for row in tables]
    if problem.most_labels is None:
        return solved(Units.of(problem, finite), problem.budget)
    one_by_one = [[row[place : place + 1] for row in finite] for place in range(len(finite[0]))]
    fronts = [front_of_few(problem, each, most=problem.most_labels) for each in one_by_one]
    return Sums(
        choices=np.concatenate([front.choices for front in fronts]),
        costs=np.concatenate([front.costs for front in fronts]),
        losses=np.concatenate([front.losses for front in fronts]),
    )


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
