import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtuner_core.domain.memory import (
    bytes_per_token,
    cache_bytes,
    check_layers,
    effective_bits,
    packed_row_bytes,
    packed_until,
    stored_tokens,
)
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import ALLOWED_BITS, PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.errors import PolicyError, SchemeError

LAYERS = (LayerGeometry(kv_heads=3, key_dim=64, value_dim=64),) * 4


def uniform(name, scheme):
    return KVPolicy.uniform(name, layers=len(LAYERS), scheme=scheme)


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [(64, 8, 64), (64, 4, 32), (64, 3, 24), (64, 2, 16), (5, 3, 3), (9, 3, 6), (5, 4, 3)],
)
def test_rows_are_really_packed(values, bits, expected):
    assert packed_row_bytes(values, bits) == expected


@pytest.mark.parametrize(
    ("name", "scheme", "expected"),
    [
        ("K8V8", QuantScheme.per_token(), 8.5),
        ("K4V2", QuantScheme.per_token(), 3.5),
        ("K4V4", QuantScheme.kivi(), 5.0),
        ("K3V3", QuantScheme.per_token(symmetric=True), 3.25),
        ("K16V16", QuantScheme.kivi(), 16.0),
        ("K16V4", QuantScheme.per_token(), 10.25),
    ],
)
def test_effective_bits_take_scales_in(name, scheme, expected):
    assert effective_bits(uniform(name, scheme), LAYERS) == expected


def test_published_3_25_bits_are_4_25_with_groups_of_32():
    pairs = [PrecisionPair.parse(name) for name in ("K4V4", "K4V2", "K4V2", "K4V2")]
    policy = KVPolicy.from_pairs(pairs, scheme=QuantScheme.kivi())
    assert policy.nominal_bits == 3.25
    assert effective_bits(policy, LAYERS) == 4.25


@given(
    tokens=st.integers(0, 5000),
    parts=st.fixed_dictionaries(
        {
            "residual_length": st.integers(0, 100),
            "sink_length": st.integers(0, 9),
            "residual_share": st.sampled_from([0.0, 0.07, 0.1, 0.2, 0.3333, 0.5]),
        }
    ),
    group=st.sampled_from([None, 8, 32]),
    window=st.none() | st.integers(2, 300),
)
def test_every_visible_token_is_held_once(tokens, parts, group, window):
    scheme = QuantScheme.per_token(**parts) if group is None else QuantScheme.kivi(group_size=group, **parts)
    held = stored_tokens(scheme, tokens, window)
    visible = tokens if window is None else min(tokens, window - 1)
    assert held.sinks + held.packed - held.stale + held.window == visible
    assert 0 <= held.stale < scheme.flush_tokens
    assert held.packed % scheme.flush_tokens == 0
    newest = max(parts["residual_length"], math.ceil(Fraction(str(parts["residual_share"])) * visible))
    if held.packed:
        assert newest <= held.window < newest + scheme.flush_tokens
    before = packed_until(scheme, max(0, tokens - 1), sinks=0, sliding_window=window)
    assert before <= packed_until(scheme, tokens, sinks=0, sliding_window=window)


def test_a_share_of_the_context_is_a_share_of_each_tokens_bytes():
    policy = uniform("K4V2", QuantScheme.per_token(residual_share=0.2))
    assert effective_bits(policy, LAYERS) == 3.5
    assert bytes_per_token(policy, LAYERS) == pytest.approx((0.8 * 3.5 + 0.2 * 16) * 4 * 3 * 128 / 8)
    assert cache_bytes(policy, LAYERS, tokens=1000) == pytest.approx(1000 * bytes_per_token(policy, LAYERS))


@given(tokens=st.integers(0, 400), batch=st.integers(1, 3), key=st.sampled_from(ALLOWED_BITS))
def test_bytes_grow_with_tokens_and_batch(tokens, batch, key):
    policy = uniform(f"K{key}V4", QuantScheme.per_token())
    one = cache_bytes(policy, LAYERS, tokens=tokens)
    assert cache_bytes(policy, LAYERS, tokens=tokens, batch=batch) == batch * one
    assert one == tokens * bytes_per_token(policy, LAYERS)


def test_bits_per_head_are_added_up():
    pairs = tuple(PrecisionPair.parse(name) for name in ("K8V8", "K4V4", "K2V2"))
    policy = KVPolicy(scheme=QuantScheme.per_token(), layers=(LayerPrecision(heads=pairs),) * 4)
    parts = [cache_bytes(uniform(pair.name, policy.scheme), LAYERS, tokens=33) for pair in pairs]
    assert cache_bytes(policy, LAYERS, tokens=33) == sum(parts) / 3
    assert policy.nominal_bits == pytest.approx(14 / 3)


def test_a_policy_that_does_not_fit_is_refused():
    with pytest.raises(PolicyError, match="one entry per cached layer"):
        check_layers(KVPolicy.uniform("K4V4", layers=3, scheme=QuantScheme.per_token()), LAYERS)
    heads = (LayerPrecision(heads=(PrecisionPair.parse("KV4"),) * 2),) * 4
    with pytest.raises(PolicyError, match="3 KV heads"):
        check_layers(KVPolicy(scheme=QuantScheme.per_token(), layers=heads), LAYERS)
    with pytest.raises(SchemeError):
        check_layers(uniform("K4V4", QuantScheme.per_token(group_size=48)), LAYERS)
    odd = (LayerGeometry(kv_heads=3, key_dim=63, value_dim=64),) * 4
    with pytest.raises(SchemeError, match="even head_dim"):
        check_layers(uniform("K4V4", QuantScheme.per_token(rotation=Rotation.KEYS)), odd)
