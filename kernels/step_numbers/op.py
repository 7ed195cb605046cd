"""The numbers of one update of the cache: the checks, and the choice of implementation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.step_numbers import reference

__all__ = ["Places", "StepNumbers", "step_numbers"]

Implementation = Literal["auto", "reference", "triton"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Which tokens are kept where; positions count from 0, *store positions* from the first token after the sinks.

    Attributes:
        sinks: First tokens in full precision.
        residual: Newest tokens in full precision.
        unit: Tokens that are quantised together.
        ring: Slots for the newest tokens, one behind the sinks' slots.
        sliding: Tokens that a query sees, itself included; ``None`` without a limit.
    """

    sinks: int
    residual: int
    unit: int
    ring: int
    sliding: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepNumbers:
    """The numbers of an update of ``Q`` tokens.

    Attributes:
        progress: ``[4]`` int32: tokens before the update, store positions packed before and after it, tokens after it.
        first: ``[B, Q]`` int32, the first store position that each query sees.
        last: ``[B]`` int32, one more than the last store position that is read packed.
        recent: ``[B, Q, sinks + ring]`` bool, the slots that each query sees.
        exact_first: ``[B, Q]`` int32, the first position that each query sees.
        exact_last: ``[B, Q]`` int32, one more than the last.
    """

    progress: Tensor
    first: Tensor
    last: Tensor
    recent: Tensor
    exact_first: Tensor
    exact_last: Tensor


def step_numbers(
    counters: Tensor, padding: Tensor, *, count: int, places: Places, implementation: Implementation = "auto"
) -> StepNumbers:
    """Work out what an update reads and writes from where the cache stands.

    Args:
        counters: ``[2]`` int32: store positions that are packed, and tokens, before the update.
        padding: ``[B]`` int32, positions at the front of each sequence that nobody sees.
        count: Tokens of the update, Q.
        places: Which tokens are kept where.
        implementation: ``auto`` takes the kernel on CUDA and the reference elsewhere.

    Raises:
        ValueError: If the tensors are not int32 of these shapes.
    """
    if counters.shape != (2,) or padding.ndim != 1 or {counters.dtype, padding.dtype} != {torch.int32}:
        raise ValueError(
            f"counters and padding must be int32 [2] and [B]; got {counters.dtype} {list(counters.shape)} and "
            f"{padding.dtype} {list(padding.shape)}."
        )
    if implementation == "triton" or (implementation == "auto" and counters.is_cuda):
        from kernels.step_numbers import triton_impl

        return StepNumbers(**triton_impl.step_numbers(counters, padding, count, places))
    return StepNumbers(**reference.step_numbers(counters, padding, count, places))
