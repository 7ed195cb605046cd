"""The rules of quantising: equality of simulated and packed, error bounds, extremes, messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.quantize import op, reference
from kvtuner_core.domain.memory import packed_row_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def cases(draw):
    """A tensor and the arguments that fit it."""
    granularity = draw(st.sampled_from(["token", "channel"]))
    group = draw(st.sampled_from([1, 2, 5, 8, 32]))
    groups = draw(st.integers(1, 4))
    other = draw(st.integers(1, 19))
    tokens, head_dim = (group * groups, other) if granularity == "channel" else (other, group * groups)
    size = draw(st.sampled_from([1e-9, 1e-4, 1.0, 40.0, 3e4, 1e6]))
    shift = draw(st.sampled_from([0.0, 1.0, -300.0]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn((draw(st.integers(1, 2)), draw(st.integers(1, 3)), tokens, head_dim), generator=generator)
    limit = torch.finfo(dtype).max
    x = (x * size + shift * size).clamp(-limit, limit).to(dtype)
    if draw(st.booleans()):
        x[..., :1, :] = draw(st.sampled_from([0.0, 1.0, -3.3]))
    return x, {
        "bits": draw(st.sampled_from(op.BITS)),
        "granularity": granularity,
        "group_size": group,
        "symmetric": draw(st.booleans()),
        "scale_dtype": draw(st.sampled_from([torch.float16, torch.float32])),
    }


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_simulated_equals_packed_where_rows_are_rotated(case):
    x, options = case
    packed = op.quantize(x, **options, rotated=True)
    assert packed.rotated
    found = op.dequantize(packed, dtype=x.dtype)
    assert torch.equal(op.simulate(x, **options, rotated=True), found)
    assert found.dtype == x.dtype
    # One token's bits do not depend on its neighbours, so a cache may rotate token by token.
    alone = torch.cat([reference.rotate(x[:, :, [t]]) for t in range(x.shape[2])], dim=2)
    assert torch.equal(reference.rotate(x), alone)


def test_rotating_spreads_an_outlier_channel():
    x = torch.randn((1, 2, 50, 64), generator=torch.Generator().manual_seed(0))
    x[..., 7] += 30
    options = {"bits": 4, "granularity": "token", "group_size": 64}
    plain, turned = ((op.simulate(x, **options, rotated=rotated) - x).norm() for rotated in (False, True))
    assert turned < 0.5 * plain


def _spread(numbers: torch.Tensor, packed: op.Packed) -> torch.Tensor:
    """Scales or offsets repeated to the shape of the values."""
    return numbers.double().repeat_interleave(packed.group_size, dim=-1 if packed.granularity == "token" else -2)


def _range(packed: op.Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step, smallest and largest value of every scalar's group, in float64."""
    step = _spread(packed.scale, packed)
    if packed.offset is None:
        largest = (2 ** (packed.bits - 1) - 1) * step
        return step, -largest, largest
    offset = _spread(packed.offset, packed)
    return step, offset, offset + (2**packed.bits - 1) * step


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_simulated_equals_packed(case):
    x, options = case
    packed = op.quantize(x, **options)
    assert torch.equal(op.simulate(x, **options), op.dequantize(packed, dtype=x.dtype))


