"""Shapes of exact attention and what it must give, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One case; ``sliding`` makes the buffer a ring."""

    tokens: int = 300
    batch: int = 2
    kv_heads: int = 2
    group: int = 4
    queries: int = 1
    head_dim: int = 64
    sliding: int | None = None
    padded: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """A readable id."""
        parts = [f"{self.batch}x{self.tokens}", f"{self.kv_heads}x{self.group}x{self.queries}", f"d{self.head_dim}"]
        return "-".join([*parts, str(self.sliding or "full"), str(self.dtype).removeprefix("torch.")])


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Arguments and the expected output ``[B, H, Q, D]`` in float64."""

    query: Tensor
    keys: Tensor
    values: Tensor
    first: Tensor
    last: Tensor
    ring: bool
    expected: Tensor


SMALL = (
    Shape(tokens=70, head_dim=32),
    Shape(tokens=1, batch=1, padded=False),
    Shape(tokens=333, queries=3, group=6, head_dim=80, batch=1),
    Shape(tokens=200, sliding=70, queries=2),
)


def make(shape: Shape, *, seed: int = 0) -> Case:
    """Random keys with an outlier channel; slots that hold nothing are NaN."""
    generator = torch.Generator().manual_seed(seed)
    b, total, dim = shape.batch, shape.tokens + shape.queries - 1, shape.head_dim

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(shape.dtype)

    query = draw(b, shape.kv_heads * shape.group, shape.queries, dim)
    k, v = draw(b, shape.kv_heads, total, dim), draw(b, shape.kv_heads, total, dim)
    k[..., 3] += 5
    asked = torch.arange(shape.tokens - 1, total)
    padding = torch.tensor([0 if not shape.padded else (7 * i) % shape.tokens for i in range(b)])
    first = padding[:, None].expand(b, shape.queries)
    if shape.sliding is not None:
        first = torch.maximum(first, asked - (shape.sliding - 1))
    last = (asked + 1).expand(b, -1)
    capacity = total + 9 if shape.sliding is None else shape.sliding + 8
    held = [torch.full((b, shape.kv_heads, capacity, dim), torch.nan, dtype=shape.dtype) for _ in range(2)]
    at = torch.arange(max(0, total - capacity), total)
    for buffer, states in zip(held, (k, v), strict=True):
        buffer[:, :, at % capacity] = states[:, :, at]
    position = torch.arange(total)
    mask = (position >= first[..., None]) & (position < last[..., None])
    return Case(
        query=query,
        keys=held[0],
        values=held[1],
        first=first.to(torch.int32).contiguous(),
        last=last.to(torch.int32).contiguous(),
        ring=shape.sliding is not None,
        expected=_attend(query, k, v, mask),
    )


def _attend(query: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    group = query.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = query.double() @ k.transpose(2, 3) * query.shape[3] ** -0.5
    return scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v


def error(out: Tensor, expected: Tensor) -> float:
    """Relative error by norms; infinite if anything is not finite."""
    out = out.cpu().double()
    return float((out - expected).norm() / expected.norm()) if bool(out.isfinite().all()) else float("inf")
