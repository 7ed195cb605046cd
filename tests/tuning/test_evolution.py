"""The NSGA-II wrapper: bounds, seeds, bad numbers."""

import math
import random

import numpy as np
import pytest

from kvtuner_core.tuning.evolution import Evolution, log_kl

START = ((0, 0, 0), (4, 1, 0), (2, 0, 0), (1, 1, 0))


def _run(seed, generations=6):
    evolution = Evolution(sizes=(5, 2, 1), start=START, offspring=4, seed=seed)
    asked = []
    for _ in range(generations):
        generation = evolution.ask()
        asked.append(generation)
        evolution.tell([(choice, 16.0 - sum(choice), 0.01 * sum(choice)) for choice in generation or START])
    return asked


def test_generations_stay_in_bounds_and_start_as_given():
    asked = _run(0)
    assert asked[0] == START
    for generation in asked:
        assert all(0 <= index < size for choice in generation for index, size in zip(choice, (5, 2, 1), strict=True))


def test_the_same_seed_asks_the_same_whatever_the_global_generators_do():
    first = _run(3)
    np.random.seed(99)
    random.seed(99)
    assert _run(3) == first
    assert _run(4) != first


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_worst(value):
    assert log_kl(value) > log_kl(100.0)


def test_the_logarithm_keeps_the_order():
    values = [0.0, 1e-9, 1e-4, 0.3, 20.0]
    assert [log_kl(value) for value in values] == sorted(log_kl(value) for value in values)
    assert log_kl(0.0) == -6.0
