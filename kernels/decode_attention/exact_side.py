# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0915, PLR0917
"""Attention over packed keys and unquantised values, or the other way round, on a GPU: split over the tokens, merged.

Plain Triton: a program takes a block of 64 tokens of one KV head and multiplies it with 4, 8 or 16 query rows on
tensor cores. What is stored in the dtype of the model is multiplied in it, as in `kernels.exact_attention`. Codes are
multiplied as they are: scales and offsets come after the product where a token has one, or one a group of channels
(keys), and else before it, folded into the queries (keys with scales a channel) or the weights (values), which then are
two numbers in bfloat16. Only groups in a head_dim that is no power of two are dequantised first and multiplied in three
passes of tf32, which is as exact as float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.decode_attention.float_codes import float_codes
from kernels.decode_attention.triton_impl import _MIN_BLOCKS, channel_place, deal, merge, row_tile, split_plan
from kernels.launching import Launcher, launches_early, next_power_of_2, processors

if TYPE_CHECKING:
    from kernels.decode_attention.op import PackedSide, Recent, Visible

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _token_pairs(p_scales, m_token):
    """Scale and offset ``[64]`` of the tokens of a block; zeros where nobody looks."""
    r = tl.arange(0, 64)
    p_s = p_scales + 2 * ((r % 8) * 8 + r // 8)
    scale = tl.load(p_s, mask=m_token, other=0.0).to(tl.float32)
    return scale, tl.load(p_s + 1, mask=m_token, other=0.0).to(tl.float32)


@triton.jit
def _group_pairs(p_scales, m_token, GROUPS: tl.constexpr):
    """Scale and offset ``[G, 64]`` of the groups of channels of a block's tokens; zeros where nobody looks."""
    r = tl.arange(0, 64)
    p_s = p_scales + 128 * tl.arange(0, GROUPS)[:, None] + 2 * ((r % 8) * 8 + r // 8)[None, :]
    scale = tl.load(p_s, mask=m_token[None, :], other=0.0).to(tl.float32)
    return scale, tl.load(p_s + 1, mask=m_token[None, :], other=0.0).to(tl.float32)


@triton.jit
def _scaled(codes, p_scales, m_token, lanes, D: tl.constexpr, GROUPS: tl.constexpr):
    """What the codes of a block with groups of channels stand for, float32; zeros where nobody looks."""
    r = tl.arange(0, 64)[:, None]
    p_s = p_scales + 2 * ((r % 8) * 8 + r // 8) + 128 * (lanes // (D // GROUPS))[None, :]
    scale = tl.load(p_s, mask=m_token[:, None], other=0.0).to(tl.float32)
    return codes.to(tl.float32) * scale + tl.load(p_s + 1, mask=m_token[:, None], other=0.0).to(tl.float32)


@triton.jit
def _weighted(p, codes, acc, WIDE: tl.constexpr):
    """``acc + p @ codes``, also of several at once: codes fit bfloat16, and factors two of its numbers."""
    if WIDE:
        acc = tl.dot(p, codes, acc, input_precision="ieee")
    else:
        high = p.to(tl.bfloat16)
        acc = tl.dot(high, codes, acc)
        acc = tl.dot((p - high.to(tl.float32)).to(tl.bfloat16), codes, acc)
    return acc


@triton.jit
def _channel_scores(query, codes, p_scales, d, D: tl.constexpr, WIDE: tl.constexpr):
    """Products ``[ROWS, 64]`` of queries and keys whose channels have scales of their own for 32 tokens each.

    The scales are folded into the queries, once for each half of the block; each half takes its own products.
    """
    ROWS: tl.constexpr = query.shape[0]
    WIDTH: tl.constexpr = query.shape[1]
    m_d = d < D
    half = tl.arange(0, 2)
    p_s = p_scales + half[:, None] * (2 * D) + channel_place(tl.where(m_d, d, 0), D)[None, :]
    scale = tl.load(p_s, mask=m_d[None, :], other=0.0).to(tl.float32)
    offset = tl.load(p_s + D, mask=m_d[None, :], other=0.0).to(tl.float32)
    wide = query.to(tl.float32)[None, :, :]
    folded = (wide * scale[:, None, :]).reshape([2 * ROWS, WIDTH])
    x = _weighted(folded, tl.trans(codes), tl.zeros([2 * ROWS, 64], tl.float32), WIDE).reshape([2, ROWS, 64])
    x += tl.sum(wide * offset[:, None, :], axis=2)[:, :, None]
    own = half[:, None, None] == (tl.arange(0, 64) // 32)[None, None, :]
    return tl.sum(tl.where(own, x, 0.0), axis=0)


@triton.jit
def _group_scores(query, codes, p_scales, m_token, GROUPS: tl.constexpr, PRECISION: tl.constexpr):
    """Products ``[ROWS, 64]`` of queries and keys in groups of channels: a product a group, scaled and added."""
    ROWS: tl.constexpr = query.shape[0]
    SIZE: tl.constexpr = query.shape[1] // GROUPS
    scales, offsets = _group_pairs(p_scales, m_token, GROUPS)
    parts = query.reshape([ROWS, GROUPS, SIZE]).permute(1, 0, 2)
    held = codes.reshape([64, GROUPS, SIZE]).permute(1, 2, 0)
    x = tl.dot(parts, held, input_precision=PRECISION) * scales[:, None, :]
    x += tl.sum(parts.to(tl.float32), axis=2)[:, :, None] * offsets[:, None, :]
    return tl.sum(x, axis=0)


@triton.jit
def _scores(
    query,
    p_words,
    p_scales,
    m_token,
    d,
    BITS: tl.constexpr,
    D: tl.constexpr,
    CHANNEL: tl.constexpr,
    GROUPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products ``[ROWS, 64]`` of queries and the keys of a block."""
    m_d = d < D
    lanes = tl.where(m_d, d, 0)
    mask = m_token[:, None] & m_d[None, :]
    if BITS == 16:
        p_held = p_words + tl.arange(0, 64)[:, None] * D + d[None, :]
        k = tl.load(p_held, mask=mask, other=0.0).to(query.dtype)
        x = tl.dot(query, tl.trans(k), input_precision=PRECISION)
    else:
        DTYPE: tl.constexpr = query.dtype if not CHANNEL else tl.float32 if PRECISION == "ieee" else tl.bfloat16
        codes = float_codes(p_words, lanes, True, BITS, D, d.shape[0], DTYPE)
        if CHANNEL:
            x = _channel_scores(query, codes, p_scales, d, D, PRECISION == "ieee")
        elif GROUPS == 1:
            scales, offsets = _token_pairs(p_scales, m_token)
            x = tl.dot(query, tl.trans(codes), input_precision=PRECISION)
            x = x * scales[None, :] + tl.sum(query.to(tl.float32), axis=1)[:, None] * offsets[None, :]
        elif d.shape[0] == D:
            x = _group_scores(query, codes, p_scales, m_token, GROUPS, PRECISION)
        else:
            k = _scaled(codes, p_scales, m_token, lanes, D, GROUPS)
            x = tl.dot(query.to(tl.float32), tl.trans(k), input_precision=PRECISION)
    return x


@triton.jit
def _sums(
    acc,
    shift,
    p,
    p_words,
    p_scales,
    m_token,
    d,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc`` and ``shift`` (the same for all channels of a group) with a block's values, weighted by ``p``.

    They are ``[ROWS, W]`` and ``[ROWS]``, or ``[G, ROWS, W / G]`` and ``[G, ROWS]``.
    """
    m_d = d < D
    lanes = tl.where(m_d, d, 0)
    mask = m_token[:, None] & m_d[None, :]
    if BITS == 16:
        p_held = p_words + tl.arange(0, 64)[:, None] * D + d[None, :]
        v = tl.load(p_held, mask=mask, other=0.0).to(DTYPE)
        acc = tl.dot(p.to(DTYPE), v, acc, input_precision=PRECISION)
    else:
        EXACT: tl.constexpr = tl.float32 if PRECISION == "ieee" else tl.bfloat16
        codes = float_codes(p_words, lanes, False, BITS, D, d.shape[0], EXACT)
        if GROUPS == 1:
            scales, offsets = _token_pairs(p_scales, m_token)
            acc = _weighted(p * scales[None, :], codes, acc, PRECISION == "ieee")
            shift += tl.sum(p * offsets[None, :], axis=1)
        elif len(acc.shape) == 3:
            scales, offsets = _group_pairs(p_scales, m_token, GROUPS)
            held = codes.reshape([64, GROUPS, D // GROUPS]).permute(1, 0, 2)
            acc = _weighted(p[None, :, :] * scales[:, None, :], held, acc, PRECISION == "ieee")
            shift += tl.sum(p[None, :, :] * offsets[:, None, :], axis=2)
        else:
            v = _scaled(codes, p_scales, m_token, lanes, D, GROUPS)
            acc = tl.dot(p, v, acc, input_precision=PRECISION)
    return acc, shift


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
    EARLY: tl.constexpr,
):
    """One split of one KV head for ``ROWS`` query rows; the splits are dealt out as in `decode_kernel`."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
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
    query = tl.load(
        p_query + (head * rows + row)[:, None] * D + d[None, :], mask=m_row[:, None] & m_d[None, :], other=0.0
    )
    if PRECISION == "ieee":
        # The interpreter cannot multiply bfloat16.
        query = query.to(tl.float32)
    lowest = tl.min(first, axis=0)
    low, share, whole = deal(lowest, last, origin, blocks, tl.num_programs(0), RING, MIN_BLOCKS)
    lo = low + split * share
    peak = tl.full([ROWS], -1e30, tl.float32)
    norm = tl.full([ROWS], 0.0, tl.float32)
    GROUPED: tl.constexpr = V_BITS < 16 and V_GROUPS > 1 and D == WIDTH
    shift = tl.zeros([V_GROUPS, ROWS] if GROUPED else [ROWS], tl.float32)
    acc = tl.zeros([V_GROUPS, ROWS, D // V_GROUPS] if GROUPED else [ROWS, WIDTH], tl.float32)
    for block in range(lo, tl.minimum(lo + share, whole)):
        at = head * blocks + (block % blocks if RING else block)
        token = origin + block * 64 + tl.arange(0, 64)
        m_token = (token >= lowest) & (token < last)
        x = _scores(
            query, p_keys + at * K_BLOCK, p_key_scales + at * KS_BLOCK, m_token, d, K_BITS, D, CHANNEL, K_GROUPS,
            PRECISION,
        )  # fmt: skip
        x = tl.where(m_token[None, :] & (token[None, :] >= first[:, None]), x * (scale * _LOG2E), -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=1))
        p = tl.exp2(x - new_peak[:, None])
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=1)
        if GROUPED:
            acc, shift = acc * old[None, :, None], shift * old[None, :]
        else:
            acc, shift = acc * old[:, None], shift * old
        acc, shift = _sums(
            acc, shift, p, p_values + at * V_BLOCK, p_value_scales + at * VS_BLOCK, m_token, d,
            query.dtype, V_BITS, D, V_GROUPS, PRECISION,
        )  # fmt: skip
        peak = new_peak
    if GROUPED:
        acc = (acc + shift[:, :, None]).permute(1, 0, 2).reshape([ROWS, WIDTH])
    else:
        acc += shift[:, None]
    place = head * part_count + part_first + split
    tl.store(p_stats + place * 2 * rows + row, peak, mask=m_row)
    tl.store(p_stats + (place * 2 + 1) * rows + row, norm, mask=m_row)
    tl.store(p_out + (place * rows + row)[:, None] * D + d[None, :], acc, mask=m_row[:, None] & m_d[None, :])


_LAUNCH = Launcher(exact_side_kernel)


def resources(keys: PackedSide, values: PackedSide, tile: int) -> tuple[int, int, int, int | None]:
    """Programs of a processor to plan for; warps, loads in flight and registers of each.

    Measured for head_dim 128, four query rows and 4 or 2 bits in bfloat16.
    """
    packed = values if keys.bits == 16 else keys
    if keys.head_dim > 128:
        return 1, 8, 1, None
    if packed.head_dim not in {64, 128}:
        # dequantised groups take 70 KB of shared memory a stage
        return 2, 4, 1 if packed.groups > 1 else 2, None
    if tile > 4:
        return (3, 4, 3, None) if packed.granularity == "token" and packed.groups == 1 else (2, 4, 3, None)
    return (4, 2, 3, None) if packed.granularity == "channel" else (4, 4, 2, 128)


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
    tile = row_tile(rows)
    tiles = -(-rows // tile)
    query = query.contiguous()
    fast, early = query.is_cuda, launches_early(query.device)
    first, last = visible.first.contiguous(), visible.last.contiguous()
    plan: tuple[int, ...] = ()
    for keys, values in segments:
        blocks, programs = keys.words.shape[2], resources(keys, values, tile)[0] * processors(query.device)
        splits = split_plan(batch * kv_heads * tiles, blocks, programs, visible.max_tokens)
        plan += (keys.first_block * 64, blocks, splits)
    part_count, part_first = sum(plan[2::3]), 0
    part = torch.empty(batch * kv_heads, part_count, rows, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(batch * kv_heads, part_count, 2, rows, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    for i, (keys, values) in enumerate(segments):
        origin, blocks, splits = plan[3 * i : 3 * i + 3]
        _, warps, stages, registers = resources(keys, values, tile)
        words, scales = ([side.words.contiguous(), side.scales.contiguous()] for side in (keys, values))
        _LAUNCH(
            (splits, batch * kv_heads, tiles),
            (query, *words, *scales, first, last, part, stats),
            (scale, origin, blocks, part_first, part_count, rows, count, kv_heads),
            {
                "K_BITS": keys.bits,
                "V_BITS": values.bits,
                "D": dim,
                "CHANNEL": keys.granularity == "channel",
                "K_GROUPS": keys.groups,
                "V_GROUPS": values.groups,
                "RING": keys.ring,
                "MIN_BLOCKS": _MIN_BLOCKS,
                "WIDTH": next_power_of_2(dim),
                "ROWS": tile,
                "PRECISION": "tf32x3" if fast and query.dtype != torch.float32 else "ieee",
                "EARLY": early,
            },
            {"num_warps": warps, "num_stages": stages}
            | ({"maxnreg": registers} if registers and fast else {})
            | ({"launch_pdl": True} if early else {}),
        )
        part_first += splits
    ring = segments[0][0].ring
    merge(query, part, stats, recent, out, scale=scale, first=first, last=last, plan=plan, tile=tile, ring=ring)
    return out
