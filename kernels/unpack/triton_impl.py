# mypy: ignore-errors
# ruff: noqa: N803, PLR0913, PLR0917
"""Dequantises a stretch of the packed store on a GPU, a block of 64 tokens a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decode_attention.triton_impl import channel_place, key_codes, value_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels.decode_attention.op import PackedSide


@triton.jit
def dequantize_kernel(
    p_words,
    p_scales,
    p_out,
    begin,
    end,
    first_block,
    blocks,
    origin,
    tokens,
    BITS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNEL: tl.constexpr,
    GROUP: tl.constexpr,
    RING: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """One block of one head; ``begin`` and ``end`` bound what this segment gives."""
    block = first_block + tl.program_id(0)
    place = block % blocks if RING else block - origin
    head = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, 64)[:, None]
    d = tl.arange(0, WIDTH)[None, :]
    m_d = d < D
    channel = tl.where(m_d, d, 0)
    position = block * 64 + r
    mask = (position >= begin) & (position < end) & m_d
    p_w = p_words + (head * blocks + place) * (2 * D * BITS)
    codes = key_codes(p_w, r, channel, BITS, D) if KEYS else value_codes(p_w, r, channel, BITS, D)
    if CHANNEL:
        p_s = p_scales + (head * blocks + place) * (4 * D) + (r // 32) * (2 * D) + channel_place(channel, D)
        scale = tl.load(p_s).to(tl.float32)
        offset = tl.load(p_s + D).to(tl.float32)
    else:
        p_s = p_scales + (head * blocks + place) * (128 * (D // GROUP)) + channel // GROUP * 128
        p_s = p_s + 2 * ((r % 8) * 8 + r // 8)
        scale = tl.load(p_s).to(tl.float32)
        offset = tl.load(p_s + 1).to(tl.float32)
    x = codes.to(tl.float32) * scale + offset
    if LIMIT:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    tl.store(p_out + (head * tokens + position - begin) * D + channel, x.to(p_out.dtype.element_ty), mask=mask)


def dequantize(sides: Sequence[PackedSide], *, keys: bool, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """See `kernels.unpack.op.dequantize`."""
    batch, heads = sides[0].words.shape[:2]
    dim = sides[0].head_dim
    out = torch.empty((batch, heads, end - begin, dim), dtype=dtype, device=sides[0].words.device)
    for side in sides:
        blocks = side.words.shape[2]
        first, last = begin // 64, -(-end // 64)
        if not side.ring:
            first, last = max(first, side.first_block), min(last, side.first_block + blocks)
        if last <= first:
            continue
        dequantize_kernel[(last - first, batch * heads)](
            side.words,
            side.scales,
            out,
            begin,
            end,
            first,
            blocks,
            side.first_block,
            end - begin,
            BITS=side.bits,
            D=dim,
            WIDTH=triton.next_power_of_2(dim),
            KEYS=keys,
            CHANNEL=side.granularity == "channel",
            GROUP=side.group_size or dim,
            RING=side.ring,
            LIMIT=dtype == torch.float16,
            num_warps=8,
            enable_fp_fusion=False,
        )
    return out
