"""Where a stored number comes from."""

from dataclasses import dataclass


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
