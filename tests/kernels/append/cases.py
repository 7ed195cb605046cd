"""Random histories appended piece by piece, for the reference, the interpreter and the GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.append.op import RecentStore, append, empty_side
from kernels.decode_attention.op import PackedSide

RESIDUAL = 40
"""Tokens that are not packed yet, at least, once there are as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a history looks like, and in which pieces it comes."""

    k_bits: int = 4
    v_bits: int = 4
    channel: bool = False
    k_group: int | None = None
    v_group: int | None = None
    head_dim: int = 64
    batch: int = 2
    heads: int = 2
    sinks: int = 0
    pieces: tuple[int, ...] = (100, 1, 1, 5, 70)
    blocks: int = 4
    ring: bool = False
    second: int = 0
    size: float = 1.0
    dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        """A readable test id."""
        kind = "channel" if self.channel else f"token{self.k_group}"
        return (
            f"K{self.k_bits}V{self.v_bits}-{kind}-{self.v_group}-d{self.head_dim}-s{self.sinks}-{self.size:g}"
            f"{'-ring' if self.ring else ''}{'-two' if self.second else ''}-{str(self.dtype)[6:]}-{sum(self.pieces)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stores:
    """The buffers of a history, one or two segments."""

    keys: tuple[PackedSide, ...]
    values: tuple[PackedSide, ...]
    recent: RecentStore

    def tensors(self) -> list[Tensor]:
        """Everything that is written."""
        sides = [x for side in (*self.keys, *self.values) for x in (side.words, side.scales)]
        return [*sides, self.recent.keys, self.recent.values]


def stores(shape: Shape, device: str = "cpu") -> Stores:
    """Empty buffers; the recent ones hold NaN."""
    both = []
    for bits, group, channel in ((shape.k_bits, shape.k_group, shape.channel), (shape.v_bits, shape.v_group, False)):
        segments = []
        for first, blocks in ((0, shape.blocks), (shape.blocks, shape.second)):
            side = empty_side(
                batch=shape.batch,
                heads=shape.heads,
                blocks=blocks,
                head_dim=shape.head_dim,
                bits=bits,
                group_size=group,
                channel=channel,
                device=device,
                dtype=shape.dtype,
            )
            if blocks:
                segments.append(replace(side, first_block=first, ring=shape.ring))
        both.append(tuple(segments))
    slots = shape.sinks + RESIDUAL + 32 + 8
    size = (shape.batch, shape.heads, slots, shape.head_dim)
    held = [torch.full(size, torch.nan, dtype=shape.dtype, device=device) for _ in range(2)]
    return Stores(keys=both[0], values=both[1], recent=RecentStore(keys=held[0], values=held[1], sinks=shape.sinks))


def history(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values ``[B, H, T, D]``, views of ``[B, T, H, D]``, with an outlier channel and a constant token."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch, sum(shape.pieces), shape.heads, shape.head_dim)
    both = [torch.randn(size, generator=generator) * shape.size for _ in range(2)]
    for x in both:
        x[..., 3] *= 30
        x[:, 2] = 0.7 * shape.size
    limit = torch.finfo(shape.dtype).max
    return tuple(x.clamp(-limit, limit).to(shape.dtype).transpose(1, 2) for x in both)


def progress(shape: Shape) -> Iterator[tuple[int, int, int, int]]:
    """Tokens before, number of new ones, store positions packed before and after, for each piece."""
    before = packed = 0
    for count in shape.pieces:
        due = max(packed, before + count - shape.sinks - RESIDUAL)
        due = due // 32 * 32 if shape.channel else due
        yield before, count, packed, due
        before, packed = before + count, due


def fill(
    shape: Shape, both: tuple[Tensor, Tensor], *, device: str = "cpu", implementation: str = "reference"
) -> Stores:
    """Append a history piece by piece."""
    held = stores(shape, device)
    keys, values = (x.transpose(1, 2).to(device).transpose(1, 2) for x in both)
    for before, count, begin, end in progress(shape):
        numbers = torch.tensor([before, begin, end, 0], dtype=torch.int32, device=device)
        new = (keys[:, :, before : before + count], values[:, :, before : before + count])
        for k, v in zip(held.keys, held.values, strict=True):
            last = k is held.keys[-1]
            # a copy from the host is there when it returns
            options = {"keep": last, "settled": count == 1, "implementation": implementation}
            append(k, v, recent=held.recent, new=new, progress=numbers, **options)
    return held


def differences(a: Stores, b: Stores) -> list[int]:
    """How many words, scales and recent values differ, NaN equal to NaN."""
    pairs = [(x.cpu(), y.cpu()) for x, y in zip(a.tensors(), b.tensors(), strict=True)]
    return [int(((x != y) & ~(x.isnan() & y.isnan())).sum()) for x, y in pairs]


SMALL = (
    Shape(k_bits=8, v_bits=3, sinks=4),
    Shape(k_bits=3, v_bits=2, k_group=32, v_group=32, pieces=(70, 1, 3)),
    Shape(k_bits=2, v_bits=4, channel=True, pieces=(100, *(1,) * 3, 30, 8), sinks=2),
    Shape(k_bits=3, v_bits=8, channel=True, pieces=(70, 6, 6, 90), v_group=32),
    Shape(k_bits=4, v_bits=4, ring=True, blocks=3, pieces=(300, 4, 61), batch=1),
    Shape(k_bits=4, v_bits=8, head_dim=80, blocks=1, second=2, pieces=(100, 8, 8), batch=1),
    Shape(k_bits=8, v_bits=4, channel=True, head_dim=80, pieces=(80,), batch=1, heads=1),
    Shape(k_bits=2, v_bits=2, dtype=torch.float32, size=1e6, pieces=(90, 2), heads=1),
    Shape(k_bits=4, v_bits=2, dtype=torch.bfloat16, size=1e-6, pieces=(1, 1, 80), v_group=16, heads=1),
    Shape(k_bits=16, v_bits=4, sinks=3, second=2, blocks=1, pieces=(100, 1, 4, 70)),
    Shape(k_bits=2, v_bits=16, channel=True, pieces=(100, 30, 8), dtype=torch.bfloat16),
    Shape(k_bits=16, v_bits=8, ring=True, blocks=3, pieces=(300, 4, 61), batch=1, heads=1),
)
"""Shapes small enough for the interpreter."""
