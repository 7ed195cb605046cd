"""Layer grouping: a partition, in a stable order."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.study import GroupingOptions, NoiseRule, PruningOptions
from kvtuner_core.errors import InputError
from kvtuner_core.tuning import build_space, group_layers, prune_pairs
from tests.tuning.builders import layer_profiles, pairs

CALM = {"KV8": 0.01, "KV4": 0.2, "KV2": 0.9}
LOUD = {"KV8": 0.05, "KV4": 0.6, "KV2": 1.2}


def _profiles(*tables):
    return [item for layer, table in enumerate(tables) for item in layer_profiles(table, layer=layer)]


def _shifted(table, by):
    return {name: error + by for name, error in table.items()}


def _layers(groups):
    return [group.layers for group in groups]


def test_near_layers_share_a_group_wherever_they_are():
    profiles = _profiles(CALM, LOUD, _shifted(CALM, 0.01), _shifted(LOUD, 0.01))
    groups = group_layers(profiles, prune_pairs(profiles, PruningOptions()), GroupingOptions())
    assert _layers(groups) == [(0, 2), (1, 3)]
    assert all(group.pairs == pairs("KV8 KV4 KV2") and not group.noise for group in groups)


def test_different_pairs_never_share_a_group():
    other = {"KV8": 0.02, "KV4": 0.2, "KV2": 0.19}
    profiles = _profiles(CALM, other, CALM, other)
    groups = group_layers(profiles, prune_pairs(profiles, PruningOptions()), GroupingOptions(eps=10.0))
    assert _layers(groups) == [(0, 2), (1, 3)]
    assert groups[1].pairs == pairs("KV8 KV2")


def test_noise_is_alone_or_together():
    profiles = _profiles(CALM, LOUD, _shifted(CALM, 0.01), _shifted(LOUD, 1.0))
    kept = prune_pairs(profiles, PruningOptions())
    alone = group_layers(profiles, kept, GroupingOptions())
    assert _layers(alone) == [(0, 2), (1,), (3,)]
    assert [group.noise for group in alone] == [False, True, True]
    together = group_layers(profiles, kept, GroupingOptions(noise=NoiseRule.TOGETHER))
    assert _layers(together) == [(0, 2), (1, 3)]
    assert [group.noise for group in together] == [False, True]


def test_disabled_grouping_leaves_each_layer_alone():
    profiles = _profiles(CALM, CALM)
    kept = prune_pairs(profiles, PruningOptions())
    assert _layers(group_layers(profiles, kept, GroupingOptions(enabled=False))) == [(0,), (1,)]


def test_numbers_that_are_none_are_outliers_not_crashes():
    profiles = _profiles(CALM, {"KV8": math.nan, "KV4": math.inf, "KV2": 1e300}, CALM)
    options = PruningOptions(enabled=False)
    groups = group_layers(profiles, prune_pairs(profiles, options), GroupingOptions())
    assert _layers(groups) == [(0, 2), (1,)]


def test_the_space_counts_what_is_left():
    profiles = _profiles(CALM, LOUD, CALM, LOUD)
    space = build_space(profiles, PruningOptions(), GroupingOptions())
    assert space.candidates == pairs("KV8 KV4 KV2")
    assert 10**space.log10_before == pytest.approx(3**4)
    assert 10**space.log10_after == pytest.approx(3**2)


def test_every_group_may_choose_the_uniform_pairs_unless_told_otherwise():
    dropped = {"KV8": 0.1, "K8V4": 0.9, "K4V8": 0.2, "KV4": 0.3}
    profiles = _profiles(dropped)
    published = build_space(profiles, PruningOptions(uniform_choices=False), GroupingOptions())
    assert published.groups[0].pairs == published.kept[0] == pairs("KV8 K4V8 KV4")
    widened = build_space(profiles, PruningOptions(), GroupingOptions())
    assert widened.kept == published.kept
    assert widened.groups[0].pairs == pairs("KV8 K8V4 K4V8 KV4")


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": math.nan}, {"eps": math.inf}, {"min_samples": 0}])
def test_options_out_of_range_are_refused(options):
    profiles = _profiles(CALM)
    with pytest.raises(InputError):
        group_layers(profiles, prune_pairs(profiles, PruningOptions()), GroupingOptions(**options))


def test_kept_pairs_of_another_model_are_refused():
    with pytest.raises(InputError, match="each of the 2 layers"):
        group_layers(_profiles(CALM, CALM), (pairs("KV8"),), GroupingOptions())


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=12),
    st.sampled_from(NoiseRule),
    st.floats(0.001, 2.0),
)
def test_groups_partition_the_layers(rows, noise, eps):
    profiles = _profiles(*({"KV8": a, "KV4": b, "KV2": c} for a, b, c in rows))
    kept = prune_pairs(profiles, PruningOptions())
    options = GroupingOptions(eps=eps, noise=noise)
    groups = group_layers(profiles, kept, options)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(len(rows)))
    assert _layers(groups) == sorted(_layers(groups))
    assert all(group.pairs == kept[layer] for group in groups for layer in group.layers)
    assert groups == group_layers(profiles, kept, options)
