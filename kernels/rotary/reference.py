"""Queries, keys and values out of one product in plain PyTorch: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.norm.reference import made, normed

if TYPE_CHECKING:
    from kernels.norm.op import Norm
    from kernels.rotary.op import Heads


def rotate(parts: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.rotary.op.rotate`."""
    whole = made(parts, heads.bias, None, like=cos).view(parts.shape[1], -1, 1, heads.dim)
    end = heads.queries + heads.keys
    queries = _turned(whole[:, : heads.queries], heads.query_norm, cos, sin)
    keys = _turned(whole[:, heads.queries : end], heads.key_norm, cos, sin)
    return queries, keys, whole[:, end:].contiguous()


def _turned(x: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
    x = x if norm is None else normed(x, norm)
    first, second = x.chunk(2, dim=-1)
    half = torch.cat((-second, first), dim=-1)
    return x * cos[:, None, None] + half * sin[:, None, None]
