import pytest

from kvtuner_core.domain.precision import ALLOWED_BITS, BASELINE_PAIRS, PrecisionPair, candidate_pairs
from kvtuner_core.errors import PolicyError


@pytest.mark.parametrize("key", ALLOWED_BITS)
@pytest.mark.parametrize("value", ALLOWED_BITS)
def test_a_name_is_read_back(key, value):
    pair = PrecisionPair(key_bits=key, value_bits=value)
    assert PrecisionPair.parse(pair.name) == pair
    assert pair.nominal_bits == (key + value) / 2


def test_the_short_name_means_both_sides():
    assert PrecisionPair.parse("kv4") == PrecisionPair(key_bits=4, value_bits=4)
    assert PrecisionPair.parse("KV4").name == "K4V4"


@pytest.mark.parametrize("text", ["", "K4", "K5V4", "K4V4x", "4,4", "K-4V4", "KV1", "K４V4"])
def test_another_text_is_refused_in_one_line(text):
    with pytest.raises(PolicyError) as caught:
        PrecisionPair.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [True, 4.0, "4", None, 5, 0])
def test_bits_are_whole_numbers_that_can_be_stored(bits):
    with pytest.raises(PolicyError, match="16, 8, 4, 3 or 2"):
        PrecisionPair(key_bits=bits, value_bits=4)


def test_candidates_are_all_combinations_most_bits_first():
    assert [pair.name for pair in candidate_pairs((2, 8, 2))] == ["K8V8", "K8V2", "K2V8", "K2V2"]
    with pytest.raises(PolicyError):
        candidate_pairs(())


def test_the_baselines_are_the_uniform_policies_of_the_literature():
    assert [pair.name for pair in BASELINE_PAIRS] == ["K8V8", "K8V4", "K4V4", "K4V2", "K2V2"]
