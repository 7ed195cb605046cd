"""Plain PyTorch definition of the packed store and of attention over it.

A block holds 64 tokens of one head as 32-bit words, ``2 * D * bits`` of them: what plain packing
takes. A word is a lane's share of a tensor-core operand, so that a kernel multiplies bytes as
they were loaded, after at most one mask. The 32 lanes are ``g`` (0 to 7) times ``t`` (0 to 3);
a lane's words lie in runs of four, the runs of all lanes side by side::

    word number    = (i // 4) * 128 + (4 * g + t) * 4 + i % 4       i: which of the lane's words
    bytes of it    = byte 3 | byte 2 | byte 1 | byte 0              j: which byte
    byte, 8 bits   = code                                           n = 8 / bits codes a byte
    byte, 4 bits   = code c=1 | code c=0                            c: which code of the byte
    byte, 2 bits   = code c=3 | code c=2 | code c=1 | code c=0

    keys     token = 8 * (n * a + c) + g             channel = 16 * w + 4 * t + j     i = a * D/16 + w
    values   channel = 8 * (n * a + c) + g           token = 16 * w + 2 * t + j // 2 + 8 * (j % 2)
                                                                                      i = 4 * a + w

So the codes of a key byte differ in the token and those of a value byte in the channel: the factor
``2^(bits * c)`` a masked code carries goes into a row's scale. 3 bits are a plane of 2 bits (bits 1
and 0 of the codes), then a plane of 1 bit (bit 2), each laid out as above (``n`` = 8 for 1 bit).

Scales are float16 pairs (scale, offset). Per token, one pair a token and group of channels, 64 pairs
a block and group, that of token ``8 * u + g`` at place ``8 * g + u``, one group after the other. Per
channel (keys), groups of 32 tokens: two groups a block, in each ``D`` scales, then ``D`` offsets, that
of channel ``32 * w + 16 * r + 4 * t + j`` at place ``32 * w + 8 * t + 4 * r + (0, 2, 1, 3)[j]``; if D is
an odd multiple of 16, the last 16 channels (``w = D // 32``, r = 0) lie at
``32 * w + 4 * t + (0, 2, 1, 3)[j]``.
"""

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of a block."""

CHANNEL_GROUP = 32
"""Tokens that share a scale of one channel."""

_SWAP = (0, 2, 1, 3)


def planes(bits: int) -> tuple[tuple[int, int], ...]:
    """Planes of a code as (bits, position of the lowest): one, but two for 3 bits."""
    return ((2, 0), (1, 2)) if bits == 3 else ((bits, 0),)


def pack_keys(codes: Tensor, bits: int) -> Tensor:
    """Words of key codes.

    Args:
        codes: ``[B, H, T, D]`` uint8, T a multiple of 64.
        bits: 8, 4, 3 or 2.

    Returns:
        ``[B, H, T / 64, 2 * D * bits]`` int32.
    """
    b, h, tokens, dim = codes.shape
    parts = []
    for width, low in planes(bits):
        n = 8 // width
        plane = (codes >> low) & (2**width - 1)
        x = plane.reshape(b, h, tokens // BLOCK, 8 // n, n, 8, dim // 16, 4, 4)
        parts.append(_words(x.permute(0, 1, 2, 5, 7, 3, 6, 8, 4), width))
    return torch.cat(parts, dim=-1)


def unpack_keys(words: Tensor, bits: int, head_dim: int) -> Tensor:
    """Codes ``[B, H, T, D]`` (uint8) of what `pack_keys` returned."""
    b, h, blocks, _ = words.shape
    codes = torch.zeros(b, h, blocks * BLOCK, head_dim, dtype=torch.uint8, device=words.device)
    for (width, low), part in zip(planes(bits), _split(words, bits, head_dim), strict=True):
        n = 8 // width
        x = _codes(part, width).reshape(b, h, blocks, 8, 4, 8 // n, head_dim // 16, 4, n)
        codes |= x.permute(0, 1, 2, 5, 8, 3, 6, 4, 7).reshape(codes.shape) << low
    return codes


def pack_values(codes: Tensor, bits: int) -> Tensor:
    """Words of value codes; arguments and result as for `pack_keys`."""
    b, h, tokens, dim = codes.shape
    parts = []
    for width, low in planes(bits):
        n = 8 // width
        plane = (codes >> low) & (2**width - 1)
        x = plane.reshape(b, h, tokens // BLOCK, 4, 2, 4, 2, dim // 8 // n, n, 8)
        x = x.permute(0, 1, 2, 9, 5, 7, 3, 6, 4, 8)
        parts.append(_words(x.reshape(*x.shape[:7], 4, n), width))
    return torch.cat(parts, dim=-1)


def unpack_values(words: Tensor, bits: int, head_dim: int) -> Tensor:
    """Codes ``[B, H, T, D]`` (uint8) of what `pack_values` returned."""
    b, h, blocks, _ = words.shape
    codes = torch.zeros(b, h, blocks * BLOCK, head_dim, dtype=torch.uint8, device=words.device)
    for (width, low), part in zip(planes(bits), _split(words, bits, head_dim), strict=True):
        n = 8 // width
        x = _codes(part, width).reshape(b, h, blocks, 8, 4, head_dim // 8 // n, 4, 2, 2, n)
        codes |= x.permute(0, 1, 2, 6, 8, 4, 7, 5, 9, 3).reshape(codes.shape) << low
    return codes


def pack_token_scales(scale: Tensor, offset: Tensor) -> Tensor:
    """Pairs of per-token scales: two ``[B, H, T, groups]`` to ``[B, H, T / 64, 128 * groups]`` float16."""
    b, h, tokens, groups = scale.shape
    pairs = torch.stack((scale, offset), dim=-1).to(torch.float16)
    pairs = pairs.reshape(b, h, tokens // BLOCK, 8, 8, groups, 2).permute(0, 1, 2, 5, 4, 3, 6)
    return pairs.reshape(b, h, tokens // BLOCK, 2 * BLOCK * groups)


def unpack_token_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset ``[B, H, T, groups]`` of what `pack_token_scales` returned."""
    b, h, blocks, size = scales.shape
    groups = size // (2 * BLOCK)
    pairs = scales.reshape(b, h, blocks, groups, 8, 8, 2).permute(0, 1, 2, 5, 4, 3, 6)
    pairs = pairs.reshape(b, h, blocks * BLOCK, groups, 2)
    return pairs[..., 0], pairs[..., 1]


