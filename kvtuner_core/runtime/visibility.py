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

from kvtuner_core.domain.memory import stored_tokens
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
        unit = scheme.flush_tokens
        held = stored_tokens(scheme, prefix, window)
        exact_from = prefix - held.window
        visible_from = exact_from - (held.packed - held.stale)
        history = [(query, stored_tokens(scheme, query, window)) for query in range(prefix, prefix + suffix)]
        packed_ends = [query - stored.window for query, stored in history if stored.packed]
        first_group = exact_from if window is None else max(0, prefix - scheme.residual_length) // unit * unit
        boundary_from = max(first_group, scheme.sink_length if window is None else 0)
        boundary_to = max(boundary_from, *packed_ends, 0)
        sinks = Span(start=0, stop=held.sinks, slot=0)
        packed = Span(start=visible_from, stop=exact_from, slot=sinks.tokens)
        exact = Span(start=exact_from, stop=prefix + suffix, slot=packed.slot + packed.tokens)
        boundary = Span(start=boundary_from, stop=boundary_to, slot=exact.slot + exact.tokens)
        return cls(
            scheme=scheme,
            prefix=prefix,
            suffix=suffix,
            window=window,
            sinks=sinks,
            packed=packed,
            packed_from=visible_from - held.stale,
            exact=exact,
            boundary=boundary,
        )

    def mask(self, device: torch.device) -> torch.Tensor:
        """Boolean ``[S, K]``, true where the query of that row reads the slot."""
        positions = np.concatenate(
            [np.arange(span.start, span.stop) for span in (self.sinks, self.packed, self.exact, self.boundary)]
        )
        quantised = np.zeros(self.slots, dtype=bool)
        quantised[self.packed.slots] = True
        quantised[self.boundary.slots] = True
        rows = np.zeros((self.suffix, self.slots), dtype=bool)
        for row in range(self.suffix):
            query = self.prefix + row
            held = stored_tokens(self.scheme, query, self.window)
            exact_from = query - held.window
            packed_from = exact_from - (held.packed - held.stale)
            reads_packed = quantised & (packed_from <= positions) & (positions < exact_from)
            reads_exact = ~quantised & ((positions < held.sinks) | (exact_from <= positions)) & (positions <= query)
            rows[row] = reads_packed | reads_exact
        return torch.from_numpy(rows).to(device)
