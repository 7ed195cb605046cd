# mypy: ignore-errors
# ruff: noqa: C901, N803, N806, PLR0913, PLR0917
"""Quantises, packs and appends in place on a GPU.

A tile of tokens, one (per-token groups while decoding), 32 (a group per channel) or 64 (a block, when
many tokens come at once), belongs to one program, so that the bytes which hold codes of several tokens
have one owner. Bytes that also hold codes of tokens outside of the tile are read, changed and written.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor, uint8
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.decode_attention.triton_impl import channel_place
from kernels.launching import Launcher, Prepared, launches_early, next_power_of_2

if TYPE_CHECKING:
    from kernels.append.op import RecentStore
    from kernels.decode_attention.op import PackedSide, SideKind

_FEW = 8
_HALF_ONE = tl.constexpr(12582912.0)
_LARGEST = tl.constexpr(65504.0)


@triton.jit
def _stored(x):
    """``x`` as float16 stores it, clamped to its finite range."""
    return tl.minimum(tl.maximum(x, -_LARGEST), _LARGEST).to(tl.float16)


@triton.jit
def _codes(x, scale, offset, BITS: tl.constexpr):
    """Codes by the stored scale and offset; 0 where the scale is 0."""
    scale, offset = scale.to(tl.float32), offset.to(tl.float32)
    y = tl.math.div_rn(x - offset, tl.where(scale == 0, float("inf"), scale))
    y = tl.minimum(tl.maximum(y, 0.0), 1.0 * ((1 << BITS) - 1))
    # to the nearest integer, ties to even
    return ((y + _HALF_ONE) - _HALF_ONE).to(tl.int32)


@triton.jit
def _tile(p_new, p_recent, position, new_token, before, sinks, ring, m_token, d, m_d, D: tl.constexpr):
    """Exact values ``[T, W]`` of some positions: from the new tokens, or from the recent buffer."""
    index = position + sinks
    fresh = (index >= before)[:, None]
    mask = m_token[:, None] & m_d
    new = tl.load(p_new + ((index - before).to(tl.int64) * new_token)[:, None] + d, mask=mask & fresh, other=0.0)
    slot = sinks + position % ring
    held = tl.load(p_recent + slot[:, None] * D + d, mask=mask & (fresh == 0), other=0.0)
    return tl.where(fresh, new.to(tl.float32), held.to(tl.float32))


@triton.jit
def _quantise_tokens(
    x,
    p_scales,
    inside,
    m_token,
    m_d,
    D: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Codes ``[T, W]`` with a scale a token and group of channels; writes the scales at ``p_scales``."""
    SPAN: tl.constexpr = GROUP if GROUP < D else WIDTH
    COUNT: tl.constexpr = WIDTH // SPAN
    shape: tl.constexpr = [T, COUNT, SPAN]
    x = x.reshape(shape)
    there = tl.broadcast_to(m_d, [T, WIDTH]).reshape(shape)
    low = tl.min(tl.where(there, x, float("inf")), axis=2)
    high = tl.max(tl.where(there, x, float("-inf")), axis=2)
    group = tl.arange(0, COUNT)[None, :]
    real = tl.max(there.to(tl.int32), axis=2) > 0
    low = tl.where(real, low, 0.0)
    high = tl.where(real, high, 0.0)
    scale = _stored(tl.math.div_rn(high - low, tl.full([T, COUNT], (1 << BITS) - 1, tl.float32)))
    offset = _stored(low)
    at = group * 128 + 2 * ((inside % 8) * 8 + inside // 8)[:, None]
    mask = m_token[:, None] & real
    tl.store(p_scales + at, scale, mask=mask)
    tl.store(p_scales + at + 1, offset, mask=mask)
    return _codes(x, scale[:, :, None], offset[:, :, None], BITS).reshape([T, WIDTH])


@triton.jit
def _quantise_channels(
    x, p_scales, inside, m_token, m_d, D: tl.constexpr, BITS: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr
):
    """Codes ``[T, W]`` with a scale a channel and 32 tokens; writes the scales at ``p_scales``."""
    x = x.reshape([T // 32, 32, WIDTH])
    low = tl.min(x, axis=1)
    high = tl.max(x, axis=1)
    scale = _stored(tl.math.div_rn(high - low, tl.full([T // 32, WIDTH], (1 << BITS) - 1, tl.float32)))
    offset = _stored(low)
    group = tl.min(inside.reshape([T // 32, 32]), axis=1) // 32
    valid = tl.min(m_token.to(tl.int32).reshape([T // 32, 32]), axis=1) > 0
    d = tl.arange(0, WIDTH)
    at = (group * 2 * D)[:, None] + channel_place(d, D)[None, :]
    mask = valid[:, None] & m_d
    tl.store(p_scales + at, scale, mask=mask)
    tl.store(p_scales + at + D, offset, mask=mask)
    return _codes(x, scale[:, None, :], offset[:, None, :], BITS).reshape([T, WIDTH])


@triton.jit
def _write_keys(
    p_bytes, codes, inside, m_token, D: tl.constexpr, BITS: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr
):
    """Put one plane of key codes (``[T, W]``, below ``2^BITS``) into a block's bytes."""
    N: tl.constexpr = 8 // BITS
    OCTETS: tl.constexpr = T // 8 if T >= 8 else 1
    LANES: tl.constexpr = 8 if T >= 8 else 1
    JOINED: tl.constexpr = N if OCTETS >= N else OCTETS
    ROWS: tl.constexpr = OCTETS // JOINED
    octet = inside // 8
    shift = (octet % N * BITS)[:, None]
    put = tl.where(m_token[:, None], codes, 0) << shift
    kept = tl.broadcast_to(tl.where(m_token[:, None], (1 << BITS) - 1, 0) << shift, [T, WIDTH])
    put = tl.sum(put.reshape([ROWS, JOINED, LANES, WIDTH]), axis=1).reshape([ROWS * LANES, WIDTH])
    kept = tl.sum(kept.reshape([ROWS, JOINED, LANES, WIDTH]), axis=1).reshape([ROWS * LANES, WIDTH])
    first = tl.min(inside.reshape([ROWS, JOINED, LANES]), axis=1).reshape([ROWS * LANES])
    d = tl.arange(0, WIDTH)[None, :]
    i = (first // 8 // N * (D // 16))[:, None] + d // 16
    word = (i // 4) * 128 + (first % 8 * 4)[:, None] * 4 + d % 16 // 4 * 4 + i % 4
    _change(p_bytes + word * 4 + d % 4, put, kept, (kept != 0) & (d < D))


@triton.jit
def _write_values(
    p_bytes, codes, inside, m_token, D: tl.constexpr, BITS: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr
):
    """Put one plane of value codes (``[T, W]``, below ``2^BITS``) into a block's bytes."""
    N: tl.constexpr = 8 // BITS
    A: tl.constexpr = WIDTH // (8 * N)
    shift = tl.arange(0, N)[None, None, :, None] * BITS
    put = tl.sum(codes.reshape([T, A, N, 8]) << shift, axis=2)
    token = inside[:, None, None]
    a = tl.arange(0, A)[None, :, None]
    g = tl.arange(0, 8)[None, None, :]
    i = 4 * a + token // 16
    word = (i // 4) * 128 + (4 * g + token % 8 // 2) * 4 + i % 4
    mask = m_token[:, None, None] & (8 * N * a + g < D)
    tl.store(p_bytes + word * 4 + token % 2 * 2 + token % 16 // 8, put.to(tl.uint8), mask=mask)


@triton.jit
def _change(p_bytes, put, kept, mask):
    """Write ``put`` into the bits ``kept`` of some bytes; whole bytes are not read."""
    old = tl.load(p_bytes, mask=mask & (kept != 255), other=0).to(tl.int32)
    tl.store(p_bytes, ((old & (255 - kept)) | put).to(tl.uint8), mask=mask)


@triton.jit
def _pack(
    position,
    m_token,
    before,
    at,
    p_new,
    p_recent,
    p_bytes,
    p_scales,
    new_token,
    sinks,
    ring,
    KEYS: tl.constexpr,
    BITS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNEL: tl.constexpr,
    GROUP: tl.constexpr,
    T: tl.constexpr,
):
    """Quantise the tokens at ``position`` ``[T]`` of one head's keys or values into block ``at`` of the store."""
    d = tl.arange(0, WIDTH)[None, :]
    m_d = d < D
    inside = position % 64
    x = _tile(p_new, p_recent, position, new_token, before, sinks, ring, m_token, d, m_d, D)
    if BITS == 16:
        p_held = p_bytes + at * (64 * D) + inside[:, None] * D + d
        tl.store(p_held, x.to(p_held.dtype.element_ty), mask=m_token[:, None] & m_d)
    else:
        if CHANNEL:
            codes = _quantise_channels(x, p_scales + at * (4 * D), inside, m_token, m_d, D, BITS, T, WIDTH)
        else:
            p_s = p_scales + at * (128 * (D // GROUP))
            codes = _quantise_tokens(x, p_s, inside, m_token, m_d, D, BITS, GROUP, T, WIDTH)
        p_b = p_bytes + at * (8 * D * BITS)
        MAIN: tl.constexpr = 2 if BITS == 3 else BITS
        low = codes & 3 if BITS == 3 else codes
        if KEYS:
            _write_keys(p_b, low, inside, m_token, D, MAIN, T, WIDTH)
            if BITS == 3:
                _write_keys(p_b + 16 * D, codes >> 2, inside, m_token, D, 1, T, WIDTH)
        else:
            _write_values(p_b, low, inside, m_token, D, MAIN, T, WIDTH)
            if BITS == 3:
                _write_values(p_b + 16 * D, codes >> 2, inside, m_token, D, 1, T, WIDTH)


@triton.jit
def _pack_due(
    before,
    begin,
    end,
    p_new,
    p_recent,
    p_bytes,
    p_scales,
    head,
    new_token,
    sinks,
    ring,
    first_block,
    blocks,
    KEYS: tl.constexpr,
    BITS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNEL: tl.constexpr,
    GROUP: tl.constexpr,
    RING: tl.constexpr,
    T: tl.constexpr,
    FEW: tl.constexpr,
):
    """Pack what is due of one head's keys or values, the store positions from ``begin`` to ``end``."""
    if RING:
        # an older block at the same place would be overwritten at once, perhaps by another program
        begin = tl.maximum(begin, ((end + 63) // 64 - blocks) * 64)
    start = begin
    stop = end
    if FEW == 0:
        start = (begin // 64 + tl.program_id(1)) * 64
        stop = tl.minimum(start + 64, end)
    # what does not change from turn to turn is worked out before the loop
    if start < stop:
        for low in range(start, stop, T):
            position = low + tl.arange(0, T)
            place = (low // 64) % blocks if RING else low // 64 - first_block
            m_token = (position >= begin) & (position < end) & (place >= 0) & (place < blocks)
            _pack(
                position, m_token, before, head * blocks + place, p_new, p_recent, p_bytes, p_scales, new_token, sinks,
                ring, KEYS, BITS, D, WIDTH, CHANNEL, GROUP, T,
            )  # fmt: skip
            # the next tile may share this one's bytes, or the tokens below its slots
            tl.debug_barrier()


@triton.jit
def pack_kernel(
    p_progress,
    p_new_keys,
    p_new_values,
    p_recent_keys,
    p_recent_values,
    p_keys,
    p_key_scales,
    p_values,
    p_value_scales,
    new_key_strides,
    new_value_strides,
    count,
    heads,
    sinks,
    ring,
    first_block,
    blocks,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNEL: tl.constexpr,
    K_GROUP: tl.constexpr,
    V_GROUP: tl.constexpr,
    RING: tl.constexpr,
    T: tl.constexpr,
    FEW: tl.constexpr,
    EARLY: tl.constexpr,
    SETTLED: tl.constexpr,
):
    """One head's keys or values.

    ``FEW`` is 0 and ``T`` 64: one block; else all that is due in tiles of ``T``, then the exact tokens. ``EARLY``
    says that it is launched while the kernel before it may still run, ``SETTLED`` that the position was there before
    that one began.
    """
    if EARLY and not SETTLED:
        gdc_wait()
    before = tl.load(p_progress)
    head = tl.program_id(0).to(tl.int64)
    batch = head // heads
    inner = head % heads
    keys = tl.program_id(2) == 0
    new_token = tl.where(keys, new_key_strides[2], new_value_strides[2])
    p_new = tl.where(
        keys,
        p_new_keys + batch * new_key_strides[0] + inner * new_key_strides[1],
        p_new_values + batch * new_value_strides[0] + inner * new_value_strides[1],
    )
    p_recent = tl.where(keys, p_recent_keys, p_recent_values) + head * (sinks + ring) * D
    if FEW > 0:
        d = tl.arange(0, WIDTH)[None, :]
        i = tl.arange(0, FEW)[:, None]
        position = before + i
        slot = tl.where(position < sinks, position, sinks + (position - sinks) % ring)
        m_kept = (i < count) & (d < D) & ((position < sinks) | (i >= count - ring))
        p_from, p_to = p_new + i * new_token + d, p_recent + slot * D + d
    if EARLY:
        if SETTLED:
            gdc_wait()
        gdc_launch_dependents()
    begin = tl.load(p_progress + 1)
    end = tl.load(p_progress + 2)
    if FEW > 0:
        # All of a step that has nothing due, in one piece: code that is new to a processor comes slowly.
        kept = tl.load(p_from, mask=m_kept)
        idle = begin >= end
        tl.store(p_to, kept, mask=m_kept & idle)
        if idle:
            return
    if keys:
        _pack_due(
            before, begin, end, p_new, p_recent, p_keys, p_key_scales, head, new_token, sinks, ring, first_block,
            blocks, True, K_BITS, D, WIDTH, CHANNEL, K_GROUP, RING, T, FEW,
        )  # fmt: skip
    else:
        _pack_due(
            before, begin, end, p_new, p_recent, p_values, p_value_scales, head, new_token, sinks, ring, first_block,
            blocks, False, V_BITS, D, WIDTH, False, V_GROUP, RING, T, FEW,
        )  # fmt: skip
    if FEW > 0:
        tl.store(p_to, kept, mask=m_kept)


@triton.jit
def keep_kernel(
    p_progress,
    p_new_keys,
    p_new_values,
    p_recent_keys,
    p_recent_values,
    new_key_strides,
    new_value_strides,
    count,
    heads,
    sinks,
    ring,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    T: tl.constexpr,
):
    """Some slots of one head's recent buffer, where a new token belongs into them."""
    head = tl.program_id(0).to(tl.int64)
    batch = head // heads
    inner = head % heads
    slot = tl.program_id(1) * T + tl.arange(0, T)
    before = tl.load(p_progress)
    newest = before + count - sinks - 1
    behind = (newest - (slot - sinks)) % ring
    behind = tl.where(behind < 0, behind + ring, behind)
    position = tl.where(slot < sinks, slot, newest - behind + sinks)
    lowest = tl.where(slot < sinks, before, tl.maximum(before, sinks))
    m_slot = (slot < sinks + ring) & (position >= lowest) & (position < before + count)
    d = tl.arange(0, WIDTH)[None, :]
    mask = m_slot[:, None] & (d < D)
    i = (position - before)[:, None].to(tl.int64)
    to = (head * (sinks + ring) + slot[:, None]) * D + d
    at = batch * new_key_strides[0] + inner * new_key_strides[1] + i * new_key_strides[2] + d
    tl.store(p_recent_keys + to, tl.load(p_new_keys + at, mask=mask), mask=mask)
    at = batch * new_value_strides[0] + inner * new_value_strides[1] + i * new_value_strides[2] + d
    tl.store(p_recent_values + to, tl.load(p_new_values + at, mask=mask), mask=mask)


_PACK = Launcher(pack_kernel)


def append(
    keys: PackedSide,
    values: PackedSide,
    recent: RecentStore,
    new: tuple[Tensor, Tensor],
    progress: Tensor,
    *,
    keep: bool,
    settled: bool,
) -> None:
    """See `kernels.append.op.append`."""
    new_keys, new_values = (x if x.stride(3) == 1 else x.contiguous() for x in new)
    batch, heads, count, dim = new_keys.shape
    slots = recent.keys.shape[2]
    strides = (new_keys.stride()[:3], new_values.stride()[:3])
    launch = _plan(progress.device, keys.kind, values.kind, new_keys.shape, strides, slots, recent.sinks, settled)
    held = (side.words if side.bits == 16 else side.words.view(uint8) for side in (keys, values))
    stores = [x for words, side in zip(held, (keys, values), strict=True) for x in (words, side.scales)]
    launch(progress, new_keys, new_values, recent.keys, recent.values, *stores)
    # Few tokens overwrite nothing that is still to be packed, and were kept above.
    if keep and count > _FEW:
        rows = 16
        keep_kernel[(batch * heads, -(-slots // rows))](
            progress,
            new_keys,
            new_values,
            recent.keys,
            recent.values,
            *strides,
            count,
            heads,
            recent.sinks,
            slots - recent.sinks,
            D=dim,
            WIDTH=next_power_of_2(dim),
            T=rows,
            num_warps=4,
        )


@lru_cache(maxsize=1024)
def _plan(
    device: torch.device,
    keys: SideKind,
    values: SideKind,
    new: torch.Size,
    strides: tuple[tuple[int, ...], ...],
    slots: int,
    sinks: int,
    settled: bool,
) -> Prepared:
    """What a call packs with, worked out from its shapes; the tensors are given later."""
    batch, heads, count, dim = new
    ring = slots - sinks
    channel = keys.granularity == "channel"
    few = count <= _FEW
    tile = (32 if channel else 1) if few else 64
    early = launches_early(device)
    # Due are at most the tokens of the ring and the new ones, in blocks that may begin anywhere.
    tiles = 1 if few else (count + ring) // 64 + 2
    constants = {
        "K_BITS": keys.bits,
        "V_BITS": values.bits,
        "D": dim,
        "WIDTH": next_power_of_2(dim),
        "CHANNEL": channel,
        "K_GROUP": keys.group_size or dim,
        "V_GROUP": values.group_size or dim,
        "RING": keys.ring,
        "T": tile,
        "FEW": next_power_of_2(count) if few else 0,
        "EARLY": early,
        "SETTLED": settled,
    }
    options = {"num_warps": {1: 1, 32: 4, 64: 8}[tile], "enable_fp_fusion": False}
    options |= {"launch_pdl": True} if early else {}
    numbers = (*strides, count, heads, sinks, ring, keys.first_block, keys.words[2])
    return _PACK.prepare((batch * heads, tiles, 2), numbers, constants, options)
