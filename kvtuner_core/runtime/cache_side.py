"""One side, keys or values, of some heads of one layer: as it is held, read, grown and cut.

A side is unquantised (`ExactSide`) or quantised (`QuantizedSide`); both do the same. Token
positions are absolute: the first token that the cache ever saw is 0. Every tensor held here owns
a storage of exactly its size, so that measured bytes are the bytes of the values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from kernels.quantize import op
from kernels.quantize.op import Packed
from kvtuner_core.domain.scheme import Granularity, QuantScheme

T = TypeVar("T")

TOKENS = 2
"""Dimension of the tokens in ``[B, H_kv, T, D]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one update does beside appending its tokens.

    Attributes:
        visible_from: First position that the update's first query sees.
        keep_from: First position that a later query may see; older ones are given up.
        packed_until: Position before which everything is quantised afterwards.
        read_stored: Whether the update's own tokens are read as they are stored, not in full precision.
    """

    visible_from: int
    keep_from: int
    packed_until: int
    read_stored: bool = False


class ExactSide:
    """Keys or values in the model's own dtype.

    Attributes:
        states: ``[B, H, T, D]``, every token that a later query may see; ``None`` before the first update.
        start: Position of its first token.
    """

    def __init__(self) -> None:
        self.states: Tensor | None = None
        self.start = 0

    def update(self, new: Tensor, step: Step) -> Tensor:
        """Append ``new`` and return what its queries read.

        Args:
            new: ``[B, H, N, D]``.
            step: What else happens.

        Returns:
            ``[B, H, T + N, D]`` from ``step.visible_from`` on.
        """
        full = torch.cat([_tail(new, new.shape[TOKENS]) if self.states is None else self.states, new], dim=TOKENS)
        visible = _tail(full, step.visible_from - self.start)
        self.states = full
        self.settle(step)
        return visible

    def read(self, visible_from: int) -> Tensor:
        """The stored tokens from a position on, ``[B, H, T, D]``; at least one update came before."""
        return _tail(_present(self.states), visible_from - self.start)

    def take(self, states: Tensor, *, start: int) -> None:
        """Hold ``states``, the tokens from position ``start`` on."""
        self.states, self.start = _own(states), start

    def settle(self, step: Step) -> None:
        """Give up the tokens before ``step.keep_from``."""
        drop = step.keep_from - self.start
        if drop > 0:
            self.states = _own(_tail(_present(self.states), drop))
            self.start += drop

    def crop(self, tokens: int) -> None:
        """Remove the newest ``tokens`` tokens."""
        states = _present(self.states)
        self.states = _own(_head(states, states.shape[TOKENS] - tokens))

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what ``change`` makes of it (select sequences, move)."""
        if self.states is not None:
            self.states = change(self.states)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held."""
        if self.states is not None:
            yield self.states


class QuantizedSide:
    """Keys or values as first tokens (sinks) | packed tokens | newest tokens (window).

    Attributes:
        sinks: ``[B, H, S, D]`` in the model's dtype; ``None``, like the others, before the first update.
        packed: Packed tokens, a whole number of the scheme's flush units.
        window: ``[B, H, W, D]`` in the model's dtype.
        start: Position of the first token after the sinks; a multiple of the flush unit in
            sliding-window layers.
    """

    def __init__(
        self, scheme: QuantScheme, *, granularity: Granularity, bits: int, sinks: int, rotated: bool = False
    ) -> None:
        self.scheme = scheme
        self.rotated = rotated
        self.granularity = granularity
        self.bits = bits
        self.sink_length = sinks
        self.sinks: Tensor | None = None
        self.packed: Packed | None = None
        self.window: Tensor | None = None
        self.start = 0
        self._borrowed = False

    def update(self, new: Tensor, step: Step) -> Tensor:
        """Append ``new`` and return what its queries read; see `ExactSide.update`.

        The new tokens are read in full precision and the history as it was stored before them;
        with ``step.read_stored`` all of it as it is stored afterwards.
        """
        if step.read_stored:
            self._append(new)
            self._flush(step.packed_until)
            visible = self.read(step.visible_from)
        else:
            visible = self.read(step.visible_from, new)
            self._append(new)
        self.settle(step)
        return visible

    def read(self, visible_from: int, new: Tensor | None = None) -> Tensor:
        """The stored tokens from a position on, dequantised, and ``new`` after them: ``[B, H, T, D]``."""
        parts = []
        if self.packed is not None and self.sinks is not None and self.window is not None:
            stale, held = visible_from - self.start, self.packed.tokens
            parts = [self.sinks, _tail(self.window, stale - held)]
            if held:
                parts.insert(1, _tail(op.dequantize(self.packed, dtype=self.window.dtype), stale))
        if new is not None:
            parts.append(new)
        filled = [part for part in parts if part.shape[TOKENS]]
        return torch.cat(filled, dim=TOKENS) if len(filled) > 1 else (filled or parts)[0]

    def take(self, *, sinks: Tensor, packed: Packed, window: Tensor, start: int) -> None:
        """Hold what another layer packed; ``start`` is the number of tokens after the sinks that are given up."""
        self.sinks, self.packed, self.window = _own(sinks), _mapped(packed, _own), _own(window)
        self.start = sinks.shape[TOKENS] + start

    def settle(self, step: Step) -> None:
        """Give up whole units before ``step.keep_from``, then quantise whole units up to ``step.packed_until``."""
        self._trim(step.keep_from)
        self._flush(step.packed_until)
        self._own_window()

    def crop(self, tokens: int) -> None:
        """Remove the newest ``tokens`` tokens.

        The part of a unit that is left over by a cut through it goes back to the window, dequantised.
        """
        packed, window, sinks = _present(self.packed), _present(self.window), _present(self.sinks)
        left = window.shape[TOKENS] - tokens
        if left >= 0:
            self.window = _own(_head(window, left))
            return
        left += packed.tokens
        whole = max(left, 0) // self._unit * self._unit
        rest = _head(window, 0)
        if left > whole:
            cut = _slice(packed, whole, whole + self._unit)
            rest = _head(op.dequantize(cut, dtype=window.dtype), left - whole)
        self.window = _own(rest)
        self.packed = _slice(packed, 0, whole)
        if left < 0:
            self.sinks = _own(_head(sinks, sinks.shape[TOKENS] + left))
            self.start = self.sinks.shape[TOKENS]

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what ``change`` makes of it (select sequences, move)."""
        if self.packed is not None:
            self.sinks, self.window = change(_present(self.sinks)), change(_present(self.window))
            self.packed = _mapped(self.packed, change)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held."""
        if self.packed is not None:
            offset = () if self.packed.offset is None else (self.packed.offset,)
            yield from (_present(self.sinks), self.packed.codes, self.packed.scale, *offset, _present(self.window))

    @property
    def _unit(self) -> int:
        return self.scheme.flush_tokens

    def _append(self, new: Tensor) -> None:
        new = new.detach()
        if self.packed is None:
            none = _own(_head(new, 0))
            self.sinks, self.window, self.packed = none, none, self._quantize(none)
        sinks, window = _present(self.sinks), _present(self.window)
        missing = self.sink_length - sinks.shape[TOKENS]
        if missing > 0:
            self.sinks = torch.cat([sinks, _head(new, missing)], dim=TOKENS)
            self.start = self.sinks.shape[TOKENS]
            new = _tail(new, missing)
        # A long prompt is not copied here, only what `_own_window` finds left of it.
        self._borrowed = window.shape[TOKENS] == 0
        self.window = new if self._borrowed else torch.cat([window, new], dim=TOKENS)

    def _trim(self, keep_from: int) -> None:
        drop = keep_from // self._unit * self._unit - self.start
        if drop <= 0 or self.packed is None:
            return
        held = self.packed.tokens
        if held:
            self.packed = _slice(self.packed, min(drop, held), held)
        self.window = _tail(_present(self.window), drop - held)
        self.start += drop

    def _flush(self, packed_until: int) -> None:
        packed, window = _present(self.packed), _present(self.window)
        count = (packed_until - self.start - packed.tokens) // self._unit * self._unit
        if count > 0:
            fresh = self._quantize(_head(window, count))
            self.packed = _joined(packed, fresh) if packed.tokens else fresh
            self.window = _tail(window, count)

    def _own_window(self) -> None:
        window = _present(self.window)
        self.window = window.clone(memory_format=torch.contiguous_format) if self._borrowed else _own(window)
        self._borrowed = False

    def _quantize(self, x: Tensor) -> Packed:
        per_channel = self.granularity is Granularity.CHANNEL
        return op.quantize(
            x,
            bits=self.bits,
            granularity="channel" if per_channel else "token",
            group_size=self._unit if per_channel else self.scheme.token_group(x.shape[-1]),
            symmetric=self.scheme.symmetric,
            scale_dtype=getattr(torch, self.scheme.scale_dtype.value),
            rotated=self.rotated,
        )


Side = ExactSide | QuantizedSide


def _present(value: T | None) -> T:
    if value is None:
        raise RuntimeError("A cache is read or cut only after its first update.")
    return value


def _head(x: Tensor, tokens: int) -> Tensor:
    return x[:, :, : max(tokens, 0)]


def _tail(x: Tensor, dropped: int) -> Tensor:
    return x[:, :, max(dropped, 0) :]


def _own(x: Tensor) -> Tensor:
    """``x``, copied if its storage holds more than ``x``."""
    exact = x.untyped_storage().nbytes() == x.numel() * x.element_size()
    return x if exact else x.clone(memory_format=torch.contiguous_format)


def _mapped(packed: Packed, change: Callable[[Tensor], Tensor]) -> Packed:
    offset = None if packed.offset is None else change(packed.offset)
    return replace(packed, codes=change(packed.codes), scale=change(packed.scale), offset=offset)


def _groups(packed: Packed, tokens: int) -> int:
    return tokens // packed.group_size if packed.granularity == "channel" else tokens


def _slice(packed: Packed, begin: int, end: int) -> Packed:
    """The packed tokens from ``begin`` to ``end``, whole groups, with storages of their own."""

    def cut(numbers: Tensor) -> Tensor:
        return _own(numbers[:, :, _groups(packed, begin) : _groups(packed, end)])

    offset = None if packed.offset is None else cut(packed.offset)
    return replace(packed, codes=_own(packed.codes[:, :, begin:end]), scale=cut(packed.scale), offset=offset)


def _joined(first: Packed, second: Packed) -> Packed:
    def join(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([one, other], dim=TOKENS)

    both = first.offset is not None and second.offset is not None
    offset = join(_present(first.offset), _present(second.offset)) if both else None
    return replace(first, codes=join(first.codes, second.codes), scale=join(first.scale, second.scale), offset=offset)
