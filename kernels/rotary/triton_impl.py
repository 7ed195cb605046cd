# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
"""Queries, keys and values out of one product on a GPU: a program a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

if TYPE_CHECKING:
    from kernels.rotary.op import Heads


@triton.jit
def _half(p_parts, p_bias, at, stride, m_d, PARTS: tl.constexpr, BIAS: tl.constexpr, T: tl.constexpr):
    """Half of a head: the sum of the parts and the bias, rounded once."""
    x = tl.full(m_d.shape, 0.0, tl.float32)
    for part in tl.static_range(PARTS):
        x += tl.load(p_parts + part * stride + at, mask=m_d, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(p_bias, mask=m_d, other=0.0).to(tl.float32)
    return x.to(T).to(tl.float32)


@triton.jit
def _factor(p_weight, mean, x, m_d, OFFSET: tl.constexpr, T: tl.constexpr):
    """Half of a head over its root mean square, times the weight."""
    weight = tl.load(p_weight, mask=m_d, other=0.0).to(tl.float32)
    y = x * mean
    if OFFSET:
        return (y * (1.0 + weight)).to(T).to(tl.float32)
    return (y.to(T).to(tl.float32) * weight).to(T).to(tl.float32)


@triton.jit
def rotate_kernel(
    p_parts,
    p_bias,
    p_cos,
    p_sin,
    p_query_norm,
    p_key_norm,
    p_queries,
    p_keys,
    p_values,
    query_eps,
    key_eps,
    rows,
    queries,
    keys,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One head of one row."""
    T: tl.constexpr = p_cos.dtype.element_ty
    row = tl.program_id(0)
    head = tl.program_id(1)
    total = (queries + 2 * keys) * (2 * HALF)
    d = tl.arange(0, WIDTH)
    m_d = d < HALF
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    at = row * total + head * (2 * HALF) + d
    stride = rows * total
    p_b = p_bias + head * (2 * HALF) + d
    low = _half(p_parts, p_b, at, stride, m_d, PARTS, BIAS, T)
    high = _half(p_parts, p_b + HALF, at + HALF, stride, m_d, PARTS, BIAS, T)
    p_out = p_values + (row * keys + head - queries - keys) * (2 * HALF)
    if head < queries + keys:
        p_out = p_keys + (row * keys + head - queries) * (2 * HALF)
        p_norm = p_key_norm
        eps = key_eps
        if head < queries:
            p_out = p_queries + (row * queries + head) * (2 * HALF)
            p_norm = p_query_norm
            eps = query_eps
        if NORM:
            square = tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)
            mean = tl.rsqrt(square / (2 * HALF) + eps)
            low = _factor(p_norm + d, mean, low, m_d, OFFSET, T)
            high = _factor(p_norm + HALF + d, mean, high, m_d, OFFSET, T)
        p_c = p_cos + row * (2 * HALF) + d
        p_s = p_sin + row * (2 * HALF) + d
        cos_low = tl.load(p_c, mask=m_d, other=0.0).to(tl.float32)
        cos_high = tl.load(p_c + HALF, mask=m_d, other=0.0).to(tl.float32)
        sin_low = tl.load(p_s, mask=m_d, other=0.0).to(tl.float32)
        sin_high = tl.load(p_s + HALF, mask=m_d, other=0.0).to(tl.float32)
        turned = (low * cos_low).to(T).to(tl.float32) - (high * sin_low).to(T).to(tl.float32)
        high = (high * cos_high).to(T).to(tl.float32) + (low * sin_high).to(T).to(tl.float32)
        low = turned
    tl.store(p_out + d, low.to(T), mask=m_d)
    tl.store(p_out + HALF + d, high.to(T), mask=m_d)


def rotate(parts: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.rotary.op.rotate`."""
    batch, half = parts.shape[1], heads.dim // 2
    queries, keys, values = (
        torch.empty(batch, count, 1, heads.dim, dtype=cos.dtype, device=cos.device)
        for count in (heads.queries, heads.keys, heads.keys)
    )
    early = cos.is_cuda and torch.cuda.get_device_capability(cos.device)[0] >= 9
    norms = (heads.query_norm, heads.key_norm)
    rotate_kernel[(batch, heads.queries + 2 * heads.keys)](
        parts.contiguous(),
        cos if heads.bias is None else heads.bias,
        cos.contiguous(),
        sin.contiguous(),
        *(cos if norm is None else norm.weight for norm in norms),
        queries,
        keys,
        values,
        *(0.0 if norm is None else norm.eps for norm in norms),
        batch,
        heads.queries,
        heads.keys,
        HALF=half,
        WIDTH=triton.next_power_of_2(half),
        PARTS=parts.shape[0],
        BIAS=heads.bias is not None,
        NORM=norms[0] is not None,
        OFFSET=norms[0] is not None and norms[0].offset,
        EARLY=early,
        num_warps=1,
        **({"launch_pdl": True} if early else {}),
    )
    return queries, keys, values