@settings(max_examples=60, deadline=None)
@given(case=cases(), draw=st.randoms(use_true_random=False), rotated=st.booleans())
def test_sequences_with_widths_of_their_own_are_simulated_as_each_alone(case, draw, rotated):
    x, options = case
    del options["bits"]
    x = torch.cat([x] * 4)
    chosen = [[draw.choice([16, 8, 4, 3, 2]) for _ in range(x.shape[1])] for _ in range(len(x))]
    for bits in (chosen, [row[:1] for row in chosen]):
        widths = sorted({width for row in bits for width in row} - {16})
        own_bits = op.RowBits(bits=torch.tensor(bits, dtype=torch.uint8)[..., None, None], widths=widths)
        found = op.simulate_each(x, bits=own_bits, rotated=rotated, **options)
        for sequence, row in enumerate(bits):
            for head, width in enumerate(row):
                own = x[[sequence]] if len(row) == 1 else x[[sequence], [head]][:, None]
                expected = own if width == 16 else op.simulate(own, bits=width, rotated=rotated, **options)
                place = found[[sequence]] if len(row) == 1 else found[[sequence], [head]][:, None]
                assert torch.equal(place, expected)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_the_error_is_at_most_half_a_step_inside_the_stored_range(case):
    x, options = case
    packed = op.quantize(x, **options)
    step, low, high = _range(packed)
    exact = x.double()
    outside = (low - exact).clamp(min=0) + (exact - high).clamp(min=0)
    arithmetic = 2**-20 * (exact.abs() + low.abs() + high.abs())
    error = (op.dequantize(packed, dtype=torch.float32).double() - exact).abs()
    assert (error <= step / 2 + outside + arithmetic).all()


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_the_stored_range_misses_the_values_by_rounding_only(case):
    x, options = case
    if x.float().abs().max() > 60000:
        return
    packed = op.quantize(x, **options)
    _, low, high = _range(packed)
    exact = x.double()
    outside = (low - exact).clamp(min=0) + (exact - high).clamp(min=0)
    # Half a unit in the last place of float16, or half its smallest number per code.
    assert (outside <= 2**-10 * (exact.abs() + (high - low)) + 2**-24 * 2**packed.bits).all()


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_results_are_finite_and_new(case):
    x, options = case
    before = x.clone()
    packed = op.quantize(x, **options)
    for dtype in DTYPES:
        assert op.dequantize(packed, dtype=dtype).isfinite().all()
    assert torch.equal(x, before)
    pointers = {t.untyped_storage().data_ptr() for t in (packed.codes, packed.scale) if t.numel()}
    assert x.untyped_storage().data_ptr() not in pointers
    assert packed.codes.untyped_storage().nbytes() == packed.codes.numel()


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_bytes_and_shapes_are_those_of_the_memory_model(case):
    x, options = case
    packed = op.quantize(x, **options)
    batch, heads, tokens, head_dim = x.shape
    row = packed_row_bytes(head_dim, packed.bits)
    assert op.row_bytes(head_dim, packed.bits) == row
    assert packed.codes.shape == (batch, heads, tokens, row)
    assert packed.codes.dtype == torch.uint8
    if packed.granularity == "token":
        assert packed.scale.shape == (batch, heads, tokens, head_dim // packed.group_size)
    else:
        assert packed.scale.shape == (batch, heads, tokens // packed.group_size, head_dim)
    assert packed.scale.dtype == options["scale_dtype"]
    assert (packed.offset is None) == options["symmetric"]
    assert packed.tokens == tokens


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_groups_and_sequences_do_not_know_each_other(case):
    x, options = case
    whole = op.simulate(x, **options)
    for sequence in range(x.shape[0]):
        for head in range(x.shape[1]):
            part = (slice(sequence, sequence + 1), slice(head, head + 1))
            assert torch.equal(op.simulate(x[part], **options), whole[part])
    if options["granularity"] == "channel":
        first = options["group_size"]
        assert torch.equal(op.simulate(x[:, :, :first], **options), whole[:, :, :first])
    else:
        assert torch.equal(op.simulate(x[:, :, -1:], **options), whole[:, :, -1:])


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_a_strided_view_gives_what_its_copy_gives(case):
    x, options = case
    view = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(op.simulate(view, **options), op.simulate(x, **options))
    assert torch.equal(op.quantize(view, **options).codes, op.quantize(x, **options).codes)


def test_asymmetric_by_hand():
    x = torch.tensor([-1.0, 0.0, 0.9, 2.0]).view(1, 1, 1, 4)
    packed = op.quantize(x, bits=2, granularity="token", group_size=4)
    assert packed.scale.item() == 1.0
    assert packed.offset.item() == -1.0
    assert packed.codes.item() == 0b11_10_01_00
    assert op.dequantize(packed, dtype=torch.float32).flatten().tolist() == [-1.0, 0.0, 1.0, 2.0]


def test_symmetric_by_hand():
    x = torch.tensor([-7.0, 0.0, 3.4, 7.0]).view(1, 1, 1, 4)
    packed = op.quantize(x, bits=4, granularity="token", group_size=4, symmetric=True)
    assert packed.scale.item() == 1.0
    assert packed.codes.flatten().tolist() == [(3 + 8) << 4 | (-7 + 8), (7 + 8) << 4 | 8]
    assert op.dequantize(packed, dtype=torch.float32).flatten().tolist() == [-7.0, 0.0, 3.0, 7.0]


def test_a_channel_group_is_consecutive_tokens_of_one_channel():
    x = torch.tensor([[0.0, 100.0], [3.0, 400.0], [5.0, 0.0], [5.0, 30.0]]).view(1, 1, 4, 2)
    packed = op.quantize(x, bits=2, granularity="channel", group_size=2)
    assert packed.scale[0, 0].tolist() == [[1.0, 100.0], [0.0, 10.0]]
    assert packed.offset[0, 0].tolist() == [[0.0, 100.0], [5.0, 0.0]]
    assert torch.equal(op.dequantize(packed, dtype=torch.float32), x)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", op.BITS)
def test_constant_groups(bits, symmetric):
    x = torch.full((1, 1, 2, 8), 2049.0)
    packed = op.quantize(x, bits=bits, granularity="token", group_size=8, symmetric=symmetric)
    restored = op.dequantize(packed, dtype=torch.float32)
    if symmetric:
        assert torch.allclose(restored, x, rtol=1e-3)
    else:
        # 2049 is no float16: the offset is rounded, and the codes do not try to mend it.
        assert (packed.codes == 0).all()
        assert (restored == 2048.0).all()
    zeros = op.quantize(torch.zeros_like(x), bits=bits, granularity="token", group_size=8, symmetric=symmetric)
    assert (op.dequantize(zeros, dtype=torch.float32) == 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_the_smallest_numbers(dtype, scale_dtype, symmetric):
    info = torch.finfo(dtype)
    for size in (info.max, info.tiny, info.tiny / 8):
        x = torch.tensor([-size, 0.0, size / 3, size], dtype=dtype).view(1, 1, 1, 4)
        for bits in op.BITS:
            options = {"bits": bits, "granularity": "token", "group_size": 4, "symmetric": symmetric}
            packed = op.quantize(x, **options, scale_dtype=scale_dtype)
            restored = op.dequantize(packed, dtype=dtype)
            assert packed.scale.isfinite().all()
            assert restored.isfinite().all()
            assert torch.equal(restored, op.simulate(x, **options, scale_dtype=scale_dtype))


def test_a_scale_below_float16_gives_the_offset():
    x = torch.tensor([1.0, 1.0 + 1e-7]).view(1, 1, 1, 2)
    packed = op.quantize(x, bits=8, granularity="token", group_size=2)
    assert packed.scale.item() == 0
    assert op.dequantize(packed, dtype=torch.float32).flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("bits", op.BITS)
def test_no_tokens(bits, granularity):
    x = torch.empty(2, 3, 0, 8)
    packed = op.quantize(x, bits=bits, granularity=granularity, group_size=4)
    assert op.dequantize(packed, dtype=torch.float16).shape == x.shape
    assert op.simulate(x, bits=bits, granularity=granularity, group_size=4).shape == x.shape


def test_float64_is_rounded_to_float32_first():
    x = torch.randn(1, 2, 8, 16, dtype=torch.float64)
    options = {"bits": 4, "granularity": "channel", "group_size": 8}
    assert torch.equal(op.simulate(x, **options), op.simulate(x.float(), **options).double())
    assert torch.equal(op.simulate(x, **options), op.dequantize(op.quantize(x, **options), dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "change", "message"),
    [
        ((2, 4, 8), {}, r"x must be a floating-point tensor \[B, H, T, D\]; got torch.float32 \[2, 4, 8\]"),
        ((1, 2, 4, 8), {"bits": 16}, "bits must be 8, 4, 3 or 2; got 16"),
        ((1, 2, 4, 8), {"granularity": "head"}, "granularity must be 'token' or 'channel'; got 'head'"),
        ((1, 2, 4, 8), {"group_size": 3}, r"group_size must divide D \(8\) of a per-token tensor; got 3"),
        ((1, 2, 4, 8), {"group_size": 0}, r"got 0"),
        ((1, 2, 4, 8), {"granularity": "channel", "group_size": 8}, r"must divide T \(4\) of a per-channel tensor"),
        ((1, 2, 4, 8), {"scale_dtype": torch.bfloat16}, "scale_dtype must be torch.float16 or torch.float32"),
    ],
)
def test_errors_say_the_rule_and_the_value(shape, change, message):
    options = {"bits": 4, "granularity": "token", "group_size": 8, **change}
    for function in (op.quantize, op.simulate):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape), **options)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        op.quantize(torch.zeros((1, 1, 1, 8), dtype=torch.int64), bits=4, granularity="token", group_size=8)
