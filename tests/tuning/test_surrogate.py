"""The surrogate on landscapes whose truth is known."""

import math

import numpy as np
import pytest

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.refitting import Observations, corrected
from kvtuner_core.tuning.surrogate import Surrogate
from tests.tuning.builders import SCHEME, additive_kl, pairs, table_profiles

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
WEIGHTS = tuple(float(weight) for weight in np.random.default_rng(3).lognormal(0.0, 1.0, 20))
MODEL = Surrogate.additive(table_profiles(WEIGHTS, NAMES))


def _policies(count, seed=0):
    rng = np.random.default_rng(seed)
    offered = pairs(NAMES)
    return [
        KVPolicy.from_pairs([offered[int(index)] for index in rng.integers(len(offered), size=20)], scheme=SCHEME)
        for _ in range(count)
    ]


def _interacting(policy):
    """Truth: some layers matter twice as much as alone, two-bit keys by half more, and all by a fifth less."""
    total = 0.0
    for layer, precision in enumerate(policy.layers):
        factor = 0.8 * (2.0 if layer % 5 == 0 else 1.0) * (1.5 if precision.pair.key_bits == 2 else 1.0)
        total += factor * MODEL.loss((layer,), precision.pair)
    return total


def _error(model, policies):
    return float(np.mean([abs(model.predict(policy) / _interacting(policy) - 1) for policy in policies]))


def test_uncorrected_it_is_the_sum_of_the_isolated_kls():
    policy = _policies(1)[0]
    assert MODEL.predict(policy) == pytest.approx(additive_kl(policy, WEIGHTS))
    assert MODEL.predict(KVPolicy.uniform("K16V16", layers=20, scheme=SCHEME)) == 0
    assert not MODEL.knows(KVPolicy.uniform("KV3", layers=20, scheme=SCHEME))


def test_true_evaluations_teach_it_the_interactions():
    seen, unseen = _policies(60), _policies(60, seed=1)
    taught = corrected(MODEL, [(policy, _interacting(policy)) for policy in seen])
    assert _error(taught, unseen) < 0.35 * _error(MODEL, unseen)
    truth = [_interacting(policy) for policy in unseen]
    better = spearman([taught.predict(policy) for policy in unseen], truth)
    assert better > spearman([MODEL.predict(policy) for policy in unseen], truth)


def test_an_additive_truth_changes_nothing():
    taught = corrected(MODEL, [(policy, MODEL.predict(policy)) for policy in _policies(40)])
    assert taught.factors == pytest.approx(1.0, abs=1e-6)


def test_broken_and_unknown_evaluations_are_left_out():
    broken = [(policy, kl) for policy, kl in zip(_policies(3), (math.nan, math.inf, -math.inf), strict=True)]
    odd = [(KVPolicy.uniform(name, layers=20, scheme=SCHEME), 1.0) for name in ("KV3", "K16V16")]
    assert corrected(MODEL, broken + odd) is MODEL
    assert corrected(MODEL, []) is MODEL


def test_draws_differ_where_little_was_seen_and_agree_with_what_was():
    seen = [(policy, _interacting(policy)) for policy in _policies(30)]
    drawn = [Observations(MODEL, seen).refitted().drawn(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0].factors, drawn[1].factors)
    assert not np.allclose(drawn[0].factors, drawn[2].factors)
    assert _error(drawn[2], [policy for policy, _ in seen]) < _error(MODEL, [policy for policy, _ in seen])


@pytest.mark.parametrize("scale", [0.3, 6.0])
def test_another_objective_is_brought_to_its_scale_and_corrected(scale):
    model = Surrogate.additive(table_profiles(WEIGHTS, NAMES), Objective.P95_KL)
    observed = [(policy, scale * _interacting(policy)) for policy in _policies(60)]
    unseen = _policies(40, seed=9)
    truth = [scale * _interacting(policy) for policy in unseen]
    taught = corrected(model, observed)
    error = float(np.mean([abs(taught.predict(p) / true - 1) for p, true in zip(unseen, truth, strict=True)]))
    assert error < 0.1


def test_losses_below_zero_leave_the_surrogate_usable():
    model = Surrogate.additive(table_profiles(WEIGHTS, NAMES), Objective.NLL_CHANGE)
    observed = [
        (policy, _interacting(policy) * (-0.2 if row % 7 == 0 else 0.8)) for row, policy in enumerate(_policies(60))
    ]
    taught = corrected(model, observed)
    unseen = _policies(40, seed=9)
    assert spearman([taught.predict(p) for p in unseen], [_interacting(p) for p in unseen]) > 0.8
    assert corrected(model, [(policy, -1.0) for policy, _ in observed]).predict(unseen[0]) > 0
