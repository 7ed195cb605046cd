"""Which version of which token every scored query reads.

Token-by-token decoding reads, at position ``p``, the history as it is stored after ``p`` tokens,
and the token at ``p`` itself in full precision. To score all suffix positions in one pass, every
token that changes its version while the suffix is decoded is laid out twice, and a mask shows each
query the version that it would have found::

    | sinks, exact | packed prefix | exact: residual window, then suffix | the same, quantised |
"""

from dataclasses import dataclass

import numpy as np
import torch

from kvtuner_core.domain.memory import packed_until, stored_tokens
from kvtuner_core.domain.scheme import QuantScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens ``start`` to ``stop`` (exclusive), laid out from slot ``slot`` on."""

    start: int
    stop: int
    slot: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def slots(self) -> slice:
        """Where they lie."""
        return slice(self.slot, self.slot + self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Slots of one layer's keys and values while a suffix is scored.

    Attributes:
        scheme: Grouping and rounding.
        prefix: Tokens read before the suffix, ``P``.
        suffix: Tokens scored, ``S``.
        window: The layer's sliding window, or ``None``.
        sinks: First tokens, exact.
        packed: Prefix tokens that are quantised when the suffix starts and visible to some query.
        packed_from: First token of the first group of ``packed``; may lie before it.
        exact: Tokens not quantised when the suffix starts, exact, up to the suffix's last.
        boundary: Tokens that are quantised while the suffix is decoded, quantised; whole groups.
    """

    scheme: QuantScheme
    prefix: int
    suffix: int
    window: int | None
    sinks: Span
    packed: Span
    packed_from: int
    exact: Span
    boundary: Span

    @property
    def slots(self) -> int:
        """Number of slots, ``K``."""
        return self.boundary.slot + self.boundary.tokens

    @property
    def new(self) -> slice:
        """Slots of the suffix tokens' exact version."""
        first = self.exact.slot + self.prefix - self.exact.start
        return slice(first, first + self.suffix)

    @classmethod
    def build(cls, scheme: QuantScheme, *, prefix: int, suffix: int, window: int | None) -> "Layout":
        """Lay out a layer's tokens.

        Args:
            scheme: Grouping and rounding.
            prefix: Tokens read before the suffix.
            suffix: Tokens scored.
            window: The layer's sliding window, or ``None``.
        """
        history = [_Read.of(scheme, query, window) for query in range(prefix, prefix + suffix)]
        first = history[0]
        anchor = scheme.sink_length if window is None else 0
        stored = packed_until(scheme, prefix, sinks=min(prefix, anchor), sliding_window=window)
        boundary_from = max(anchor, stored)
        packed_ends = [read.exact_from for read in history if read.packed_from < read.exact_from]
        boundary_to = max([boundary_from, *packed_ends])
        sinks = Span(start=0, stop=first.sinks, slot=0)
        packed = Span(start=first.packed_from, stop=first.exact_from, slot=sinks.tokens)
        exact = Span(start=first.exact_from, stop=prefix + suffix, slot=packed.slot + packed.tokens)
        boundary = Span(start=boundary_from, stop=boundary_to, slot=exact.slot + exact.tokens)
        return cls(
            scheme=scheme,
            prefix=prefix,
            suffix=suffix,
            window=window,
            sinks=sinks,
            packed=packed,
            packed_from=first.group_from,
            exact=exact,
            boundary=boundary,
        )

    @property
    def positions(self) -> np.ndarray:
        """``[K]``, the position of each slot's token; a token that lies in two slots has two."""
        spans = (self.sinks, self.packed, self.exact, self.boundary)
        return np.concatenate([np.arange(span.start, span.stop) for span in spans])

    def mask(self, device: torch.device) -> torch.Tensor:
        """Boolean ``[S, K]``, true where the query of that row reads the slot."""
        positions = self.positions
        quantised = np.zeros(self.slots, dtype=bool)
        quantised[self.packed.slots] = True
        quantised[self.boundary.slots] = True
        rows = np.zeros((self.suffix, self.slots), dtype=bool)
        for row in range(self.suffix):
            query = self.prefix + row
            read = _Read.of(self.scheme, query, self.window)
            reads_packed = quantised & (read.packed_from <= positions) & (positions < read.exact_from)
            reads_exact = ~quantised & ((positions < read.sinks) | (read.exact_from <= positions))
            rows[row] = reads_packed | (reads_exact & (positions <= query))
        return torch.from_numpy(rows).to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What the query at a position reads of the tokens before it.

    Attributes:
        sinks: First tokens, exact.
        group_from: First token of the oldest group that is held packed.
        packed_from: First visible quantised token.
        exact_from: First visible token of the exact window.
    """

    sinks: int
    group_from: int
    packed_from: int
    exact_from: int

    @classmethod
    def of(cls, scheme: QuantScheme, query: int, window: int | None) -> "_Read":
        held = stored_tokens(scheme, query, window)
        end = query - held.window
        start = end - held.packed
        if not held.packed:
            # What a sliding window no longer shows then lies at the front of the exact tokens.
            end = start = start + held.stale
            return cls(sinks=held.sinks, group_from=start, packed_from=start, exact_from=end)
        return cls(sinks=held.sinks, group_from=start, packed_from=start + held.stale, exact_from=end)
