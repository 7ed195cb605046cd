"""Queries, keys and values of a step out of one product: the checks, and the choice of implementation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.norm.op import Norm
from kernels.rotary import reference

__all__ = ["Heads", "rotate"]

Implementation = Literal["auto", "reference", "triton"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """How the columns of a product are heads: those of the queries, of the keys, then of the values.

    Attributes:
        queries: Query heads.
        keys: Key heads, as many as value heads.
        dim: Values of a head, ``D``.
        bias: ``[(queries + 2 keys) D]``, added to the product; ``None`` for none.
        query_norm: Norm of each query head, before the rotation (Gemma 3, Qwen 3); ``None`` for none.
        key_norm: Likewise of the keys.
    """

    queries: int
    keys: int
    dim: int
    bias: Tensor | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def width(self) -> int:
        """Columns of the product."""
        return (self.queries + 2 * self.keys) * self.dim


def rotate(
    parts: Tensor, cos: Tensor, *, sin: Tensor, heads: Heads, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the parts and the bias, norm the heads, and rotate queries and keys by their positions.

    ``x cos + half(x) sin`` with the two halves of a head as pairs (``half`` is the second, negated, then the
    first), rounded to the dtype of ``cos`` where a model rounds that computes these one after the other.

    Args:
        parts: ``[S, B, W]`` as `kernels.linear.op.linear` gives them, W the heads' width.
        cos: ``[B, D]`` in the model's dtype.
        sin: Like ``cos``.
        heads: How the columns are heads.
        implementation: ``auto`` takes the kernel on CUDA and the reference elsewhere.

    Returns:
        Queries ``[B, H, 1, D]``, keys and values ``[B, H_kv, 1, D]``, each contiguous.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(parts, cos, sin, heads)
    if implementation == "triton" or (implementation == "auto" and _is_fit(cos)):
        from kernels.rotary import triton_impl

        return triton_impl.rotate(parts, cos, sin, heads)
    return reference.rotate(parts, cos, sin, heads)


def _is_fit(cos: Tensor) -> bool:
    return cos.is_cuda and cos.dtype in (torch.bfloat16, torch.float16)


def _check(parts: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> None:
    if parts.ndim != 3 or parts.shape[2] != heads.width or heads.dim % 2:
        raise ValueError(
            f"parts must be [S, B, {heads.width}] for {heads.queries} query and {heads.keys} key heads of an even "
            f"size; got {list(parts.shape)} and heads of {heads.dim}."
        )
    expected = (parts.shape[1], heads.dim)
    if cos.shape != expected or sin.shape != expected or cos.dtype != sin.dtype:
        raise ValueError(f"cos and sin must be {list(expected)}; got {list(cos.shape)} and {list(sin.shape)}.")
