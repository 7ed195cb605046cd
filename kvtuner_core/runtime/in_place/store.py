"""Keys and values of some heads of one layer in preallocated buffers, filled and read in place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels.append import op as append_op
from kernels.append.op import RecentStore
from kernels.decode_attention import op as decode
from kernels.decode_attention.op import BLOCK, PackedSide, Recent
from kernels.exact_attention import op as exact_op
from kernels.quantize import op as quantize_op
from kernels.quantize.op import Packed
from kernels.unpack import op as unpack_op
from kvtuner_core.domain.precision import FULL_BITS, PrecisionPair
from kvtuner_core.domain.scheme import Granularity, QuantScheme
from kvtuner_core.runtime.cache_side import ExactSide, Side
from kvtuner_core.runtime.in_place.plan import MAX_QUERIES, Extent, StepPlan
from kvtuner_core.runtime.in_place.span import Span

_HEADROOM = 256
_GROWTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreShape:
    """What a store is made for.

    Attributes:
        batch: Sequences.
        heads: KV heads.
        head_dim: Values of a token and head.
        dtype: The model's.
        device: The model's.
    """

    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class PackedStore:
    """Quantised history in blocks of 64 tokens, and sinks and newest tokens in full precision.

    One side, keys or values, may be unquantised, in blocks likewise. A layer without a limit grows by
    whole segments, so that nothing stored is ever copied; a sliding-window layer has one segment, used
    as a ring.

    Attributes:
        keys: Segments of packed keys, `PackedSide`, in the order of their blocks.
        values: The values, likewise.
        recent: Sinks and newest tokens.
    """

    def __init__(self, shape: StoreShape, pair: PrecisionPair, scheme: QuantScheme, extent: Extent) -> None:
        self.shape = shape
        self.pair = pair
        self.scheme = scheme
        self.extent = extent
        self.keys: list[PackedSide] = []
        self.values: list[PackedSide] = []
        buffer = (shape.batch, shape.heads, extent.slots, shape.head_dim)
        self.recent = RecentStore(
            keys=torch.zeros(buffer, dtype=shape.dtype, device=shape.device),
            values=torch.zeros(buffer, dtype=shape.dtype, device=shape.device),
            sinks=extent.sinks,
        )

    @property
    def capacity(self) -> int:
        """Packed tokens that there is room for (of a ring: at a time)."""
        return sum(side.words.shape[2] for side in self.keys) * BLOCK

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens of a sequence; a ring has its room from the first call on."""
        if self.extent.sliding is not None:
            if not self.keys:
                self._grow((self.extent.sliding + MAX_QUERIES) // BLOCK + 3)
            return
        missing = tokens - self.extent.sinks - self.capacity
        if missing > 0:
            self._grow(-(-missing // BLOCK))

    def append(self, keys: Tensor, values: Tensor, span: Span, *, progress: Tensor, settled: bool = False) -> None:
        """Write new tokens ``[B, H, N, D]`` and quantise those that are due.

        ``progress`` as in `StepPlan`, ``settled`` as of the op.
        """
        if self.extent.sliding is not None or span.packed_after > self.capacity:
            headroom = max(_HEADROOM, self.capacity // _GROWTH)
            self.reserve(span.packed_after + self.extent.sinks + headroom)
        touched = list(self._touched(span))
        for sides in touched:
            last = sides is touched[-1]
            append_op.append(
                *sides, recent=self.recent, new=(keys, values), progress=progress, keep=last, settled=settled
            )

    def attend(self, query: Tensor, plan: StepPlan, *, scale: float | None) -> Tensor:
        """Attention of ``[B, H_q, count, D]`` queries over what ``plan`` shows them."""
        recent = Recent(keys=self.recent.keys, values=self.recent.values, mask=plan.recent)
        return decode.decode_attention(
            query, self.keys, values=self.values, visible=plan.packed, recent=recent, scale=scale
        )

    def read(self, span: Span, visible_from: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H, T, D]`` of an update's queries: history as before it, then its own tokens.

        The update must be one whose tokens are all in the ring (or have no tokens).
        """
        return self._read(self.keys, self.recent.keys, span, visible_from, keys=True), self._read(
            self.values, self.recent.values, span, visible_from, keys=False
        )

    def put_back(self, begin: int, end: int, keys: Tensor, values: Tensor) -> None:
        """Write dequantised tokens of store positions ``begin`` to ``end`` into the ring."""
        slots = self._slots(begin, end)
        self.recent.keys[:, :, slots] = keys
        self.recent.values[:, :, slots] = values

    def unpack(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Dequantised keys and values of the store positions ``begin`` to ``end``."""
        dtype = self.shape.dtype
        return (
            unpack_op.dequantize(self.keys, keys=True, begin=begin, end=end, dtype=dtype),
            unpack_op.dequantize(self.values, keys=False, begin=begin, end=end, dtype=dtype),
        )

    def hand_over(self, sides: tuple[Side, Side], span: Span, visible_from: int) -> None:
        """Fill the sides of a plain layer with what is held after ``span``, codes and scales as they are."""
        start = visible_from // self.extent.unit * self.extent.unit
        held = ((self.keys, self.recent.keys), (self.values, self.recent.values))
        for side, (segments, recent) in zip(sides, held, strict=True):
            keys = side is sides[0]
            if isinstance(side, ExactSide):
                side.take(self._read(segments, recent, span, visible_from, keys=keys), start=visible_from)
                continue
            side.take(
                sinks=recent[:, :, : min(self.extent.sinks, span.after)].clone(),
                packed=self._plain(segments, start, max(start, span.packed_after), keys=keys),
                window=recent[:, :, self._slots(max(start, span.packed_after), span.after - self.extent.sinks)],
                start=start,
            )

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what ``change`` makes of it (select sequences)."""
        self.keys, self.values = ([_changed(side, change) for side in sides] for sides in (self.keys, self.values))
        self.recent = replace(self.recent, keys=change(self.recent.keys), values=change(self.recent.values))
        self.shape = replace(self.shape, batch=self.recent.keys.shape[0])

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held."""
        for side in (*self.keys, *self.values):
            yield from (side.words, side.scales)
        yield from (self.recent.keys, self.recent.values)

    def used_bytes(self, span: Span, visible_from: int) -> int:
        """Bytes of the tokens that are held after ``span``, out of those of the buffers."""
        sides = ((self.keys[:1], self.recent.keys), (self.values[:1], self.recent.values))
        return sum(self._side_bytes(side, recent, span, visible_from) for side, recent in sides)

    def _side_bytes(self, side: Sequence[PackedSide], recent: Tensor, span: Span, visible_from: int) -> int:
        slot = recent.nbytes // self.extent.slots
        if side and side[0].bits == FULL_BITS:
            return (span.after - visible_from) * slot
        start = visible_from // self.extent.unit * self.extent.unit
        packed = max(0, span.packed_after - start)
        per_token = sum(
            tensor.nbytes // (tensor.shape[2] * BLOCK) for one in side for tensor in (one.words, one.scales)
        )
        return packed * per_token + (span.after - max(start, span.packed_after)) * slot

    def _grow(self, blocks: int) -> None:
        first = self.capacity // BLOCK
        shape, scheme, ring = self.shape, self.scheme, self.extent.sliding is not None
        group = scheme.token_group(shape.head_dim)
        channel = scheme.key_granularity is Granularity.CHANNEL
        make = partial(
            append_op.empty_side,
            batch=shape.batch,
            heads=shape.heads,
            blocks=blocks,
            head_dim=shape.head_dim,
            device=shape.device,
            dtype=shape.dtype,
        )
        keys = make(bits=self.pair.key_bits, group_size=None if channel else group, channel=channel)
        values = make(bits=self.pair.value_bits, group_size=group, channel=False)
        self.keys.append(replace(keys, first_block=first, ring=ring))
        self.values.append(replace(values, first_block=first, ring=ring))

    def _touched(self, span: Span) -> Iterator[tuple[PackedSide, PackedSide]]:
        """The segments that an update writes to; one of them at least, for the exact tokens."""
        pairs = list(zip(self.keys, self.values, strict=True))
        if not pairs:
            self.reserve(self.extent.sinks + 1)
            pairs = list(zip(self.keys, self.values, strict=True))
        if len(pairs) == 1:
            yield pairs[0]
            return
        reached = False
        for keys, values in pairs:
            begin = keys.first_block * BLOCK
            end = begin + keys.words.shape[2] * BLOCK
            if begin < span.packed_after and span.packed_before < end:
                reached = True
                yield keys, values
        if not reached:
            yield pairs[-1]

    def _plain(self, sides: Sequence[PackedSide], begin: int, end: int, *, keys: bool) -> Packed:
        codes, scale, offset = unpack_op.unpack(sides, keys=keys, begin=begin, end=end)
        channel = keys and self.scheme.key_granularity is Granularity.CHANNEL
        return quantize_op.from_codes(
            codes,
            scale,
            offset,
            bits=sides[0].bits,
            granularity="channel" if channel else "token",
            group_size=self.extent.unit if channel else self.scheme.token_group(self.shape.head_dim),
        )

    def _read(
        self, sides: Sequence[PackedSide], recent: Tensor, span: Span, visible_from: int, *, keys: bool
    ) -> Tensor:
        sinks = self.extent.sinks
        begin = max(0, visible_from - sinks)
        parts = [recent[:, :, : min(sinks, span.after)]]
        if span.packed_before > begin:
            parts.append(
                unpack_op.dequantize(sides, keys=keys, begin=begin, end=span.packed_before, dtype=self.shape.dtype)
            )
        parts.append(recent[:, :, self._slots(max(begin, span.packed_before), span.after - sinks)])
        return torch.cat(parts, dim=2)

    def _slots(self, begin: int, end: int) -> Tensor:
        """Slots of the store positions ``begin`` to ``end``."""
        at = torch.arange(begin, max(begin, end), device=self.shape.device)
        return self.extent.sinks + at % self.extent.ring


class ExactStore:
    """Unquantised history in buffers filled in place; it grows by segments, or is a sliding window's ring.

    Attributes:
        keys: Segments ``[B, H, capacity, D]``, the tokens of each go on where those before it end.
        values: Likewise.
    """

    def __init__(self, shape: StoreShape, extent: Extent) -> None:
        self.shape = shape
        self.extent = extent
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def capacity(self) -> int:
        """Tokens that there is room for (of a ring: at a time)."""
        return sum(segment.shape[2] for segment in self.keys)

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens of a sequence; a ring has its room from the first call on."""
        ring = self.extent.sliding
        missing = tokens - self.capacity if ring is None else (ring + MAX_QUERIES) * (not self.keys)
        if missing <= 0:
            return
        shape = self.shape
        for side in (self.keys, self.values):
            size = (shape.batch, shape.heads, missing, shape.head_dim)
            side.append(torch.zeros(size, dtype=shape.dtype, device=shape.device))

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        span: Span,
        *,
        progress: Tensor,
        settled: bool = False,  # noqa: ARG002
    ) -> None:
        """Write new tokens ``[B, H, N, D]``; one kernel, for which ``settled`` makes no difference."""
        ring = self.extent.sliding is not None
        if ring or span.after > self.capacity:
            self.reserve(span.after + max(_HEADROOM, self.capacity // _GROWTH))
        if ring and span.count > self.capacity:
            keys, values = keys[:, :, -self.capacity :], values[:, :, -self.capacity :]
            progress = progress + (span.count - self.capacity)
        for origin, held in self._segments():
            if ring or (origin < span.after and span.before < origin + held[0].shape[2]):
                exact_op.append_exact(*held, new=(keys, values), progress=progress, origin=origin, ring=ring)

    def attend(self, query: Tensor, plan: StepPlan, *, scale: float | None) -> Tensor:
        """Attention of ``[B, H_q, count, D]`` queries over what ``plan`` shows them."""
        first, last = plan.exact
        ring = self.extent.sliding is not None
        return exact_op.exact_attention(
            query, self.keys, values=self.values, first=first, last=last, scale=scale, ring=ring
        )

    def read(self, span: Span, visible_from: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H, T, D]`` from a position on, the update's own tokens included."""
        if self.extent.sliding is not None:
            at = torch.arange(visible_from, span.after, device=self.shape.device) % self.capacity
            return self.keys[0][:, :, at], self.values[0][:, :, at]
        parts = [
            tuple(side[:, :, max(0, visible_from - origin) : max(0, span.after - origin)] for side in held)
            for origin, held in self._segments()
        ]
        keys, values = (torch.cat(sides, dim=2) for sides in zip(*parts, strict=True))
        return keys, values

    def hand_over(self, sides: tuple[Side, Side], span: Span, visible_from: int) -> None:
        """Fill the sides of a plain layer with what is held after ``span``."""
        for side, states in zip(sides, self.read(span, visible_from), strict=True):
            if not isinstance(side, ExactSide):
                raise TypeError("Exact tokens go to exact sides.")
            side.take(states, start=visible_from)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what ``change`` makes of it (select sequences)."""
        self.keys, self.values = ([change(segment) for segment in side] for side in (self.keys, self.values))
        self.shape = replace(self.shape, batch=self.keys[0].shape[0])

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held."""
        yield from (*self.keys, *self.values)

    def used_bytes(self, span: Span, visible_from: int) -> int:
        """Bytes of the tokens that are held after ``span``, out of those of the buffers."""
        return (span.after - visible_from) * sum(tensor.nbytes for tensor in self.tensors()) // max(1, self.capacity)

    def _segments(self) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Each segment's first position, and its keys and values."""
        origin = 0
        for held in zip(self.keys, self.values, strict=True):
            yield origin, held
            origin += held[0].shape[2]


Store = PackedStore | ExactStore


def _changed(side: PackedSide, change: Callable[[Tensor], Tensor]) -> PackedSide:
    return replace(side, words=change(side.words), scales=change(side.scales))
