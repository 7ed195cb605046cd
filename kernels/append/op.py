"""Quantise, pack and append in place: the buffers, the checks, and the choice of implementation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.append import reference
from kernels.decode_attention.op import BLOCK, PackedSide

__all__ = ["RecentStore", "append", "empty_side"]

Implementation = Literal["auto", "reference", "triton"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecentStore:
    """Sinks and newest tokens in full precision.

    The token of position p lies in slot p if it is a sink (p < ``sinks``), else in slot
    ``sinks + (p - sinks) % (R - sinks)``.

    Attributes:
        keys: ``[B, H_kv, R, D]``.
        values: Like ``keys``.
        sinks: Slots of the first tokens.
    """

    keys: Tensor
    values: Tensor
    sinks: int


def empty_side(  # noqa: PLR0913
    *,
    batch: int,
    heads: int,
    blocks: int,
    head_dim: int,
    bits: int,
    group_size: int | None,
    channel: bool,
    device: torch.device | str,
    dtype: torch.dtype = torch.int32,
) -> PackedSide:
    """A side with room for ``blocks`` blocks of 64 tokens, filled with zeros.

    Args:
        batch: Sequences.
        heads: KV heads.
        blocks: Blocks.
        head_dim: Values of a token and head, ``D``.
        bits: 8, 4, 3 or 2; 16 for a side that is not quantised.
        group_size: Channels that share a per-token scale; ``None`` for all.
        channel: Whether scales are per channel, for 32 tokens each (keys only).
        device: Where it lies.
        dtype: The model's, of a side at 16 bits.
    """
    if bits == 16:
        return PackedSide(
            words=torch.zeros((batch, heads, blocks, BLOCK * head_dim), dtype=dtype, device=device),
            scales=torch.zeros((batch, heads, blocks, 0), dtype=torch.float16, device=device),
            bits=bits,
            granularity="token",
            head_dim=head_dim,
        )
    groups = 1 if group_size is None else head_dim // group_size
    numbers = 4 * head_dim if channel else 2 * BLOCK * groups
    return PackedSide(
        words=torch.zeros((batch, heads, blocks, 2 * head_dim * bits), dtype=torch.int32, device=device),
        scales=torch.zeros((batch, heads, blocks, numbers), dtype=torch.float16, device=device),
        bits=bits,
        granularity="channel" if channel else "token",
        head_dim=head_dim,
        group_size=None if groups == 1 else group_size,
    )


def append(  # noqa: PLR0913
    keys: PackedSide,
    values: PackedSide,
    *,
    recent: RecentStore,
    new: tuple[Tensor, Tensor],
    progress: Tensor,
    keep: bool = True,
    settled: bool = False,
    implementation: Implementation = "auto",
) -> None:
    """Write new tokens into the recent buffer, and quantise and pack those that are due, in place.

    Positions count the tokens of a sequence; store positions are positions less the sinks. Due are
    the store positions from ``progress[1]`` to ``progress[2]`` (exclusive): of tokens that are new,
    from ``new``, of others from the recent buffer as it was before. Of these, what falls outside of
    the blocks of ``keys`` is left to another segment's call. Of the new tokens, sinks and the newest
    ``R - sinks`` go into the recent buffer. Codes and scales are those of
    `kernels.quantize.op.quantize`, bit for bit; a side at 16 bits takes the values as they are.

    Args:
        keys: Packed keys; with per-channel scales, due positions begin and end at multiples of 32.
        values: Packed values, the same blocks.
        recent: Sinks and newest tokens, at least as many slots as tokens that are not packed, plus
            the step's own if there are at most eight.
        new: Keys and values ``[B, H_kv, C, D]`` of the new tokens, any strides.
        progress: ``[4]`` int32 on the device of the rest: tokens before, store positions packed
            before, and packed after; the last is not used.
        keep: Whether new tokens go into the recent buffer. Of the calls for several segments only the last
            may let them: the others still read there what is due.
        settled: Whether ``progress`` was there before the work that made ``new`` began, as in a captured step: a GPU
            then reads where the tokens go while it still waits for them. Results are the same.
        implementation: ``auto`` takes the kernels on CUDA and the reference elsewhere.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(keys, values, recent, new, progress)
    if implementation == "triton" or (implementation == "auto" and progress.is_cuda):
        from kernels.append import triton_impl

        triton_impl.append(keys, values, recent, new, progress, keep=keep, settled=settled)
        return
    reference.append(keys, values, recent, new, progress, keep=keep)


def _check(
    keys: PackedSide, values: PackedSide, recent: RecentStore, new: tuple[Tensor, Tensor], progress: Tensor
) -> None:
    b, h, _, dim = new[0].shape
    slots = recent.keys.shape[2]
    if new[1].shape != new[0].shape or recent.keys.shape != (b, h, slots, dim) or slots <= recent.sinks:
        raise ValueError(
            f"new keys and values must be alike, and fit the recent buffer {list(recent.keys.shape)} with more slots "
            f"than sinks ({recent.sinks}); got {list(new[0].shape)} and {list(new[1].shape)}."
        )
    for side in (keys, values):
        if side.head_dim != dim or side.words.shape[:2] != (b, h) or not side.words.is_contiguous():
            raise ValueError(
                f"packed sides must be contiguous and hold {b} sequences of {h} heads of {dim}; got "
                f"{list(side.words.shape)} of {side.head_dim}."
            )
    if progress.shape != (4,) or progress.dtype != torch.int32:
        raise ValueError(f"progress must be int32 [4]; got {progress.dtype} {list(progress.shape)}.")
