"""Unpack and dequantise a stretch of the packed store: the checks, and the choice of implementation."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kernels.decode_attention.op import BLOCK, PackedSide
from kernels.unpack import reference

__all__ = ["dequantize", "unpack"]

Implementation = Literal["auto", "reference", "triton"]


def dequantize(
    sides: Sequence[PackedSide],
    *,
    keys: bool,
    begin: int,
    end: int,
    dtype: torch.dtype,
    implementation: Implementation = "auto",
) -> Tensor:
    """The values of the store positions from ``begin`` to ``end`` (exclusive).

    Args:
        sides: Segments of packed keys or values, in order; a ring is the only one.
        keys: Whether they are keys.
        begin: First position.
        end: One more than the last; what a ring has overwritten must not be asked for.
        dtype: Type of the result; ``code * scale + offset`` in float32, then rounded; a value beyond
            float16's range becomes its largest number. A side at 16 bits gives its values as they are.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Returns:
        ``[B, H_kv, end - begin, D]``, a new tensor.

    Raises:
        ValueError: If the store does not hold these positions.
    """
    _check(sides, begin, end)
    if sides[0].bits == 16:
        return reference.dequantize(sides, keys=keys, begin=begin, end=end, dtype=dtype)
    if implementation == "triton" or (implementation == "auto" and sides[0].words.is_cuda):
        from kernels.unpack import triton_impl

        return triton_impl.dequantize(sides, keys=keys, begin=begin, end=end, dtype=dtype)
    return reference.dequantize(sides, keys=keys, begin=begin, end=end, dtype=dtype)


def unpack(sides: Sequence[PackedSide], *, keys: bool, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and offsets of the store positions from ``begin`` to ``end``, as they are stored.

    Arguments and errors are those of `dequantize`; with per-channel scales ``begin`` and ``end`` must be
    multiples of 32.

    Returns:
        Codes ``[B, H_kv, T, D]`` uint8; scale and offset float16, ``[B, H_kv, T, groups]`` per token or
        ``[B, H_kv, T / 32, D]`` per channel.
    """
    _check(sides, begin, end)
    return reference.unpack(sides, keys=keys, begin=begin, end=end)


def _check(sides: Sequence[PackedSide], begin: int, end: int) -> None:
    if not sides or not 0 <= begin <= end:
        raise ValueError(f"begin and end must be positions of a store in order; got {begin} and {end}.")
    blocks = sum(side.words.shape[2] for side in sides)
    if not sides[0].ring and end > blocks * BLOCK:
        raise ValueError(f"the store has room for {blocks * BLOCK} positions; got end {end}.")
