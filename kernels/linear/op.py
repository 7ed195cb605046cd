"""Products of a few rows with a large weight: the checks, and the choice of implementation."""

from typing import Literal

import torch
from torch import Tensor, nn

from kernels.linear import reference

__all__ = ["MAX_ROWS", "gated_linear", "linear"]

Implementation = Literal["auto", "reference", "triton"]
Activation = Literal["silu", "gelu_tanh"]

MAX_ROWS = 64
"""Rows that the kernel takes at once; more go through torch's own product."""

_ALIGNED = 8


def linear(x: Tensor, weight: Tensor, *, whole: bool = False, implementation: Implementation = "auto") -> Tensor:
    """``x weight^T`` in parts, whose sum is the product.

    Splitting the sum over the inner side keeps a whole GPU busy; who reads the product adds the parts
    in float32 (`kernels.norm.op.add_norm`, `kernels.rotary.op.rotate`), so that it is rounded once.

    Args:
        x: ``[B, K]``.
        weight: ``[N, K]``, contiguous, in the dtype of ``x``.
        whole: Whether there is to be one part, in the dtype of ``x``.
        implementation: ``auto`` takes the kernel on CUDA for half precision and up to `MAX_ROWS` rows, torch's own
            product elsewhere.

    Returns:
        ``[S, B, N]``, float32 or the dtype of ``x``; S is for the implementation to choose.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(x, weight)
    if implementation == "triton" or (implementation == "auto" and _is_fit(x)):
        from kernels.linear import triton_impl

        return triton_impl.linear(x, weight, whole=whole)
    if implementation == "auto":
        return nn.functional.linear(x, weight)[None]
    return reference.linear(x, weight, whole=whole)


def gated_linear(
    x: Tensor, weight: Tensor, *, activation: Activation, implementation: Implementation = "auto"
) -> Tensor:
    """``act(x gate^T) * (x up^T)``, with the rounding of a model that computes them one after the other.

    Args:
        x: ``[B, K]``.
        weight: ``[2 N, K]``, contiguous: the rows of the gate, then those of the other factor.
        activation: ``silu``, or GELU in its tanh form.
        implementation: As for `linear`.

    Returns:
        ``[B, N]`` in the dtype of ``x``.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(x, weight)
    if weight.shape[0] % 2:
        raise ValueError(f"weight must hold as many rows for the gate as for the other factor; got {weight.shape[0]}.")
    if implementation == "triton" or (implementation == "auto" and _is_fit(x)):
        from kernels.linear import triton_impl

        return triton_impl.gated_linear(x, weight, activation=activation)
    if implementation == "auto":
        return reference.gated(nn.functional.linear(x, weight), activation)
    return reference.gated_linear(x, weight, activation=activation)


def _is_fit(x: Tensor) -> bool:
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and x.shape[0] <= MAX_ROWS and x.shape[1] % _ALIGNED == 0


def _check(x: Tensor, weight: Tensor) -> None:
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x and weight must be [B, K] and [N, K] of one dtype; got {list(x.shape)} {x.dtype} and "
            f"{list(weight.shape)} {weight.dtype}."
        )
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous; got a view. Make it so once: weight.contiguous().")
