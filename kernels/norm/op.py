"""Residual sum and norm: the checks, and the choice of implementation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.norm import reference

__all__ = ["Norm", "add_norm"]

Implementation = Literal["auto", "reference", "triton"]

_MAX_WIDTH = 16384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A root-mean-square norm.

    Attributes:
        weight: ``[D]`` in the dtype of what is normed.
        eps: Added to the mean of squares.
        offset: Whether the factor is ``1 + weight`` and everything is rounded at the end (Gemma), or ``weight``
            times the rounded norm (Llama and most others).
    """

    weight: Tensor
    eps: float
    offset: bool = False


def add_norm(
    hidden: Tensor,
    parts: Tensor | None,
    *,
    norm: Norm,
    bias: Tensor | None = None,
    inner: Norm | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Add what a block of a model made to its residual stream, and norm the sum for the next block.

    ``sum = hidden + inner(parts.sum(0) + bias)`` and ``norm(sum)``, rounded to the dtype of ``hidden``
    where a model rounds that computes these one after the other; in float32 in between.

    Args:
        hidden: ``[B, D]``.
        parts: ``[S, B, D]`` as `kernels.linear.op.linear` gives them; ``None`` norms ``hidden`` itself.
        norm: Of the sum.
        bias: ``[D]``, added to the parts.
        inner: Norm of what is added (Gemma's second norm of a block).
        implementation: ``auto`` takes the kernel on CUDA and the reference elsewhere.

    Returns:
        The sum and its norm, ``[B, D]`` each, in the dtype of ``hidden``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    _check(hidden, parts, norm, bias, inner)
    if implementation == "triton" or (implementation == "auto" and _is_fit(hidden)):
        from kernels.norm import triton_impl

        return triton_impl.add_norm(hidden, parts, norm, bias, inner)
    return reference.add_norm(hidden, parts, norm, bias, inner)


def _is_fit(hidden: Tensor) -> bool:
    return hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16) and hidden.shape[1] <= _MAX_WIDTH


def _check(hidden: Tensor, parts: Tensor | None, norm: Norm, bias: Tensor | None, inner: Norm | None) -> None:
    if hidden.ndim != 2 or (parts is not None and (parts.ndim != 3 or parts.shape[1:] != hidden.shape)):
        found = None if parts is None else list(parts.shape)
        raise ValueError(f"hidden and parts must be [B, D] and [S, B, D]; got {list(hidden.shape)} and {found}.")
    for vector in (norm.weight, bias, inner.weight if inner else None):
        if vector is not None and (vector.shape != hidden.shape[1:] or vector.dtype != hidden.dtype):
            raise ValueError(
                f"weights and bias must be [{hidden.shape[1]}] of {hidden.dtype}; got {list(vector.shape)} of "
                f"{vector.dtype}."
            )
