"""The cache bank: every layer's prefix at every bit width, ready to be read.

Prefix keys and values do not depend on the policy, so each is quantised once per bit width and
kept, laid out as `Layout` says, with room for the suffix behind it. A policy is then a choice of
tensors, and scoring it copies nothing but the suffix.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from kernels.quantize.op import simulate
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.domain.scheme import Granularity, QuantScheme, ScaleDtype
from kvtuner_core.runtime.visibility import Layout, Span


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
    """Exact prefix of one layer, after the rotary embedding.

    Attributes:
        keys: ``[R, H_kv, P, D]``.
        values: ``[R, H_kv, P, D_v]``.
    """

    keys: Tensor
    values: Tensor

    def side(self, side: Side) -> Tensor:
        """Keys or values."""
        return self.keys if side is Side.KEY else self.values


def simulated(x: Tensor, scheme: QuantScheme, side: Side, bits: int) -> Tensor:
    """``x`` ``[R, H, T, D]`` quantised and dequantised; T is a whole number of groups."""
    if bits == FULL_BITS or x.shape[2] == 0:
        return x
    granularity = side.granularity(scheme)
    group = scheme.token_group(x.shape[3]) if granularity is Granularity.TOKEN else scheme.flush_tokens
    dtype = torch.float16 if scheme.scale_dtype is ScaleDtype.FLOAT16 else torch.float32
    return simulate(
        x,
        bits=bits,
        granularity=granularity.value,
        group_size=group,
        symmetric=scheme.symmetric,
        scale_dtype=dtype,
        rotated=side.rotated(scheme),
    )


class Bank:
    """Laid-out keys and values of one group of prompts, built when first asked for.

    Args:
        history: Exact prefix of each cached layer.
        layouts: Slots of each cached layer.
        capacity: Most bytes to keep; what was used longest ago is dropped and built again.
    """

    def __init__(self, history: Sequence[LayerHistory], layouts: Sequence[Layout], *, capacity: int) -> None:
        self._history = history
        self._layouts = layouts
        self._capacity = capacity
        self._kept: OrderedDict[tuple[int, Side, tuple[int, ...]], Tensor] = OrderedDict()
        self._bytes = 0

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
        buffer = self._buffer(layer, side, bits)
        layout = self._layouts[layer]
        buffer[:, :, layout.new] = suffix
        if layout.boundary.tokens:
            exact = self._exact(layer, side, suffix, layout.boundary)
            buffer[:, :, layout.boundary.slots] = self._per_head(exact, layout.scheme, side, bits)
        return buffer

    def _buffer(self, layer: int, side: Side, bits: tuple[int, ...]) -> Tensor:
        key = (layer, side, bits)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        made = self._lay_out(layer, side, bits)
        size = made.numel() * made.element_size()
        while self._kept and self._bytes + size > self._capacity:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.numel() * dropped.element_size()
        if size <= self._capacity:
            self._kept[key] = made
            self._bytes += size
        return made

    def _lay_out(self, layer: int, side: Side, bits: tuple[int, ...]) -> Tensor:
        exact = self._history[layer].side(side)
        layout = self._layouts[layer]
        rows, heads, _, head_dim = exact.shape
        buffer = exact.new_empty((rows, heads, layout.slots, head_dim))
        buffer[:, :, layout.sinks.slots] = exact[:, :, : layout.sinks.stop]
        groups = exact[:, :, layout.packed_from : layout.packed.stop]
        packed = self._per_head(groups, layout.scheme, side, bits)
        buffer[:, :, layout.packed.slots] = packed[:, :, layout.packed.start - layout.packed_from :]
        start = layout.exact.slot
        buffer[:, :, start : layout.new.start] = exact[:, :, layout.exact.start : layout.prefix]
        return buffer

    def _exact(self, layer: int, side: Side, suffix: Tensor, span: Span) -> Tensor:
        """Exact tokens of a span that may begin in the prefix."""
        prefix = self._layouts[layer].prefix
        old = self._history[layer].side(side)[:, :, span.start : prefix] if span.start < prefix else None
        new = suffix[:, :, max(0, span.start - prefix) : max(0, span.stop - prefix)]
        return new if old is None else torch.cat([old[:, :, : span.tokens], new], dim=2)

    @staticmethod
    def _per_head(x: Tensor, scheme: QuantScheme, side: Side, bits: tuple[int, ...]) -> Tensor:
        if len(set(bits)) == 1:
            return simulated(x, scheme, side, bits[0])
        result = torch.empty_like(x)
        for width in set(bits):
            heads = [head for head, own in enumerate(bits) if own == width]
            result[:, heads] = simulated(x[:, heads], scheme, side, width)
        return result
