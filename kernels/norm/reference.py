"""Residual sum and norm in plain PyTorch: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from kernels.norm.op import Norm


def add_norm(
    hidden: Tensor, parts: Tensor | None, norm: Norm, bias: Tensor | None, inner: Norm | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.norm.op.add_norm`."""
    if parts is not None:
        hidden = hidden + made(parts, bias, inner, like=hidden)
    return hidden, normed(hidden, norm)


def made(parts: Tensor, bias: Tensor | None, inner: Norm | None, *, like: Tensor) -> Tensor:
    """The sum of the parts and a bias, rounded once to the dtype of ``like``, and normed if there is a norm."""
    total = parts.float().sum(0)
    total = total if bias is None else total + bias.float()
    rounded = total.to(like.dtype)
    return rounded if inner is None else normed(rounded, inner)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """``x`` over its root mean square, times the weight."""
    wide = x.float()
    wide = wide * (wide.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
    if norm.offset:
        return (wide * (1.0 + norm.weight.float())).to(x.dtype)
    return norm.weight * wide.to(x.dtype)
