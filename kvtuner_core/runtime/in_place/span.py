"""The host's numbers of one update of the in-place cache."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which tokens an update brings, and what is quantised before and after it.

    Attributes:
        before: Tokens before it.
        count: Its tokens.
        packed_before: Store position (tokens after the sinks) before which everything was packed, or forgotten by
            a sliding window, before it.
        packed_after: And after it.
    """

    before: int
    count: int
    packed_before: int
    packed_after: int

    @property
    def after(self) -> int:
        """Tokens after it."""
        return self.before + self.count
