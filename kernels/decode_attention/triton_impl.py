# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917, PLR0915
"""Attention over packed keys and values on a GPU: split over the tokens, then merged with the recent ones.

Two kernels. The first leaves, for each split, the unnormalised output and (peak, sum) of the softmax
in powers of two; the second merges splits by log-sum-exp and adds the recent tokens. The first is
`gluon_impl` on a GPU, and a plain twin with the same bytes in and out elsewhere (the interpreter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

if TYPE_CHECKING:
    from kernels.decode_attention.op import PackedSide, Recent, Visible

_MIN_BLOCKS = 2
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _codes(p_words, word, shift, BITS: tl.constexpr):
    return (tl.load(p_words + word) >> shift) & ((1 << BITS) - 1)


@triton.jit
def _key_codes(p_words, token, d, BITS: tl.constexpr, D: tl.constexpr):
    N: tl.constexpr = 8 // BITS
    octet = token // 8
    i = (octet // N) * (D // 16) + d // 16
    word = (i // 4) * 128 + ((token % 8) * 4 + d % 16 // 4) * 4 + i % 4
    return _codes(p_words, word, 8 * (d % 4) + BITS * (octet % N), BITS)


@triton.jit
def _value_codes(p_words, token, d, BITS: tl.constexpr):
    N: tl.constexpr = 8 // BITS
    octet = d // 8
    i = (octet // N) * 4 + token // 16
    word = (i // 4) * 128 + ((d % 8) * 4 + token % 8 // 2) * 4 + i % 4
    return _codes(p_words, word, 8 * (token % 2 * 2 + token % 16 // 8) + BITS * (octet % N), BITS)


@triton.jit
def plain_kernel(
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
    blocks_per_split,
    key_stride,
    key_scale_stride,
    value_stride,
    value_scale_stride,
    rows,
    count,
    kv_heads,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    D: tl.constexpr,
    CHANNEL: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The twin of `gluon_impl.decode_kernel`: one query row a program, scale pointers to float16."""
    split = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2)
    batch = head // kv_heads
    first = tl.load(p_first + batch * count + row % count)
    last = tl.load(p_last + batch)
    d = tl.arange(0, WIDTH)
    m_d = d < D
    d = tl.where(m_d, d, 0)
    query = tl.load(p_query + (head * rows + row) * D + d, mask=m_d, other=0.0).to(tl.float32)
    r = tl.arange(0, 64)
    peak = tl.full([1], -1e30, tl.float32)
    norm = tl.full([1], 0.0, tl.float32)
    acc = tl.full([WIDTH], 0.0, tl.float32)
    lo = tl.maximum(split * blocks_per_split, first // 64)
    hi = tl.minimum((split + 1) * blocks_per_split, (last + 63) // 64)
    for block in range(lo, hi):
        p_k = p_keys + head * key_stride + block * 2 * D * K_BITS
        p_v = p_values + head * value_stride + block * 2 * D * V_BITS
        k = _key_codes(p_k, r[:, None], d[None, :], 2 if K_BITS == 3 else K_BITS, D)
        v = _value_codes(p_v, r[:, None], d[None, :], 2 if V_BITS == 3 else V_BITS)
        if K_BITS == 3:
            k = k | (_key_codes(p_k + 4 * D, r[:, None], d[None, :], 1, D) << 2)
        if V_BITS == 3:
            v = v | (_value_codes(p_v + 4 * D, r[:, None], d[None, :], 1) << 2)
        pair = 2 * ((r % 8) * 8 + r // 8)
        if CHANNEL:
            swapped = d % 4 // 2 + d % 2 * 2
            place = d // 32 * 32 + d % 16 // 4 * 8 + d % 32 // 16 * 4 + swapped
            p_ks = p_key_scales + head * key_scale_stride * 2 + block * 4 * D
            p_ks = p_ks + (r // 32)[:, None] * 2 * D + place[None, :]
            ks = tl.load(p_ks).to(tl.float32)
            ko = tl.load(p_ks + D).to(tl.float32)
        else:
            p_ks = p_key_scales + head * key_scale_stride * 2 + block * 128 + pair[:, None]
            ks = tl.load(p_ks).to(tl.float32)
            ko = tl.load(p_ks + 1).to(tl.float32)
        p_vs = p_value_scales + head * value_scale_stride * 2 + block * 128 + pair[:, None]
        vs = tl.load(p_vs).to(tl.float32)
        vo = tl.load(p_vs + 1).to(tl.float32)
        x = tl.sum((k.to(tl.float32) * ks + ko) * query[None, :], axis=1) * (scale * _LOG2E)
        token = block * 64 + r
        x = tl.where((token >= first) & (token < last), x, -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=0))
        p = tl.exp2(x - new_peak)
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=0)
        acc = acc * old + tl.sum(p[:, None] * (v.to(tl.float32) * vs + vo), axis=0)
        peak = new_peak
    at = (head * tl.num_programs(0) + split) * rows + row
    stats = (head * tl.num_programs(0) + split) * 2 * rows + row + tl.arange(0, 1)
    tl.store(p_stats + stats, peak)
    tl.store(p_stats + stats + rows, norm)
    tl.store(p_out + at * D + d, acc, mask=m_d)


@triton.jit
def merge_kernel(
    p_query,
    p_part,
    p_stats,
    p_keys,
    p_values,
    p_mask,
    p_out,
    scale,
    splits,
    rows,
    count,
    kv_heads,
    recent,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    WAIT: tl.constexpr,
):
    """One query row: the recent tokens (before the first kernel need be done), then the splits."""
    head = (tl.program_id(0) // rows).to(tl.int64)
    row = tl.program_id(0) % rows
    batch = head // kv_heads
    d = tl.arange(0, WIDTH)
    m_d = d < D
    query = tl.load(p_query + (head * rows + row) * D + d, mask=m_d, other=0.0).to(tl.float32)
    acc = tl.full([WIDTH], 0.0, tl.float32)
    norm = tl.full([1], 0.0, tl.float32)
    peak = tl.full([1], -1e30, tl.float32)
    p_k = p_keys + batch * key_batch + head % kv_heads * key_head
    p_v = p_values + batch * value_batch + head % kv_heads * value_head
    for start in range(0, recent, TOKENS):
        r = start + tl.arange(0, TOKENS)
        m_r = r < recent
        seen = tl.load(p_mask + (batch * count + row % count) * recent + r, mask=m_r, other=0) != 0
        m_kv = m_r[:, None] & m_d[None, :]
        k = tl.load(p_k + r[:, None] * key_token + d[None, :], mask=m_kv, other=0.0).to(tl.float32)
        v = tl.load(p_v + r[:, None] * value_token + d[None, :], mask=m_kv, other=0.0).to(tl.float32)
        x = tl.where(seen, tl.sum(k * query[None, :], axis=1) * (scale * _LOG2E), -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=0))
        p = tl.exp2(x - new_peak)
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=0)
        acc = acc * old + tl.sum(p[:, None] * v, axis=0)
        peak = new_peak
    if WAIT:
        gdc_wait()
    for start in range(0, splits, SPLITS):
        s = start + tl.arange(0, SPLITS)
        m_s = s < splits
        at = head * splits + s
        part_peak = tl.load(p_stats + at * 2 * rows + row, mask=m_s, other=-1e38)
        part_norm = tl.load(p_stats + (at * 2 + 1) * rows + row, mask=m_s, other=0.0)
        part = tl.load(
            p_part + (at * rows + row)[:, None] * D + d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0
        )
        new_peak = tl.maximum(peak, tl.max(part_peak, axis=0))
        weight = tl.exp2(part_peak - new_peak)
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(part_norm * weight, axis=0)
        acc = acc * old + tl.sum(part * weight[:, None], axis=0)
        peak = new_peak
    out = tl.where(norm > 0, acc / norm, 0.0)
    tl.store(p_out + (head * rows + row) * D + d, out, mask=m_d)


def launch_plan(keys: PackedSide, values: PackedSide) -> tuple[int, int | None]:
    """Programs that fit on a processor at once, by the registers of the variant, and a cap on them if one pays."""
    bits = keys.bits + values.bits
    if keys.granularity == "channel":
        return (12, 168) if bits <= 4 and keys.head_dim <= 128 else (8, None)
    return (12, None) if bits < 12 and keys.head_dim <= 128 else (8, None)


def split_plan(heads: int, blocks: int, programs: int) -> tuple[int, int]:
    """Splits and blocks a split: as many as ``programs`` running at once, at least two blocks in each."""
    wanted = max(1, min(programs // max(1, heads), -(-blocks // _MIN_BLOCKS)))
    per_split = max(1, -(-blocks // wanted))
    return max(1, -(-blocks // per_split)), per_split


def decode_attention(
    query: Tensor, keys: PackedSide, values: PackedSide, visible: Visible, recent: Recent | None, scale: float
) -> Tensor:
    """See `kernels.decode_attention.op.decode_attention`."""
    batch, heads, count, dim = query.shape
    kv_heads, blocks = keys.words.shape[1:3]
    rows = heads // kv_heads * count
    query = query.contiguous()
    fast = query.is_cuda
    tiles = -(-rows // 4) if fast else rows
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count if fast else 1
    resident, registers = launch_plan(keys, values)
    splits, per_split = split_plan(batch * kv_heads * tiles, blocks, resident * processors)
    part = torch.empty(batch * kv_heads, splits, rows, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(batch * kv_heads, splits, 2, rows, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    words = [side.words.contiguous() for side in (keys, values)]
    scales = [side.scales.contiguous() for side in (keys, values)]
    strides = [x.stride(1) for x in (words[0], scales[0], words[1], scales[1])]
    strides[1], strides[3] = strides[1] // 2, strides[3] // 2
    early = fast and torch.cuda.get_device_capability(query.device)[0] >= 9
    kernel, options = plain_kernel, {"WIDTH": triton.next_power_of_2(dim)}
    if fast:
        from kernels.decode_attention.gluon_impl import decode_kernel

        kernel, options = decode_kernel, {"EARLY": early, "num_warps": 1, "maxnreg": registers}
        scales = [x.view(torch.int32) for x in scales]
    kernel[(splits, batch * kv_heads, tiles)](
        query,
        words[0],
        scales[0],
        words[1],
        scales[1],
        visible.first.contiguous(),
        visible.last,
        part,
        stats,
        scale,
        per_split,
        *strides,
        rows,
        count,
        kv_heads,
        K_BITS=keys.bits,
        V_BITS=values.bits,
        D=dim,
        CHANNEL=keys.granularity == "channel",
        **options,
    )
    _merge(query, part, stats, recent, out, scale=scale, kv_heads=kv_heads, early=early)
    return out


def _merge(
    query: Tensor,
    part: Tensor,
    stats: Tensor,
    recent: Recent | None,
    out: Tensor,
    *,
    scale: float,
    kv_heads: int,
    early: bool,
) -> None:
    heads, splits, rows, dim = part.shape
    k, v, mask, count = query, query, query, 0
    if recent is not None:
        k, v, mask, count = recent.keys, recent.values, recent.mask.contiguous().view(torch.uint8), recent.keys.shape[2]
        k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k, v))
    launch = {"launch_pdl": True} if early else {}
    merge_kernel[(heads * rows,)](
        query,
        part,
        stats,
        k,
        v,
        mask,
        out,
        scale,
        splits,
        rows,
        query.shape[2],
        kv_heads,
        count,
        *k.stride()[:3],
        *v.stride()[:3],
        D=dim,
        WIDTH=triton.next_power_of_2(dim),
        SPLITS=min(32, triton.next_power_of_2(splits)),
        TOKENS=32,
        WAIT=early,
        num_warps=1,
        **launch,
    )
