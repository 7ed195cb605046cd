"""Attention over packed keys and values: the store, the checks, and the choice of implementation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels.decode_attention import reference
from kernels.decode_attention.reference import BLOCK, CHANNEL_GROUP

__all__ = [
    "BLOCK",
    "CHANNEL_GROUP",
    "PackedSide",
    "Recent",
    "Visible",
    "decode_attention",
    "dequantize",
    "pack_keys",
    "pack_values",
    "supported",
]

Implementation = Literal["auto", "reference", "triton"]


class SideKind(NamedTuple):
    """All of a `PackedSide` but its bytes: what a launch is planned by. Attributes as there, and the two shapes."""

    bits: int
    granularity: Literal["token", "channel"]
    head_dim: int
    group_size: int | None
    first_block: int
    ring: bool
    words: torch.Size
    scales: torch.Size

    @property
    def groups(self) -> int:
        """Groups of channels with a per-token scale of their own."""
        return self.head_dim // (self.group_size or self.head_dim)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedSide:
    """The packed keys or values of a layer; `kernels.decode_attention.reference` draws the bytes.

    Attributes:
        words: ``[B, H_kv, N, 2 * D * bits]`` int32, N blocks of 64 tokens; at 16 bits the tokens themselves,
            ``[B, H_kv, N, 64 * D]`` in the dtype of the model.
        scales: ``[B, H_kv, N, 128 * D / group_size]`` float16 (per token) or ``[B, H_kv, N, 4 * D]``
            (per channel); at 16 bits none, ``[B, H_kv, N, 0]``.
        bits: Bits of a code: 8, 4, 3 or 2; 16 for one side that is not quantised.
        granularity: ``token``: one scale and offset a token, head and group of channels; ``channel``:
            one for 32 tokens of a channel (keys only).
        head_dim: Values of a token and head, ``D``.
        group_size: Channels that share a per-token scale; ``None`` for all of the head.
        first_block: Logical block held at place 0; above 0 in a later segment of a history.
        ring: Whether logical block ``b`` lies at place ``b % N``, so that a sliding window goes on
            for ever in N blocks; what a query sees must then fit in them.
        kind: All of these but the bytes.
    """

    words: Tensor
    scales: Tensor
    bits: int
    granularity: Literal["token", "channel"]
    head_dim: int
    group_size: int | None = None
    first_block: int = 0
    ring: bool = False
    kind: SideKind = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = (self.bits, self.granularity, self.head_dim, self.group_size, self.first_block, self.ring)
        object.__setattr__(self, "kind", SideKind(*numbers, self.words.shape, self.scales.shape))

    @property
    def groups(self) -> int:
        """Groups of channels with a per-token scale of their own."""
        return self.kind.groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visible:
    """Which packed tokens each query sees: those from ``first`` up to, not including, ``last``.

    Attributes:
        first: ``[B, Q]`` int32; above 0 behind left padding or a sliding window.
        last: ``[B]`` int32, the number of packed tokens of the sequence.
        max_tokens: A bound on ``last - first`` that the caller knows: how finely the work is cut is
            planned for it, and for the store's capacity without it. The result does not depend on it.
    """

    first: Tensor
    last: Tensor
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recent:
    """Keys and values in full precision: sinks, the newest window, and the step's own tokens.

    Attributes:
        keys: ``[B, H_kv, R, D]``, in the dtype of the query.
        values: Like ``keys``.
        mask: ``[B, Q, R]`` bool, true where a query sees a token. Rows that no query sees may hold anything.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


