# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0917
"""Packed codes of a block as a tile of floats, for products on tensor cores that take whole rows of tokens."""

import triton
import triton.language as tl

from kernels.decode_attention.triton_impl import key_codes, value_codes


@triton.jit
def _floats(codes, DTYPE: tl.constexpr):
    """Codes below 256 as floats: a conversion takes four times as long as an addition."""
    return ((codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0).to(DTYPE)


@triton.jit
def _key_plane(p_words, D: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes ``[64, D]`` of one plane of a block of keys; D a power of two, 64 at least."""
    N: tl.constexpr = 8 // BITS
    words = tl.load(p_words + tl.arange(0, 2 * D * BITS)).reshape([BITS, D // 64, 8, 4, 4, 1, 1])
    byte = tl.arange(0, 4).reshape([1, 1, 1, 1, 1, 4, 1])
    place = tl.arange(0, N).reshape([1, 1, 1, 1, 1, 1, N])
    codes = _floats((words >> (8 * byte + BITS * place)) & ((1 << BITS) - 1), DTYPE)
    return codes.permute(0, 6, 2, 1, 4, 3, 5).reshape([64, D])


@triton.jit
def _value_plane(p_words, D: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes ``[64, D]`` of one plane of a block of values; D a power of two, 64 at least."""
    N: tl.constexpr = 8 // BITS
    words = tl.load(p_words + tl.arange(0, 2 * D * BITS)).reshape([D * BITS // 64, 8, 4, 4, 1, 1, 1])
    odd = tl.arange(0, 2).reshape([1, 1, 1, 1, 2, 1, 1])
    upper = tl.arange(0, 2).reshape([1, 1, 1, 1, 1, 2, 1])
    place = tl.arange(0, N).reshape([1, 1, 1, 1, 1, 1, N])
    codes = _floats((words >> (16 * odd + 8 * upper + BITS * place)) & ((1 << BITS) - 1), DTYPE)
    return codes.permute(3, 5, 2, 4, 0, 6, 1).reshape([64, D])


@triton.jit
def float_codes(
    p_words, lanes, KEYS: tl.constexpr, BITS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr
):
    """The codes ``[64, W]`` of a block as floats: whole runs of words where D allows it, else a word a code.

    They become floats before they find their places, which takes them through shared memory.
    """
    MAIN: tl.constexpr = 2 if BITS == 3 else BITS
    if D == WIDTH and D >= 64:
        if KEYS:
            codes = _key_plane(p_words, D, MAIN, DTYPE)
            if BITS == 3:
                codes += _key_plane(p_words + 4 * D, D, 1, DTYPE) * 4
        else:
            codes = _value_plane(p_words, D, MAIN, DTYPE)
            if BITS == 3:
                codes += _value_plane(p_words + 4 * D, D, 1, DTYPE) * 4
    else:
        r = tl.arange(0, 64)[:, None]
        d = lanes[None, :]
        codes = key_codes(p_words, r, d, BITS, D) if KEYS else value_codes(p_words, r, d, BITS, D)
        codes = _floats(codes, DTYPE)
    return codes
