"""The table of profiles."""

from kvtuner_core.tuning.profiles import by_layer, widest_first
from tests.tuning.builders import layer_profiles, pairs


def test_pairs_are_ordered_widest_first_with_wide_keys_in_front():
    assert widest_first(pairs("KV2 K4V8 K8V4 KV8 K4V8")) == pairs("KV8 K8V4 K4V8 KV2")


def test_profiles_become_one_table_a_layer_in_any_order():
    profiles = layer_profiles({"KV8": 0.1, "KV4": 0.2}, layer=1) + layer_profiles({"KV4": 0.3, "KV8": 0.4})
    tables = by_layer(profiles)
    assert [tables[layer][pairs("KV8")[0]].output_error for layer in (0, 1)] == [0.4, 0.1]
