"""Random decode-attention cases and their float64 answer, for the reference, the twin and the GPU kernel."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.decode_attention.op import PackedSide, Recent, Visible, pack_keys, pack_values

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Largest relative error (norms) of an output of each dtype; as in kernels/README.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a case looks like."""

    k_bits: int = 4
    v_bits: int = 4
    channel: bool = False
    head_dim: int = 128
    kv_heads: int = 2
    group: int = 4
    queries: int = 1
    tokens: int = 200
    recent: int = 3
    batch: int = 2
    sliding: int | None = None
    key_scale: float = 1.0
    value_scale: float = 1.0
    k_group: int | None = None
    v_group: int | None = None
    ring: int | None = None
    cuts: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        """A readable test id."""
        kind = "channel" if self.channel else "token"
        kind += f"-{self.k_group}-{self.v_group}" if self.k_group or self.v_group else ""
        kind += f"-ring{self.ring}" if self.ring else f"-cut{self.cuts}" if self.cuts else ""
        return (
            f"K{self.k_bits}V{self.v_bits}-{kind}-d{self.head_dim}-g{self.group}-q{self.queries}-t{self.tokens}"
            f"-r{self.recent}-{self.value_scale:g}-{str(self.dtype)[6:]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """The arguments of one call, and what float64 says it returns."""

    query: Tensor
    keys: tuple[PackedSide, ...]
    values: tuple[PackedSide, ...]
    visible: Visible
    recent: Recent | None
    expected: Tensor


def side(
    shape: Shape, bits: int, size: float, *, channel: bool, group: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scale, offset and the float64 values they stand for; of an unquantised side only the values count."""
    padded = -(-shape.tokens // 32) * 32 if channel else shape.tokens
    codes = torch.randint(
        0, 2 ** min(bits, 8), (shape.batch, shape.kv_heads, padded, shape.head_dim), dtype=torch.uint8
    )
    extent = (padded // 32, shape.head_dim) if channel else (padded, shape.head_dim // (group or shape.head_dim))
    scale = ((2 + 3 * torch.rand(shape.batch, shape.kv_heads, *extent)) / 2**bits * size).half()
    offset = (-(1.5 + torch.rand(scale.shape)) * size).half()
    if bits == 16:
        exact = (torch.randn(shape.batch, shape.kv_heads, shape.tokens, shape.head_dim) * size).to(shape.dtype)
        return codes, scale, offset, exact.double()
    if channel:
        factor, added = (x.double().repeat_interleave(32, dim=2) for x in (scale, offset))
    else:
        factor, added = (x.double().repeat_interleave(group or shape.head_dim, dim=3) for x in (scale, offset))
    return codes, scale, offset, codes.double() * factor + added


def poison(scale: Tensor, last: Tensor, *, tokens: int) -> Tensor:
    """NaN where no token has been written; one scale covers ``tokens`` of them."""
    begin = torch.arange(scale.shape[2]) * tokens
    unwritten = (begin >= last[:, None])[:, None, :, None]
    return scale.masked_fill(unwritten, torch.nan)


def unquantised(values: Tensor, last: Tensor, dtype: torch.dtype) -> PackedSide:
    """A side at 16 bits that holds ``values [B, H, T, D]``, and NaN where no token has been written."""
    unwritten = torch.arange(values.shape[2]) >= last[:, None]
    held = values.masked_fill(unwritten[:, None, :, None], torch.nan)
    held = torch.nn.functional.pad(held, (0, 0, 0, -held.shape[2] % 64), value=torch.nan)
    words = held.unflatten(2, (-1, 64)).flatten(3).to(dtype)
    scales = torch.zeros(*words.shape[:3], 0, dtype=torch.float16)
    return PackedSide(words=words, scales=scales, bits=16, granularity="token", head_dim=values.shape[3])


def placed(shape: Shape, whole: PackedSide, last: Tensor) -> tuple[PackedSide, ...]:
    """The blocks of ``whole`` as a ring, or cut into segments."""
    if shape.ring is not None:
        parts = []
        for x in (whole.words, whole.scales):
            part = torch.zeros(*x.shape[:2], shape.ring, x.shape[3], dtype=x.dtype)
            for b, tokens in enumerate(last.tolist()):
                newest = (tokens - 1) // 64
                for block in range(max(0, newest - shape.ring + 1), newest + 1):
                    part[b, :, block % shape.ring] = x[b, :, block]
            parts.append(part)
        return (replace(whole, words=parts[0], scales=parts[1], ring=True),)
    ends = (*shape.cuts, whole.words.shape[2])
    starts = (0, *shape.cuts)
    return tuple(
        replace(
            whole, words=whole.words[:, :, a:b].contiguous(), scales=whole.scales[:, :, a:b].contiguous(), first_block=a
        )
        for a, b in zip(starts, ends, strict=True)
    )


def make(shape: Shape, seed: int = 0) -> Case:
    """A case on the CPU."""
    torch.manual_seed(seed)
    channel = shape.channel and shape.k_bits < 16
    kc, ks, ko, k = side(shape, shape.k_bits, shape.key_scale, channel=channel, group=shape.k_group)
    vc, vs, vo, v = side(shape, shape.v_bits, shape.value_scale, channel=False, group=shape.v_group)
    k, missing = k[:, :, : shape.tokens], -shape.tokens % 32 if channel else 0
    if missing:
        pad = (0, 0, 0, missing)
        vc = torch.nn.functional.pad(vc, pad)
        vs, vo = (torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in (vs, vo))
    last = torch.randint(shape.tokens // 2, shape.tokens + 1, (shape.batch,), dtype=torch.int32)
    last[0] = shape.tokens
    first = torch.randint(0, max(1, shape.tokens // 3), (shape.batch, 1), dtype=torch.int32).repeat(1, shape.queries)
    first[0] = 0
    if shape.sliding is not None:
        first = (last[:, None] - shape.sliding + torch.arange(shape.queries, dtype=torch.int32)).clamp_min(0)
    at = torch.arange(shape.tokens)
    mask = (at >= first[..., None]) & (at < last[:, None, None])
    query = torch.randn(shape.batch, shape.kv_heads * shape.group, shape.queries, shape.head_dim).to(shape.dtype)
    recent = None
    if shape.recent:
        size = (shape.batch, shape.kv_heads, shape.recent, shape.head_dim)
        rk = (torch.randn(size) * shape.key_scale).to(shape.dtype)
        rv = (torch.randn(size) * shape.value_scale).to(shape.dtype)
        seen = torch.rand(shape.batch, shape.queries, shape.recent) > 0.3
        hidden = ~seen.any(dim=1)[:, None, :, None]
        recent = Recent(keys=rk.masked_fill(hidden, torch.nan), values=rv.masked_fill(hidden, torch.nan), mask=seen)
        k, v = torch.cat((k, rk.double()), dim=2), torch.cat((v, rv.double()), dim=2)
        mask = torch.cat((mask, seen), dim=2)
    grouped = query.double().reshape(shape.batch, shape.kv_heads, shape.group * shape.queries, shape.head_dim)
    scores = grouped @ k.transpose(2, 3) * shape.head_dim**-0.5
    seen = mask[:, None, None].expand(-1, -1, shape.group, -1, -1).flatten(2, 3)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    ks, ko = (poison(x, last, tokens=32 if channel else 1) for x in (ks, ko))
    vs, vo = (poison(x, last, tokens=1) for x in (vs, vo))
    held = [
        unquantised(exact[:, :, : shape.tokens], last, shape.dtype)
        if bits == 16
        else pack(codes, scale, offset, bits=bits)
        for bits, exact, pack, codes, scale, offset in (
            (shape.k_bits, k, pack_keys, kc, ks, ko),
            (shape.v_bits, v, pack_values, vc, vs, vo),
        )
    ]
    return Case(
        query=query,
        keys=placed(shape, held[0], last),
        values=placed(shape, held[1], last),
        visible=Visible(first=first.to(torch.int32), last=last),
        recent=recent,
        expected=(weights @ v).reshape(query.shape),
    )


def moved(case: Case, device: str) -> Case:
    """The case on ``device``, every tensor with the strides that it has."""
    recent = case.recent
    if recent is not None:
        recent = Recent(keys=_to(recent.keys, device), values=_to(recent.values, device), mask=recent.mask.to(device))
    return replace(
        case,
        query=_to(case.query, device),
        keys=tuple(_side_to(side, device) for side in case.keys),
        values=tuple(_side_to(side, device) for side in case.values),
        visible=replace(case.visible, first=case.visible.first.to(device), last=case.visible.last.to(device)),
        recent=recent,
    )


def _side_to(side: PackedSide, device: str) -> PackedSide:
    return replace(side, words=side.words.to(device), scales=side.scales.to(device))


def _to(x: Tensor, device: str) -> Tensor:
    """``x`` on ``device`` with the strides that it has, which a copy of a view would not keep."""
    if x.device.type == device:
        return x
    room = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    held = torch.as_strided(x, (room,), (1,)).to(device)
    return torch.as_strided(held, x.shape, x.stride())


def error(out: Tensor, expected: Tensor) -> float:
    """Relative error by norms; NaN stays NaN."""
    difference = (out.detach().cpu().double() - expected).norm()
    size = expected.norm()
    return (difference / size if size > 0 else difference).item()


SMALL = (
    Shape(k_bits=8, v_bits=4, head_dim=64, tokens=100, group=3),
    Shape(k_bits=4, v_bits=2, head_dim=64, tokens=63, queries=2),
    Shape(k_bits=3, v_bits=8, head_dim=64, tokens=65, channel=True),
    Shape(k_bits=2, v_bits=3, head_dim=64, tokens=40, group=1, sliding=17, queries=2),
    Shape(k_bits=2, v_bits=2, head_dim=96, tokens=64, channel=True, recent=0),
    Shape(k_bits=4, v_bits=4, head_dim=64, tokens=1, recent=1),
    Shape(k_bits=4, v_bits=2, head_dim=64, tokens=70, k_group=32, v_group=16),
    Shape(k_bits=2, v_bits=4, head_dim=64, tokens=300, ring=3, sliding=90, queries=2),
    Shape(k_bits=4, v_bits=8, head_dim=80, tokens=200, cuts=(1, 3), channel=True, kv_heads=1),
    Shape(k_bits=4, v_bits=2, head_dim=64, tokens=130, channel=True, v_group=32, recent=37, queries=2),
    Shape(k_bits=16, v_bits=4, head_dim=64, tokens=100, group=3, queries=2),
    Shape(k_bits=4, v_bits=16, head_dim=80, tokens=200, cuts=(1, 3), channel=True, kv_heads=1),
    Shape(k_bits=3, v_bits=16, head_dim=64, tokens=300, ring=3, sliding=90, queries=2),
    Shape(k_bits=16, v_bits=2, head_dim=96, tokens=70, v_group=32, dtype=torch.bfloat16),
    Shape(k_bits=16, v_bits=3, head_dim=64, tokens=100, v_group=16),
    Shape(k_bits=2, v_bits=16, head_dim=128, tokens=90, channel=True, kv_heads=1, batch=1),
    Shape(k_bits=16, v_bits=2, head_dim=256, tokens=70, kv_heads=1, batch=1),
    Shape(k_bits=3, v_bits=16, head_dim=64, tokens=90, k_group=16, queries=2),
    Shape(k_bits=8, v_bits=16, head_dim=64, tokens=130, channel=True, queries=2, dtype=torch.bfloat16),
)
"""Shapes small enough for the interpreter."""
