"""Plain PyTorch definition of unpacking and dequantising a stretch of the packed store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.decode_attention import reference as layout
from kernels.decode_attention.reference import BLOCK, CHANNEL_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels.decode_attention.op import PackedSide


def dequantize(sides: Sequence[PackedSide], *, keys: bool, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """See `kernels.unpack.op.dequantize`."""
    if sides[0].bits == 16:
        first = begin // BLOCK
        words, _ = _blocks(sides, first, max(first + 1, -(-end // BLOCK)))
        held = words.reshape(*words.shape[:2], -1, sides[0].head_dim)
        return held[:, :, begin - first * BLOCK : end - first * BLOCK].to(dtype)
    channel = sides[0].granularity == "channel"
    low, high = (begin // CHANNEL_GROUP, -(-end // CHANNEL_GROUP)) if channel else (begin, end)
    unit = CHANNEL_GROUP if channel else 1
    codes, scale, offset = unpack(sides, keys=keys, begin=low * unit, end=high * unit)
    if channel:
        scale, offset = (x.float().repeat_interleave(CHANNEL_GROUP, dim=2) for x in (scale, offset))
    else:
        size = codes.shape[3] // scale.shape[3]
        scale, offset = (x.float().repeat_interleave(size, dim=3) for x in (scale, offset))
    values = (codes.float() * scale + offset)[:, :, begin - low * unit : end - low * unit]
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype)


def unpack(sides: Sequence[PackedSide], *, keys: bool, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.unpack.op.unpack`."""
    first, last = begin // BLOCK, max(begin // BLOCK + 1, -(-end // BLOCK))
    words, scales = _blocks(sides, first, last)
    bits, dim = sides[0].bits, sides[0].head_dim
    codes = (layout.unpack_keys if keys else layout.unpack_values)(words, bits, dim)
    inner = slice(begin - first * BLOCK, end - first * BLOCK)
    if sides[0].granularity == "channel":
        scale, offset = layout.unpack_channel_scales(scales, dim)
        groups = slice(inner.start // CHANNEL_GROUP, inner.stop // CHANNEL_GROUP)
        return codes[:, :, inner], scale[:, :, groups], offset[:, :, groups]
    scale, offset = layout.unpack_token_scales(scales)
    return codes[:, :, inner], scale[:, :, inner], offset[:, :, inner]


def _blocks(sides: Sequence[PackedSide], first: int, last: int) -> tuple[Tensor, Tensor]:
    """Words and scales of the logical blocks from ``first`` to ``last``."""
    blocks = sides[0].words.shape[2]
    if sides[0].ring:
        places = torch.arange(first, last, device=sides[0].words.device) % blocks
        return sides[0].words[:, :, places], sides[0].scales[:, :, places]
    words, scales = [], []
    for side in sides:
        part = slice(max(0, first - side.first_block), max(0, last - side.first_block))
        words.append(side.words[:, :, part])
        scales.append(side.scales[:, :, part])
    return torch.cat(words, dim=2), torch.cat(scales, dim=2)
