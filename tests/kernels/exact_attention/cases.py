"""Shapes of exact attention and what it must give, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.exact_attention.op import append_exact

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One case; ``sliding`` makes the buffer a ring, ``cuts`` are the positions at which another segment begins."""

    tokens: int = 300
    batch: int = 2
    kv_heads: int = 2
    group: int = 4
    queries: int = 1
    head_dim: int = 64
    sliding: int | None = None
    padded: bool = True
    cuts: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """A readable id."""
        parts = [f"{self.batch}x{self.tokens}", f"{self.kv_heads}x{self.group}x{self.queries}", f"d{self.head_dim}"]
        parts += [str(self.sliding or "full"), *map(str, self.cuts), str(self.dtype).removeprefix("torch.")]
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Arguments and the expected output ``[B, H, Q, D]`` in float64."""

    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    first: Tensor
    last: Tensor
    ring: bool
    expected: Tensor


SMALL = (
    Shape(tokens=70, head_dim=32),
    Shape(tokens=1, batch=1, padded=False),
    Shape(tokens=333, queries=3, group=6, head_dim=80, batch=1),
    Shape(tokens=200, sliding=70, queries=2),
    Shape(tokens=333, queries=3, group=6, batch=3, cuts=(100, 128, 330)),
    Shape(tokens=90, cuts=(64, 150)),
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
    capacity = max(total + 9, *shape.cuts, 0) + 5 if shape.sliding is None else shape.sliding + 8
    held = [torch.full((b, shape.kv_heads, capacity, dim), torch.nan, dtype=shape.dtype) for _ in range(2)]
    at = torch.arange(max(0, total - capacity), total)
    for buffer, states in zip(held, (k, v), strict=True):
        buffer[:, :, at % capacity] = states[:, :, at]
    position = torch.arange(total)
    mask = (position >= first[..., None]) & (position < last[..., None])
    return Case(
        query=query,
        keys=cut(held[0], shape.cuts),
        values=cut(held[1], shape.cuts),
        first=first.to(torch.int32).contiguous(),
        last=last.to(torch.int32).contiguous(),
        ring=shape.sliding is not None,
        expected=_attend(query, k, v, mask),
    )


def cut(buffer: Tensor, cuts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The segments of a buffer, each in memory of its own."""
    sizes = [end - begin for begin, end in zip((0, *cuts), (*cuts, buffer.shape[2]), strict=True)]
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in buffer.split(sizes, dim=2))


def _attend(query: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    group = query.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = query.double() @ k.transpose(2, 3) * query.shape[3] ** -0.5
    return scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v


def error(out: Tensor, expected: Tensor) -> float:
    """Relative error by norms; infinite if anything is not finite."""
    out = out.cpu().double()
    return float((out - expected).norm() / expected.norm()) if bool(out.isfinite().all()) else float("inf")


def appended(
    cuts: tuple[int, ...], *, count: int, begin: int, ring: bool, device: str, implementation: str
) -> tuple[Tensor, ...]:
    """Segments of zeros of 64 tokens in all, after ``count`` random tokens were appended at ``begin``; keys, values."""
    generator = torch.Generator().manual_seed(count)
    new = tuple(torch.randn(2, count, 3, 24, generator=generator).to(device).transpose(1, 2) for _ in range(2))
    held = [cut(torch.zeros(2, 3, 64, 24, device=device), cuts) for _ in range(2)]
    progress = torch.tensor([begin, 0, 0, 0], dtype=torch.int32, device=device)
    origin = 0
    for keys, values in zip(*held, strict=True):
        append_exact(keys, values, new=new, progress=progress, origin=origin, ring=ring, implementation=implementation)
        origin += keys.shape[2]
    whole = [torch.cat(side, dim=2).cpu() for side in held]
    at = torch.arange(begin, begin + count) % 64
    wanted = [torch.zeros(2, 3, 64, 24) for _ in range(2)]
    for side, fresh in zip(wanted, new, strict=True):
        side[:, :, at] = fresh.cpu()
    return (*whole, *wanted)


APPENDS = (
    ((), 1, 5, False), ((), 9, 60, True), ((), 40, 90, True), ((20, 50), 3, 19, False), ((20, 50), 1, 50, False),
    ((20, 50), 40, 15, False), ((20,), 64, 0, False),
)  # fmt: skip
"""Cuts, tokens, first position, and whether the buffer is a ring."""
