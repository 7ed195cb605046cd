"""Bit widths of one layer's keys and values."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvtuner_core.errors import PolicyError

FULL_BITS = 16
"""Bits of an unquantised tensor; it is stored in the model's own dtype."""

ALLOWED_BITS = (16, 8, 4, 3, 2)
"""Every bit width the packed cache can store."""

_NAME = re.compile(r"K([0-9]{1,2})V([0-9]{1,2})|KV([0-9]{1,2})")


def check_bits(bits: int, *, name: str) -> None:
    """Raise `PolicyError` unless ``bits`` is a width that the packed cache can store."""
    if type(bits) is not int or bits not in ALLOWED_BITS:
        raise PolicyError(f"{name} must be one of 16, 8, 4, 3 or 2; got {bits!r}.")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PrecisionPair:
    """Key bits and value bits of one layer, written ``K8V4``.

    Attributes:
        key_bits: Bits of each cached key scalar: 16 (unquantised), 8, 4, 3 or 2.
        value_bits: Bits of each cached value scalar, likewise.
    """

    key_bits: int
    value_bits: int

    def __post_init__(self) -> None:
        check_bits(self.key_bits, name="key_bits")
        check_bits(self.value_bits, name="value_bits")

    @classmethod
    def parse(cls, text: str) -> "PrecisionPair":
        """Read ``K8V4``, or ``KV4`` for ``K4V4``.

        Raises:
            PolicyError: If ``text`` is not such a name.
        """
        match = _NAME.fullmatch(text.strip().upper())
        if match is None:
            raise PolicyError(f"A precision pair is written like K8V4 or KV4; got {text!r}.")
        key, value, both = match.groups()
        return cls(key_bits=int(key or both), value_bits=int(value or both))

    @property
    def name(self) -> str:
        """The pair as it is written everywhere, such as ``K4V4``."""
        return f"K{self.key_bits}V{self.value_bits}"

    @property
    def nominal_bits(self) -> float:
        """Mean of key and value bits, without scales and offsets."""
        return (self.key_bits + self.value_bits) / 2

    @property
    def is_full(self) -> bool:
        """Whether neither side is quantised."""
        return self.key_bits == self.value_bits == FULL_BITS

    def __str__(self) -> str:
        return self.name


FULL_PAIR = PrecisionPair(key_bits=FULL_BITS, value_bits=FULL_BITS)
"""The unquantised pair."""

BASELINE_PAIRS = tuple(PrecisionPair.parse(name) for name in ("KV8", "K8V4", "KV4", "K4V2", "KV2"))
"""The uniform policies every search result is shown beside."""


def candidate_pairs(bits: Iterable[int]) -> tuple[PrecisionPair, ...]:
    """All key and value combinations of ``bits``, most bits first.

    Args:
        bits: Bit widths, such as ``(2, 4, 8)``; duplicates are ignored.

    Raises:
        PolicyError: If ``bits`` is empty or holds a width that cannot be stored.
    """
    widths = sorted(set(bits), reverse=True)
    if not widths:
        raise PolicyError("At least one bit width is needed; got none. Use for example 2,4,8.")
    return tuple(PrecisionPair(key_bits=key, value_bits=value) for key in widths for value in widths)
