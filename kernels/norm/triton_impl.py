# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
"""Residual sum and norm on a GPU: a program a row, which is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

if TYPE_CHECKING:
    from kernels.norm.op import Norm


@triton.jit
def normed(x, weight, eps, count, OFFSET: tl.constexpr, T: tl.constexpr):
    """``x`` (float32, zeros beyond ``count``) over its root mean square times ``weight``; rounded like a model's."""
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / count + eps)
    if OFFSET:
        return (y * (1.0 + weight)).to(T).to(tl.float32)
    return (y.to(T).to(tl.float32) * weight).to(T).to(tl.float32)


@triton.jit
def add_norm_kernel(
    p_hidden,
    p_parts,
    p_bias,
    p_inner,
    p_weight,
    p_sum,
    p_out,
    inner_eps,
    eps,
    rows,
    width,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    INNER: tl.constexpr,
    INNER_OFFSET: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row."""
    T: tl.constexpr = p_hidden.dtype.element_ty
    row = tl.program_id(0)
    d = tl.arange(0, WIDTH)
    m_d = d < width
    weight = tl.load(p_weight + d, mask=m_d, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(p_hidden + row * width + d, mask=m_d, other=0.0).to(tl.float32)
    if PARTS > 0:
        y = tl.full([WIDTH], 0.0, tl.float32)
        for part in tl.static_range(PARTS):
            y += tl.load(p_parts + (part * rows + row) * width + d, mask=m_d, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(p_bias + d, mask=m_d, other=0.0).to(tl.float32)
        y = y.to(T).to(tl.float32)
        if INNER:
            factor = tl.load(p_inner + d, mask=m_d, other=0.0).to(tl.float32)
            y = normed(y, factor, inner_eps, width, INNER_OFFSET, T)
        x = (x + y).to(T).to(tl.float32)
        tl.store(p_sum + row * width + d, x.to(T), mask=m_d)
    tl.store(p_out + row * width + d, normed(x, weight, eps, width, OFFSET, T).to(T), mask=m_d)


def add_norm(
    hidden: Tensor, parts: Tensor | None, norm: Norm, bias: Tensor | None, inner: Norm | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.norm.op.add_norm`."""
    hidden = hidden.contiguous()
    rows, width = hidden.shape
    out = torch.empty_like(hidden)
    total = hidden if parts is None else torch.empty_like(hidden)
    early = hidden.is_cuda and torch.cuda.get_device_capability(hidden.device)[0] >= 9
    add_norm_kernel[(rows,)](
        hidden,
        hidden if parts is None else parts.contiguous(),
        hidden if bias is None else bias,
        hidden if inner is None else inner.weight,
        norm.weight,
        total,
        out,
        0.0 if inner is None else inner.eps,
        norm.eps,
        rows,
        width,
        WIDTH=triton.next_power_of_2(width),
        PARTS=0 if parts is None else parts.shape[0],
        BIAS=bias is not None,
        INNER=inner is not None,
        INNER_OFFSET=inner is not None and inner.offset,
        OFFSET=norm.offset,
        EARLY=early,
        num_warps=min(16, max(1, triton.next_power_of_2(width) // 256)),
        **({"launch_pdl": True} if early else {}),
    )
    return total, out
