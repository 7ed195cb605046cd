"""Where a stored number comes from, and when."""

from dataclasses import dataclass
from datetime import UTC, datetime


def utc_now() -> str:
    """Now, as every time is stored: ISO 8601 in UTC with seconds and a Z."""
    return as_utc(datetime.now(UTC).isoformat(timespec="seconds"))


def as_utc(stamp: str) -> str:
    """A time of UTC as it was stored at any time, written as `utc_now` does."""
    return stamp.removesuffix("+00:00") + "Z" if stamp.endswith("+00:00") else stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a number depends on besides its key.

    Attributes:
        created: UTC time, ISO 8601 with seconds.
        device: Readable device name, such as ``cpu (2 threads)`` or ``NVIDIA H200``.
        device_type: ``cpu`` or ``cuda``.
        dtype: The model's dtype, such as ``float32``.
        versions: Pairs of library name and version (kvtuner, torch, transformers, python).
    """

    created: str
    device: str
    device_type: str
    dtype: str
    versions: tuple[tuple[str, str], ...] = ()
