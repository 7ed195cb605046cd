"""Filled stores, and what they hold according to the quantiser."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from kernels.append.op import RecentStore, append, empty_side
from kernels.decode_attention.op import PackedSide
from kernels.quantize.op import Packed, quantize


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One store: two segments (the first of ``split`` blocks), or a ring of ``ring`` blocks."""

    key_bits: int = 4
    value_bits: int = 4
    head_dim: int = 64
    group: int | None = None
    channel: bool = False
    tokens: int = 224
    split: int = 2
    ring: int | None = None

    @property
    def name(self) -> str:
        """A readable id."""
        kind = "channel" if self.channel else f"token{self.group or ''}"
        return f"K{self.key_bits}V{self.value_bits}-d{self.head_dim}-{kind}-{self.tokens}-{self.ring or self.split}"


SHAPES = (
    *(Shape(key_bits=k, value_bits=v, channel=c) for k, v in ((8, 2), (4, 3), (3, 4), (2, 8)) for c in (False, True)),
    Shape(head_dim=128, group=32, tokens=131),
    Shape(head_dim=80, key_bits=8),
    Shape(head_dim=96, key_bits=2, value_bits=2, channel=True),
    Shape(ring=3, tokens=500),
    Shape(ring=4, tokens=480, channel=True, key_bits=3),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Filled:
    """Segments, the oldest position that is there, and all tokens quantised at once."""

    keys: list[PackedSide]
    values: list[PackedSide]
    oldest: int
    expected: tuple[Packed, Packed]


def fill(shape: Shape, *, seed: int = 0) -> Filled:
    """Fill a store in two appends with outliers and a constant group."""
    generator = torch.Generator().manual_seed(seed)
    size = (2, 3, shape.tokens, shape.head_dim)
    raw = [torch.randn(size, generator=generator) for _ in range(2)]
    raw[0][..., 5] *= 40
    raw[1][:, :, 64:96] = 0.25
    blocks = [shape.ring] if shape.ring else [shape.split, -(-shape.tokens // 64) - shape.split]
    sides: tuple[list[PackedSide], list[PackedSide]] = ([], [])
    for index, (bits, channel) in enumerate(((shape.key_bits, shape.channel), (shape.value_bits, False))):
        group = None if channel else shape.group
        for first, count in zip((0, shape.split), blocks, strict=False):
            made = empty_side(
                batch=2, heads=3, blocks=count, head_dim=shape.head_dim, bits=bits, group_size=group, channel=channel,
                device="cpu", dtype=torch.float32,
            )  # fmt: skip
            sides[index].append(replace(made, first_block=first, ring=shape.ring is not None))
    recent = RecentStore(
        keys=torch.zeros(2, 3, 40, shape.head_dim), values=torch.zeros(2, 3, 40, shape.head_dim), sinks=0
    )
    # With a ring, a call may not bring more than there is room for.
    steps = [0, 96, *range(128, shape.tokens, 32), shape.tokens]
    for begin, end in pairwise(steps):
        new: tuple[Tensor, Tensor] = (raw[0][:, :, begin:end], raw[1][:, :, begin:end])
        progress = torch.tensor([begin, begin, end, end], dtype=torch.int32)
        for keys, values in zip(*sides, strict=True):
            append(keys, values, recent=recent, new=new, progress=progress, implementation="reference")
    last = -(-shape.tokens // 64)
    return Filled(
        keys=sides[0],
        values=sides[1],
        oldest=max(0, last - shape.ring) * 64 if shape.ring else 0,
        expected=(
            _quantized(raw[0], shape.key_bits, shape.group, channel=shape.channel),
            _quantized(raw[1], shape.value_bits, shape.group, channel=False),
        ),
    )


def _quantized(x: Tensor, bits: int, group: int | None, *, channel: bool) -> Packed:
    size = 32 if channel else group or x.shape[3]
    return quantize(x, bits=min(bits, 8), granularity="channel" if channel else "token", group_size=size)
