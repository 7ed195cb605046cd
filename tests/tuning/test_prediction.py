"""Prediction, regret and enumeration on synthetic studies."""

from dataclasses import replace

import numpy as np
import pytest

from kvtuner_core.domain.strategy import Constraints, SearchStrategy
from kvtuner_core.domain.study import LayerGroup
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.comparison import compare, is_comparable
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.guided import surrogate_front
from kvtuner_core.tuning.prediction import MOST_ENUMERATED, enumerated_front, group_regret, prediction, regret
from kvtuner_core.tuning.surrogate import Surrogate
from tests.fakes.studies import search_result
from tests.tuning.builders import SCHEME, geometry, space, table_profiles

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
WEIGHTS = tuple(float(weight) for weight in np.random.default_rng(5).lognormal(0.0, 1.0, 9))
GROUPS = space([((0, 1), NAMES), ((2,), NAMES), ((3, 5), NAMES), ((4,), "KV8 KV4 KV2"), ((6, 7, 8), NAMES)])


@pytest.mark.parametrize("max_bits", [None, 4.75])
@pytest.mark.parametrize("max_pairs", [None, 2])
def test_the_exact_front_is_the_one_of_exhaustive_enumeration(max_bits, max_pairs):
    model = Surrogate.additive(table_profiles(WEIGHTS, NAMES))
    choices = Choices(GROUPS, SCHEME, geometry(9), max_bits=max_bits, max_pairs=max_pairs)
    solved = [(bits, kl) for _, bits, kl in surrogate_front(choices, model)]
    assert np.allclose(solved, enumerated_front(choices, model))
    assert all(choices.fits(choice) for choice, _, _ in surrogate_front(choices, model))


def test_a_space_too_large_to_enumerate_is_refused():
    wide = space([((layer,), NAMES) for layer in range(9)])
    choices = Choices(wide, SCHEME, geometry(9))
    with pytest.raises(InputError, match="allow 1953125"):
        enumerated_front(choices, Surrogate.additive(table_profiles(WEIGHTS, NAMES)))


def test_measured_kls_stand_beside_their_prediction():
    result = search_result(evaluations=40)
    found = prediction(result)
    assert len(found.candidates) == 40 + 5, "The unquantised baseline has nothing to predict."
    model = Surrogate.additive(result.sweep.profiles)
    for item, predicted, measured in zip(found.candidates, found.predicted, found.measured, strict=True):
        assert predicted == pytest.approx(model.predict(item.policy))
        assert measured == item.calibration.kl.mean
    assert found.rank_correlation == spearman(found.predicted, found.measured) > 0.9
    # The synthetic truth adds to the sum, never takes away from it, but for the noise over prompts.
    assert 0.5 < found.ratio < 3


def test_regret_shrinks_with_a_better_search():
    short, long = (search_result(evaluations=20, strategy=SearchStrategy.NSGA2), search_result(evaluations=120))
    guided = search_result(evaluations=120, strategy=SearchStrategy.AUTO)
    values = [regret(item).regret for item in (short, long, guided)]
    assert values[0] > values[1] > values[2] >= 0
    assert regret(guided).best <= 1


def test_a_bound_lowers_what_could_be_reached():
    result = search_result(evaluations=20)
    bounded = replace(result, spec=replace(result.spec, max_bits=5.0))
    few = replace(result, spec=replace(result.spec, constraints=Constraints(max_pairs=1)))
    assert regret(bounded).best < regret(result).best
    assert regret(few).best < regret(result).best


@pytest.mark.parametrize("strategy", [SearchStrategy.ADDITIVE, SearchStrategy.RANDOM])
def test_a_longer_search_is_cut_to_what_it_asked_for_first(strategy):
    """Not to what was evaluated first, which for the sake of speed is what has the narrowest first layers."""
    longer, shorter = (
        replace(search_result(evaluations=count, strategy=strategy), run=str(count)) for count in (120, 30)
    )
    rows = {row.run: row for row in compare([longer, shorter])}
    assert rows["120"].at_equal == pytest.approx(rows["30"].hypervolume)
    assert sorted(item.asked for item in longer.candidates) == list(range(120))
    older = replace(longer, candidates=tuple(replace(item, asked=None) for item in longer.candidates))
    assert compare([older, shorter])[1].at_equal < rows["30"].hypervolume, "Only the order of evaluation is known."


def test_comparable_searches_stand_side_by_side():
    results = [
        replace(search_result(evaluations=count, strategy=strategy), run=str(strategy))
        for count, strategy in ((60, SearchStrategy.NSGA2), (120, SearchStrategy.AUTO), (120, SearchStrategy.KVMIX))
    ]
    rows = compare(results)
    assert [row.strategy for row in rows] == ["auto", "nsga2", "kvmix"]
    by_name = {row.strategy: row for row in rows}
    assert by_name["auto"].evaluations == 120
    assert by_name["auto"].at_equal < by_name["auto"].hypervolume, "Cut to the 60 evaluations of the shorter one."
    assert by_name["kvmix"].evaluations == 9
    assert by_name["kvmix"].at_equal == pytest.approx(by_name["kvmix"].hypervolume)
    assert by_name["auto"].regret < by_name["nsga2"].regret
    assert all(0 < row.unseen < 1 and row.seconds > 0 for row in rows)
    other = replace(results[0], sweep=replace(results[0].sweep, prompts_digest="others"))
    assert is_comparable(results[0], results[1])
    assert not is_comparable(results[0], other)


def test_where_the_groups_are_few_their_policies_are_enumerated_and_the_regret_says_so():
    result = search_result(evaluations=30, strategy=SearchStrategy.NSGA2)
    few = replace(
        result, sweep=replace(result.sweep, space=_two_groups(result.sweep.space, len(result.sweep.model.layers)))
    )
    found = group_regret(few)
    assert found is not None
    assert found.enumerated == 25 <= MOST_ENUMERATED
    assert "over the groups (exact, 25 policies enumerated)" in found.text
    over_layers = regret(few)
    assert over_layers.enumerated is None
    assert "over the layers (exact, dynamic program over 10^" in over_layers.text
    assert over_layers.best >= found.best
    assert group_regret(replace(few, spec=replace(few.spec, strategy=SearchStrategy.AUTO))) is None


def test_enumeration_and_the_dynamic_program_give_one_regret(monkeypatch):
    result = search_result(evaluations=30, strategy=SearchStrategy.NSGA2)
    few = replace(
        result, sweep=replace(result.sweep, space=_two_groups(result.sweep.space, len(result.sweep.model.layers)))
    )
    enumerated = group_regret(few)
    monkeypatch.setattr("kvtuner_core.tuning.prediction.MOST_ENUMERATED", 0)
    solved = group_regret(few)
    assert solved.enumerated is None
    assert solved.regret == pytest.approx(enumerated.regret, abs=1e-9)
    assert solved.best == pytest.approx(enumerated.best)


def _two_groups(whole, layers):
    offered = [pair for pair in whole.candidates if pair.name in ("K8V8", "K8V4", "K4V4", "K4V2", "K2V2")]
    halves = (tuple(range(layers // 2)), tuple(range(layers // 2, layers)))
    return replace(whole, groups=tuple(LayerGroup(layers=half, pairs=tuple(offered)) for half in halves))
