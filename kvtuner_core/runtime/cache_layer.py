"""One layer of the packed cache, full or sliding-window, behind transformers' layer interface."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvtuner_core.domain.memory import packed_until
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS, PrecisionPair
from kvtuner_core.domain.scheme import Granularity, PrefillMode, QuantScheme
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.cache_side import ExactSide, QuantizedSide, Side, Step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadGroup:
    """The KV heads of a layer that share a precision pair, stored together.

    Attributes:
        heads: Indices of the KV heads, ascending.
        pair: Their bits.
        keys: Their keys, `QuantizedSide` or `ExactSide`.
        values: Their values, likewise.
    """

    heads: tuple[int, ...]
    pair: PrecisionPair
    keys: Side
    values: Side


class PackedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: sinks and window in full precision, the rest packed.

    Attend, then flush: an update returns the history as it was stored before it and its own
    tokens in full precision; only then are they appended, and whole units of the tokens that
    left the residual window are quantised, each token once. What is held after how many tokens
    is `kvtuner_core.domain.memory.stored_tokens`. The packed state lies open in `groups`.

    While past states are recorded (`activate_past_recording`, used by assisted decoding) the
    tokens of the last update stay in the window until `crop` says how many of them count, and a
    sliding window forgets nothing before that.
    """

    is_compileable = False
    is_croppable = True

    def __init__(
        self, geometry: LayerGeometry, precision: LayerPrecision, scheme: QuantScheme, *, prefill: PrefillMode
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.geometry = geometry
        self.scheme = scheme
        self.prefill = prefill
        self.precision = precision
        self.is_sliding = geometry.sliding_window is not None
        self.record_past = False
        self.tokens = 0
        self.groups: tuple[HeadGroup, ...] = self._empty_groups()

    def __repr__(self) -> str:
        return f"PackedLayer({self.precision.name}, tokens={self.tokens})"

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Check the first states against the geometry and note their dtype and device.

        Raises:
            ModelError: If their shapes are those of another model.
        """
        expected = (
            (self.geometry.kv_heads, self.geometry.key_dim),
            (self.geometry.kv_heads, self.geometry.value_dim),
        )
        found = tuple((states.shape[1], states.shape[3]) for states in (key_states, value_states))
        if found != expected:
            raise ModelError(
                "Keys and values must have the (KV heads, head_dim) of the config that the cache was built for "
                f"{expected}; got {found}. Build the cache for this model."
            )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Store new keys and values and return what their queries read.

        Args:
            key_states: ``[B, H_kv, N, key_dim]``, after RoPE.
            value_states: ``[B, H_kv, N, value_dim]``.
            args: Ignored, as in transformers' own layers.
            kwargs: Ignored, too.

        Returns:
            Keys and values ``[B, H_kv, T + N, D]`` of the visible history and the new tokens.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.record_past and self.tokens:
            self._settle(keep_from=0)
        count = key_states.shape[2]
        step = self._step(count)
        self.tokens += count
        keys, values = [], []
        for group in self.groups:
            keys.append(group.keys.update(self._heads(key_states, group), step))
            values.append(group.values.update(self._heads(value_states, group), step))
        return self._joined(keys), self._joined(values)

    def history(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values ``[B, H_kv, T, D]`` as the next query will read them; ``None`` if nothing is stored."""
        if not self.is_initialized:
            return None
        visible = self.first_visible(self.tokens)
        return (
            self._joined([group.keys.read(visible) for group in self.groups]),
            self._joined([group.values.read(visible) for group in self.groups]),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the layer holds."""
        for side in self._sides():
            yield from side.tensors()

    def get_seq_length(self) -> int:
        """Tokens seen, those that a sliding window forgot included."""
        return self.tokens

    def get_max_length(self) -> int:
        """The sliding window, or -1 where there is no limit."""
        return -1 if self.geometry.sliding_window is None else self.geometry.sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of key positions that ``query_length`` new queries read, and the first of them."""
        first = self.first_visible(self.tokens)
        return self.tokens - first + query_length, first

    def activate_past_recording(self) -> None:
        """Keep the tokens of the last update as they are until `crop` confirms them."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens.

        Tokens that are quantised already stay so. A cut through a unit of packed tokens (a group
        per channel) puts what is left of it back into the window, dequantised; it is quantised
        again when the unit is full again.

        Args:
            tokens_to_remove: Zero or a negative number of tokens, as in transformers.

        Raises:
            ValueError: If it is positive.
            RuntimeError: If a sliding window has forgotten tokens and did not record the past.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes a negative number of tokens to remove; got {tokens_to_remove}. "
                f"Use crop(length - cache.get_seq_length()) to keep `length` tokens."
            )
        window = self.geometry.sliding_window
        if window is not None and self.tokens >= window and not self.record_past:
            raise RuntimeError(
                f"A sliding-window layer can be cropped only before its window ({window} tokens) is full; it has seen "
                f"{self.tokens}. Call activate_past_recording() on the cache before the tokens that may be removed."
            )
        removed = min(-tokens_to_remove, self.tokens)
        if not self.is_initialized:
            return
        if removed:
            for side in self._sides():
                side.crop(removed)
            self.tokens -= removed
        self._settle(keep_from=self.first_visible(self.tokens))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sequence ``beam_idx[i]`` the i-th."""
        self._apply(lambda held: held.index_select(0, beam_idx.to(held.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence ``repeats`` times."""
        self._apply(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences ``indices``: positions, or a mask."""
        self._apply(lambda held: held[indices.to(held.device)])

    def reset(self) -> None:
        """Forget everything."""
        self.tokens = 0
        self.is_initialized = False
        self.groups = self._empty_groups()

    def offload(self) -> None:
        """Move what is held to the CPU."""
        self._apply(lambda held: held.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move what is held back to the model's device."""
        if self.is_initialized:
            self._apply(lambda held: held.to(self.device, non_blocking=True))

    def _empty_groups(self) -> tuple[HeadGroup, ...]:
        heads: dict[PrecisionPair, list[int]] = {}
        for head in range(self.geometry.kv_heads):
            pair = self.precision.heads[head] if self.precision.heads else self.precision.pair
            heads.setdefault(pair, []).append(head)
        return tuple(
            HeadGroup(
                heads=tuple(members),
                pair=pair,
                keys=self._side(pair.key_bits, self.scheme.key_granularity, rotated=self.scheme.rotates_keys),
                values=self._side(pair.value_bits, self.scheme.value_granularity, rotated=self.scheme.rotates_values),
            )
            for pair, members in heads.items()
        )

    def _side(self, bits: int, granularity: Granularity, *, rotated: bool) -> Side:
        if bits == FULL_BITS:
            return ExactSide()
        sinks = 0 if self.is_sliding else self.scheme.sink_length
        return QuantizedSide(self.scheme, granularity=granularity, bits=bits, sinks=sinks, rotated=rotated)

    def _sides(self) -> Iterator[Side]:
        for group in self.groups:
            yield group.keys
            yield group.values

    def _step(self, count: int) -> Step:
        after = self.tokens + count
        stored = self.prefill is PrefillMode.QUANTISED and count > 1
        return Step(
            visible_from=self.first_visible(self.tokens),
            keep_from=0 if self.record_past else self.first_visible(after),
            packed_until=0 if self.record_past and not stored else self._packed_until(after),
            read_stored=stored,
        )

    def _settle(self, *, keep_from: int) -> None:
        step = Step(visible_from=0, keep_from=keep_from, packed_until=self._packed_until(self.tokens))
        for side in self._sides():
            side.settle(step)

    def first_visible(self, tokens: int) -> int:
        """Position of the first token that the query after ``tokens`` tokens sees."""
        window = self.geometry.sliding_window
        return 0 if window is None else max(0, tokens - (window - 1))

    def _packed_until(self, tokens: int) -> int:
        sinks = 0 if self.is_sliding else min(tokens, self.scheme.sink_length)
        return packed_until(self.scheme, tokens, sinks=sinks, sliding_window=self.geometry.sliding_window)

    def _heads(self, states: Tensor, group: HeadGroup) -> Tensor:
        return states if len(self.groups) == 1 else states[:, list(group.heads)]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        batch, _, tokens, head_dim = parts[0].shape
        whole = parts[0].new_empty((batch, self.geometry.kv_heads, tokens, head_dim))
        for part, group in zip(parts, self.groups, strict=True):
            whole[:, list(group.heads)] = part
        return whole

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            for side in self._sides():
                side.apply(change)
