"""Every named strategy through the one protocol, on landscapes whose truth is known."""

from itertools import islice

import numpy as np
import pytest

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.tuning import hypervolume
from kvtuner_core.tuning.asking import answered
from kvtuner_core.tuning.heuristics import kvmix_policy
from kvtuner_core.tuning.prediction import MOST_ENUMERATED
from tests.tuning.builders import SCHEME, TableScorer, additive_kl, geometry, policy_search, score, space

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
LAYERS = 16
WEIGHTS = tuple(float(weight) for weight in np.random.default_rng(7).lognormal(-1.5, 1.2, LAYERS))
GROUPED = space([((layer, layer + 1), NAMES) for layer in range(0, LAYERS, 2)])
ITERATIVE = ("auto", "nsga2", "nsga2-warm", "nsga2-layers", "moead", "random")


class InteractingScorer(TableScorer):
    """Layers that interact: hidden factors per layer and per pair, and a sum that saturates."""

    def score(self, policy):
        names = tuple(layer.name for layer in policy.layers)
        self.asked.append(names)
        total = 0.0
        for layer, precision in enumerate(policy.layers):
            one = KVPolicy.uniform(precision.pair, layers=1, scheme=SCHEME)
            hidden = (2.2 if layer % 5 == 1 else 0.7) * (1.6 if precision.pair.key_bits == 2 else 1.0)
            total += hidden * additive_kl(one, [self.weights[layer]])
        return score(total / (1.0 + 0.1 * total))


def _run(strategy, scorer=None, **changes):
    scorer = scorer or InteractingScorer(WEIGHTS)
    search = policy_search(GROUPED, WEIGHTS, strategy=SearchStrategy(strategy), **changes)
    return list(search.candidates(scorer)), scorer


@pytest.mark.parametrize("strategy", list(SearchStrategy))
def test_the_same_seed_asks_the_same_and_a_cut_run_is_a_prefix(strategy):
    whole, scorer = _run(strategy, evaluations=40, population=16, seed=3)
    assert 1 <= len(whole) <= 40
    assert len(scorer.asked) == len(set(scorer.asked)) == len(whole)
    assert [item.order for item in whole] == list(range(len(whole)))
    np.random.seed(1)
    again, _ = _run(strategy, evaluations=40, population=16, seed=3)
    assert [item.policy for item in again] == [item.policy for item in whole]
    search = policy_search(GROUPED, WEIGHTS, strategy=strategy, evaluations=40, population=16, seed=3)
    cut = list(islice(search.candidates(InteractingScorer(WEIGHTS)), 9))
    assert [item.policy for item in cut] == [item.policy for item in whole[:9]]


@pytest.mark.parametrize("strategy", ITERATIVE)
def test_iterative_strategies_use_every_evaluation(strategy):
    assert len(_run(strategy, evaluations=50, population=20)[0]) == 50


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("evaluations", [30, 90])
def test_auto_is_no_worse_than_any_other_at_equal_evaluations(seed, evaluations):
    volumes = {
        str(strategy): hypervolume(_run(strategy, evaluations=evaluations, population=50, seed=seed)[0])
        for strategy in SearchStrategy
    }
    best = max(volumes, key=lambda name: volumes[name])
    assert volumes["auto"] >= 0.998 * volumes[best], volumes
    assert volumes["auto"] > volumes["nsga2"] > volumes["uniform"]
    assert volumes["nsga2-warm"] > volumes["nsga2"]


@pytest.mark.parametrize("strategy", list(SearchStrategy))
def test_a_count_of_the_policies_to_come_is_never_too_small(strategy):
    """Also where the space has two policies, and the strategy has its own list."""
    for evaluations in (2, 60):
        search = policy_search(
            space([((0, 1, 2, 3), "KV8 KV4")]), WEIGHTS[:4], strategy=strategy, evaluations=evaluations, population=2
        )
        found = list(search.candidates(TableScorer(WEIGHTS[:4])))
        assert len(found) == search.most


