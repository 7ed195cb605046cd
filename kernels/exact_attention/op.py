"""Attention over unquantised preallocated keys and values: the checks, and the choice of implementation."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kernels.exact_attention import reference

__all__ = ["append_exact", "exact_attention"]

Implementation = Literal["auto", "reference", "triton"]


def exact_attention(  # noqa: PLR0913
    query: Tensor,
    keys: Tensor | Sequence[Tensor],
    *,
    values: Tensor | Sequence[Tensor],
    first: Tensor,
    last: Tensor,
    scale: float | None = None,
    ring: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Attention of a few query tokens over the visible part of preallocated keys and values.

    Args:
        query: ``[B, H, Q, D]``; H a multiple of H_kv, neighbouring query heads share a key head.
        keys: ``[B, H_kv, capacity, D]`` in the dtype of the query, or the segments of a history that lies
            in several buffers: the positions of each go on where those of the one before it end.
        values: Like ``keys``.
        first: ``[B, Q]`` int32, the first position that each query sees.
        last: ``[B, Q]`` int32, one more than the last.
        scale: Factor of the scores; ``D ** -0.5`` by default.
        ring: Whether position p lies in slot ``p % capacity`` (sliding windows) of the only segment.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Returns:
        ``[B, H, Q, D]`` in the dtype of the query; zeros for a query that sees nothing. What nobody
        sees may hold anything.

    Raises:
        ValueError: If shapes do not fit.
    """
    segments = _segments(keys, values)
    _check(query, segments, first, last, ring=ring)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "triton" or (implementation == "auto" and query.is_cuda):
        from kernels.exact_attention import triton_impl

        return triton_impl.exact_attention(query, segments, first, last, scale=factor, ring=ring)
    return reference.exact_attention(query, segments, first, last, scale=factor, ring=ring)


def append_exact(
    keys: Tensor,
    values: Tensor,
    *,
    new: tuple[Tensor, Tensor],
    progress: Tensor,
    origin: int = 0,
    ring: bool = False,
    implementation: Implementation = "auto",
) -> None:
    """Write new tokens into a segment of preallocated keys and values, in place.

    Args:
        keys: ``[B, H_kv, capacity, D]``.
        values: Like ``keys``.
        new: Keys and values ``[B, H_kv, C, D]``; any strides. Those whose positions lie outside of the
            segment are another segment's and left alone; in a ring, C is at most the capacity.
        progress: int32, on the device of the rest; the first number is the position of the first new token.
        origin: Position of the segment's first slot.
        ring: Whether position p lies in slot ``p % capacity``.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Raises:
        ValueError: If shapes do not fit.
    """
    if new[0].shape != new[1].shape or keys.shape != values.shape or (ring and new[0].shape[2] > keys.shape[2]):
        raise ValueError(
            f"new keys and values must be alike and fit {list(keys.shape)}; got {list(new[0].shape)} and "
            f"{list(new[1].shape)}."
        )
    if implementation == "triton" or (implementation == "auto" and keys.is_cuda):
        from kernels.exact_attention import triton_impl

        triton_impl.append_exact(keys, values, new, progress, origin=origin, ring=ring)
        return
    reference.append_exact(keys, values, new, progress, origin=origin, ring=ring)


def _segments(keys: Tensor | Sequence[Tensor], values: Tensor | Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    k = (keys,) if isinstance(keys, Tensor) else tuple(keys)
    v = (values,) if isinstance(values, Tensor) else tuple(values)
    if not k or len(k) != len(v):
        raise ValueError(f"keys and values must have as many segments, one at least; got {len(k)} and {len(v)}.")
    return tuple(zip(k, v, strict=True))


def _check(
    query: Tensor, segments: tuple[tuple[Tensor, Tensor], ...], first: Tensor, last: Tensor, *, ring: bool
) -> None:
    if ring and len(segments) > 1:
        raise ValueError(f"a ring must be the only segment; got {len(segments)} segments.")
    for keys, values in segments:
        _check_segment(query, keys, values)
    b, _, count, _ = query.shape
    if first.shape != (b, count) or last.shape != (b, count) or first.dtype != torch.int32:
        raise ValueError(f"first and last must be int32 [{b}, {count}]; got {list(first.shape)}, {list(last.shape)}.")


def _check_segment(query: Tensor, keys: Tensor, values: Tensor) -> None:
    if query.ndim != 4 or keys.ndim != 4 or keys.shape != values.shape:
        raise ValueError(
            f"query, keys and values must be [B, heads, tokens, D], keys and values alike; got {list(query.shape)}, "
            f"{list(keys.shape)}, {list(values.shape)}."
        )
    b, heads, _, dim = query.shape
    if keys.shape[0] != b or keys.shape[3] != dim or heads % keys.shape[1]:
        raise ValueError(
            f"query heads must be a multiple of the key heads, batch and head_dim equal; got {list(query.shape)} and "
            f"{list(keys.shape)}."
        )