def supported(
    head_dim: int,
    *,
    key_bits: int,
    value_bits: int,
    key_granularity: str = "token",
    key_group: int | None = None,
    value_group: int | None = None,
) -> str | None:
    """Whether the packed layout can hold such a layer.

    Args:
        head_dim: Values of a token and head.
        key_bits: 8, 4, 3 or 2, or 16 where the other side is quantised.
        value_bits: Likewise.
        key_granularity: ``token`` or ``channel``.
        key_group: Channels that share a per-token scale (tokens, if per channel); ``None`` for the
            only size possible there: all channels, or 32 tokens.
        value_group: Channels that share a scale of a value; ``None`` for all.

    Returns:
        ``None`` if it can, otherwise the rule that is broken, as a sentence.
    """
    for side, bits in (("keys", key_bits), ("values", value_bits)):
        if bits not in (16, 8, 4, 3, 2) or key_bits == value_bits == 16:
            return f"bits must be 8, 4, 3 or 2, or 16 on one side; got {bits!r}. Keep 16-bit tensors as they are."
        unit = {16: 16, 8: 16, 4: 16, 2: 32, 3: 64}[bits]
        if head_dim % unit:
            return f"head_dim must be a multiple of {unit} at {bits} bits; got {head_dim} ({side})."
        if head_dim > 256:
            return f"head_dim must be at most 256; got {head_dim}."
    if key_granularity == "channel":
        if key_group not in (None, CHANNEL_GROUP):
            return f"per-channel keys must have groups of {CHANNEL_GROUP} tokens; got {key_group}."
        key_group = None
    return _group_reason(head_dim, "keys", key_group) or _group_reason(head_dim, "values", value_group)


def _group_reason(head_dim: int, side: str, size: int | None) -> str | None:
    if size in (None, head_dim) or (size in (16, 32, 64, 128) and head_dim % size == 0):
        return None
    return (
        f"per-token groups of {side} must be 16, 32, 64 or 128 channels and divide head_dim ({head_dim}), "
        f"or be head_dim; got {size}."
    )