def test_half_of_what_auto_asks_for_lies_along_the_additive_front():
    additive, _ = _run("additive", evaluations=70)
    auto, _ = _run("auto", evaluations=140)
    assert len(additive) == 70
    assert {item.policy for item in auto[:70]} == {item.policy for item in additive}


def test_where_layers_do_not_interact_the_additive_front_is_the_true_one():
    found, _ = _run("additive", TableScorer(WEIGHTS), evaluations=400)
    every, _ = _run("auto", TableScorer(WEIGHTS), evaluations=400)
    assert hypervolume(found) == pytest.approx(hypervolume(every), abs=1e-6)


def test_kvmix_makes_the_top_fifth_wider_keys_and_values_apart():
    keys, values = (0.1, 0.9, 0.2, 0.3, 0.8), (0.5, 0.1, 0.1, 0.9, 0.2)
    policy = kvmix_policy((keys, values), SCHEME)
    assert [layer.name for layer in policy.layers] == ["K2V2", "K3V2", "K2V2", "K2V4", "K2V2"]
    wide = kvmix_policy((keys, values), SCHEME, share=0.4)
    assert [layer.name for layer in wide.layers] == ["K2V4", "K3V2", "K2V2", "K2V4", "K3V2"]


def test_protected_ends_are_wider_than_the_middle():
    found, _ = _run("protected", evaluations=400)
    for item in found:
        pairs = [layer.pair for layer in item.policy.layers]
        assert pairs[0].nominal_bits >= pairs[LAYERS // 2].nominal_bits
    names = {tuple(layer.name for layer in item.policy.layers) for item in found}
    assert ("K8V8", *("K4V4",) * (LAYERS - 2), "K8V8") in names
    assert ("K8V8", *("K4V4",) * (LAYERS - 1)) in names


def test_greedy_steps_are_within_the_bound_and_end_narrow():
    found, _ = _run("greedy", evaluations=400, max_bits=6.0)
    assert max(item.effective_bits for item in found) <= 6.0
    assert min(item.effective_bits for item in found) == pytest.approx(2.5)


def test_what_was_asked_before_is_answered_without_an_evaluation():
    one, two = (KVPolicy.uniform(name, layers=2, scheme=SCHEME) for name in ("KV8", "KV4"))
    told = []

    def asking():
        told.append((yield (one, two, one)))
        told.append((yield (two,)))

    scorer = TableScorer((1.0, 1.0))
    found = list(answered(asking(), scorer, geometry(2), evaluations=10))
    assert [item.policy for item in found] == [two, one], "Ordered by their layers, what was told as it was asked."
    assert [[item.policy for item in batch] for batch in told] == [[one, two, one], [two]]
    assert len(scorer.asked) == 2


def test_a_solver_is_closed_when_the_evaluations_are_used_up():
    closed = []

    def asking():
        try:
            for bits in (8, 4, 2):
                yield (KVPolicy.uniform(PrecisionPair(key_bits=bits, value_bits=bits), layers=1, scheme=SCHEME),)
        finally:
            closed.append(True)

    assert len(list(answered(asking(), TableScorer((1.0,)), geometry(1), evaluations=2))) == 2
    assert closed


def test_the_groups_of_this_file_can_be_enumerated():
    assert 5 ** (LAYERS // 2) <= MOST_ENUMERATED


def test_a_batch_is_cut_to_the_evaluations_left_before_any_of_it_is_scored():
    policies = [KVPolicy.uniform(name, layers=1, scheme=SCHEME) for name in ("KV8", "KV4", "KV2")]
    batches = []

    class Batches(TableScorer):
        def score_many(self, policies):
            batches.append(list(policies))
            return super().score_many(policies)

    def asking():
        yield tuple(policies)

    assert len(list(answered(asking(), Batches((1.0,)), geometry(1), evaluations=2))) == 2
    assert batches == [[policies[1], policies[0]]], "The last one is left out, then they are ordered by their layers."