def pack_channel_scales(scale: Tensor, offset: Tensor) -> Tensor:
    """Per-channel scales: two ``[B, H, T / 32, D]`` to ``[B, H, T / 64, 4 * D]`` float16."""
    b, h, groups, dim = scale.shape
    x = torch.stack((scale, offset), dim=3).to(torch.float16)[..., _channel_order(dim)]
    return x.reshape(b, h, groups // 2, 4 * dim)


def unpack_channel_scales(scales: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Scale and offset ``[B, H, T / 32, D]`` of what `pack_channel_scales` returned."""
    b, h, blocks, _ = scales.shape
    x = scales.reshape(b, h, blocks * 2, 2, head_dim)
    back = torch.empty_like(x)
    back[..., _channel_order(head_dim)] = x
    return back[..., 0, :], back[..., 1, :]


def _channel_order(head_dim: int) -> Tensor:
    """The channel whose scale lies at each place."""
    place = torch.arange(head_dim)
    rest = place >= head_dim // 32 * 32
    swapped = torch.tensor(_SWAP)[place % 4]
    whole = place // 32 * 32 + place % 8 // 4 * 16 + place % 32 // 8 * 4 + swapped
    return torch.where(rest, place // 4 * 4 + swapped, whole)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention in the dtype of the keys; a query that sees nothing gives zeros.

    Args:
        query: ``[B, H, Q, D]``.
        keys: ``[B, H_kv, T, D]``; H_kv divides H, neighbouring query heads share a key head.
        values: Like ``keys``.
        mask: ``[B, Q, T]`` bool, true where a query sees a token.
        scale: Factor of the scores.

    Returns:
        ``[B, H, Q, D]`` in the dtype of the keys.
    """
    b, heads, count, dim = query.shape
    grouped = query.to(keys.dtype).reshape(b, keys.shape[1], -1, count, dim)
    scores = torch.einsum("bhgqd,bhtd->bhgqt", grouped, keys) * scale
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return torch.einsum("bhgqt,bhtd->bhgqd", weights, values).reshape(b, heads, count, dim)


def _words(x: Tensor, bits: int) -> Tensor:
    """``[B, H, N, 8, 4, .., 4, n]`` codes (lane g, lane t, words, bytes, codes) to ``[B, H, N, words]``."""
    n = 8 // bits
    shifts = torch.arange(n, device=x.device, dtype=torch.uint8) * bits
    packed = (x << shifts).sum(dim=-1, dtype=torch.int32).to(torch.uint8).contiguous()
    words = packed.view(torch.int32)
    b, h, blocks = words.shape[:3]
    return words.reshape(b, h, blocks, 32, -1, 4).transpose(3, 4).reshape(b, h, blocks, -1)


def _codes(words: Tensor, bits: int) -> Tensor:
    """The opposite of `_words`, as ``[B, H, N, 32, words of a lane, 4, n]``."""
    b, h, blocks, _ = words.shape
    lanes = words.reshape(b, h, blocks, -1, 32, 4).transpose(3, 4).reshape(b, h, blocks, 32, -1, 1)
    shifts = torch.arange(8 // bits, device=words.device, dtype=torch.uint8) * bits
    codes = lanes.contiguous().view(torch.uint8).unsqueeze(-1)
    return torch.bitwise_right_shift(codes, shifts).bitwise_and(2**bits - 1)


def _split(words: Tensor, bits: int, head_dim: int) -> tuple[Tensor, ...]:
    ends = torch.tensor([2 * head_dim * width for width, _ in planes(bits)]).cumsum(0)[:-1]
    return torch.tensor_split(words, ends.tolist(), dim=-1)
