from dataclasses import replace

import pytest

from pages.components import headlines
from tests.fakes.studies import search_result


def test_each_whole_budget_is_held_against_the_best_uniform_policy():
    result = search_result()
    steps = headlines.steps(result)
    assert len(steps) >= 4
    for step in steps:
        assert step.searched.effective_bits <= step.bits
        if step.uniform is not None:
            assert step.uniform.effective_bits <= step.bits
            assert step.less == pytest.approx(1 - step.searched.kl.mean / step.uniform.kl.mean)


def test_without_baselines_there_is_nothing_to_compare():
    assert all(step.less is None for step in headlines.steps(replace(search_result(), baselines=())))


def test_an_empty_front_has_no_steps():
    assert headlines.steps(replace(search_result(), front=())) == ()


def test_nothing_fits_a_tiny_budget():
    assert headlines.within(search_result(), 0.1) is None
    assert headlines.best_uniform(search_result(), 0.1) is None


def test_the_first_budget_lies_within_the_front():
    result = search_result()
    bits = [item.effective_bits for item in result.front]
    assert min(bits) <= headlines.middle(result) <= max(bits)
