# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
"""Attention over packed keys and unquantised values, or the other way round, on a GPU: split over the tokens, merged.

Plain Triton: a program dequantises a block of 64 tokens of one KV head and multiplies it with up to 16 query
rows on tensor cores, in three passes of tf32, which is as exact as float32 for what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decode_attention.triton_impl import (
    _MIN_BLOCKS,
    channel_place,
    deal,
    key_codes,
    merge,
    split_plan,
    value_codes,
)

if TYPE_CHECKING:
    from kernels.decode_attention.op import PackedSide, Recent, Visible

_LOG2E = tl.constexpr(1.4426950408889634)
_ROWS = 16
_PROGRAMS = 3
"""Programs of a processor that run at once."""


@triton.jit
def _values(
    p_words,
    p_scales,
    m_token,
    d,
    m_d,
    KEYS: tl.constexpr,
    BITS: tl.constexpr,
    D: tl.constexpr,
    CHANNEL: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The 64 tokens ``[64, W]`` of a block as float32; zeros where nobody looks."""
    r = tl.arange(0, 64)[:, None]
    mask = m_token[:, None] & m_d[None, :]
    d = d[None, :]
    MAIN: tl.constexpr = 2 if BITS == 3 else BITS
    if BITS == 16:
        out = tl.load(p_words + r * D + d, mask=mask, other=0.0).to(tl.float32)
    else:
        if KEYS:
            codes = key_codes(p_words, r, d, MAIN, D)
            if BITS == 3:
                codes = codes | (key_codes(p_words + 4 * D, r, d, 1, D) << 2)
        else:
            codes = value_codes(p_words, r, d, MAIN)
            if BITS == 3:
                codes = codes | (value_codes(p_words + 4 * D, r, d, 1) << 2)
        if CHANNEL:
            p_s = p_scales + r // 32 * (2 * D) + channel_place(d, D)
            scale = tl.load(p_s, mask=mask, other=0.0).to(tl.float32)
            offset = tl.load(p_s + D, mask=mask, other=0.0).to(tl.float32)
        else:
            p_s = p_scales + 2 * ((r % 8) * 8 + r // 8) + 128 * (d // (D // GROUPS))
            scale = tl.load(p_s, mask=mask, other=0.0).to(tl.float32)
            offset = tl.load(p_s + 1, mask=mask, other=0.0).to(tl.float32)
        out = codes.to(tl.float32) * scale + offset
    return out


@triton.jit
def exact_side_kernel(
    p_query,
    p_keys,
    p_key_scales,
    p_values,
    p_value_scales,
    p_first,
    p_last,
    p_out,
    p_stats,
    scale,
    origin,
    blocks,
    part_first,
    part_count,
    rows,
    count,
    kv_heads,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    D: tl.constexpr,
    CHANNEL: tl.constexpr,
    K_GROUPS: tl.constexpr,
    V_GROUPS: tl.constexpr,
    RING: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split of one KV head for ``ROWS`` query rows; the splits are dealt out as in `decode_kernel`."""
    K_BLOCK: tl.constexpr = 64 * D if K_BITS == 16 else 2 * D * K_BITS
    V_BLOCK: tl.constexpr = 64 * D if V_BITS == 16 else 2 * D * V_BITS
    KS_BLOCK: tl.constexpr = 4 * D if CHANNEL else 128 * K_GROUPS
    VS_BLOCK: tl.constexpr = 128 * V_GROUPS
    split = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = head // kv_heads
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    m_row = row < rows
    first = tl.load(p_first + batch * count + row % count, mask=m_row, other=0x7FFFFFFF)
    last = tl.load(p_last + batch)
    d = tl.arange(0, WIDTH)
    m_d = d < D
    lanes = tl.where(m_d, d, 0)
    query = tl.load(
        p_query + (head * rows + row)[:, None] * D + d[None, :], mask=m_row[:, None] & m_d[None, :], other=0.0
    ).to(tl.float32)
    lowest = tl.min(first, axis=0)
    low, share, whole = deal(lowest, last, origin, blocks, tl.num_programs(0), RING, MIN_BLOCKS)
    lo = low + split * share
    peak = tl.full([ROWS], -1e30, tl.float32)
    norm = tl.full([ROWS], 0.0, tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in range(lo, tl.minimum(lo + share, whole)):
        at = head * blocks + (block % blocks if RING else block)
        token = origin + block * 64 + tl.arange(0, 64)
        m_token = (token >= lowest) & (token < last)
        k = _values(
            p_keys + at * K_BLOCK, p_key_scales + at * KS_BLOCK, m_token, lanes, m_d, True, K_BITS, D, CHANNEL, K_GROUPS
        )
        v = _values(
            p_values + at * V_BLOCK, p_value_scales + at * VS_BLOCK, m_token, lanes, m_d, False, V_BITS, D, False,
            V_GROUPS,
        )  # fmt: skip
        k = tl.where(m_d[None, :], k, 0.0)
        x = tl.dot(query, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E)
        x = tl.where(m_token[None, :] & (token[None, :] >= first[:, None]), x, -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=1))
        p = tl.exp2(x - new_peak[:, None])
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=1)
        acc = tl.dot(p, v, acc * old[:, None], input_precision=PRECISION)
        peak = new_peak
    place = head * part_count + part_first + split
    tl.store(p_stats + place * 2 * rows + row, peak, mask=m_row)
    tl.store(p_stats + (place * 2 + 1) * rows + row, norm, mask=m_row)
    tl.store(p_out + (place * rows + row)[:, None] * D + d[None, :], acc, mask=m_row[:, None] & m_d[None, :])


def decode_attention(
    query: Tensor,
    segments: tuple[tuple[PackedSide, PackedSide], ...],
    visible: Visible,
    recent: Recent | None,
    scale: float,
) -> Tensor:
    """See `kernels.decode_attention.op.decode_attention`; one side of each segment is unquantised."""
    batch, heads, count, dim = query.shape
    kv_heads = segments[0][0].words.shape[1]
    rows = heads // kv_heads * count
    tiles = -(-rows // _ROWS)
    query = query.contiguous()
    fast = query.is_cuda
    programs = (torch.cuda.get_device_properties(query.device).multi_processor_count if fast else 1) * _PROGRAMS
    first, last = visible.first.contiguous(), visible.last.contiguous()
    plan: tuple[int, ...] = ()
    for keys, _ in segments:
        blocks = keys.words.shape[2]
        splits = split_plan(batch * kv_heads * tiles, blocks, programs, visible.max_tokens)
        plan += (keys.first_block * 64, blocks, splits)
    part_count, part_first = sum(plan[2::3]), 0
    part = torch.empty(batch * kv_heads, part_count, rows, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(batch * kv_heads, part_count, 2, rows, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    for i, (keys, values) in enumerate(segments):
        origin, blocks, splits = plan[3 * i : 3 * i + 3]
        exact_side_kernel[(splits, batch * kv_heads, tiles)](
            query,
            keys.words.contiguous(),
            keys.scales.contiguous(),
            values.words.contiguous(),
            values.scales.contiguous(),
            first,
            last,
            part,
            stats,
            scale,
            origin,
            blocks,
            part_first,
            part_count,
            rows,
            count,
            kv_heads,
            K_BITS=keys.bits,
            V_BITS=values.bits,
            D=dim,
            CHANNEL=keys.granularity == "channel",
            K_GROUPS=keys.groups,
            V_GROUPS=values.groups,
            RING=keys.ring,
            MIN_BLOCKS=_MIN_BLOCKS,
            WIDTH=triton.next_power_of_2(dim),
            ROWS=_ROWS,
            PRECISION="tf32x3" if fast and query.dtype != torch.float32 else "ieee",
            num_warps=4,
            # Staged loads would fill the shared memory; the operands of the products need half of it at head_dim 256.
            num_stages=1,
        )
        part_first += splits
    ring = segments[0][0].ring
    merge(query, part, stats, recent, out, scale=scale, first=first, last=last, plan=plan, tile=_ROWS, ring=ring)
    return out
