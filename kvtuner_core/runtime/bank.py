"""The cache bank: every layer's prefix at every bit width, ready to be read.

Prefix keys and values do not depend on the policy, so each is quantised once per bit width and
kept. Where there is room they are kept as values, laid out as `Layout` says, with room for the
suffix behind them: a policy is then a choice of tensors, and scoring it copies nothing but the
suffix. Where there is less room the packed codes are kept, a quarter to an eighth of the bytes, and
a layer is dequantised and laid out when it is read; the numbers are the same bit for bit.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypedDict

import torch
from torch import Tensor

from kernels.quantize.op import Packed, RowBits, dequantize, quantize, simulate, simulate_each
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.domain.scheme import Granularity, QuantScheme, ScaleDtype
from kvtuner_core.runtime.in_place.support import Kernels, chosen_kernels
from kvtuner_core.runtime.visibility import Layout, Span


class Storage(StrEnum):
    """How quantised prefixes are kept: as ``VALUES`` that can be read at once, or as packed ``CODES``."""

    VALUES = "values"
    CODES = "codes"


class Side(StrEnum):
    """Keys or values."""

    KEY = "key"
    VALUE = "value"

    def granularity(self, scheme: QuantScheme) -> Granularity:
        """What one scale of this side covers."""
        return scheme.key_granularity if self is Side.KEY else scheme.value_granularity

    def rotated(self, scheme: QuantScheme) -> bool:
        """Whether this side is rotated before it is quantised."""
        return scheme.rotates_keys if self is Side.KEY else scheme.rotates_values

    def bits(self, precision: LayerPrecision, kv_heads: int) -> tuple[int, ...]:
        """Bits of this side, one number per KV head."""
        pairs = precision.heads or (precision.pair,) * kv_heads
        return tuple(pair.key_bits if self is Side.KEY else pair.value_bits for pair in pairs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerHistory:
    """Exact prefix of one layer, after the rotary embedding; on the model's device, or pinned on the host.

    Attributes:
        keys: ``[R, H_kv, P, D]``.
        values: ``[R, H_kv, P, D_v]``.
    """

    keys: Tensor
    values: Tensor

    def side(self, side: Side) -> Tensor:
        """Keys or values."""
        return self.keys if side is Side.KEY else self.values

    def on_host(self) -> "LayerHistory":
        """A copy in the host's memory, pinned so that it comes back at the full speed of the bus."""
        keys, values = (side.to("cpu", copy=True) for side in (self.keys, self.values))
        if self.keys.is_cuda:
            keys, values = keys.pin_memory(), values.pin_memory()
        return LayerHistory(keys=keys, values=values)


def simulated(x: Tensor, scheme: QuantScheme, side: Side, bits: int) -> Tensor:
    """``x`` ``[R, H, T, D]`` quantised and dequantised; T is a whole number of groups."""
    if bits == FULL_BITS or x.shape[2] == 0:
        return x
    return simulate(x, bits=bits, **_rounding(x, scheme, side), implementation=simulation(x.device))


def simulation(device: torch.device) -> Literal["auto", "reference"]:
    """How tensors on a device are simulated: on CUDA ``KVTUNER_KERNELS=reference`` switches this kernel off, too.

    Raises:
        InputError: If the variable is wrong.
    """
    off = device.type == "cuda" and chosen_kernels(device) is Kernels.REFERENCE
    return "reference" if off else "auto"


def packed(x: Tensor, scheme: QuantScheme, side: Side, bits: int) -> Packed:
    """The codes of ``x``, of which `dequantize` makes what `simulated` gives."""
    return quantize(x, bits=bits, **_rounding(x, scheme, side))


class _Rounding(TypedDict):
    granularity: Literal["token", "channel"]
    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype
    rotated: bool


def _rounding(x: Tensor, scheme: QuantScheme, side: Side) -> _Rounding:
    """What the kernels must know of a scheme to round ``x`` ``[R, H, T, D]``."""
    granularity = side.granularity(scheme)
    return {
        "granularity": granularity.value,
        "group_size": scheme.token_group(x.shape[3]) if granularity is Granularity.TOKEN else scheme.flush_tokens,
        "symmetric": scheme.symmetric,
        "scale_dtype": torch.float16 if scheme.scale_dtype is ScaleDtype.FLOAT16 else torch.float32,
        "rotated": side.rotated(scheme),
    }


