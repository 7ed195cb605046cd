"""The additive front against enumeration."""

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.errors import InputError
from kvtuner_core.tuning.additive import additive_front
from kvtuner_core.tuning.additive_problem import LARGEST_LOSS, AdditiveProblem

LOSSES = st.one_of(st.floats(0, 3, allow_nan=False), st.sampled_from([0.0, 0.5, 1.0]))


@st.composite
def problems(draw):
    units = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, 4)) for _ in range(units)]
    unit = draw(st.sampled_from([1, 3, 24]))
    return AdditiveProblem(
        costs=tuple(tuple(unit * draw(st.integers(0, 12)) for _ in range(size)) for size in sizes),
        losses=tuple(tuple(draw(LOSSES) for _ in range(size)) for size in sizes),
        labels=tuple(tuple("abcd"[:size]) for size in sizes),
        budget=draw(st.sampled_from([None, 20 * unit, 30.5])),
        most_labels=draw(st.sampled_from([None, 1, 2, 3])),
    )


def _by_hand(problem):
    points = {}
    for choice in product(*(range(len(row)) for row in problem.costs)):
        cost = sum(row[index] for row, index in zip(problem.costs, choice, strict=True))
        loss = sum(row[index] for row, index in zip(problem.losses, choice, strict=True))
        used = {row[index] for row, index in zip(problem.labels, choice, strict=True)}
        if problem.budget is not None and cost > problem.budget:
            continue
        if problem.most_labels is None or len(used) <= problem.most_labels:
            points[cost] = min(loss, points.get(cost, math.inf))
    front = []
    for cost in sorted(points):
        if not front or points[cost] < front[-1][1] - 1e-12:
            front.append((cost, points[cost]))
    return front


@settings(deadline=None, max_examples=300)
@given(problems())
def test_the_front_is_the_one_that_enumeration_finds(problem):
    found = additive_front(problem)
    # Sums in another order may differ in the last digit and leave a point that gains nothing.
    kept = [item for index, item in enumerate(found) if not index or item.loss < found[index - 1].loss - 1e-12]
    expected = _by_hand(problem)
    assert [item.cost for item in kept] == [cost for cost, _ in expected]
    assert [item.loss for item in kept] == pytest.approx([loss for _, loss in expected])
    for item in found:
        assert sum(row[index] for row, index in zip(problem.costs, item.choice, strict=True)) == item.cost
        assert sum(row[index] for row, index in zip(problem.losses, item.choice, strict=True)) == pytest.approx(
            item.loss
        )


def test_a_point_between_the_corners_of_the_convex_hull_is_found():
    # With a Lagrange multiplier the middle option is never the cheapest.
    found = additive_front(AdditiveProblem(costs=((0, 5, 10),), losses=((10.0, 9.0, 0.0),)))
    assert [(item.cost, item.loss) for item in found] == [(0, 10.0), (5, 9.0), (10, 0.0)]


def test_sets_that_are_not_solved_would_have_added_nothing():
    rng = np.random.default_rng(2)
    names = "abcdefg"
    costs = tuple(tuple(24 * (2 + index) for index in range(7)) for _ in range(12))
    losses = tuple(
        tuple(rng.lognormal() * 3.0**-index * rng.lognormal(0, 0.4) for index in range(7)) for _ in range(12)
    )
    problem = AdditiveProblem(costs=costs, losses=losses, labels=(tuple(names),) * 12, most_labels=2)
    alone = [
        item
        for kept in combinations(range(7), 2)
        for item in additive_front(
            AdditiveProblem(
                costs=tuple(tuple(row[index] for index in kept) for row in costs),
                losses=tuple(tuple(row[index] for index in kept) for row in losses),
            )
        )
    ]
    expected = []
    for cost, loss in sorted((item.cost, item.loss) for item in alone):
        if not expected or loss < expected[-1][1]:
            expected.append((cost, loss))
    assert [(item.cost, item.loss) for item in additive_front(problem)] == expected


def test_what_is_not_a_number_is_the_worst():
    found = additive_front(AdditiveProblem(costs=((0, 1),), losses=((math.nan, 2.0),)))
    assert [item.loss for item in found] == [LARGEST_LOSS, 2.0]


def test_nothing_within_the_budget_is_an_empty_front():
    assert additive_front(AdditiveProblem(costs=((4, 5),), losses=((1.0, 0.0),), budget=3)) == ()


def test_eighty_layers_and_fifteen_pairs_are_solved_at_once():
    costs = tuple(tuple(range(100, 100 + 15 * 24, 24)) for _ in range(80))
    losses = tuple(tuple((layer % 7 + 1) / (index + 1) for index in range(15)) for layer in range(80))
    front = additive_front(AdditiveProblem(costs=costs, losses=losses))
    assert len(front) > 500
    assert all(one.loss > other.loss for one, other in pairwise(front))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (AdditiveProblem(costs=(), losses=()), "Every unit needs"),
        (AdditiveProblem(costs=((1, 2),), losses=((1.0,),)), "Every unit needs"),
        (AdditiveProblem(costs=((1,),), losses=((1.0,),), most_labels=1), "the pair of every option"),
        (AdditiveProblem(costs=((1,),), losses=((1.0,),), labels=(("a",),), most_labels=0), "At least one pair"),
        (AdditiveProblem(costs=((0, 1, 10**9),), losses=((0.0, 1.0, 2.0),)), "at most 4000000"),
    ],
)
def test_what_cannot_be_solved_is_refused(problem, message):
    with pytest.raises(InputError, match=message):
        additive_front(problem)
