"""Quantise, pack, dequantise and simulate: signatures, checks, and the choice of implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from kernels.quantize import reference
from kernels.quantize.reference import Granularity

__all__ = [
    "BITS",
    "Granularity",
    "Packed",
    "RowBits",
    "dequantize",
    "from_codes",
    "quantize",
    "row_bytes",
    "simulate",
    "simulate_each",
]

BITS = (8, 4, 3, 2)
"""Bit widths that can be packed."""

Implementation = Literal["auto", "reference", "triton"]

_UNIT = {8: (1, 1), 4: (2, 1), 3: (8, 3), 2: (4, 1)}


def row_bytes(head_dim: int, bits: int) -> int:
    """Bytes of one token's packed codes of one head: whole units of 1, 2 (4 bits), 4 (2) or 8 (3) values."""
    values, size = _UNIT[bits]
    return -(-head_dim // values) * size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A quantised tensor as it is stored; `kernels.quantize.reference` draws the bytes.

    Attributes:
        codes: ``[B, H, T, row_bytes]``, uint8.
        scale: Per token ``[B, H, T, D / group_size]``, per channel ``[B, H, T / group_size, D]``.
        offset: Like ``scale``; ``None`` if symmetric.
        bits: Bits of a code.
        granularity: What one scale covers.
        group_size: Values that share a scale.
        head_dim: Values of a row before packing, ``D``.
        rotated: Whether the codes are those of the rows times a Hadamard matrix.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    bits: int
    granularity: Granularity
    group_size: int
    head_dim: int
    rotated: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens held, ``T``."""
        return self.codes.shape[-2]


def quantize(
    x: Tensor,
    *,
    bits: int,
    granularity: Granularity,
    group_size: int,
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    rotated: bool = False,
) -> Packed:
    """Quantise ``x`` and pack the codes.

    Asymmetric: ``scale = (max - min) / (2^b - 1)``, ``offset = min``,
    ``code = round((x - offset) / scale)``. Symmetric: ``scale = absmax / (2^(b-1) - 1)``,
    ``code = round(x / scale)``. Scale and offset are stored first (rounded, and clamped to the
    finite range of their type), then the codes are computed with the stored numbers. A group
    whose stored scale is 0 (constant, or too small for the type) gives code 0.

    Args:
        x: ``[B, H, T, D]`` in float32, bfloat16 or float16; finite values.
        bits: 8, 4, 3 or 2.
        granularity: ``token``: groups along D of one token. ``channel``: groups of consecutive
            tokens of one channel.
        group_size: Values that share a scale; divides D (``token``) or T (``channel``).
        symmetric: Whether the offset is left out.
        scale_dtype: Storage type of scale and offset, float16 or float32.
        rotated: Whether the rows are multiplied by an orthonormal Hadamard matrix along D first;
            it is block-diagonal where D is no power of two.

    Returns:
        The packed tensor; none of its tensors shares storage with ``x``.

    Raises:
        ValueError: If an argument breaks one of these rules.
    """
    _check(x, bits=bits, granularity=granularity, group_size=group_size, scale_dtype=scale_dtype)
    codes, scale, offset = reference.quantize(
        reference.rotate(x) if rotated else x,
        bits=bits,
        granularity=granularity,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    return Packed(
        codes=codes,
        scale=scale,
        offset=offset,
        bits=bits,
        granularity=granularity,
        group_size=group_size,
        head_dim=x.shape[-1],
        rotated=rotated,
    )


def from_codes(
    codes: Tensor, scale: Tensor, offset: Tensor, *, bits: int, granularity: Granularity, group_size: int
) -> Packed:
    """Pack codes that are there already.

    Args:
        codes: ``[B, H, T, D]`` uint8, each below ``2^bits``.
        scale: As in `Packed`.
        offset: Likewise.
        bits: 8, 4, 3 or 2.
        granularity: What one scale covers.
        group_size: Values that share a scale.

    Returns:
        What `quantize` would have returned for values with these codes; only the codes are copied.
    """
    return Packed(
        codes=reference.pack(codes, bits),
        scale=scale,
        offset=offset,
        bits=bits,
        granularity=granularity,
        group_size=group_size,
        head_dim=codes.shape[-1],
    )


def dequantize(packed: Packed, *, dtype: torch.dtype) -> Tensor:
    """The values of a packed tensor, ``code * scale + offset`` in float32, then rounded to ``dtype``.

    Rows that were rotated are rotated back, in float32, too.

    Args:
        packed: What `quantize` returned.
        dtype: Type of the result; a value beyond its finite range becomes its largest number.

    Returns:
        ``[B, H, T, D]``, a new tensor.
    """
    values = reference.dequantize(
        packed.codes,
        packed.scale,
        packed.offset,
        bits=packed.bits,
        granularity=packed.granularity,
        head_dim=packed.head_dim,
        dtype=torch.float32 if packed.rotated else dtype,
    )
    return reference.rotate(values, dtype=dtype) if packed.rotated else values


def simulate(  # noqa: PLR0913
    x: Tensor,
    *,
    bits: int,
    granularity: Granularity,
    group_size: int,
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    rotated: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """``dequantize(quantize(x))`` in the dtype of ``x``, without packing; equal to it in every value.

    Arguments and errors are those of `quantize`; the result is ``[B, H, T, D]``, a new tensor. ``auto`` takes the
    kernel on CUDA, where there is Triton, and the reference elsewhere, and where a gradient is wanted.
    """
    _check(x, bits=bits, granularity=granularity, group_size=group_size, scale_dtype=scale_dtype)
    values: Tensor = _implementation(x, implementation).simulate(
        reference.rotate(x) if rotated else x,
        bits=bits,
        granularity=granularity,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    return reference.rotate(values, dtype=x.dtype) if rotated else values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowBits:
    """A width for every sequence, or for each of its heads, on the device.

    Attributes:
        bits: ``[B, 1, 1, 1]`` or ``[B, H, 1, 1]`` integers: one of ``widths``, or more than 8 for what stays as it is.
        widths: Widths that may occur.
    """

    bits: Tensor
    widths: Sequence[int]


def simulate_each(  # noqa: PLR0913
    x: Tensor,
    *,
    bits: RowBits,
    granularity: Granularity,
    group_size: int,
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    rotated: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """`simulate` with a width for every sequence, or for each of its heads; nothing on the host depends on them.

    Args:
        x: As in `quantize`.
        bits: The widths.
        granularity: As in `quantize`.
        group_size: As in `quantize`.
        symmetric: As in `quantize`.
        scale_dtype: As in `quantize`.
        rotated: As in `quantize`.
        implementation: As in `simulate`.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``x``, equal to `simulate` in every value.

    Raises:
        ValueError: If an argument breaks one of these rules.
    """
    for width in bits.widths:
        _check(x, bits=width, granularity=granularity, group_size=group_size, scale_dtype=scale_dtype)
    if not bits.widths:
        return x
    values: Tensor = _implementation(x, implementation).simulate_each(
        reference.rotate(x) if rotated else x,
        bits=bits.bits,
        granularity=granularity,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    if not rotated:
        return values
    return torch.where(bits.bits > max(BITS), x, reference.rotate(values, dtype=x.dtype))


def _implementation(x: Tensor, wanted: Implementation) -> ModuleType:
    if wanted == "triton" or (wanted == "auto" and x.is_cuda and not _has_gradient(x) and _has_triton()):
        from kernels.quantize import triton_impl

        return triton_impl
    return reference


def _has_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _check(x: Tensor, *, bits: int, granularity: str, group_size: int, scale_dtype: torch.dtype) -> None:
    if x.ndim != 4 or not x.dtype.is_floating_point:
        raise ValueError(f"x must be a floating-point tensor [B, H, T, D]; got {x.dtype} {list(x.shape)}.")
    if bits not in BITS:
        raise ValueError(f"bits must be 8, 4, 3 or 2; got {bits!r}. Keep 16-bit tensors as they are.")
    if granularity not in ("token", "channel"):
        raise ValueError(f"granularity must be 'token' or 'channel'; got {granularity!r}.")
    if scale_dtype not in (torch.float16, torch.float32):
        raise ValueError(f"scale_dtype must be torch.float16 or torch.float32; got {scale_dtype}.")
    axis, size = ("D", x.shape[3]) if granularity == "token" else ("T", x.shape[2])
    if group_size < 1 or size % group_size:
        raise ValueError(f"group_size must divide {axis} ({size}) of a per-{granularity} tensor; got {group_size}.")
