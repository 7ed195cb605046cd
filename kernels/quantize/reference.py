"""Plain PyTorch definition of quantising, packing and simulating.

All arithmetic is float32. Scale and offset are rounded to their storage type first, clamped to
its finite range, and the codes are computed with the *stored* numbers, so that a packed tensor
and a simulated one are equal bit for bit.

Codes of one token and head make one row. A row is cut into planes, so that neighbouring bytes
hold neighbouring channels; the last plane is padded with zeros. With ``c`` the codes::

    8 bits  R = D           byte i = c[i]
    4 bits  R = ceil(D/2)   byte i = c[R+i]  c[i]                         i < R
                                     7....4  3..0
    2 bits  R = ceil(D/4)   byte i = c[3R+i] c[2R+i] c[R+i] c[i]          i < R
                                     7....6  5....4  3...2  1..0
    3 bits  R = ceil(D/8)   bytes 0 .. 2R-1: bits 1 and 0 of the codes as for 2 bits, planes of 2R
                            bytes 2R .. 3R-1: bit 2 of the codes, planes of R
                            byte 2R+i = c[7R+i] c[6R+i] ... c[R+i] c[i]   i < R
                                        7       6           1      0

Asymmetric codes are 0 to 2^b - 1. Symmetric ones are -(2^(b-1) - 1) to 2^(b-1) - 1, stored with
2^(b-1) added.

A rotated tensor is one whose rows were multiplied by an orthonormal Hadamard matrix before they
were quantised; dequantising multiplies by it again, since it is its own inverse::

    H_1 = 1      H_2n = | H_n   H_n |  / sqrt(2)      rows of D = m * n values, n the largest power
                        | H_n  -H_n |                 of two in D: m blocks, each times H_n
"""

from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["token", "channel"]

_WIDEST = 8


