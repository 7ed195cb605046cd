# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
"""Quantises and dequantises on a GPU in one pass over the values, each read and written once.

A program has some groups, whole. With a scale a token a group's values lie side by side, with a scale a channel
neighbouring groups do; the tile lies accordingly, so that neighbouring threads read neighbouring values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
_HALF_ONE = tl.constexpr(12582912.0)


@triton.jit
def _range(x, mask, m_group, AXIS: tl.constexpr):
    """Smallest and largest value of each group; zeros where there is no group."""
    low = tl.min(tl.where(mask, x, float("inf")), axis=AXIS)
    high = tl.max(tl.where(mask, x, float("-inf")), axis=AXIS)
    return tl.where(m_group, low, 0.0), tl.where(m_group, high, 0.0)


@triton.jit
def _stored(x, HALF_SCALE: tl.constexpr, LARGEST_SCALE: tl.constexpr):
    """``x`` as scales and offsets are stored, clamped to the finite range."""
    x = tl.minimum(tl.maximum(x, -LARGEST_SCALE), LARGEST_SCALE)
    return x.to(tl.float16).to(tl.float32) if HALF_SCALE else x


@triton.jit
def _rounded(x, divisor, least, most):
    """The nearest integers to ``x / divisor``, ties to even, from ``least`` to ``most``."""
    codes = tl.minimum(tl.maximum(tl.math.div_rn(x, divisor), least), most)
    return (codes + _HALF_ONE) - _HALF_ONE


@triton.jit
def _simulated(
    x,
    low,
    high,
    bits,
    AXIS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    HALF_SCALE: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Values by the stored scale and offset, in the order of operations of the reference."""
    steps = ((1 << (bits - (1 if SYMMETRIC else 0))) - 1).to(tl.float32)
    span = tl.maximum(high, -low) if SYMMETRIC else high - low
    scale = _stored(tl.math.div_rn(span, steps), HALF_SCALE, LARGEST_SCALE)
    divisor = tl.expand_dims(tl.where(scale == 0, float("inf"), scale), AXIS)
    most = tl.expand_dims(steps, AXIS)
    scale = tl.expand_dims(scale, AXIS)
    if SYMMETRIC:
        values = _rounded(x, divisor, -most, most) * scale
    else:
        offset = tl.expand_dims(_stored(low, HALF_SCALE, LARGEST_SCALE), AXIS)
        values = _rounded(x - offset, divisor, 0.0, most) * scale + offset
    return tl.minimum(tl.maximum(values, -LIMIT), LIMIT) if LIMIT > 0 else values


@triton.jit
def simulate_kernel(
    p_x,
    p_bits,
    p_out,
    width,
    count,
    batch_stride,
    head_stride,
    token_stride,
    batch_bits,
    head_bits,
    H,
    T,
    D,
    EACH: tl.constexpr,
    TOKEN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF_SCALE: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """``GROUPS`` of the ``count`` groups, at ``width`` bits or, EACH, at those that ``p_bits`` has for them."""
    AXIS: tl.constexpr = 1 if TOKEN else 0
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    m_group = group < count
    # Groups that share their tokens; then the channel of one, and how far apart its values are.
    side: tl.constexpr = GROUP if TOKEN else 1
    parts = D // side
    channel = group % parts * side
    tall: tl.constexpr = 1 if TOKEN else GROUP
    rest = group // parts
    token = rest % (T // tall) * tall
    rest = rest // (T // tall)
    head = rest % H
    sequence = rest // H
    step = tl.expand_dims(tl.arange(0, SPAN), 1 - AXIS)
    mask = tl.expand_dims(m_group, AXIS) & (step < GROUP)
    base = sequence * batch_stride + head * head_stride + token * token_stride + channel
    at = tl.expand_dims(base, AXIS) + step * (1 if TOKEN else token_stride)
    exact = tl.load(p_x + at, mask=mask, other=0.0)
    x = exact.to(tl.float32)
    low, high = _range(x, mask, m_group, AXIS)
    bits = tl.zeros([GROUPS], tl.int32) + width
    if EACH:
        bits = tl.load(p_bits + sequence * batch_bits + head * head_bits, mask=m_group, other=8).to(tl.int32)
    values = _simulated(x, low, high, bits, AXIS, SYMMETRIC, HALF_SCALE, LARGEST_SCALE, LIMIT).to(exact.dtype)
    if EACH:
        values = tl.where(tl.expand_dims(bits, AXIS) > 8, exact, values)
    to = tl.expand_dims(((sequence * H + head) * T + token) * D + channel, AXIS) + step * (1 if TOKEN else D)
    tl.store(p_out + to, values, mask=mask)


def simulate(
    x: Tensor, *, bits: int, granularity: str, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> Tensor:
    """See `kernels.quantize.reference.simulate`."""
    return _run(x, bits, granularity, group_size, symmetric=symmetric, scale_dtype=scale_dtype)


def simulate_each(
    x: Tensor, *, bits: Tensor, granularity: str, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> Tensor:
    """See `kernels.quantize.reference.simulate_each`."""
    return _run(x, bits, granularity, group_size, symmetric=symmetric, scale_dtype=scale_dtype)


def _run(
    x: Tensor, bits: int | Tensor, granularity: str, group_size: int, *, symmetric: bool, scale_dtype: torch.dtype
) -> Tensor:
    x = x if x.stride(3) == 1 else x.contiguous()
    batch, heads, tokens, dim = x.shape
    out = torch.empty((batch, heads, tokens, dim), dtype=x.dtype, device=x.device)
    span = triton.next_power_of_2(group_size)
    groups, count = max(1, _TILE // span), x.numel() // group_size
    each = isinstance(bits, Tensor)
    limit = min(torch.finfo(x.dtype).max, torch.finfo(torch.float32).max)
    widths = bits.expand(batch, heads, 1, 1) if each else x
    if not count:
        return out
    simulate_kernel[(triton.cdiv(count, groups),)](
        x,
        widths,
        out,
        0 if each else bits,
        count,
        *x.stride()[:3],
        *widths.stride()[:2],
        heads,
        tokens,
        dim,
        EACH=each,
        TOKEN=granularity == "token",
        SYMMETRIC=symmetric,
        GROUP=group_size,
        SPAN=span,
        GROUPS=groups,
        HALF_SCALE=scale_dtype == torch.float16,
        LARGEST_SCALE=torch.finfo(scale_dtype).max,
        LIMIT=limit if x.dtype == torch.float16 or scale_dtype == torch.float32 else 0.0,
        num_warps=8 if span > _TILE else 4,
        # A product and a sum are rounded one after the other, as the packed cache's are.
        enable_fp_fusion=False,
    )
    return out
