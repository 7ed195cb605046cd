import pytest

from kvtuner_core.domain.scheme import Granularity, QuantScheme, Rotation
from kvtuner_core.errors import SchemeError


def test_the_two_published_schemes():
    per_token, kivi = QuantScheme.per_token(), QuantScheme.kivi()
    assert (per_token.name, per_token.flush_tokens, per_token.token_group(64)) == ("per-token", 1, 64)
    assert (kivi.name, kivi.flush_tokens, kivi.token_group(64), kivi.residual_length) == ("kivi", 32, 32, 32)
    assert "32 newest tokens" in kivi.label


def test_a_group_never_spans_two_tokens():
    assert QuantScheme.kivi(group_size=128).token_group(64) == 64


def test_a_group_that_does_not_divide_head_dim_is_refused_with_the_way_out():
    with pytest.raises(
        SchemeError, match=r"group_size must divide head_dim \(64\); got 48. Use one of 2, 4, 8, 16, 32, 64"
    ):
        QuantScheme.per_token(group_size=48).token_group(64)


def test_per_channel_needs_a_group_size():
    with pytest.raises(SchemeError, match="group_size must be given"):
        QuantScheme(key_granularity=Granularity.CHANNEL, value_granularity=Granularity.TOKEN)


@pytest.mark.parametrize("field", ["residual_length", "sink_length"])
@pytest.mark.parametrize("value", [-1, 1.5, True, 10**9])
def test_windows_are_numbers_of_tokens(field, value):
    with pytest.raises(SchemeError, match=field):
        QuantScheme.per_token(**{field: value})


@pytest.mark.parametrize("value", [-0.1, 0.51, 1, 0.12345, True, "0.1", float("nan")])
def test_a_share_is_at_most_half_the_context(value):
    with pytest.raises(SchemeError, match="residual_share"):
        QuantScheme.per_token(residual_share=value)


def test_a_share_of_the_context_is_counted_without_rounding_errors():
    scheme = QuantScheme.per_token(residual_share=0.07, residual_length=3)
    assert [scheme.window_tokens(tokens) for tokens in (0, 10, 100, 101, 10_000)] == [3, 3, 7, 8, 700]
    assert "newest 7% of the context" in scheme.label


def test_what_is_rotated_is_in_the_label():
    scheme = QuantScheme.kivi(rotation=Rotation.KEYS_AND_VALUES)
    assert scheme.label.endswith("keys and values rotated")
    assert (scheme.rotates_keys, scheme.rotates_values) == (True, True)
    keys = QuantScheme.kivi(rotation=Rotation.KEYS)
    assert (keys.rotates_keys, keys.rotates_values) == (True, False)


@pytest.mark.parametrize("value", [1, 0, -32, 5000, 32.0])
def test_group_sizes_are_bounded(value):
    with pytest.raises(SchemeError, match="group_size"):
        QuantScheme.kivi(group_size=value)