def pack_keys(codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int) -> PackedSide:
    """Lay key codes out for `decode_attention`.

    Args:
        codes: ``[B, H_kv, T, D]`` uint8, each below ``2^bits``.
        scale: ``[B, H_kv, T]`` or ``[B, H_kv, T, groups]`` (per token), or ``[B, H_kv, T / 32, D]``
            (per channel, T a multiple of 32); a key is ``code * scale + offset``.
        offset: Like ``scale``.
        bits: 8, 4, 3 or 2.

    Returns:
        The packed keys; the last block is filled with zeros up to 64 tokens.

    Raises:
        ValueError: If an argument breaks one of these rules.
    """
    if scale.ndim != 4 or scale.shape[2] == codes.shape[2]:
        return _pack(codes, scale, offset, bits=bits, keys=True)
    _check_codes(codes, bits)
    expected = (*codes.shape[:2], codes.shape[2] // CHANNEL_GROUP, codes.shape[3])
    if scale.shape != expected or offset.shape != expected or codes.shape[2] % CHANNEL_GROUP:
        raise ValueError(f"scale and offset must be {list(expected)}; got {list(scale.shape)}, {list(offset.shape)}.")
    unit = BLOCK // CHANNEL_GROUP
    return PackedSide(
        words=reference.pack_keys(_pad(codes, BLOCK), bits),
        scales=reference.pack_channel_scales(_pad(scale, unit), _pad(offset, unit)),
        bits=bits,
        granularity="channel",
        head_dim=codes.shape[3],
    )


def pack_values(codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int) -> PackedSide:
    """Lay value codes out for `decode_attention`; as `pack_keys`, with per-token scales only."""
    return _pack(codes, scale, offset, bits=bits, keys=False)


def _pack(codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int, keys: bool) -> PackedSide:
    """A side with per-token scales."""
    _check_codes(codes, bits)
    scale, offset = (x.unsqueeze(-1) if x.ndim == 3 else x for x in (scale, offset))
    if scale.shape[:3] != codes.shape[:3] or scale.ndim != 4 or offset.shape != scale.shape:
        raise ValueError(
            f"scale and offset must be {list(codes.shape[:3])}, or have the groups of a token as a fourth "
            f"dimension; got {list(scale.shape)}, {list(offset.shape)}."
        )
    dim, groups = codes.shape[3], scale.shape[3]
    size = dim // groups
    reason = supported(dim, key_bits=bits, value_bits=bits, value_group=size)
    if reason or size * groups != dim:
        raise ValueError(reason or f"groups must divide head_dim ({dim}); got {groups}.")
    pack = reference.pack_keys if keys else reference.pack_values
    return PackedSide(
        words=pack(_pad(codes, BLOCK), bits),
        scales=reference.pack_token_scales(_pad(scale, BLOCK), _pad(offset, BLOCK)),
        bits=bits,
        granularity="token",
        head_dim=dim,
        group_size=None if groups == 1 else size,
    )


def decode_attention(
    query: Tensor,
    keys: PackedSide | Sequence[PackedSide],
    *,
    values: PackedSide | Sequence[PackedSide],
    visible: Visible,
    recent: Recent | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Attention of a few query tokens over packed keys and values and the recent exact ones.

    Args:
        query: ``[B, H, Q, D]``, bfloat16 or float16 (the reference takes float32, too); H a multiple
            of H_kv, neighbouring query heads share a key head.
        keys: The packed keys, or the segments of a history that lies in several buffers.
        values: The packed values, as many segments and blocks as the keys.
        visible: Which packed tokens each query sees.
        recent: Tokens in full precision; ``None`` if there are none.
        scale: Factor of the scores; ``D ** -0.5`` by default.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Returns:
        ``[B, H, Q, D]`` in the dtype of the query; zeros for a query that sees nothing.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    segments = _segments(keys, values)
    exact = None if recent is None else (recent.mask.shape, recent.keys.shape)
    kinds = tuple([(key.kind, value.kind) for key, value in segments])
    _check(query.shape, kinds, (visible.first.shape, visible.last.shape), exact)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if implementation == "triton" or (implementation == "auto" and query.is_cuda):
        from kernels.decode_attention import triton_impl

        return triton_impl.decode_attention(query, segments, visible, recent, factor)
    return _reference(query, segments, visible, recent, scale=factor)


def dequantize(side: PackedSide, *, keys: bool) -> Tensor:
    """Values ``[B, H_kv, T, D]`` (float32) of a packed side, T = 64 N; ``keys`` says which side it is."""
    if side.bits == 16:
        return side.words.reshape(*side.words.shape[:2], -1, side.head_dim).float()
    unpack = reference.unpack_keys if keys else reference.unpack_values
    codes = unpack(side.words, side.bits, side.head_dim).float()
    if side.granularity == "channel":
        scale, offset = reference.unpack_channel_scales(side.scales.float(), side.head_dim)
        scale, offset = (x.repeat_interleave(CHANNEL_GROUP, dim=2) for x in (scale, offset))
    else:
        scale, offset = reference.unpack_token_scales(side.scales.float())
        size = side.head_dim // side.groups
        scale, offset = (x.repeat_interleave(size, dim=3) for x in (scale, offset))
    return codes * scale + offset


def _segments(
    keys: PackedSide | Sequence[PackedSide], values: PackedSide | Sequence[PackedSide]
) -> tuple[tuple[PackedSide, PackedSide], ...]:
    k = (keys,) if isinstance(keys, PackedSide) else tuple(keys)
    v = (values,) if isinstance(values, PackedSide) else tuple(values)
    if not k or len(k) != len(v):
        raise ValueError(f"keys and values must have as many segments, one at least; got {len(k)} and {len(v)}.")
    return tuple(zip(k, v, strict=True))


def _positions(side: PackedSide, last: Tensor) -> Tensor:
    """Token ``[B, T]`` at each place of a segment; a ring holds the blocks up to the last one's."""
    blocks = side.words.shape[2]
    place = torch.arange(blocks, device=last.device)
    newest = (last[:, None].long() - 1) // BLOCK
    logical = (
        newest - (newest - place) % max(1, blocks) if side.ring else (place + side.first_block).expand(len(last), -1)
    )
    within = torch.arange(BLOCK, device=last.device)
    return (logical[..., None] * BLOCK + within).flatten(1)


def _reference(
    query: Tensor,
    segments: tuple[tuple[PackedSide, PackedSide], ...],
    visible: Visible,
    recent: Recent | None,
    *,
    scale: float,
) -> Tensor:
    k = torch.cat([dequantize(side, keys=True) for side, _ in segments], dim=2)
    v = torch.cat([dequantize(side, keys=False) for _, side in segments], dim=2)
    at = torch.cat([_positions(side, visible.last) for side, _ in segments], dim=1)[:, None]
    mask = (at >= visible.first[..., None]) & (at < visible.last[:, None, None])
    if recent is not None:
        k = torch.cat((k, recent.keys.float()), dim=2)
        v = torch.cat((v, recent.values.float()), dim=2)
        mask = torch.cat((mask, recent.mask), dim=2)
    # places that nobody sees may hold anything, NaN included
    unseen = ~mask.any(dim=1)[:, None, :, None]
    k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    return reference.attend(query.float(), k, v, mask, scale).to(query.dtype)


def _pad(x: Tensor, unit: int) -> Tensor:
    """Fill ``x [B, H, T, ..]`` with zeros to a multiple of ``unit`` tokens."""
    missing = -x.shape[2] % unit
    return torch.cat((x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])), dim=2)


