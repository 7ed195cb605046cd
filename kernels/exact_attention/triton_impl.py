# mypy: ignore-errors
# ruff: noqa: N803, PLR0913, PLR0917
"""Attention over unquantised buffers on a GPU: split over the tokens, then merged.

A program takes one split of one KV head for 4, 8 or 16 query rows. How many tokens a split covers is worked out from
``first`` and ``last`` on the device, so that a captured graph is right, and balanced, at every length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.decode_attention.triton_impl import _MIN_BLOCKS, deal, merge, row_tile, split_plan
from kernels.launching import Launcher, launches_early, next_power_of_2, processors

_LOG2E = tl.constexpr(1.4426950408889634)
_BLOCK = 64
_PROGRAMS = 3
"""Programs of a processor that splits are planned for: as many as run at once from head_dim 80 on."""


@triton.jit
def exact_kernel(
    p_query,
    p_keys,
    p_values,
    p_first,
    p_last,
    p_out,
    p_stats,
    scale,
    origin,
    part_first,
    part_count,
    rows,
    count,
    kv_heads,
    capacity,
    key_batch,
    key_head,
    value_batch,
    value_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    RING: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One split of one KV head for ``ROWS`` query rows.

    The segment holds ``capacity`` tokens from position ``origin`` on; its splits are ``part_first`` and on
    of ``part_count`` in the buffers.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    split = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    splits = tl.num_programs(0)
    batch = head // kv_heads
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    m_row = row < rows
    first = tl.load(p_first + batch * count + row % count, mask=m_row, other=0x7FFFFFFF)
    last = tl.load(p_last + batch * count + row % count, mask=m_row, other=0)
    lowest = tl.min(first, axis=0)
    highest = tl.max(last, axis=0)
    low, share, whole = deal(lowest, highest, origin, tl.cdiv(capacity, 64), splits, RING, MIN_BLOCKS)
    # From here on, tokens count from the segment's first.
    first, last, highest = first - origin, last - origin, highest - origin
    if not RING:
        highest = tl.minimum(highest, capacity)
    lo = (low + split * share) * 64
    hi = tl.minimum(tl.minimum(low + (split + 1) * share, whole) * 64, highest)
    d = tl.arange(0, WIDTH)
    m_d = d < D
    query = tl.load(
        p_query + (head * rows + row)[:, None] * D + d[None, :], mask=m_row[:, None] & m_d[None, :], other=0.0
    )
    p_k = p_keys + batch * key_batch + head % kv_heads * key_head
    p_v = p_values + batch * value_batch + head % kv_heads * value_head
    peak = tl.full([ROWS], -1e30, tl.float32)
    norm = tl.full([ROWS], 0.0, tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(lo, hi, TOKENS):
        token = start + tl.arange(0, TOKENS)
        slot = token % capacity if RING else token
        m_kv = (token < hi)[:, None] & m_d[None, :]
        k = tl.load(p_k + slot[:, None] * D + d[None, :], mask=m_kv, other=0.0)
        v = tl.load(p_v + slot[:, None] * D + d[None, :], mask=m_kv, other=0.0)
        x = tl.dot(query, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E)
        seen = (token[None, :] < tl.minimum(last, hi)[:, None]) & (token[None, :] >= first[:, None])
        x = tl.where(seen, x, -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=1))
        p = tl.exp2(x - new_peak[:, None])
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision=PRECISION)
        peak = new_peak
    at = head * part_count + part_first + split
    tl.store(p_stats + at * 2 * rows + row, peak, mask=m_row)
    tl.store(p_stats + (at * 2 + 1) * rows + row, norm, mask=m_row)
    tl.store(p_out + (at * rows + row)[:, None] * D + d[None, :], acc, mask=m_row[:, None] & m_d[None, :])


@triton.jit
def append_kernel(
    p_keys,
    p_values,
    p_new_keys,
    p_new_values,
    p_progress,
    origin,
    heads,
    count,
    capacity,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    held_batch,
    held_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    RING: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some new tokens of one head; those outside of the segment are left alone."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    d = tl.arange(0, WIDTH)
    slot = tl.load(p_progress) + token - origin
    if RING:
        slot = slot % capacity
    mask = ((token < count) & (slot >= 0) & (slot < capacity))[:, None] & (d < D)[None, :]
    k = tl.load(p_new_keys + batch * key_batch + head * key_head + (token * key_token)[:, None] + d[None, :], mask=mask)
    v = tl.load(
        p_new_values + batch * value_batch + head * value_head + (token * value_token)[:, None] + d[None, :], mask=mask
    )
    held = batch * held_batch + head * held_head + slot[:, None] * D + d[None, :]
    tl.store(p_keys + held, k, mask=mask)
    tl.store(p_values + held, v, mask=mask)


_LAUNCH = Launcher(exact_kernel)


def exact_attention(
    query: Tensor,
    segments: tuple[tuple[Tensor, Tensor], ...],
    first: Tensor,
    last: Tensor,
    *,
    scale: float,
    ring: bool,
) -> Tensor:
    """See `kernels.exact_attention.op.exact_attention`."""
    batch, heads, count, dim = query.shape
    kv_heads = segments[0][0].shape[1]
    rows = heads // kv_heads * count
    tile = row_tile(rows)
    tiles = -(-rows // tile)
    query = query.contiguous()
    early = launches_early(query.device)
    programs = processors(query.device) * _PROGRAMS
    plan, origin = (), 0
    for keys, _ in segments:
        blocks = -(-keys.shape[2] // _BLOCK)
        plan += (origin, blocks, split_plan(batch * kv_heads * tiles, blocks, programs, None, saturates=True))
        origin += keys.shape[2]
    part_count, part_first = sum(plan[2::3]), 0
    first, last = first.contiguous(), last.contiguous()
    part = torch.empty(batch * kv_heads, part_count, rows, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(batch * kv_heads, part_count, 2, rows, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    wide = query.dtype == torch.float32
    for i, pair in enumerate(segments):
        keys, values = (x if x.stride()[2:] == (dim, 1) else x.contiguous() for x in pair)
        origin, _, splits = plan[3 * i : 3 * i + 3]
        _LAUNCH(
            (splits, batch * kv_heads, tiles),
            (query, keys, values, first, last, part, stats),
            (
                *(scale, origin, part_first, part_count, rows, count, kv_heads, keys.shape[2]),
                *(*keys.stride()[:2], *values.stride()[:2]),
            ),
            {
                "D": dim,
                "WIDTH": next_power_of_2(dim),
                "ROWS": tile,
                "TOKENS": 64 if dim <= 128 and not wide else 32,
                "MIN_BLOCKS": _MIN_BLOCKS,
                "RING": ring,
                "PRECISION": "ieee" if wide else "tf32",
                "EARLY": early,
            },
            {"num_warps": 4, "num_stages": 3} | ({"launch_pdl": True} if early else {}),
        )
        part_first += splits
    merge(query, part, stats, None, out, scale=scale, first=first, last=last, plan=plan, tile=tile, ring=ring)
    return out


def append_exact(
    keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], progress: Tensor, *, origin: int, ring: bool
) -> None:
    """See `kernels.exact_attention.op.append_exact`."""
    batch, heads, capacity, dim = keys.shape
    new_keys, new_values = (x if x.stride(3) == 1 else x.contiguous() for x in new)
    count = new_keys.shape[2]
    tokens = 1 if count == 1 else 16
    early = launches_early(keys.device)
    append_kernel[(-(-count // tokens), batch * heads)](
        keys,
        values,
        new_keys,
        new_values,
        progress,
        origin,
        heads,
        count,
        capacity,
        *new_keys.stride()[:3],
        *new_values.stride()[:3],
        *keys.stride()[:2],
        D=dim,
        WIDTH=next_power_of_2(dim),
        TOKENS=tokens,
        RING=ring,
        EARLY=early,
        num_warps=1 if count == 1 else 4,
        **({"launch_pdl": True} if early else {}),
    )
