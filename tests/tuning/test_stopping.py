"""Stopped policies are beaten for certain, and what is found is what is found without stopping."""

import math
from dataclasses import replace

import pytest

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchSpec, StoppedCandidate
from kvtuner_core.errors import InputError
from kvtuner_core.tuning import PolicySearch, hypervolume, pareto_front
from kvtuner_core.tuning.stopping import ROUND
from tests.fakes.studies import PassByPass, SyntheticScorer, sweep_result

LAYERS = 10
UNMOVED = ("random", "protected", "uniform", "kvmix", "additive", "greedy")
"""Strategies that ask the same whatever they are told."""


def searched(strategy, *, stop_early=True, evaluations=80, seed=0):
    swept = sweep_result(layers=LAYERS, scored=True)
    spec = SearchSpec(
        sweep=replace(swept.spec, seed=seed),
        evaluations=evaluations,
        population=16,
        strategy=SearchStrategy(strategy),
        stop_early=stop_early,
    )
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
    outcomes = list(search.outcomes(PassByPass(swept.model, prompts=8)))
    found = [item for item in outcomes if isinstance(item, Candidate)]
    return outcomes, found, [item for item in outcomes if isinstance(item, StoppedCandidate)]


@pytest.mark.parametrize("strategy", list(SearchStrategy))
def test_a_stopped_policy_is_dominated_when_it_is_evaluated_to_the_end(strategy):
    outcomes, found, stopped = searched(strategy, seed=2)
    truth = SyntheticScorer(sweep_result(layers=LAYERS, scored=True).model, prompts=8)
    assert [item.order for item in outcomes] == list(range(len(outcomes)))
    by_order = {item.order: item for item in found}
    for item in stopped:
        better, whole = by_order[item.dominated_by], truth.score(item.policy).kl.mean
        assert better.effective_bits <= item.effective_bits
        assert better.calibration.kl.mean < item.partial.bound <= whole
        # Whoever beats it was known before the round began.
        assert better.order < item.order
        assert item.estimate == pytest.approx(whole, rel=0.25)
        assert item.loss(Objective.MEAN_KL) == item.estimate
        assert 0 < item.partial.left < 8
        with pytest.raises(InputError, match="Evaluate it to the end"):
            item.loss(Objective.P95_KL)
    if strategy in ("nsga2", "random", "protected"):
        assert len(stopped) > 5


@pytest.mark.parametrize("strategy", UNMOVED)
def test_the_front_is_the_one_without_stopping(strategy):
    _, every, none = searched(strategy, stop_early=False, evaluations=120)
    outcomes, found, _ = searched(strategy, evaluations=120)
    assert not none
    assert [item.policy for item in outcomes] == [item.policy for item in every]
    assert pareto_front(found) == pareto_front(every)
    assert hypervolume(found) == hypervolume(every)


@pytest.mark.parametrize("strategy", ["auto", "nsga2", "nsga2-warm", "nsga2-layers", "moead"])
def test_estimates_lead_about_as_far_as_measured_values(strategy):
    kept, volumes = [], []
    for seed in range(3):
        outcomes, found, _ = searched(strategy, evaluations=100, seed=seed)
        kept.append(hypervolume(found))
        volumes.append(hypervolume(searched(strategy, stop_early=False, evaluations=100, seed=seed)[1]))
        assert searched(strategy, evaluations=100, seed=seed)[0] == outcomes
    assert sum(kept) == pytest.approx(sum(volumes), rel=0.005)


def test_a_solver_that_asks_for_all_at_once_is_answered_in_rounds():
    outcomes, _, stopped = searched("random", evaluations=ROUND)
    assert not stopped
    assert len(outcomes) == ROUND
    _, _, stopped = searched("random", evaluations=3 * ROUND)
    assert min(item.order for item in stopped) >= ROUND
    assert all(item.dominated_by < item.order - item.order % ROUND for item in stopped)


def test_an_objective_without_a_bound_is_refused():
    swept = sweep_result(layers=LAYERS)
    spec = SearchSpec(sweep=swept.spec, objective=Objective.P95_KL, stop_early=True)
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
    with pytest.raises(InputError, match=r"\(mean-kl, top1-disagreement, answer-error\); got p95-kl"):
        search.outcomes(PassByPass(swept.model))


def test_an_infinite_loss_is_stopped_and_is_no_bar():
    class Broken(PassByPass):
        def score(self, policy):
            score = super().score(policy)
            if all(layer.pair.key_bits > 2 for layer in policy.layers):
                return score
            return replace(score, kl_per_prompt=(math.inf,) * self.prompts, kl=replace(score.kl, mean=math.inf))

    swept = sweep_result(layers=3)
    spec = SearchSpec(sweep=swept.spec, evaluations=60, strategy=SearchStrategy.RANDOM, stop_early=True)
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
    scorer = Broken(swept.model, prompts=8)
    outcomes = list(search.outcomes(scorer))
    stopped = [item for item in outcomes if isinstance(item, StoppedCandidate)]
    assert math.inf in [item.estimate for item in stopped]
    assert len(outcomes) == 60
    found = (item for item in outcomes if isinstance(item, Candidate))
    assert pareto_front(found) == pareto_front(search.candidates(scorer))


def test_a_policy_that_is_as_good_as_its_bar_is_not_stopped():
    class Alike(PassByPass):
        def score(self, policy):
            score = super().score(policy)
            # All of it is seen in the first pass.
            return replace(score, kl_per_prompt=(1.0, 1.0, *(0.0,) * 6), kl=replace(score.kl, mean=0.25))

    swept = sweep_result(layers=3)
    spec = SearchSpec(sweep=swept.spec, evaluations=60, strategy=SearchStrategy.RANDOM, stop_early=True)
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
    outcomes = list(search.outcomes(Alike(swept.model, prompts=8)))
    assert len(outcomes) == 60
    assert all(isinstance(item, Candidate) for item in outcomes)
