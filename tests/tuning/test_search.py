"""The search on landscapes whose true front is known."""

import math
from itertools import islice, product

import numpy as np
import pytest

from kvtuner_core.errors import InputError
from kvtuner_core.tuning import hypervolume, pareto_front
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.front import dominated_share
from tests.tuning.builders import SCHEME, TableScorer, additive_kl, geometry, policy_search, space

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
WEIGHTS = (4.0, 1.0, 0.2, 1.0, 0.5, 2.0, 0.1, 0.7)
SPACE = space([((0,), NAMES), ((1, 3), NAMES), ((2,), NAMES), ((4,), NAMES), ((5, 7), NAMES), ((6,), NAMES)])
SMALL = space([((0, 1), "KV8 KV4 KV2"), ((2,), "KV8 KV2")])


def _search(of=SPACE, layers=8, **changes):
    return policy_search(of, WEIGHTS[:layers], **changes)


@pytest.fixture(scope="module")
def landscape():
    choices = Choices(SPACE, SCHEME, geometry(8))
    every = product(*(range(size) for size in choices.sizes))
    return [(policy.nominal_bits + 0.5, additive_kl(policy, WEIGHTS)) for policy in map(choices.policy, every)]


@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_evaluations_come_near_the_true_front(landscape, seed):
    found = hypervolume(_search(seed=seed).candidates(TableScorer(WEIGHTS)))
    rng = np.random.default_rng(seed)
    best_random = max(
        dominated_share(landscape[i] for i in rng.choice(len(landscape), size=200, replace=False)) for _ in range(10)
    )
    true = dominated_share(landscape)
    assert best_random < found <= true + 1e-9
    assert found > 0.97 * true


def test_no_policy_is_scored_twice_and_only_new_ones_count():
    scorer = TableScorer(WEIGHTS)
    found = list(_search().candidates(scorer))
    assert len(found) == len(scorer.asked) == len(set(scorer.asked)) == 200
    assert [item.order for item in found] == list(range(200))
    assert all(item.effective_bits == pytest.approx(item.nominal_bits + 0.5) for item in found)


def test_the_same_scores_give_the_same_policies_and_a_cut_run_is_a_prefix():
    whole = [item.policy for item in _search(seed=5).candidates(TableScorer(WEIGHTS))]
    np.random.seed(1)
    assert [item.policy for item in islice(_search(seed=5).candidates(TableScorer(WEIGHTS)), 83)] == whole[:83]
    assert [item.policy for item in _search(seed=5).candidates(TableScorer(WEIGHTS))] == whole
    assert [item.policy for item in _search(seed=6).candidates(TableScorer(WEIGHTS))] != whole


def test_the_first_generation_holds_the_extremes_and_the_uniform_policies():
    first = [item.policy.name for item in islice(_search(population=20).candidates(TableScorer(WEIGHTS)), 20)]
    assert {"K8V8", "K8V4", "K4V4", "K4V2", "K2V2"} <= set(first)


def test_a_small_space_is_enumerated_and_ends():
    found = list(_search(SMALL, 3).candidates(TableScorer(WEIGHTS[:3])))
    assert len(found) == 6


def test_every_evaluation_is_spent_when_the_space_is_hardly_larger():
    found = list(_search(SMALL, 3, evaluations=5, population=2).candidates(TableScorer(WEIGHTS[:3])))
    assert len({item.policy for item in found}) == 5


@pytest.mark.parametrize(("evaluations", "population"), [(1, 50), (3, 2), (10, 200), (64, 60)])
def test_odd_sizes_work(evaluations, population):
    found = list(_search(evaluations=evaluations, population=population).candidates(TableScorer(WEIGHTS)))
    assert len({item.policy for item in found}) == evaluations


def test_only_candidates_within_the_bound_are_scored():
    scorer = TableScorer(WEIGHTS)
    found = list(_search(max_bits=3.6).candidates(scorer))
    assert len(found) == len(scorer.asked) == 200
    assert max(item.effective_bits for item in found) <= 3.6
    assert pareto_front(found)[-1].effective_bits > 3.4


def test_a_bound_below_the_narrowest_policy_is_refused_with_its_bits():
    with pytest.raises(InputError, match=r"at least 2\.500"):
        _search(max_bits=2.0)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf, 1e308])
def test_broken_scores_are_survived_and_never_on_the_front(fault):
    found = list(_search(evaluations=80).candidates(TableScorer(WEIGHTS, fault=fault)))
    assert len(found) == 80
    assert all(math.isfinite(item.calibration.kl.mean) for item in pareto_front(found))


@pytest.mark.parametrize("changes", [{"evaluations": 0}, {"population": 1}, {"seed": -1}, {"evaluations": 2.5}])
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(InputError, match="whole number"):
        _search(**changes)
