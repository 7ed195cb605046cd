import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scores import ScoreName
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.errors import InputError
from kvtuner_core.tuning import PolicySearch, norms_of, ranked_by
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.heuristics import kvmix_policy
from kvtuner_core.tuning.score_rows import score_rows
from kvtuner_core.tuning.scores import gradient_norms, implied_policy, score_table
from tests.fakes.studies import SyntheticScorer, picked, search_result, sweep_result

SWEPT = sweep_result(layers=4, scored=True)


def _table(result=SWEPT):
    return score_table(result.profiles, result.scores)


def test_every_score_has_a_loss_for_every_layer_and_pair():
    table = _table()
    assert table.names == tuple(ScoreName)
    assert {losses.shape for losses in table.losses.values()} == {(4, 9)}
    assert score_table(SWEPT.profiles, None).names == (ScoreName.KL, ScoreName.OUTPUT_ERROR)
    absent = replace(SWEPT.scores, weights=replace(SWEPT.scores.weights, layers=(), absent="fused"))
    assert ScoreName.GRADIENT_NORM not in score_table(SWEPT.profiles, absent).names


def test_norms_lose_four_times_less_with_each_bit_keys_and_values_apart():
    table = _table()
    keys, values = (np.array(side) for side in gradient_norms(SWEPT.scores.weights.layers))
    column = table.pairs.index(PrecisionPair.parse("K4V2"))
    expected = keys / keys.mean() / 256 + values / values.mean() / 16
    np.testing.assert_allclose(table.losses[ScoreName.GRADIENT_NORM][:, column], expected)


def test_the_correlation_is_the_mean_over_the_pairs():
    table = _table()
    one, other = table.losses[ScoreName.KL], table.losses[ScoreName.OUTPUT_ERROR]
    each = [spearman(list(one[:, column]), list(other[:, column])) for column in range(9)]
    assert table.correlation(ScoreName.KL, ScoreName.OUTPUT_ERROR) == pytest.approx(np.mean(each))
    assert table.correlation(ScoreName.KL, ScoreName.KL) == pytest.approx(1.0)
    assert table.correlation(ScoreName.OUTPUT_ERROR, ScoreName.KL) == table.correlation(
        ScoreName.KL, ScoreName.OUTPUT_ERROR
    )


def test_shares_of_the_layers_add_up_to_one():
    table = _table()
    for name in table.names:
        assert sum(table.layers(name)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(ScoreName))
def test_a_pick_is_the_best_of_all_policies_within_the_bound(name):
    swept = sweep_result(layers=3, bits=(2, 4), scored=True)
    table, geometry, scheme = _table(swept), swept.model.layers, swept.spec.scheme
    bound = effective_bits(KVPolicy.uniform("K4V2", layers=3, scheme=scheme), geometry)
    policy = implied_policy(table, name, scheme=scheme, geometry=geometry, max_bits=bound)
    assert effective_bits(policy, geometry) <= bound

    def loss(pairs):
        return sum(table.losses[name][layer, table.pairs.index(pair)] for layer, pair in enumerate(pairs))

    every = itertools.product(table.pairs, repeat=3)
    fitting = [
        loss(pairs) for pairs in every if effective_bits(KVPolicy.from_pairs(pairs, scheme=scheme), geometry) <= bound
    ]
    assert loss([layer.pair for layer in policy.layers]) == pytest.approx(min(fitting))


def test_an_infinite_kl_is_avoided_and_a_bound_below_everything_is_refused():
    worst = replace(SWEPT.profiles[-1], kl=math.inf)
    table = score_table((*SWEPT.profiles[:-1], worst), None)
    args = {"scheme": SWEPT.spec.scheme, "geometry": SWEPT.model.layers}
    policy = implied_policy(table, ScoreName.KL, max_bits=4.0, **args)
    assert policy.layers[-1].pair != worst.pair
    with pytest.raises(InputError, match="max_bits must be at least"):
        implied_policy(table, ScoreName.KL, max_bits=1.0, **args)


def test_rows_say_what_each_score_costs_and_picks():
    result = replace(SWEPT, scores=picked(SWEPT))
    rows = {row.name: row for row in score_rows(result)}
    assert rows[ScoreName.FISHER_ERROR].seconds == 1.9
    assert rows[ScoreName.KL].seconds is None
    assert rows[ScoreName.KL].correlation == pytest.approx(1.0)
    assert all(len(row.picks) == 1 and row.picks[0].effective_bits <= 4.5 for row in rows.values())


def test_kvmix_ranks_by_gradient_norms_where_there_are_some():
    spec = replace(search_result(layers=4, evaluations=5).spec, strategy=SearchStrategy.KVMIX, evaluations=1)
    norms = norms_of(SWEPT.scores)
    found = {}
    for given in ((), norms):
        search = PolicySearch(
            spec, space=SWEPT.space, profiles=SWEPT.profiles, geometry=SWEPT.model.layers, norms=given
        )
        (found[given],) = (item.policy for item in search.candidates(SyntheticScorer(SWEPT.model)))
    assert found[norms] == kvmix_policy(gradient_norms(norms), SWEPT.spec.scheme)
    assert found[norms] != found[()]
    assert ranked_by(SearchStrategy.KVMIX, norms) == "gradient_norm"
    assert ranked_by(SearchStrategy.KVMIX, ()) == "kl"
    assert ranked_by(SearchStrategy.AUTO, norms) == ""
