import math
from dataclasses import replace

import pytest

from kvtuner_core.domain.scores import ErrorScores, WeightScores
from kvtuner_core.errors import StoreError
from kvtuner_core.store import Identity, Store
from tests.fakes.studies import provenance, sweep_scores

SCORES = sweep_scores(layers=3)
IDENTITY = Identity.of({"kind": "test"})


@pytest.fixture
def store():
    with Store.open(None) as opened:
        yield opened


def test_scores_come_back_as_they_were_put_and_the_first_stay(store):
    assert store.get_layer_scores(ErrorScores, IDENTITY.key) is None
    store.put_layer_scores(IDENTITY, SCORES.errors, provenance())
    store.put_layer_scores(IDENTITY, replace(SCORES.errors, probes=9), provenance())
    assert store.get_layer_scores(ErrorScores, IDENTITY.key) == SCORES.errors
    other = Identity.of({"kind": "other"})
    absent = WeightScores(layers=(), absent="fused", tokens=0, gradient_seconds=0.0, weight_seconds=0.0)
    store.put_layer_scores(other, absent, provenance())
    assert store.get_layer_scores(WeightScores, other.key) == absent


def test_nan_is_refused(store):
    (first, *rest) = SCORES.errors.pairs
    broken = replace(SCORES.errors, pairs=(replace(first, fisher_error=math.nan), *rest))
    with pytest.raises(StoreError, match="got nan"):
        store.put_layer_scores(IDENTITY, broken, provenance())
    (layer, *others) = SCORES.weights.layers
    weights = replace(SCORES.weights, layers=(replace(layer, key_gradient=math.nan), *others))
    with pytest.raises(StoreError, match="got nan"):
        store.put_layer_scores(IDENTITY, weights, provenance())
