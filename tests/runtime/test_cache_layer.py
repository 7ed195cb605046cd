"""One layer against an oracle that sees all raw tokens at once."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.memory import layer_bytes, stored_tokens
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import ALLOWED_BITS, PrecisionPair, candidate_pairs
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.errors import ModelError
from tests.runtime.cache_oracle import (
    GEOMETRY,
    SCHEMES,
    SLIDING,
    assert_history,
    expected_history,
    feed,
    make_layer,
    measured,
    one_layer_policy,
    raw_states,
)

HEADS = LayerPrecision(heads=tuple(PrecisionPair.parse(name) for name in ("K8V2", "K16V3", "K8V2")))
PRECISIONS = {
    "K4V2": LayerPrecision(pair=PrecisionPair.parse("K4V2")),
    "K16V3": LayerPrecision(pair=PrecisionPair.parse("K16V3")),
    "K16V16": LayerPrecision(),
    "heads": HEADS,
}


def _predicted(layer, tokens, batch=2):
    policy = one_layer_policy(layer.scheme, layer.precision)
    return layer_bytes(policy, 0, layer.geometry, tokens=tokens, batch=batch, full_bytes=4)


@st.composite
def layers(draw):
    """A layer of any scheme and any pairs, full or sliding."""
    names = draw(st.lists(st.sampled_from(candidate_pairs(ALLOWED_BITS)), min_size=3, max_size=3))
    precision = LayerPrecision(heads=tuple(names)) if draw(st.booleans()) else LayerPrecision(pair=names[0])
    window = draw(st.sampled_from([None, 2, 5, 13, 40]))
    geometry = LayerGeometry(kv_heads=3, key_dim=24, value_dim=16, sliding_window=window)
    return make_layer(SCHEMES[draw(st.sampled_from(list(SCHEMES)))], precision, geometry)


@given(layer=layers(), sizes=st.lists(st.sampled_from([1, 1, 1, 2, 7, 30]), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_every_update_reads_the_history_as_stored_and_its_own_tokens_exactly(layer, sizes):
    states = raw_states(sum(sizes))
    tokens = 0
    for size in sizes:
        kv_length, kv_offset = layer.get_mask_sizes(size)
        read = feed(layer, states, tokens, tokens + size)
        before = expected_history(states, layer, tokens=tokens)
        for found, history, raw in zip(read, before, states, strict=True):
            assert torch.equal(found, torch.cat([history, raw[:, :, tokens : tokens + size]], dim=2))
            assert found.shape[2] == kv_length
        tokens += size
        assert kv_offset + kv_length == tokens == layer.get_seq_length()
        assert_history(layer, states, tokens=tokens)
        assert measured(layer) == _predicted(layer, tokens)


@given(layer=layers(), sizes=st.lists(st.sampled_from([1, 2, 5, 17]), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_quantised_prefill_reads_its_own_tokens_as_stored(layer, sizes):
    layer = make_layer(layer.scheme, layer.precision, layer.geometry, prefill=PrefillMode.QUANTISED)
    states = raw_states(sum(sizes))
    tokens = 0
    for size in sizes:
        _, first = layer.get_mask_sizes(size)
        read = feed(layer, states, tokens, tokens + size)
        tokens += size
        if size > 1:
            whole = expected_history(states, layer, tokens=tokens, forgets=False)
            for found, expected in zip(read, whole, strict=True):
                assert torch.equal(found, expected[:, :, first:])
        assert_history(layer, states, tokens=tokens)
        assert measured(layer) == _predicted(layer, tokens)


@pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("name", SCHEMES)
def test_bytes_to_the_byte_for_every_pair_and_odd_length(name, geometry):
    states = raw_states(43, geometry, batch=3)
    for pair in candidate_pairs(ALLOWED_BITS):
        layer = make_layer(SCHEMES[name], pair.name, geometry)
        lengths = (0, 1, 7, 8, 12, 13, 31, 43)
        for begin, end in pairwise(lengths):
            feed(layer, states, begin, end)
            assert measured(layer) == _predicted(layer, end, batch=3), (pair.name, end)


@pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("name", SCHEMES)
def test_one_token_at_a_time_stores_what_one_batch_stores(name, geometry):
    states = raw_states(41, geometry)
    at_once, singly = make_layer(SCHEMES[name], HEADS, geometry), make_layer(SCHEMES[name], HEADS, geometry)
    feed(at_once, states, 0, 41)
    for token in range(41):
        feed(singly, states, token, token + 1)
    for one, other in zip(at_once.tensors(), singly.tensors(), strict=True):
        assert torch.equal(one, other)


def test_heads_of_one_pair_are_packed_together():
    layer = make_layer(SCHEMES["per-token"], HEADS)
    assert [(group.heads, group.pair.name) for group in layer.groups] == [((0, 2), "K8V2"), ((1,), "K16V3")]
    feed(layer, raw_states(4), 0, 4)
    packed = layer.groups[0].values.packed
    assert packed.codes.shape == (2, 2, 4, 4)


def test_packed_state_lies_open():
    scheme = SCHEMES["kivi, sinks, odd"]
    layer = make_layer(scheme)
    feed(layer, raw_states(30), 0, 30)
    held = stored_tokens(scheme, 30)
    for side in (layer.groups[0].keys, layer.groups[0].values):
        assert (side.sinks.shape[2], side.packed.tokens, side.window.shape[2]) == (
            held.sinks,
            held.packed,
            held.window,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_half_precision_models(name, dtype):
    layer = make_layer(SCHEMES[name])
    keys, values = (states.to(dtype) for states in raw_states(29))
    read = layer.update(keys, values)
    assert read[0].dtype == layer.history()[0].dtype == dtype
    policy = one_layer_policy(layer.scheme, layer.precision)
    assert measured(layer) == layer_bytes(policy, 0, GEOMETRY, tokens=29, batch=2, full_bytes=2)


@pytest.mark.parametrize("pair", ["K4V2", "K16V16"])
def test_nothing_is_shared_with_the_models_tensors(pair):
    layer = make_layer(QuantScheme.kivi(group_size=8, residual_length=8), pair)
    fused = torch.randn(1, 9, 3, 72)
    keys, values = fused[..., :24].transpose(1, 2), fused[..., 24:40].transpose(1, 2)
    layer.update(keys, values)
    before = [tensor.clone() for tensor in layer.tensors()]
    fused.zero_()
    assert all(torch.equal(one, other) for one, other in zip(before, layer.tensors(), strict=True))
    assert all(tensor.is_contiguous() for tensor in layer.tensors())


def test_a_quantised_history_carries_no_gradient():
    layer = make_layer(SCHEMES["kivi"])
    keys, values = (states.requires_grad_() for states in raw_states(20))
    read = layer.update(keys, values)
    assert read[0].requires_grad
    assert not any(tensor.requires_grad for tensor in layer.tensors())


class TestCrop:
    @pytest.mark.parametrize("removed", [0, 1, 3, 9, 20, 29, 40])
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("name", ["per-token", "both per channel"])
    def test_without_a_window_it_equals_never_having_seen_the_tokens(self, name, precision, removed):
        # Only whole groups per channel: a cut through one is the next test.
        removed -= removed % SCHEMES[name].flush_tokens
        states = raw_states(28)
        layer, fresh = (make_layer(SCHEMES[name], PRECISIONS[precision]) for _ in range(2))
        feed(layer, states, 0, 28)
        layer.crop(-removed)
        left = max(28 - removed, 0)
        assert layer.get_seq_length() == left
        assert measured(layer) == _predicted(layer, left)
        feed(fresh, states, 0, left)
        other = raw_states(11, seed=1)
        for one, two in zip(feed(layer, other, 0, 11), feed(fresh, other, 0, 11), strict=True):
            assert torch.equal(one, two)

    def test_a_cut_group_goes_back_to_the_window_dequantised(self):
        layer = make_layer(QuantScheme.kivi(group_size=8, residual_length=4))
        states = raw_states(31)
        feed(layer, states, 0, 31)
        quantised = layer.history()
        layer.crop(-(31 - 13))
        side = layer.groups[0].keys
        assert (side.packed.tokens, side.window.shape[2]) == (8, 5)
        for found, before in zip(layer.history(), quantised, strict=True):
            assert torch.equal(found, before[:, :, :13])
        feed(layer, states, 13, 31)
        assert side.packed.tokens == 24
        assert torch.equal(layer.history()[0][:, :, :8], quantised[0][:, :, :8])
        assert measured(layer) == _predicted(layer, 31)

    @pytest.mark.parametrize("name", SCHEMES)
    def test_what_is_left_reads_as_it_did(self, name):
        states = raw_states(40)
        for removed in range(1, 41, 3):
            layer = make_layer(SCHEMES[name], HEADS)
            feed(layer, states, 0, 40)
            before = layer.history()
            layer.crop(-removed)
            for found, whole in zip(layer.history(), before, strict=True):
                assert torch.equal(found, whole[:, :, : 40 - removed])
            feed(layer, raw_states(60, seed=2), 0, 60)
            assert measured(layer) == _predicted(layer, 100 - removed)

    def test_tokens_stay_quantised_once(self):
        layer = make_layer(SCHEMES["per-token, groups"])
        states = raw_states(30)
        feed(layer, states, 0, 30)
        packed = layer.groups[0].keys.packed.codes.clone()
        layer.crop(-4)
        feed(layer, states, 26, 30)
        assert torch.equal(layer.groups[0].keys.packed.codes, packed)
        assert_history(layer, states, tokens=30)

    @pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
    @pytest.mark.parametrize("name", SCHEMES)
    def test_with_the_past_recorded_it_leaves_no_trace(self, name, geometry):
        layer = make_layer(SCHEMES[name], HEADS, geometry)
        states, wrong = raw_states(60, geometry), raw_states(60, geometry, seed=9)
        layer.activate_past_recording()
        tokens = 0
        for size, kept in ((17, 17), (4, 1), (4, 4), (1, 1), (9, 0), (12, 2), (9, 8)):
            update = tuple(
                torch.cat([good[:, :, tokens : tokens + kept], bad[:, :, : size - kept]], dim=2)
                for good, bad in zip(states, wrong, strict=True)
            )
            before = expected_history(states, layer, tokens=tokens)
            read = layer.update(*update)
            for found, history, new in zip(read, before, update, strict=True):
                assert torch.equal(found, torch.cat([history, new], dim=2))
            layer.crop(kept - size)
            tokens += kept
            assert_history(layer, states, tokens=tokens)
            assert measured(layer) == _predicted(layer, tokens)

    @pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
    def test_recording_without_crops_still_reads_the_stored_history(self, geometry):
        layer = make_layer(SCHEMES["kivi"], geometry=geometry)
        states = raw_states(40, geometry)
        layer.activate_past_recording()
        for token in range(40):
            kv_length, _ = layer.get_mask_sizes(1)
            read = feed(layer, states, token, token + 1)
            before = expected_history(states, layer, tokens=token)
            assert torch.equal(read[0], torch.cat([before[0], states[0][:, :, token : token + 1]], dim=2))
            assert read[0].shape[2] == kv_length
        layer.crop(0)
        assert_history(layer, states, tokens=40)
        assert measured(layer) == _predicted(layer, 40)

    def test_a_sliding_window_can_be_cropped_until_it_is_full(self):
        layer = make_layer(SCHEMES["per-token"], geometry=SLIDING)
        states = raw_states(14, SLIDING)
        feed(layer, states, 0, 12)
        layer.crop(-5)
        assert_history(layer, states, tokens=7)
        feed(layer, states, 7, 13)
        with pytest.raises(RuntimeError, match=r"before its window \(13 tokens\) is full; it has seen 13"):
            layer.crop(-1)

    def test_a_positive_number_is_refused(self):
        layer = make_layer(SCHEMES["kivi"])
        with pytest.raises(ValueError, match="takes a negative number of tokens to remove; got 5"):
            layer.crop(5)

    def test_an_empty_layer_stays_empty(self):
        layer = make_layer(SCHEMES["kivi"])
        layer.crop(-5)
        assert layer.history() is None
        assert layer.get_seq_length() == 0


@pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("name", SCHEMES)
class TestBatch:
    CHANGES = (
        ("reorder_cache", lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        ("batch_repeat_interleave", lambda layer: layer.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        ("batch_select_indices", lambda layer: layer.batch_select_indices(torch.tensor([1])), [1]),
        (
            "batch_select_indices, mask",
            lambda layer: layer.batch_select_indices(torch.tensor([True, False, True])),
            [0, 2],
        ),
    )

    @pytest.mark.parametrize("change", CHANGES, ids=[name for name, *_ in CHANGES])
    def test_sequences_move_with_their_history(self, change, name, geometry):
        _, apply, rows = change
        states = raw_states(31, geometry, batch=3)
        layer = make_layer(SCHEMES[name], HEADS, geometry)
        apply(layer)
        feed(layer, states, 0, 27)
        apply(layer)
        moved = tuple(whole[rows] for whole in states)
        assert_history(layer, moved, tokens=27)
        assert measured(layer) == _predicted(layer, 27, batch=len(rows))
        feed(layer, moved, 27, 31)
        assert_history(layer, moved, tokens=31)
        assert measured(layer) == _predicted(layer, 31, batch=len(rows))


@pytest.mark.parametrize("geometry", [GEOMETRY, SLIDING], ids=["full", "sliding"])
def test_reset_makes_a_layer_new(geometry):
    states = raw_states(33, geometry)
    layer = make_layer(SCHEMES["kivi, sinks, odd"], HEADS, SLIDING if geometry is SLIDING else GEOMETRY)
    feed(layer, raw_states(50, geometry, batch=5), 0, 50)
    layer.reset()
    assert measured(layer) == 0
    assert layer.get_seq_length() == 0
    assert not layer.is_initialized
    feed(layer, states, 0, 33)
    assert_history(layer, states, tokens=33)


def test_a_copy_lives_on_its_own():
    states = raw_states(33)
    layer = make_layer(SCHEMES["kivi"], HEADS)
    feed(layer, states, 0, 20)
    other = copy.deepcopy(layer)
    feed(other, states, 20, 33)
    assert_history(layer, states, tokens=20)
    assert_history(other, states, tokens=33)


def test_offload_and_prefetch_move_all_of_it():
    states = raw_states(33)
    layer = make_layer(SCHEMES["kivi"], HEADS)
    layer.offload()
    layer.prefetch()
    feed(layer, states, 0, 20)
    layer.offload()
    assert all(tensor.device.type == "cpu" for tensor in layer.tensors())
    layer.prefetch()
    feed(layer, states, 20, 33)
    assert_history(layer, states, tokens=33)


def test_states_of_another_model_are_refused():
    layer = make_layer(SCHEMES["kivi"])
    with pytest.raises(ModelError, match=r"\(3, 24\), \(3, 16\)\); got \(\(3, 16\), \(3, 24\)\)"):
        layer.update(*reversed(raw_states(4)))