WIDTHS = (FULL_BITS, 8, 4, 3, 2)
"""Widths in the order in which stacked prefixes lie."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """Which width each policy of a pass reads of one layer's keys or values.

    Attributes:
        places: ``[policies]``, places in `WIDTHS`.
        bits: ``[policies * R, 1, 1, 1]`` or ``[policies * R, H_kv, 1, 1]``, the width of each row.
        widths: Quantised widths that may occur.
    """

    places: Tensor | None
    bits: Tensor
    widths: tuple[int, ...]


_Place = tuple[int, Side, tuple[int, ...]]
"""Layer, side, and bits per KV head of values; of codes, the one width that all heads are kept at."""


class Bank:
    """Laid-out keys and values of one group of prompts, built when first asked for.

    Args:
        history: Exact prefix of each cached layer.
        layouts: Slots of each cached layer.
        capacity: Most bytes to keep; what was used longest ago is dropped and built again.
        storage: What is kept.
        stacked: Whether all widths of a layer's side lie in one tensor, where there is room for all of them,
            so that policies can choose among them on the device.
    """

    def __init__(
        self,
        history: Sequence[LayerHistory],
        layouts: Sequence[Layout],
        *,
        capacity: int,
        storage: Storage = Storage.VALUES,
        stacked: bool = False,
    ) -> None:
        self._history = history
        self._layouts = layouts
        self._capacity = capacity
        self._storage = storage
        self._kept: OrderedDict[_Place, Tensor | Packed] = OrderedDict()
        self._bytes = 0
        self._stacks: dict[tuple[int, Side], Tensor] = {}
        self._filled: set[tuple[int, Side, int]] = set()
        needed = sum(len(WIDTHS) * self._laid_out_bytes(layer) for layer in range(len(layouts))) if stacked else 0
        self.stacked = stacked and storage is Storage.VALUES and needed <= capacity

    @property
    def bytes(self) -> int:
        """Bytes kept now."""
        return self._bytes

    def layout(self, layer: int) -> Layout:
        """Slots of a layer."""
        return self._layouts[layer]

    def with_suffix(self, layer: int, side: Side, precision: LayerPrecision, suffix: Tensor) -> Tensor:
        """A layer's keys or values with a suffix written behind the prefix.

        Args:
            layer: Index among the cached layers.
            side: Keys or values.
            precision: The layer's bits.
            suffix: Exact keys or values of the suffix, ``[R, H_kv, S, D]``.

        Returns:
            ``[R, H_kv, K, D]``, valid until the next call for the same layer, side and bits.
        """
        bits = side.bits(precision, suffix.shape[1])
        buffer = self._buffer(layer, side, bits, suffix.device)
        layout = self._layouts[layer]
        buffer[:, :, layout.new] = suffix
        if layout.boundary.tokens:
            exact = self._exact(layer, side, suffix, layout.boundary)
            buffer[:, :, layout.boundary.slots] = self._per_head(exact, layout.scheme, side, bits)
        return buffer

    def gathered(self, layer: int, side: Side, precisions: Sequence[LayerPrecision], suffix: Tensor) -> Tensor:
        """`with_suffix` of several policies at once, each with its own suffix, in a few large operations.

        Args:
            layer: Index among the cached layers.
            side: Keys or values.
            precisions: The layer's bits under each policy.
            suffix: Exact keys or values of the suffix, ``[policies * R, H_kv, S, D]``, policy by policy.

        Returns:
            ``[policies * R, H_kv, K, D]``, a new tensor.
        """
        bits = [side.bits(precision, suffix.shape[1]) for precision in precisions]
        laid_out = torch.cat([self._buffer(layer, side, own, suffix.device) for own in bits])
        laid_out[:, :, self._layouts[layer].exact.slot :] = self.tails(layer, side, precisions, suffix)
        return laid_out

    def fill(self, layer: int, side: Side, widths: Sequence[int], device: torch.device) -> None:
        """Lay out a stacked bank's prefix at some widths, so that `chosen` finds them."""
        for width in widths:
            if (layer, side, width) not in self._filled:
                self._stack(layer, side, width, device)

    def chosen(self, layer: int, side: Side, choice: Choice, suffix: Tensor) -> Tensor:
        """`gathered` of a stacked bank whose widths are filled: nothing but tensors says who reads which."""
        stack, places = self._stacks[layer, side], choice.places
        if places is None:
            raise ValueError("A choice among stacked prefixes must name their places; got none.")
        laid_out = stack.index_select(0, places).flatten(0, 1)
        laid_out[:, :, self._layouts[layer].exact.slot :] = self._tails(layer, side, choice, suffix)
        return laid_out

    def prefix(self, layer: int, side: Side, precision: LayerPrecision, suffix: Tensor) -> Tensor:
        """What lies before a layout's exact tokens, the same for every suffix: ``[R, H_kv, sinks and packed, D]``."""
        bits = side.bits(precision, suffix.shape[1])
        return self._buffer(layer, side, bits, suffix.device)[:, :, : self._layouts[layer].exact.slot]

    def tails(self, layer: int, side: Side, precisions: Sequence[LayerPrecision], suffix: Tensor) -> Tensor:
        """What lies behind a layout's packed tokens, for several policies at once; arguments as in `gathered`.

        Returns:
            ``[policies * R, H_kv, exact and boundary, D]``, a new tensor.
        """
        bits = [side.bits(precision, suffix.shape[1]) for precision in precisions]
        rows = suffix.shape[0] // len(bits)
        own = torch.tensor(bits, dtype=torch.uint8).repeat_interleave(rows, 0)[:, :, None, None]
        own = own.pin_memory().to(suffix.device, non_blocking=True) if suffix.is_cuda else own
        widths = tuple(sorted({width for one in bits for width in one if width != FULL_BITS}))
        return self._tails(layer, side, Choice(places=None, bits=own, widths=widths), suffix)

    def _tails(self, layer: int, side: Side, choice: Choice, suffix: Tensor) -> Tensor:
        layout, history = self._layouts[layer], self._history[layer].side(side)
        copies = suffix.shape[0] // history.shape[0]
        old = history[:, :, layout.exact.start : layout.prefix].to(suffix.device)
        pieces = [old.repeat(copies, 1, 1, 1), suffix] if old.shape[2] else [suffix]
        if layout.boundary.tokens:
            pieces.append(self._boundaries(layer, side, choice, suffix))
        return torch.cat(pieces, dim=2)

    def _boundaries(self, layer: int, side: Side, choice: Choice, suffix: Tensor) -> Tensor:
        """The boundary under each policy: quantised at every width that occurs, then chosen row by row."""
        layout = self._layouts[layer]
        exact = self._exact(layer, side, suffix, layout.boundary)
        bits = RowBits(bits=choice.bits, widths=choice.widths)
        rounding = _rounding(exact, layout.scheme, side)
        return simulate_each(exact, bits=bits, **rounding, implementation=simulation(exact.device))

    def _buffer(self, layer: int, side: Side, bits: tuple[int, ...], device: torch.device) -> Tensor:
        if self._storage is Storage.CODES:
            return self._lay_out(layer, side, bits, device)
        if self.stacked and len(set(bits)) == 1:
            return self._stack(layer, side, bits[0], device)
        key = (layer, side, bits)
        found = self._kept.get(key)
        if isinstance(found, Tensor):
            self._kept.move_to_end(key)
            return found
        made = self._lay_out(layer, side, bits, device)
        self._keep(key, made, made.nbytes)
        return made

    def _stack(self, layer: int, side: Side, width: int, device: torch.device) -> Tensor:
        """A width of a layer's side in its stack."""
        exact = self._history[layer].side(side)
        rows, heads, _, head_dim = exact.shape
        stack = self._stacks.get((layer, side))
        if stack is None:
            shape = (len(WIDTHS), rows, heads, self._layouts[layer].slots, head_dim)
            stack = self._stacks[layer, side] = exact.new_zeros(shape, device=device)
            self._bytes += stack.nbytes
        place = WIDTHS.index(width)
        if (layer, side, width) not in self._filled:
            stack[place] = self._lay_out(layer, side, (width,) * heads, device)
            self._filled.add((layer, side, width))
        return stack[place]

    def _laid_out_bytes(self, layer: int) -> int:
        """Bytes of a layer's keys and values at one width."""
        slots, history = self._layouts[layer].slots, self._history[layer]
        return sum(side[:, :, :1].numel() * side.itemsize * slots for side in (history.keys, history.values))

    def _keep(self, key: _Place, made: Tensor | Packed, size: int) -> None:
        while self._kept and self._bytes + size > self._capacity:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)
        if self._bytes + size <= self._capacity:
            self._kept[key] = made
            self._bytes += size

    def _lay_out(self, layer: int, side: Side, bits: tuple[int, ...], device: torch.device) -> Tensor:
        exact = self._history[layer].side(side)
        layout = self._layouts[layer]
        rows, heads, _, head_dim = exact.shape
        buffer = torch.empty((rows, heads, layout.slots, head_dim), dtype=exact.dtype, device=device)
        buffer[:, :, layout.sinks.slots] = exact[:, :, : layout.sinks.stop]
        groups = self._quantised(layer, side, bits, device)
        buffer[:, :, layout.packed.slots] = groups[:, :, layout.packed.start - layout.packed_from :]
        start = layout.exact.slot
        buffer[:, :, start : layout.new.start] = exact[:, :, layout.exact.start : layout.prefix]
        return buffer

    def _quantised(self, layer: int, side: Side, bits: tuple[int, ...], device: torch.device) -> Tensor:
        """The whole groups of the packed span as they are read."""
        layout = self._layouts[layer]
        if self._storage is Storage.VALUES:
            return self._per_head(self._groups(layer, side, device), layout.scheme, side, bits)
        widths = sorted(set(bits))
        found = [self._dequantised(layer, side, width, device) for width in widths]
        if len(widths) == 1:
            return found[0]
        result = torch.empty_like(found[0])
        for width, values in zip(widths, found, strict=True):
            heads = [head for head, own in enumerate(bits) if own == width]
            result[:, heads] = values[:, heads]
        return result

    def _dequantised(self, layer: int, side: Side, width: int, device: torch.device) -> Tensor:
        if width == FULL_BITS or self._layouts[layer].packed.stop == self._layouts[layer].packed_from:
            return self._groups(layer, side, device)
        key = (layer, side, (width,))
        codes = self._kept.get(key)
        if isinstance(codes, Packed):
            self._kept.move_to_end(key)
        else:
            codes = packed(self._groups(layer, side, device), self._layouts[layer].scheme, side, width)
            self._keep(key, codes, _size(codes))
        return dequantize(codes, dtype=self._history[layer].side(side).dtype)

    def _groups(self, layer: int, side: Side, device: torch.device) -> Tensor:
        layout = self._layouts[layer]
        exact = self._history[layer].side(side)
        if exact.device == device:
            return exact[:, :, layout.packed_from : layout.packed.stop]
        # Whole tensors cross the bus at full speed; slices would be copied on the host first.
        return exact.to(device, non_blocking=True)[:, :, layout.packed_from : layout.packed.stop]

    def _exact(self, layer: int, side: Side, suffix: Tensor, span: Span) -> Tensor:
        """Exact tokens of a span that may begin in the prefix; ``suffix`` may hold the rows of several policies."""
        prefix = self._layouts[layer].prefix
        new = suffix[:, :, max(0, span.start - prefix) : max(0, span.stop - prefix)]
        if span.start >= prefix:
            return new
        old = self._history[layer].side(side)[:, :, span.start : min(span.stop, prefix)].to(suffix.device)
        return torch.cat([old.repeat(suffix.shape[0] // old.shape[0], 1, 1, 1), new], dim=2)

    @staticmethod
    def _per_head(x: Tensor, scheme: QuantScheme, side: Side, bits: tuple[int, ...]) -> Tensor:
        if len(set(bits)) == 1:
            return simulated(x, scheme, side, bits[0])
        result = torch.empty_like(x)
        for width in set(bits):
            heads = [head for head, own in enumerate(bits) if own == width]
            result[:, heads] = simulated(x[:, heads], scheme, side, width)
        return result


def _size(kept: Tensor | Packed) -> int:
    if isinstance(kept, Tensor):
        return kept.nbytes
    return kept.codes.nbytes + kept.scale.nbytes + (0 if kept.offset is None else kept.offset.nbytes)
