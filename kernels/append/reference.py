"""Plain PyTorch definition of appending in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.decode_attention import reference as layout
from kernels.quantize import reference as quantizing

if TYPE_CHECKING:
    from kernels.append.op import RecentStore
    from kernels.decode_attention.op import PackedSide


def append(
    keys: PackedSide,
    values: PackedSide,
    recent: RecentStore,
    new: tuple[Tensor, Tensor],
    progress: Tensor,
    *,
    keep: bool,
) -> None:
    """See `kernels.append.op.append`."""
    before, begin, end, _ = progress.tolist()
    for side, held, fresh, is_keys in ((keys, recent.keys, new[0], True), (values, recent.values, new[1], False)):
        due = _due(held, fresh, sinks=recent.sinks, before=before, begin=begin, end=end)
        _write(side, due, begin, keys=is_keys)
        if keep:
            _keep(held, fresh, sinks=recent.sinks, before=before)


def _due(held: Tensor, new: Tensor, *, sinks: int, before: int, begin: int, end: int) -> Tensor:
    """The exact values ``[B, H, end - begin, D]`` of the store positions that are packed now."""
    old = torch.arange(begin, max(begin, min(end, before - sinks)), device=held.device)
    first = max(begin, before - sinks) + sinks - before
    fresh = new[:, :, first : max(first, end + sinks - before)]
    return torch.cat((held[:, :, sinks + old % (held.shape[2] - sinks)].to(new.dtype), fresh), dim=2)


def _keep(held: Tensor, new: Tensor, *, sinks: int, before: int) -> None:
    """Write sinks and the newest tokens into the recent buffer."""
    ring, count = held.shape[2] - sinks, new.shape[2]
    position = torch.arange(before, before + count, device=held.device)
    kept = (position < sinks) | (position >= before + count - ring)
    position = position[kept]
    slot = torch.where(position < sinks, position, sinks + (position - sinks) % ring)
    held[:, :, slot] = new[:, :, kept].to(held.dtype)


def _write(side: PackedSide, x: Tensor, begin: int, *, keys: bool) -> None:
    """Quantise ``x``, the store positions from ``begin`` on, and put the codes into the blocks of ``side``."""
    tokens, dim = x.shape[2:]
    if not tokens:
        return
    if side.bits == 16:
        _write_exact(side, x, begin)
        return
    first, last = begin // layout.BLOCK, (begin + tokens - 1) // layout.BLOCK
    pack, unpack = (layout.pack_keys, layout.unpack_keys) if keys else (layout.pack_values, layout.unpack_values)
    channel = side.granularity == "channel"
    rows, scale, offset = quantizing.quantize(
        x,
        bits=side.bits,
        granularity=side.granularity,
        group_size=layout.CHANNEL_GROUP if channel else side.group_size or dim,
        symmetric=False,
        scale_dtype=torch.float16,
    )
    assert offset is not None  # noqa: S101
    codes = quantizing.unpack(rows, side.bits, dim)
    blocks = side.words.shape[2]
    for block in range(first, last + 1):
        place = block % blocks if side.ring else block - side.first_block
        if not 0 <= place < blocks:
            continue
        at = slice(place, place + 1)
        low, high = max(begin, block * layout.BLOCK), min(begin + tokens, (block + 1) * layout.BLOCK)
        inner, outer = slice(low - block * layout.BLOCK, high - block * layout.BLOCK), slice(low - begin, high - begin)
        held = unpack(side.words[:, :, at], side.bits, dim)
        held[:, :, inner] = codes[:, :, outer]
        side.words[:, :, at] = pack(held, side.bits)
        _write_scales(side, at, scale, offset, inner=inner, outer=outer)


def _write_exact(side: PackedSide, x: Tensor, begin: int) -> None:
    """Put ``x``, the store positions from ``begin`` on, into the blocks of a side at 16 bits."""
    held = side.words.view(*side.words.shape[:3], layout.BLOCK, side.head_dim)
    position = torch.arange(begin, begin + x.shape[2], device=x.device)
    block, blocks = position // layout.BLOCK, side.words.shape[2]
    place = block % blocks if side.ring else block - side.first_block
    # Of blocks at the same place of a ring, the newest.
    mine = block > block[-1] - blocks if side.ring else (place >= 0) & (place < blocks)
    held[:, :, place[mine], position[mine] % layout.BLOCK] = x[:, :, mine].to(held.dtype)


def _write_scales(side: PackedSide, at: slice, scale: Tensor, offset: Tensor, *, inner: slice, outer: slice) -> None:
    numbers = side.scales[:, :, at]
    if side.granularity == "channel":
        group = layout.CHANNEL_GROUP
        inner, outer = (slice(part.start // group, part.stop // group) for part in (inner, outer))
        held = layout.unpack_channel_scales(numbers, side.head_dim)
    else:
        held = layout.unpack_token_scales(numbers)
    both = [part.clone() for part in held]
    for part, fresh in zip(both, (scale, offset), strict=True):
        part[:, :, inner] = fresh[:, :, outer]
    pack = layout.pack_channel_scales if side.granularity == "channel" else layout.pack_token_scales
    side.scales[:, :, at] = pack(*both)