def quantize(
    x: Tensor, *, bits: int, granularity: Granularity, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise and pack; see `kernels.quantize.op.quantize`.

    Args:
        x: ``[B, H, T, D]``, finite.
        bits: 8, 4, 3 or 2.
        granularity: What one scale covers.
        group_size: Values that share a scale.
        symmetric: Whether the offset is left out.
        scale_dtype: Storage type of scale and offset.

    Returns:
        Codes ``[B, H, T, row_bytes]`` as uint8, scale and offset (``None`` if symmetric), each
        ``[B, H, T, D / group_size]`` per token or ``[B, H, T / group_size, D]`` per channel.
    """
    grouped = _group(x, granularity, group_size)
    dim = _group_dim(granularity)
    scale, offset = _scale_and_offset(grouped, dim, bits=bits, symmetric=symmetric, dtype=scale_dtype)
    codes = _codes(grouped, scale, offset, bits)
    if symmetric:
        codes = codes.add_(2 ** (bits - 1))
    packed = pack(_ungroup(codes, granularity).to(torch.uint8), bits)
    return packed, scale.squeeze(dim), None if offset is None else offset.squeeze(dim)


def dequantize(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    *,
    bits: int,
    granularity: Granularity,
    head_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    """Unpack and dequantise what `quantize` returned; the result is ``[B, H, T, head_dim]``."""
    values = unpack(codes, bits, head_dim).float()
    if offset is None:
        values.sub_(2 ** (bits - 1))
    dim = _group_dim(granularity)
    groups = scale.shape[-1] if granularity == "token" else scale.shape[-2]
    along = head_dim if granularity == "token" else codes.shape[-2]
    grouped = _group(values, granularity, along // groups if groups else 1)
    scale = scale.unsqueeze(dim)
    offset = None if offset is None else offset.unsqueeze(dim)
    return _finite(_ungroup(_values(grouped, scale, offset), granularity), dtype, scale.dtype)


def simulate(
    x: Tensor, *, bits: int, granularity: Granularity, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> Tensor:
    """What `dequantize` makes of what `quantize` stored, in the shape and dtype of ``x``."""
    grouped = _group(x, granularity, group_size)
    scale, offset = _scale_and_offset(
        grouped, _group_dim(granularity), bits=bits, symmetric=symmetric, dtype=scale_dtype
    )
    values = _values(_codes(grouped, scale, offset, bits), scale, offset)
    return _finite(_ungroup(values, granularity), x.dtype, scale_dtype)


def simulate_each(
    x: Tensor,
    *,
    bits: Tensor,
    granularity: Granularity,
    group_size: int,
    symmetric: bool,
    scale_dtype: torch.dtype,
) -> Tensor:
    """`simulate` with a width for every sequence, or for each of its heads, in one go.

    Args:
        x: ``[B, H, T, D]``, finite.
        bits: ``[B, 1, 1, 1]`` or ``[B, H, 1, 1]`` integers; where it is above 8, values stay as they are.
        granularity: What one scale covers.
        group_size: Values that share a scale.
        symmetric: Whether the offset is left out.
        scale_dtype: Storage type of scale and offset.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``x``, the bits that `simulate` gives.
    """
    values = _simulate_each(
        x, bits, granularity=granularity, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
    )
    return torch.where(bits > _WIDEST, x, values)


def _simulate_each(
    x: Tensor, bits: Tensor, *, granularity: Granularity, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> Tensor:
    grouped = _group(x, granularity, group_size)
    dim, bits = _group_dim(granularity), bits[..., None].int()
    low, high = grouped.amin(dim, keepdim=True).float(), grouped.amax(dim, keepdim=True).float()
    steps = torch.bitwise_left_shift(torch.ones_like(bits), bits - int(symmetric)).sub_(1).float()
    scale = _store((torch.maximum(high, -low) if symmetric else high - low) / steps, scale_dtype)
    divisor = scale.float().masked_fill(scale == 0, torch.inf)
    if symmetric:
        codes = (grouped / divisor).round_()
        codes = torch.minimum(torch.maximum(codes, -steps, out=codes), steps, out=codes)
        return _finite(_ungroup(codes.mul_(scale.float()), granularity), x.dtype, scale_dtype)
    offset = _store(low, scale_dtype).float()
    codes = (grouped - offset).div_(divisor).round_().clamp_(min=0)
    values = torch.minimum(codes, steps, out=codes).mul_(scale.float()).add_(offset)
    return _finite(_ungroup(values, granularity), x.dtype, scale_dtype)


def rotate(x: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows ``[..., D]`` times the block-diagonal Hadamard matrix, computed in float32; a new tensor.

    Sums are formed in one order whatever the shape, so that a row gives the same bits alone and
    among others.
    """
    size = x.shape[-1]
    block = size & -size
    turned = x.float()
    half = 1
    while half < block:
        left, right = turned.reshape(*x.shape[:-1], size // (2 * half), 2, half).unbind(-2)
        turned = torch.stack((left + right, left - right), dim=-2)
        half *= 2
    return _finite(turned.reshape(x.shape) * block**-0.5, dtype, torch.float32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes ``[..., D]`` (uint8, each below 2^bits) into rows ``[..., row_bytes]``."""
    if bits == 8:
        return codes.contiguous()
    if bits == 3:
        whole = _pad(codes, 8)
        return torch.cat([_pack_planes(whole & 3, 2), _pack_planes(whole >> 2, 1)], dim=-1)
    return _pack_planes(_pad(codes, 8 // bits), bits)


def unpack(rows: Tensor, bits: int, head_dim: int) -> Tensor:
    """Undo `pack`: rows ``[..., row_bytes]`` become codes ``[..., head_dim]`` (uint8)."""
    if bits == 8:
        return rows
    if bits == 3:
        third = rows.shape[-1] // 3
        low = _unpack_planes(rows[..., : 2 * third], 2)
        high = _unpack_planes(rows[..., 2 * third :], 1)
        return low.bitwise_or_(high.bitwise_left_shift_(2))[..., :head_dim]
    return _unpack_planes(rows, bits)[..., :head_dim]


def _pad(codes: Tensor, unit: int) -> Tensor:
    missing = -codes.shape[-1] % unit
    return torch.nn.functional.pad(codes, (0, missing)) if missing else codes


def _pack_planes(codes: Tensor, bits: int) -> Tensor:
    # From the plane in the highest bits down: each shift makes room for the next one.
    last, *planes = reversed(codes.chunk(8 // bits, dim=-1))
    packed = last.clone(memory_format=torch.contiguous_format)
    for plane in planes:
        packed.bitwise_left_shift_(bits).bitwise_or_(plane)
    return packed


def _unpack_planes(rows: Tensor, bits: int) -> Tensor:
    mask = 2**bits - 1
    return torch.cat([(rows >> shift).bitwise_and_(mask) for shift in range(0, 8, bits)], dim=-1)


def _group_dim(granularity: Granularity) -> int:
    return -1 if granularity == "token" else -2


def _group(x: Tensor, granularity: Granularity, group_size: int) -> Tensor:
    # Splitting one dimension is a view of any strided tensor; only float64 is copied, to float32.
    x = x.float() if x.dtype == torch.float64 else x
    *batch, tokens, head_dim = x.shape
    if granularity == "token":
        return x.view(*batch, tokens, head_dim // group_size, group_size)
    return x.view(*batch, tokens // group_size, group_size, head_dim)


def _ungroup(grouped: Tensor, granularity: Granularity) -> Tensor:
    return grouped.flatten(-2) if granularity == "token" else grouped.flatten(-3, -2)


def _scale_and_offset(
    grouped: Tensor, dim: int, *, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    low, high = grouped.amin(dim, keepdim=True).float(), grouped.amax(dim, keepdim=True).float()
    # A GPU multiplies by the reciprocal of a number, which is rounded in another way than dividing by a tensor is.
    steps = low.new_full((), 2 ** (bits - int(symmetric)) - 1)
    if symmetric:
        return _store(torch.maximum(high, -low).div_(steps), dtype), None
    return _store((high - low).div_(steps), dtype), _store(low, dtype)


def _store(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    return numbers.clamp_(-limit, limit).to(dtype)


def _codes(grouped: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    # Dividing by infinity gives code 0 to a group whose stored scale is 0, however far off its offset is.
    divisor = scale.float().masked_fill(scale == 0, torch.inf)
    if offset is None:
        largest = 2 ** (bits - 1) - 1
        return (grouped / divisor).round_().clamp_(-largest, largest)
    return (grouped - offset.float()).div_(divisor).round_().clamp_(0, 2**bits - 1)


def _values(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    values = codes.mul_(scale.float())
    return values if offset is None else values.add_(offset.float())


def _finite(values: Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> Tensor:
    # Only these types can overflow: the largest code of a float16 scale and offset is far below bfloat16's limit.
    if dtype == torch.float16 or scale_dtype == torch.float32:
        limit = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
        values = values.clamp_(-limit, limit)
    return values.to(dtype)
