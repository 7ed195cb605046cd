"""Pairwise terms: features and matrix agree, and evidence decides."""

import numpy as np
import pytest

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.tuning.coupling import Pairwise, coupling_of, interaction, pair_features
from kvtuner_core.tuning.refitting import corrected, evidence
from kvtuner_core.tuning.surrogate import Surrogate
from tests.tuning.builders import SCHEME, pairs, table_profiles

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
LAYERS = 12
WEIGHTS = tuple(float(weight) for weight in np.random.default_rng(3).lognormal(0.0, 1.0, LAYERS))
MODEL = Surrogate.additive(table_profiles(WEIGHTS, NAMES))


def _policies(count, seed=0):
    rng = np.random.default_rng(seed)
    offered = pairs(NAMES)
    return [
        KVPolicy.from_pairs([offered[int(index)] for index in rng.integers(len(offered), size=LAYERS)], scheme=SCHEME)
        for _ in range(count)
    ]


def _roots(policy):
    return np.array([MODEL.roots()[index, MODEL.column(layer.pair)] for index, layer in enumerate(policy.layers)])


def _near(policy):
    """Truth: neighbours' errors point the same way in the first half of the layers, and apart in the other."""
    roots = _roots(policy)
    signs = np.where(np.arange(LAYERS - 1) < LAYERS // 2, 0.9, -0.7)
    return MODEL.predict(policy) + float((signs * roots[1:] * roots[:-1]).sum())


def _every(policy):
    """Truth: all errors have something in common."""
    return MODEL.predict(policy) + 0.3 * float(_roots(policy).sum() ** 2 - (_roots(policy) ** 2).sum()) / 2


@pytest.mark.parametrize("kind", list(Pairwise)[1:])
def test_the_matrix_says_what_the_features_say(kind):
    rng = np.random.default_rng(1)
    roots = rng.lognormal(size=(5, LAYERS))
    features = pair_features(kind, roots)
    weights = rng.standard_normal(features.shape[1])
    matrix = coupling_of(kind, weights, LAYERS)
    assert np.allclose(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert np.allclose(interaction(roots, matrix), features @ weights)


def test_without_terms_there_is_nothing():
    assert pair_features(Pairwise.NONE, np.ones((3, LAYERS))).shape == (3, 0)
    assert coupling_of(Pairwise.NONE, np.zeros(0), LAYERS) is None


@pytest.mark.parametrize(("truth", "kinds"), [(_near, {Pairwise.NEIGHBOURS, Pairwise.ALL}), (_every, {Pairwise.ALL})])
def test_terms_that_are_there_are_found_and_predict_what_was_not_seen(truth, kinds):
    seen, unseen = _policies(80), _policies(80, seed=1)
    observed = [(policy, truth(policy)) for policy in seen]
    with_terms, without = corrected(MODEL, observed), corrected(MODEL, observed, pairwise=False)
    assert evidence(MODEL, observed).kind in kinds
    assert with_terms.coupling is not None
    assert without.coupling is None

    def wrong(model):
        return float(np.mean([(model.predict(policy) / truth(policy) - 1) ** 2 for policy in unseen]))

    assert wrong(with_terms) < 0.5 * wrong(without)


@pytest.mark.parametrize("seed", range(4))
def test_terms_that_are_not_there_stay_out(seed):
    rng = np.random.default_rng(seed)
    factors = rng.lognormal(0.0, 0.4, LAYERS)
    observed = []
    for policy in _policies(60, seed=seed):
        alone = sum(factors[i] * MODEL.loss((i,), layer.pair) for i, layer in enumerate(policy.layers))
        observed.append((policy, float(alone * rng.lognormal(0.0, 0.05))))
    assert evidence(MODEL, observed).kind is Pairwise.NONE
    assert corrected(MODEL, observed).coupling is None


def test_few_evaluations_are_no_evidence():
    observed = [(policy, _every(policy)) for policy in _policies(20)]
    assert evidence(MODEL, observed).errors == ()
    assert corrected(MODEL, observed).coupling is None


def test_predictions_stay_above_a_tenth_of_the_sum():
    coupling = -9.0 * np.ones((LAYERS, LAYERS))
    np.fill_diagonal(coupling, 0.0)
    model = Surrogate(pairs=MODEL.pairs, isolated=MODEL.isolated, factors=MODEL.factors, coupling=coupling)
    for policy in _policies(5):
        assert model.predict(policy) == pytest.approx(0.1 * MODEL.predict(policy))
