"""Pair pruning against the published case and its own definition."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.study import PruningOptions
from kvtuner_core.errors import InputError
from kvtuner_core.tuning import prune_pairs
from tests.tuning.builders import layer_profiles, pairs

LLAMA_8B_PER_TOKEN = {
    "KV8": 0.014,
    "K8V4": 0.100,
    "K8V2": 0.401,
    "K4V8": 0.168,
    "KV4": 0.207,
    "K4V2": 0.453,
    "K2V8": 0.882,
    "K2V4": 0.892,
    "KV2": 0.962,
}


def test_the_published_points_keep_the_published_pairs():
    (kept,) = prune_pairs(layer_profiles(LLAMA_8B_PER_TOKEN), PruningOptions())
    assert kept == pairs("KV8 K8V4 KV4 K4V2 KV2")


def test_sixteen_and_three_bits_take_part():
    errors = {"K16V16": 0.0, "K16V8": 0.02, "K8V16": 0.01, "KV8": 0.03, "KV4": 0.2, "KV3": 0.19, "K3V2": 0.5}
    (kept,) = prune_pairs(layer_profiles(errors), PruningOptions())
    assert kept == pairs("K16V16 K8V16 KV8 KV3 K3V2")


def test_equal_bits_and_error_keep_the_wider_key():
    (kept,) = prune_pairs(layer_profiles({"K4V8": 0.1, "K8V4": 0.1}), PruningOptions())
    assert kept == pairs("K8V4")


def test_an_equal_error_with_fewer_bits_wins():
    (kept,) = prune_pairs(layer_profiles({"KV8": 0.1, "KV4": 0.1, "KV2": 0.2}), PruningOptions())
    assert kept == pairs("KV4 KV2")


def test_disabled_pruning_keeps_everything():
    (kept,) = prune_pairs(layer_profiles(LLAMA_8B_PER_TOKEN), PruningOptions(enabled=False))
    assert set(kept) == set(pairs(" ".join(LLAMA_8B_PER_TOKEN)))


def test_a_tolerance_keeps_what_is_nearly_as_good():
    (kept,) = prune_pairs(layer_profiles(LLAMA_8B_PER_TOKEN), PruningOptions(tolerance=0.07))
    assert pairs("K4V8")[0] in kept
    assert pairs("K2V8")[0] not in kept


def test_not_a_number_loses():
    (kept,) = prune_pairs(layer_profiles({"KV8": math.nan, "KV4": 0.3}), PruningOptions())
    assert kept == pairs("KV4")
    (kept,) = prune_pairs(layer_profiles({"KV8": math.nan, "KV4": math.nan}), PruningOptions())
    assert kept == pairs("KV4")


@pytest.mark.parametrize(
    ("profiles", "options", "match"),
    [
        ([], PruningOptions(), "every layer from 0"),
        (layer_profiles({"KV8": 0.1}, layer=1), PruningOptions(), "every layer from 0"),
        (layer_profiles({"KV8": 0.1}) * 2, PruningOptions(), "once per pair"),
        (layer_profiles({"KV8": 0.1}) + layer_profiles({"KV4": 0.1}, layer=1), PruningOptions(), "layer 1 has"),
        (layer_profiles({"KV8": 0.1}), PruningOptions(tolerance=-1.0), "tolerance"),
        (layer_profiles({"KV8": 0.1}), PruningOptions(tolerance=math.nan), "tolerance"),
    ],
)
def test_what_breaks_a_rule_is_one_clear_line(profiles, options, match):
    with pytest.raises(InputError, match=match) as caught:
        prune_pairs(profiles, options)
    assert "\n" not in str(caught.value)


@st.composite
def _tables(draw):
    chosen = draw(st.lists(st.sampled_from(candidate_pairs((16, 8, 4, 3, 2))), min_size=1, unique=True))
    error = st.one_of(st.sampled_from([0.0, 0.1, 0.2]), st.floats(0, 2), st.just(math.inf), st.just(math.nan))
    return {pair.name: draw(error) for pair in chosen}


@settings(deadline=None, max_examples=150)
@given(_tables())
def test_what_survives_is_a_front_that_covers_the_rest(errors):
    (kept,) = prune_pairs(layer_profiles(errors), PruningOptions())
    value = {
        pair: errors[pair.name] if not math.isnan(errors[pair.name]) else math.inf for pair in pairs(" ".join(errors))
    }
    assert kept
    assert set(kept) <= set(value)
    widths = [pair.nominal_bits for pair in kept]
    assert widths == sorted(set(widths), reverse=True)
    kept_errors = [value[pair] for pair in kept]
    assert all(a < b for a, b in itertools.pairwise(kept_errors))
    for pair, error in value.items():
        assert any(other.nominal_bits <= pair.nominal_bits and value[other] <= error for other in kept)
