"""Attention over packed keys and values: the store, the checks, and the choice of implementation."""

from dataclasses import dataclass
from typing import Literal

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
]

Implementation = Literal["auto", "reference", "triton"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedSide:
    """The packed keys or values of a layer; `kernels.decode_attention.reference` draws the bytes.

    Attributes:
        words: ``[B, H_kv, N, 2 * D * bits]`` int32, N blocks of 64 tokens.
        scales: ``[B, H_kv, N, 128]`` float16 (per token) or ``[B, H_kv, N, 4 * D]`` (per channel).
        bits: Bits of a code: 8, 4, 3 or 2.
        granularity: ``token``: one scale and offset a token and head; ``channel``: one for 32 tokens
            of a channel (keys only).
        head_dim: Values of a token and head, ``D``.
    """

    words: Tensor
    scales: Tensor
    bits: int
    granularity: Literal["token", "channel"]
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visible:
    """Which packed tokens each query sees: those from ``first`` up to, not including, ``last``.

    Attributes:
        first: ``[B, Q]`` int32; above 0 behind left padding or a sliding window.
        last: ``[B]`` int32, the number of packed tokens of the sequence.
    """

    first: Tensor
    last: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recent:
    """Keys and values in full precision: sinks, the newest window, and the step's own tokens.

    Attributes:
        keys: ``[B, H_kv, R, D]``, in the dtype of the query.
        values: Like ``keys``.
        mask: ``[B, Q, R]`` bool, true where a query sees a token.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


def pack_keys(codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int) -> PackedSide:
    """Lay key codes out for `decode_attention`.

    Args:
        codes: ``[B, H_kv, T, D]`` uint8, each below ``2^bits``.
        scale: ``[B, H_kv, T]`` (per token) or ``[B, H_kv, T / 32, D]`` (per channel, T a multiple of
            32); a key is ``code * scale + offset``.
        offset: Like ``scale``.
        bits: 8, 4, 3 or 2.

    Returns:
        The packed keys; the last block is filled with zeros up to 64 tokens.

    Raises:
        ValueError: If an argument breaks one of these rules.
    """
    _check_codes(codes, bits)
    channel = scale.ndim == 4
    expected = (*codes.shape[:2], codes.shape[2] // CHANNEL_GROUP, codes.shape[3]) if channel else codes.shape[:3]
    if scale.shape != expected or offset.shape != expected or (channel and codes.shape[2] % CHANNEL_GROUP):
        raise ValueError(f"scale and offset must be {list(expected)}; got {list(scale.shape)}, {list(offset.shape)}.")
    words = reference.pack_keys(_pad(codes, BLOCK), bits)
    if channel:
        unit = BLOCK // CHANNEL_GROUP
        scales = reference.pack_channel_scales(_pad(scale, unit), _pad(offset, unit))
    else:
        scales = reference.pack_token_scales(_pad(scale, BLOCK), _pad(offset, BLOCK))
    granularity: Literal["token", "channel"] = "channel" if channel else "token"
    return PackedSide(words=words, scales=scales, bits=bits, granularity=granularity, head_dim=codes.shape[3])


def pack_values(codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int) -> PackedSide:
    """Lay value codes out for `decode_attention`; as `pack_keys`, with per-token scales ``[B, H_kv, T]``."""
    _check_codes(codes, bits)
    if scale.shape != codes.shape[:3] or offset.shape != codes.shape[:3]:
        raise ValueError(
            f"scale and offset must be {list(codes.shape[:3])}; got {list(scale.shape)}, {list(offset.shape)}."
        )
    return PackedSide(
        words=reference.pack_values(_pad(codes, BLOCK), bits),
        scales=reference.pack_token_scales(_pad(scale, BLOCK), _pad(offset, BLOCK)),
        bits=bits,
        granularity="token",
        head_dim=codes.shape[3],
    )


def decode_attention(
    query: Tensor,
    keys: PackedSide,
    *,
    values: PackedSide,
    visible: Visible,
    recent: Recent | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Attention of a few query tokens over packed keys and values and the recent exact ones.

    Args:
        query: ``[B, H, Q, D]``, bfloat16 or float16 (the reference takes float32, too); H a multiple
            of H_kv, neighbouring query heads share a key head.
        keys: The packed keys.
        values: The packed values, as many blocks as the keys.
        visible: Which packed tokens each query sees.
        recent: Tokens in full precision; ``None`` if there are none.
        scale: Factor of the scores; ``D ** -0.5`` by default.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Returns:
        ``[B, H, Q, D]`` in the dtype of the query; zeros for a query that sees nothing.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    _check(query, keys, values, visible, recent)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "triton" or (implementation == "auto" and query.is_cuda):
        from kernels.decode_attention import triton_impl

        return triton_impl.decode_attention(query, keys, values, visible, recent, factor)
    return _reference(query, keys, values, visible, recent, scale=factor)


def dequantize(side: PackedSide, *, keys: bool) -> Tensor:
    """Values ``[B, H_kv, T, D]`` (float32) of a packed side, T = 64 N; ``keys`` says which side it is."""
    unpack = reference.unpack_keys if keys else reference.unpack_values
    codes = unpack(side.words, side.bits, side.head_dim).float()
    if side.granularity == "channel":
        scale, offset = reference.unpack_channel_scales(side.scales.float(), side.head_dim)
        scale, offset = (x.repeat_interleave(CHANNEL_GROUP, dim=2) for x in (scale, offset))
    else:
        scale, offset = (x.unsqueeze(-1) for x in reference.unpack_token_scales(side.scales.float()))
    return codes * scale + offset


def _reference(
    query: Tensor, keys: PackedSide, values: PackedSide, visible: Visible, recent: Recent | None, *, scale: float
) -> Tensor:
    k, v = dequantize(keys, keys=True), dequantize(values, keys=False)
    at = torch.arange(k.shape[2], device=query.device)
    mask = (at >= visible.first[..., None]) & (at < visible.last[:, None, None])
    if recent is not None:
        k = torch.cat((k, recent.keys.float()), dim=2)
        v = torch.cat((v, recent.values.float()), dim=2)
        mask = torch.cat((mask, recent.mask), dim=2)
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
    unit = 64 if bits == 3 else 32
    if codes.shape[3] % unit:
        raise ValueError(f"head_dim must be a multiple of {unit} at {bits} bits; got {codes.shape[3]}.")


def _check(query: Tensor, keys: PackedSide, values: PackedSide, visible: Visible, recent: Recent | None) -> None:
    if query.ndim != 4 or keys.words.ndim != 4:
        raise ValueError(f"query must be [B, H, Q, D]; got {list(query.shape)}.")
    b, heads, count, dim = query.shape
    kv_heads = keys.words.shape[1]
    if keys.head_dim != dim or values.head_dim != dim or heads % kv_heads:
        raise ValueError(
            f"query heads must be a multiple of the key heads, head_dim equal; got {heads} of {dim}, "
            f"{kv_heads} of {keys.head_dim} and {values.head_dim}."
        )
    if keys.words.shape[:3] != values.words.shape[:3] or keys.words.shape[0] != b:
        raise ValueError(
            f"keys and values must hold as many sequences and blocks; got {list(keys.words.shape[:3])}, "
            f"{list(values.words.shape[:3])} for {b} sequences."
        )
    if values.granularity != "token":
        raise ValueError(f"values must have per-token scales; got {values.granularity!r}.")
    if visible.first.shape != (b, count) or visible.last.shape != (b,):
        raise ValueError(f"visible must be [{b}, {count}] and [{b}]; got {list(visible.first.shape)}.")
    if recent is not None and recent.mask.shape != (b, count, recent.keys.shape[2]):
        raise ValueError(f"recent.mask must be {[b, count, recent.keys.shape[2]]}; got {list(recent.mask.shape)}.")
