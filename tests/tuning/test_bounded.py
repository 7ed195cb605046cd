"""The second bound of the additive optimum: when it is a budget in disguise, and when it is not."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from kvtuner_core.tuning.bounded import bounded_front, equivalent_budget


def test_weights_in_proportion_to_costs_are_a_budget_on_costs():
    costs, weights = ((10, 6, 4), (5, 3)), ((120, 92, 78), (40, 26))
    assert equivalent_budget(costs, weights, 130) == 15 + Fraction(130 - 160, 7)


def test_weights_that_are_all_the_same_bound_everything_or_nothing():
    costs, weights = ((10, 6), (5, 3)), ((7, 7), (2, 2))
    assert equivalent_budget(costs, weights, 9) == 15
    assert equivalent_budget(costs, weights, 8) == -1


@pytest.mark.parametrize("weights", [((20, 12), (5, 3)), ((20, 12), (9, 9)), ((12, 20), (6, 10))])
def test_other_weights_are_no_budget(weights):
    assert equivalent_budget(((10, 6), (5, 3)), weights, 20) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_front_is_that_of_enumeration(seed):
    rng = np.random.default_rng(seed)
    shape = [int(size) for size in rng.integers(1, 5, 5)]
    costs, weights = ([[int(n) for n in rng.integers(0, 6, size)] for size in shape] for _ in range(2))
    losses = [[float(x) for x in rng.integers(0, 9, size)] for size in shape]
    limit, budget = 12, 15 if seed % 2 else None
    sums = []
    for choice in product(*(range(size) for size in shape)):
        cost, weight, loss = (
            sum(row[index] for row, index in zip(table, choice, strict=True)) for table in (costs, weights, losses)
        )
        if weight <= limit and (budget is None or cost <= budget):
            sums.append((cost, loss))
    expected = []
    for cost, loss in sorted(sums):
        if not expected or loss < expected[-1][1]:
            expected.append((cost, loss))
    found = bounded_front(costs, losses, weights, limit=limit, budget=budget)
    assert [(item.cost, item.loss) for item in found] == expected
    for item in found:
        assert sum(row[i] for row, i in zip(costs, item.choice, strict=True)) == item.cost
        assert sum(row[i] for row, i in zip(losses, item.choice, strict=True)) == item.loss
        assert sum(row[i] for row, i in zip(weights, item.choice, strict=True)) <= limit
