from dataclasses import replace

import pytest
import torch

from kernels.decode_attention.op import decode_attention, dequantize, pack_keys, pack_values, supported
from kernels.quantize import op as quantize_op
from kernels.quantize import reference as quantize_reference
from tests.kernels.decode_attention.cases import SMALL, TOLERANCE, Shape, error, make


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_the_reference_agrees_with_float64(shape: Shape) -> None:
    shape = replace(shape, dtype=torch.float32)
    case = make(shape)
    out = decode_attention(
        case.query, case.keys, values=case.values, visible=case.visible, recent=case.recent, implementation="reference"
    )
    assert error(out, case.expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_keys_of_the_quantiser_fit(granularity: quantize_op.Granularity) -> None:
    x = torch.randn(1, 2, 64, 64)
    size = 32
    packed = quantize_op.quantize(x, bits=4, granularity=granularity, group_size=size)
    codes = quantize_reference.unpack(packed.codes, 4, 64).to(torch.uint8)
    assert packed.offset is not None
    keys = pack_keys(codes, packed.scale, packed.offset, bits=4)
    assert torch.equal(dequantize(keys, keys=True), quantize_op.dequantize(packed, dtype=torch.float32))


def test_a_segment_without_a_block_is_refused() -> None:
    case = make(SMALL[0])
    none = [
        tuple(replace(x, words=x.words[:, :, :0], scales=x.scales[:, :, :0]) for x in s)
        for s in (case.keys, case.values)
    ]
    with pytest.raises(ValueError, match="at least one block of 64 tokens; got none"):
        decode_attention(case.query, none[0], values=none[1], visible=case.visible)


def test_what_does_not_fit_is_refused() -> None:
    codes, scale = torch.zeros(1, 1, 64, 64, dtype=torch.uint8), torch.zeros(1, 1, 64)
    with pytest.raises(ValueError, match="bits must be 8, 4, 3 or 2; got 5"):
        pack_keys(codes, scale, scale, bits=5)
    with pytest.raises(ValueError, match="head_dim must be a multiple of 64 at 3 bits; got 96"):
        pack_values(codes.new_zeros(1, 1, 64, 96), scale, scale, bits=3)
    with pytest.raises(ValueError, match=r"scale and offset must be \[1, 1, 64\]"):
        pack_values(codes, scale[..., :1], scale, bits=4)
    case = make(Shape(head_dim=64, tokens=8))
    with pytest.raises(ValueError, match="query heads must be a multiple"):
        decode_attention(case.query[:, :3], case.keys, values=case.values, visible=case.visible)
    values = replace(case.values[0], granularity="channel")
    with pytest.raises(ValueError, match="per-token scales"):
        decode_attention(case.query, case.keys, values=values, visible=case.visible)
    with pytest.raises(ValueError, match="as many segments"):
        decode_attention(case.query, (*case.keys, *case.keys), values=case.values, visible=case.visible)
    ring = replace(case.keys[0], ring=True)
    with pytest.raises(ValueError, match="a ring must be the only segment"):
        decode_attention(case.query, ring, values=case.values, visible=case.visible)


def test_what_the_layout_cannot_hold_can_be_asked_beforehand() -> None:
    assert supported(80, key_bits=8, value_bits=4, key_granularity="channel") is None
    assert supported(128, key_bits=2, value_bits=3, key_group=32, value_group=64) is None
    reason = supported(80, key_bits=4, value_bits=2)
    assert reason == "head_dim must be a multiple of 32 at 2 bits; got 80 (values)."
    assert "divide head_dim (96)" in str(supported(96, key_bits=4, value_bits=4, value_group=64))
    assert "groups of 32 tokens" in str(
        supported(128, key_bits=4, value_bits=4, key_granularity="channel", key_group=64)
    )
    assert "at most 256" in str(supported(512, key_bits=4, value_bits=4))
