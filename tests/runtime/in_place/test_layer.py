"""One layer in buffers against the plain one, fed the same raw tokens: the same codes, and the same attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.runtime.cache_layer import PackedLayer
from kvtuner_core.runtime.in_place.layer import InPlaceLayer, reading_of
from kvtuner_core.runtime.in_place.planner import Planner

HEADS, GROUP, DIM = 3, 2, 64
SCHEMES = (
    QuantScheme.per_token(),
    QuantScheme.per_token(group_size=32, residual_length=4, sink_length=2),
    QuantScheme.kivi(),
    QuantScheme.kivi(residual_length=0, sink_length=5),
)


@st.composite
def twins(draw):
    """A plain layer and one in buffers, of any pairs, full or sliding."""
    bits = st.sampled_from(("K8V8", "K4V2", "K2V4", "K3V3", "K16V16", "K16V4", "K2V16"))
    precision = LayerPrecision(pair=PrecisionPair.parse(draw(bits)))
    if draw(st.booleans()):
        precision = LayerPrecision(heads=tuple(PrecisionPair.parse(draw(bits)) for _ in range(HEADS)))
    window = draw(st.sampled_from([None, None, 5, 70]))
    geometry = LayerGeometry(kv_heads=HEADS, key_dim=DIM, value_dim=DIM, sliding_window=window)
    scheme = draw(st.sampled_from(SCHEMES))
    planner = Planner(in_place=True, max_tokens=draw(st.sampled_from([0, 40])))
    return (
        PackedLayer(geometry, precision, scheme, prefill=PrefillMode.FULL),
        InPlaceLayer(geometry, precision, scheme, prefill=PrefillMode.FULL, planner=planner),
    )


def _attend(query, keys, values, window):
    """Causal attention of the newest queries, in float64."""
    count, total = query.shape[2], keys.shape[2]
    keys, values = (x.double().repeat_interleave(GROUP, dim=1) for x in (keys, values))
    scores = query.double() @ keys.transpose(2, 3) * DIM**-0.5
    own = torch.arange(total - count, total)[:, None]
    position = torch.arange(total)
    hidden = position > own
    if window is not None:
        hidden |= position <= own - window
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values


@given(pair=twins(), sizes=st.lists(st.sampled_from([1, 1, 1, 2, 8, 9, 33, 130]), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_every_update_attends_to_what_the_plain_layer_returns(pair, sizes):
    plain, layer = pair
    layer.noticed = True
    generator = torch.Generator().manual_seed(len(sizes))
    for size in sizes:
        keys, values = (torch.randn(2, HEADS, size, DIM, generator=generator) for _ in range(2))
        keys[..., 7] += 9
        query = torch.randn(2, HEADS * GROUP, size, DIM, generator=generator)
        window = layer.geometry.sliding_window
        expected = _attend(query, *plain.update(keys, values), window)
        found_keys, found_values = layer.update(keys, values)
        reading = reading_of(found_keys)
        if reading.plan is None:
            found = _attend(query, found_keys, found_values, window)
        else:
            found = layer.attend(query, reading, scale=None)
            whole = layer.read(reading.span)
            assert torch.allclose(_attend(query, *whole, window), expected, atol=1e-9)
        assert torch.allclose(found.double(), expected, atol=2e-5)
    for held, same in zip(layer.history(), plain.history(), strict=True):
        assert torch.equal(held, same)
    assert layer.used_bytes() == sum(tensor.untyped_storage().nbytes() for tensor in plain.tensors())
    layer.make_plain("the test wants it")
    for held, same in zip(layer.history(), plain.history(), strict=True):
        assert torch.equal(held, same)


@pytest.mark.parametrize("pair", ["K4V4", "K16V4", "K4V16"])
def test_a_window_that_straddles_two_segments_is_quantised_as_it_was(pair):
    geometry = LayerGeometry(kv_heads=HEADS, key_dim=DIM, value_dim=DIM)
    precision = LayerPrecision(pair=PrecisionPair.parse(pair))
    plain = PackedLayer(geometry, precision, QuantScheme.kivi(), prefill=PrefillMode.FULL)
    planner = Planner(in_place=True, max_tokens=40)
    layer = InPlaceLayer(geometry, precision, QuantScheme.kivi(), prefill=PrefillMode.FULL, planner=planner)
    layer.noticed = True
    for size in (90, 130):
        keys, values = (torch.randn(2, HEADS, size, DIM) for _ in range(2))
        plain.update(keys, values)
        layer.update(keys, values)
    assert len(layer.stores[0].keys) == 2
    for held, same in zip(layer.history(), plain.history(), strict=True):
        assert torch.equal(held, same)
    assert layer.used_bytes() == sum(tensor.untyped_storage().nbytes() for tensor in plain.tensors())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_selecting_sequences_selects_their_history(scheme):
    geometry = LayerGeometry(kv_heads=HEADS, key_dim=DIM, value_dim=DIM)
    layer = InPlaceLayer(
        geometry,
        LayerPrecision(pair=PrecisionPair.parse("K4V4")),
        scheme,
        prefill=PrefillMode.FULL,
        planner=Planner(in_place=True),
    )
    layer.noticed = True
    layer.update(*(torch.randn(3, HEADS, 90, DIM) for _ in range(2)))
    before = [states.clone() for states in layer.history()]
    layer.reorder_cache(torch.tensor([2, 0, 0]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 3, 5]))
    for held, states in zip(layer.history(), before, strict=True):
        assert torch.equal(held, states[[2, 0, 0]])