def _check_codes(codes: Tensor, bits: int) -> None:
    if bits not in (8, 4, 3, 2):
        raise ValueError(f"bits must be 8, 4, 3 or 2; got {bits!r}. Keep 16-bit tensors as they are.")
    if codes.ndim != 4 or codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8 [B, H_kv, T, D]; got {codes.dtype} {list(codes.shape)}.")
    reason = supported(codes.shape[3], key_bits=bits, value_bits=bits)
    if reason:
        raise ValueError(reason)


@lru_cache(maxsize=1024)
def _check(
    query: torch.Size,
    segments: tuple[tuple[SideKind, SideKind], ...],
    visible: tuple[torch.Size, torch.Size],
    recent: tuple[torch.Size, torch.Size] | None,
) -> None:
    """Raise unless the shapes fit; of ``recent``, those of the mask and of the keys."""
    if len(query) != 4 or any(len(keys.words) != 4 for keys, _ in segments):
        raise ValueError(f"query must be [B, H, Q, D]; got {list(query)}.")
    b, heads, count, dim = query
    for keys, values in segments:
        _check_segment(keys, values, b=b, heads=heads, dim=dim)
    if any(side.ring for pair in segments for side in pair) and (
        len(segments) > 1 or not all(side.ring for side in segments[0])
    ):
        raise ValueError("a ring must be the only segment, of keys and of values.")
    if visible != ((b, count), (b,)):
        raise ValueError(f"visible must be [{b}, {count}] and [{b}]; got {list(visible[0])}.")
    if recent is not None and recent[0] != (b, count, recent[1][2]):
        raise ValueError(f"recent.mask must be {[b, count, recent[1][2]]}; got {list(recent[0])}.")


def _check_segment(keys: SideKind, values: SideKind, *, b: int, heads: int, dim: int) -> None:
    kv_heads = keys.words[1]
    if keys.head_dim != dim or values.head_dim != dim or heads % kv_heads:
        raise ValueError(
            f"query heads must be a multiple of the key heads, head_dim equal; got {heads} of {dim}, "
            f"{kv_heads} of {keys.head_dim} and {values.head_dim}."
        )
    if keys.words[:3] != values.words[:3] or keys.words[0] != b:
        raise ValueError(
            f"keys and values must hold as many sequences and blocks; got {list(keys.words[:3])}, "
            f"{list(values.words[:3])} for {b} sequences."
        )
    if not keys.words[2]:
        raise ValueError(f"a segment must hold at least one block of {BLOCK} tokens; got none.")
    if values.granularity != "token":
        raise ValueError(f"values must have per-token scales; got {values.granularity!r}.")
    for side in (keys, values):
        size = 4 * dim if side.granularity == "channel" else 2 * BLOCK * side.groups
        size = 0 if side.bits == 16 else size
        if side.scales != (*side.words[:3], size):
            raise ValueError(f"scales must be {[*side.words[:3], size]}; got {list(side.scales)}.")
