# mypy: ignore-errors
# ruff: noqa: B007, C901, N803, N806, PLR0912, PLR0913, PLR0915, PLR0917, RUF005, SIM108
"""Attention over packed keys and values on a GPU: split over the tokens, then merged with the recent ones.

Two kernels. The first leaves, for each split, the unnormalised output and (peak, sum) of the softmax
in powers of two; the second merges splits by log-sum-exp and adds the recent tokens. The first is
`decode_kernel` on a GPU, and a plain twin with the same bytes in and out elsewhere (the interpreter).

`decode_kernel` runs one warp a program and multiplies packed bytes on tensor cores. Per-token keys
and all values take the integer ones (``m16n8k32``, u8 x s8 and u8 x u8): the packed bytes are
operand A after at most one mask. The other operand has four rows of queries, each as two byte limbs
in neighbouring columns, so that the eight columns carry four queries in about 15 bits; a thread then
owns both limbs of one query's score. Softmax weights times value scales become 16-bit fixed point
whose unit the tile's largest scale decides, their two bytes are the limbs, and ``movmatrix`` turns
them into the operand. Per-channel keys take ``m16n8k16`` float16: a masked code is a float16 subnormal, and the
scales are folded into the queries once in 32 tokens. It is written per lane: a tensor ``[8, 4]``
holds one register of each lane (g, t) of the warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.launching import Launcher, Prepared, launches_early, next_power_of_2, processors

if TYPE_CHECKING:
    from kernels.decode_attention.op import PackedSide, Recent, SideKind, Visible

_MIN_BLOCKS = 2
_MOST_WAVES = 16
_START = 1.5
"""What a program's start and its output cost, in blocks."""
_MOST_PARTS = 4
_HELD = 4096
"""Elements of the splits' outputs that a program of the merge holds at once."""
_MERGE_REGISTERS = 168
"""As few as the narrowest variant of the first kernel takes, so that a program of the merge fits in its place."""
_RECENT = gl.constexpr(32)
"""Recent tokens that a program of the first kernel takes at once, dealt out like a block."""
_RECENT_TILE = 16
"""Recent tokens that the merge takes at once, where the first kernel takes none."""
_LOG2E = tl.constexpr(1.4426950408889634)
_HALF_ONE = gl.constexpr(12582912.0)


@gluon.constexpr_function
def _byte_mask(bits, place):
    mask = (((1 << bits) - 1) << (place * bits)) * 0x01010101
    return mask - (1 << 32) if mask >= 1 << 31 else mask


@gluon.constexpr_function
def _half_mask(bits, place):
    return (((1 << bits) - 1) << (place * bits)) * 0x00010001


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _rcp(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _ratio(a, b):
    """``a // b`` of two that are not negative, for half of the instructions."""
    return (gl.to_tensor(a).to(gl.uint32) // gl.to_tensor(b).to(gl.uint32)).to(gl.int32)


@gluon.jit
def _uniform(x):
    """A number that all lanes share, which the compiler then knows, too."""
    return gl.inline_asm_elementwise(
        "shfl.sync.idx.b32 $0, $1, 0, 31, -1;", "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _pair(x):
    """Scale and offset of a 32-bit word, as float32."""
    lo, hi = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [x], dtype=(gl.float16, gl.float16), is_pure=True, pack=1
    )
    return lo.to(gl.float32), hi.to(gl.float32)


@gluon.jit
def _two_bytes(x, ODD: gl.constexpr):
    """Bytes 0 and 2, or 1 and 3, of a word as its two halves."""
    ASM: gl.constexpr = "prmt.b32 $0, $1, 0, 0x4341;" if ODD else "prmt.b32 $0, $1, 0, 0x4240;"
    return gl.inline_asm_elementwise(ASM, "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _mul_halves(a, b):
    return gl.inline_asm_elementwise("mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _halves(lo, hi, BF16: gl.constexpr = False):
    """Two float32 as a word of two 16-bit floats."""
    ASM: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;" if BF16 else "cvt.rn.f16x2.f32 $0, $2, $1;"
    # one conversion: a word put together of two 16-bit registers would be put together again in every turn
    return gl.inline_asm_elementwise(ASM, "=r,f,f", [lo, hi], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _largest(x):
    """The largest of numbers of all lanes that are not negative, in each lane."""
    bits = x.to(gl.int32, bitcast=True)
    top = gl.inline_asm_elementwise(
        "redux.sync.max.s32 $0, $1, -1;", "=r,r", [bits], dtype=gl.int32, is_pure=True, pack=1
    )
    return top.to(gl.float32, bitcast=True)


@gluon.jit
def _fixed_point(top):
    """What makes a number from 0 to ``top`` a 16-bit integer in the low bits of their sum, and the integer's unit.

    The unit is the power of two of which ``top`` has 2^15 or more, but less than 2^16.
    """
    exponent = gl.maximum(top, 1e-30).to(gl.int32, bitcast=True) & 0x7F800000
    return (exponent + (8 << 23)).to(gl.float32, bitcast=True), (exponent - (15 << 23)).to(gl.float32, bitcast=True)


@gluon.jit
def _mma_signed(a0, a1, a2, a3, b0, b1, c):
    return gl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, b0, b1, c[0], c[1], c[2], c[3]],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _mma_unsigned(a0, a1, a2, a3, b0, b1, c):
    return gl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, b0, b1, c[0], c[1], c[2], c[3]],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _mma_floats(a0, a1, a2, a3, b0, b1, c, BF16: gl.constexpr = False):
    KIND: gl.constexpr = "bf16.bf16" if BF16 else "f16.f16"
    return gl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k16.row.col.f32." + KIND + ".f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a0, a1, a2, a3, b0, b1, c[0], c[1], c[2], c[3]],
        dtype=(gl.float32, gl.float32, gl.float32, gl.float32),
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _transposed(x):
    """The transpose of a warp's 8 x 8 halves, two a lane."""
    return gl.inline_asm_elementwise(
        "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _high_low(x, BF16: gl.constexpr):
    """A float32 as two 16-bit floats, the nearest one and the nearest to what is left, in a word."""
    high = x.to(gl.bfloat16 if BF16 else gl.float16).to(gl.float32)
    return _halves(high, x - high, BF16)


@gluon.jit
def _limbs(a, b):
    """Low 16 bits of the weights of tokens g and g + 8 to operand bytes: token pairs along t, limbs along g."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 w; prmt.b32 w, $1, $2, 0x4051; movmatrix.sync.aligned.m8n8.trans.b16 $0, w; }",
        "=r,r,r",
        [a, b],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _four(a, b, S: gl.constexpr):
    """Halve the last axis of ``a`` and ``b`` into the four words of a lane, in order."""
    w0, w2 = gl.split(a)
    w1, w3 = gl.split(b)
    return (
        gl.convert_layout(w0, S, assert_trivial=True),
        gl.convert_layout(w1, S, assert_trivial=True),
        gl.convert_layout(w2, S, assert_trivial=True),
        gl.convert_layout(w3, S, assert_trivial=True),
    )


@gluon.jit
def _load_words(p_words, RUNS: gl.constexpr, run: gl.constexpr):
    out = ()
    for c in gl.static_range(RUNS):
        out = out + (gl.load(p_words + c * 128 + gl.arange(0, 128, layout=run)),)
    return out


@gluon.jit
def _lane_words(loaded, RUNS: gl.constexpr, L: gl.constexpr):
    out = ()
    for c in gl.static_range(RUNS):
        a, b = gl.split(loaded[c].reshape([8, 4, 2, 2]))
        out = out + _four(a, b, L)
    return out


@gluon.jit
def _lane_pairs(x, S: gl.constexpr):
    """64 per-token words, eight a lane, as eight tensors over g."""
    a, b = gl.split(x.reshape([8, 2, 2, 2]))
    a0, a1 = gl.split(a)
    b0, b1 = gl.split(b)
    w0, w4 = gl.split(a0)
    w2, w6 = gl.split(a1)
    w1, w5 = gl.split(b0)
    w3, w7 = gl.split(b1)
    return (
        gl.convert_layout(w0, S, assert_trivial=True),
        gl.convert_layout(w1, S, assert_trivial=True),
        gl.convert_layout(w2, S, assert_trivial=True),
        gl.convert_layout(w3, S, assert_trivial=True),
        gl.convert_layout(w4, S, assert_trivial=True),
        gl.convert_layout(w5, S, assert_trivial=True),
        gl.convert_layout(w6, S, assert_trivial=True),
        gl.convert_layout(w7, S, assert_trivial=True),
    )


@gluon.jit
def _load_pairs(p_scales, GROUPS: gl.constexpr, layout: gl.constexpr):
    """Per-token pairs of a block, 64 words a group of channels."""
    out = ()
    for c in gl.static_range(GROUPS):
        out = out + (gl.load(p_scales + c * 64 + gl.arange(0, 64, layout=layout)),)
    return out


@gluon.jit
def _load_channels(p_scales, D: gl.constexpr, quads: gl.constexpr, twos: gl.constexpr):
    """Per-channel scales of a block: scales and offsets of two groups, runs of 16 words and a rest of 8."""
    out = ()
    for part in gl.static_range(4):
        for c in gl.static_range(D // 32):
            out = out + (gl.load(p_scales + part * (D // 2) + c * 16 + gl.arange(0, 16, layout=quads)),)
        if D % 32 != 0:
            out = out + (gl.load(p_scales + part * (D // 2) + D // 32 * 16 + gl.arange(0, 8, layout=twos)),)
    return out


@gluon.jit
def _ask(p_words, WORDS: gl.constexpr):
    """Fetch some words into the L2 cache; a lane asks for 32 bytes, and no register waits for them."""
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    for part in gl.static_range((WORDS + 255) // 256):
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [p_words + gl.minimum(part * 256 + lane * 8, WORDS - 1)],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )


@gluon.jit
def _scores_int(
    words,
    FIRST: gl.constexpr,
    q,
    W0: gl.constexpr,
    W1: gl.constexpr,
    BITS: gl.constexpr,
    D: gl.constexpr,
    L: gl.constexpr,
):
    """Eight tensors: the products of octets u = 0 to 7 of the block's tokens with the query of lane t.

    Over the channels of words ``W0`` to ``W1``, 16 each.
    """
    N: gl.constexpr = 8 // BITS
    W: gl.constexpr = D // 16
    out = ()
    for mb in gl.static_range(4):
        zero = gl.full([8, 4], 0, gl.int32, layout=L)
        c = (zero, zero, zero, zero)
        for w in gl.static_range(W0, W1, 2):
            a0 = words[FIRST + (2 * mb // N) * W + w]
            a1 = words[FIRST + ((2 * mb + 1) // N) * W + w]
            if BITS < 8:
                a0 = a0 & _byte_mask(BITS, 2 * mb % N)
                a1 = a1 & _byte_mask(BITS, (2 * mb + 1) % N)
            if w + 1 < W1:
                a2 = words[FIRST + (2 * mb // N) * W + w + 1]
                a3 = words[FIRST + ((2 * mb + 1) // N) * W + w + 1]
                if BITS < 8:
                    a2 = a2 & _byte_mask(BITS, 2 * mb % N)
                    a3 = a3 & _byte_mask(BITS, (2 * mb + 1) % N)
                c = _mma_signed(a0, a1, a2, a3, q[w], q[w + 1], c)
            else:
                c = _mma_signed(a0, a1, zero, zero, q[w], zero, c)
        out = out + ((c[0] * 128 + c[1]).to(gl.float32) * (2.0 ** -(BITS * (2 * mb % N))),)
        out = out + ((c[2] * 128 + c[3]).to(gl.float32) * (2.0 ** -(BITS * ((2 * mb + 1) % N))),)
    return out


@gluon.jit
def _scores_half(words, FIRST: gl.constexpr, q0, q1, BITS: gl.constexpr, D: gl.constexpr, L: gl.constexpr):
    """Like `_scores_int`, with float16 queries ``q0`` for tokens 0 to 31 and ``q1`` for 32 to 63."""
    N: gl.constexpr = 8 // BITS
    W: gl.constexpr = D // 16
    out = ()
    for mb in gl.static_range(4):
        zero = gl.full([8, 4], 0.0, gl.float32, layout=L)
        c = (zero, zero, zero, zero)
        for w in gl.static_range(W):
            x = words[FIRST + (2 * mb // N) * W + w]
            y = words[FIRST + ((2 * mb + 1) // N) * W + w]
            if BITS == 8:
                a0 = _two_bytes(x, False)
                a1 = _two_bytes(y, False)
                a2 = _two_bytes(x, True)
                a3 = _two_bytes(y, True)
            else:
                a0 = x & _half_mask(BITS, 2 * mb % N)
                a1 = y & _half_mask(BITS, (2 * mb + 1) % N)
                a2 = (x >> 8) & _half_mask(BITS, 2 * mb % N)
                a3 = (y >> 8) & _half_mask(BITS, (2 * mb + 1) % N)
            if mb < 2:
                c = _mma_floats(a0, a1, a2, a3, q0[2 * w], q0[2 * w + 1], c)
            else:
                c = _mma_floats(a0, a1, a2, a3, q1[2 * w], q1[2 * w + 1], c)
        out = out + (c[0] * (2.0 ** (24 - BITS * (2 * mb % N))),)
        out = out + (c[2] * (2.0 ** (24 - BITS * ((2 * mb + 1) % N))),)
    return out


@gluon.jit
def _weighted(words, FIRST: gl.constexpr, p, E0: gl.constexpr, E1: gl.constexpr, BITS: gl.constexpr, L: gl.constexpr):
    """For e from ``E0`` to ``E1``: sums over the block's tokens for channels 8 e + g, times ``2^(BITS * (e % N))``."""
    N: gl.constexpr = 8 // BITS
    out = ()
    for e in gl.static_range(E0, E1, 2):
        zero = gl.full([8, 4], 0, gl.int32, layout=L)
        c = (zero, zero, zero, zero)
        for h in gl.static_range(0, 4, 2):
            a0 = words[FIRST + (e // N) * 4 + h]
            a1 = words[FIRST + ((e + 1) // N) * 4 + h]
            a2 = words[FIRST + (e // N) * 4 + h + 1]
            a3 = words[FIRST + ((e + 1) // N) * 4 + h + 1]
            if BITS < 8:
                a0 = a0 & _byte_mask(BITS, e % N)
                a1 = a1 & _byte_mask(BITS, (e + 1) % N)
                a2 = a2 & _byte_mask(BITS, e % N)
                a3 = a3 & _byte_mask(BITS, (e + 1) % N)
            c = _mma_unsigned(a0, a1, a2, a3, p[h], p[h + 1], c)
        out = out + ((c[0] * 256 + c[1]).to(gl.float32), (c[2] * 256 + c[3]).to(gl.float32))
    return out


@gluon.jit
def _load_queries(p_query, row, mask, D: gl.constexpr, fours: gl.constexpr, L: gl.constexpr):
    """Four neighbouring channels of each 16 in a lane, as float32, one after the other."""
    d = gl.arange(0, 16, layout=gl.SliceLayout(0, fours))
    out = ()
    for w in gl.static_range(D // 16):
        q = gl.load(p_query + row[:, None] * D + w * 16 + d[None, :], mask=mask[:, None], other=0.0)
        a, b = gl.split(q.to(gl.float32).reshape([8, 4, 2, 2]))
        out = out + _four(a, b, L)
    return out


@gluon.jit
def _low_bytes(a, b, c, d):
    """The lowest bytes of four words as a word."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 v, w; prmt.b32 v, $1, $2, 0x0040; prmt.b32 w, $3, $4, 0x0040; prmt.b32 $0, v, w, 0x5410; }",
        "=r,r,r,r,r",
        [a, b, c, d],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _byte_queries(values, inverse, limb, D: gl.constexpr):
    """Queries as signed byte limbs: column g holds limb g % 2 (high, low) of row g / 2."""
    shift = gl.where(limb == 0, 7, 0)
    out = ()
    for w in gl.static_range(D // 16):
        # the low half of such a float is the integer and 64, seven bits of it the low limb and 64
        a = (values[4 * w] * inverse + (_HALF_ONE + 64.0)).to(gl.int32, bitcast=True) >> shift
        b = (values[4 * w + 1] * inverse + (_HALF_ONE + 64.0)).to(gl.int32, bitcast=True) >> shift
        c = (values[4 * w + 2] * inverse + (_HALF_ONE + 64.0)).to(gl.int32, bitcast=True) >> shift
        d = (values[4 * w + 3] * inverse + (_HALF_ONE + 64.0)).to(gl.int32, bitcast=True) >> shift
        high = _low_bytes(a, b, c, d)
        low = (high ^ 0x40404040) & 0x7F7F7F7F
        out = out + (gl.where(limb == 0, high, low + (low & 0x40404040) * 2),)
    return out


@gluon.jit
def _half_queries(values, inverse, limb, D: gl.constexpr):
    """Queries as float16 pairs (channels 0, 2 and 1, 3 of each four) in the even columns.

    The odd ones, whose scores nobody reads, hold the second pair in place of the first, as `_fold` takes it.
    """
    out = ()
    for w in gl.static_range(D // 16):
        first = _halves(values[4 * w] * inverse, values[4 * w + 2] * inverse)
        second = _halves(values[4 * w + 1] * inverse, values[4 * w + 3] * inverse)
        out = out + (gl.where(limb == 0, first, second), second)
    return out


@gluon.jit
def _channel_words(loaded, PART: gl.constexpr, D: gl.constexpr, T: gl.constexpr, L: gl.constexpr):
    RUNS: gl.constexpr = D // 32
    FIRST: gl.constexpr = PART * ((D + 31) // 32)
    wide = gl.full([8, 4], 0, gl.int32, layout=L)
    out = ()
    for c in gl.static_range(RUNS):
        a, b = gl.split(loaded[FIRST + c].reshape([4, 2, 2]))
        four = _four(a, b, T)
        for v in gl.static_range(4):
            out = out + (wide + four[v][None, :],)
    if D % 32 != 0:
        a, b = gl.split(loaded[FIRST + RUNS].reshape([4, 2]))
        out = out + (wide + gl.convert_layout(a, T, assert_trivial=True)[None, :],)
        out = out + (wide + gl.convert_layout(b, T, assert_trivial=True)[None, :],)
    return out


@gluon.jit
def _fold(q, loaded, GROUP_AT: gl.constexpr, D: gl.constexpr, T: gl.constexpr, L: gl.constexpr):
    """Queries times the channel scales of a group of 32 tokens, and their product with the offsets."""
    scale = _channel_words(loaded, GROUP_AT * 2, D, T, L)
    offset = _channel_words(loaded, GROUP_AT * 2 + 1, D, T, L)
    zero = gl.full([8, 4], 0.0, gl.float32, layout=L)
    c = (zero, zero, zero, zero)
    for w in gl.static_range(0, D // 16, 2):
        o0 = offset[2 * w]
        o1 = offset[2 * w + 1]
        if w + 1 < D // 16:
            # Four words are an operand as they were loaded: its upper rows, words 0 and 2, meet those of the query in
            # the even columns, and its lower ones, 1 and 3, theirs in the odd columns.
            c = _mma_floats(o0, o1, offset[2 * w + 2], offset[2 * w + 3], q[2 * w], q[2 * w + 2], c)
        else:
            none = gl.full([8, 4], 0, gl.int32, layout=L)
            c = _mma_floats(o0, none, o1, none, q[2 * w], q[2 * w + 1], c)
    out = ()
    for i in gl.static_range(D // 8):
        out = out + (_mul_halves(q[i], scale[i]),)
    return out, c[0] + c[3]


@gluon.jit
def _row_words(p_rows, row, ROW: gl.constexpr, D: gl.constexpr, duos: gl.constexpr, L: gl.constexpr):
    """Rows of 16-bit floats as operands: two words a lane of each 16 channels, one after the other."""
    column = gl.arange(0, 8, layout=gl.SliceLayout(0, duos))
    out = ()
    for w in gl.static_range(D // 16):
        x = gl.load(p_rows + (row[:, None] * ROW + w * 8 + column[None, :]))
        a, b = gl.split(x.reshape([8, 4, 2]))
        out = out + (gl.convert_layout(a, L, assert_trivial=True), gl.convert_layout(b, L, assert_trivial=True))
    return out


@gluon.jit
def decode_kernel(
    p_query,
    p_keys,
    p_key_scales,
    p_values,
    p_value_scales,
    p_words,
    p_recent_keys,
    p_recent_values,
    p_mask,
    p_first,
    p_last,
    p_out,
    p_stats,
    scale,
    origin,
    blocks,
    part_first,
    part_count,
    rows,
    count,
    tiles,
    recent,
    key_batch,
    key_head,
    value_batch,
    value_head,
    K_BITS: gl.constexpr,
    V_BITS: gl.constexpr,
    D: gl.constexpr,
    CHANNEL: gl.constexpr,
    K_GROUPS: gl.constexpr,
    V_GROUPS: gl.constexpr,
    KEY_ROW: gl.constexpr,
    VALUE_ROW: gl.constexpr,
    BF16: gl.constexpr,
    RING: gl.constexpr,
    MIN_BLOCKS: gl.constexpr,
    EARLY: gl.constexpr,
    CHAINED: gl.constexpr,
):
    """One split of one KV head for four query rows.

    The segment holds ``blocks`` blocks from token ``origin`` on; its splits are ``part_first`` and on
    of ``part_count`` in the buffers. The visible blocks, and after them the ``recent`` tokens by `_RECENT` of them,
    are dealt out evenly to the splits, here, so that one grid serves every length. Rows of recent tokens have
    ``KEY_ROW`` and ``VALUE_ROW`` words.
    """
    W: gl.constexpr = D // 16
    E: gl.constexpr = D // 8
    K_BLOCK: gl.constexpr = 2 * D * K_BITS
    V_BLOCK: gl.constexpr = 2 * D * V_BITS
    KS_BLOCK: gl.constexpr = 2 * D if CHANNEL else 64 * K_GROUPS
    VS_BLOCK: gl.constexpr = 64 * V_GROUPS
    KW: gl.constexpr = D // 16 // K_GROUPS
    VE: gl.constexpr = D // 8 // V_GROUPS
    K_RUNS: gl.constexpr = K_BLOCK // 128
    V_RUNS: gl.constexpr = V_BLOCK // 128
    K_MAIN: gl.constexpr = 2 if K_BITS == 3 else K_BITS
    V_MAIN: gl.constexpr = 2 if V_BITS == 3 else V_BITS
    L: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    G: gl.constexpr = gl.SliceLayout(1, L)
    T: gl.constexpr = gl.SliceLayout(0, L)
    fours: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [1, 1], [1, 0])
    run: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    pairs: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[1], [2], [4]],
        lane_bases=[[0], [0], [8], [16], [32]],
        warp_bases=[],
        block_bases=[],
        shape=[64],
    )
    quads: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[1], [2]],
        lane_bases=[[4], [8], [0], [0], [0]],
        warp_bases=[],
        block_bases=[],
        shape=[16],
    )
    twos: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[1]],
        lane_bases=[[2], [4], [0], [0], [0]],
        warp_bases=[],
        block_bases=[],
        shape=[8],
    )

    if EARLY:
        # a later segment waits at its end: what it reads was there before the first one began
        if not CHAINED:
            gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    split = gl.program_id(0)
    batch = _ratio(gl.program_id(2), tiles)
    row_0 = (gl.program_id(2) - batch * tiles) * 4
    head = batch * gl.num_programs(1) + gl.program_id(1)
    g = gl.arange(0, 8, layout=G)
    t = gl.arange(0, 4, layout=T)
    row = row_0 + t
    first = gl.load(p_first + batch * count + row % count, mask=row < rows, other=0x7FFFFFFF)
    last = gl.load(p_last + batch) - origin
    first = gl.maximum(first - origin, 0)
    lowest = _uniform(gl.min(first, axis=0))
    highest = _uniform(gl.max(gl.where(row < rows, first, 0), axis=0))
    if not RING:
        last = gl.minimum(last, blocks * 64)
    whole = (gl.maximum(last, 0) + 63) >> 6
    splits = gl.num_programs(0)
    whole = gl.maximum(whole, lowest >> 6)
    end = whole + (recent + (_RECENT - 1)) // _RECENT
    per_split = gl.maximum(_ratio(end - (lowest >> 6) + splits - 1, splits), MIN_BLOCKS)
    lo = (lowest >> 6) + split * per_split
    end = gl.minimum(lo + per_split, end)
    hi = gl.minimum(end, whole)
    if lo >= end:
        if CHAINED:
            gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        return

    before = head.to(gl.int64) * blocks
    p_k = p_keys + before * K_BLOCK
    p_ks = p_key_scales + before * KS_BLOCK
    p_v = p_values + before * V_BLOCK
    p_vs = p_value_scales + before * VS_BLOCK
    # the first tile is on its way while the queries are prepared
    at = lo % blocks if RING else gl.minimum(lo, blocks - 1)
    k_words = _load_words(p_k + at * K_BLOCK, K_RUNS, run)
    # what is wide is loaded late: held over a whole turn, its registers would cost a third of the programs
    if (not CHANNEL) and K_GROUPS == 1:
        k_scales = _load_pairs(p_ks + at * KS_BLOCK, 1, pairs)
    v_words = _load_words(p_v + at * V_BLOCK, V_RUNS, run)
    if V_GROUPS == 1:
        v_scales = _load_pairs(p_vs + at * VS_BLOCK, 1, pairs)
    if CHANNEL or K_GROUPS > 1:
        _ask(p_ks + at * KS_BLOCK, KS_BLOCK)
    if V_GROUPS > 1:
        _ask(p_vs + at * VS_BLOCK, VS_BLOCK)

    # queries by columns of the operand: row g / 2, limb g % 2
    zero = gl.full([8, 4], 0.0, gl.float32, layout=L)
    column = gl.arange(0, 8, layout=gl.SliceLayout(1, fours))
    m_column = row_0 + column // 2 < rows
    p_query += (head * rows + row_0).to(gl.int64) * D
    values = _load_queries(p_query, column // 2, m_column, D, fours, L)
    top = zero
    totals = ()
    for i in gl.static_range(W * 4):
        top = gl.maximum(top, gl.abs(values[i]))
    for group in gl.static_range(K_GROUPS):
        total = zero
        for i in gl.static_range(group * KW * 4, (group + 1) * KW * 4):
            total = total + values[i]
        totals = totals + (total,)
    top = gl.maximum(gl.max(top, axis=1), 1e-30)
    if CHANNEL:
        # a power of two above the largest, so that a product with any float16 scale stays finite
        exponent = (top.to(gl.int32, bitcast=True) & 0x7F800000) + (1 << 23)
        unit = exponent.to(gl.float32, bitcast=True)
        q_half = _half_queries(values, _rcp(unit)[:, None], (g % 2)[:, None], D)
        bias = ()
    else:
        unit = top * (1.0 / 16256.0)
        q_byte = _byte_queries(values, (16256.0 / top)[:, None], (g % 2)[:, None], D)
        bias = ()
        for group in gl.static_range(K_GROUPS):
            total = gl.sum(totals[group], axis=1) * (16256.0 / top)
            bias = bias + (gl.convert_layout(gl.max(total.reshape([4, 2]), axis=1), T),)
    alpha = gl.convert_layout(gl.max(unit.reshape([4, 2]), axis=1), T) * (scale * _LOG2E)

    peak = gl.full([4], -1e30, gl.float32, layout=T)
    norm = zero
    shift = ()
    for group in gl.static_range(V_GROUPS):
        shift = shift + (zero,)
    acc = ()
    for e in gl.static_range(E):
        acc = acc + (zero,)
    for block in range(lo, hi):
        following = gl.minimum(block + 1, hi - 1)
        if not RING:
            at = block
        else:
            following = gl.where(block + 1 < hi, gl.where(at + 1 < blocks, at + 1, 0), at)
        words = _lane_words(k_words, K_RUNS, L)
        x = ()
        if CHANNEL:
            k_scales = _load_channels(p_ks + at * KS_BLOCK, D, quads, twos)
            q0, bias0 = _fold(q_half, k_scales, 0, D, T, L)
            q1, bias1 = _fold(q_half, k_scales, 1, D, T, L)
            raw = _scores_half(words, 0, q0, q1, K_MAIN, D, L)
            if K_BITS == 3:
                high = _scores_half(words, D // 8, q0, q1, 1, D, L)
            for u in gl.static_range(8):
                y = raw[u]
                if K_BITS == 3:
                    y = y + high[u] * 4.0
                if u < 4:
                    x = x + (y + bias0,)
                else:
                    x = x + (y + bias1,)
        else:
            if K_GROUPS > 1:
                k_scales = _load_pairs(p_ks + at * KS_BLOCK, K_GROUPS, pairs)
            for group in gl.static_range(K_GROUPS):
                key_pair = _lane_pairs(k_scales[group], G)
                raw = _scores_int(words, 0, q_byte, group * KW, (group + 1) * KW, K_MAIN, D, L)
                if K_BITS == 3:
                    high = _scores_int(words, D // 8, q_byte, group * KW, (group + 1) * KW, 1, D, L)
                grown = ()
                for u in gl.static_range(8):
                    y = raw[u]
                    if K_BITS == 3:
                        y = y + high[u] * 4.0
                    ks, ko = _pair(key_pair[u])
                    y = y * ks[:, None] + ko[:, None] * bias[group][None, :]
                    if group > 0:
                        y = y + x[u]
                    grown = grown + (y,)
                x = grown
        k_words = _load_words(p_k + following * K_BLOCK, K_RUNS, run)
        if (not CHANNEL) and K_GROUPS == 1:
            k_scales = _load_pairs(p_ks + following * KS_BLOCK, 1, pairs)
        else:
            _ask(p_ks + following * KS_BLOCK, KS_BLOCK)
        if V_GROUPS > 1:
            _ask(p_vs + following * VS_BLOCK, VS_BLOCK)
            v_scales = _load_pairs(p_vs + at * VS_BLOCK, V_GROUPS, pairs)
        if (block * 64 < highest) | (block * 64 + 64 > last):
            masked = ()
            for u in gl.static_range(8):
                token = (block * 64 + 8 * u + g)[:, None]
                masked = masked + (gl.where((token >= first[None, :]) & (token < last), x[u], -1e38),)
            x = masked
            # nothing has been written behind the last token: its scales may be anything
            spot = gl.arange(0, 64, layout=pairs)
            token = block * 64 + spot % 8 * 8 + spot // 8
            cleared = ()
            for group in gl.static_range(V_GROUPS):
                cleared = cleared + (gl.where(token < last, v_scales[group], 0),)
            v_scales = cleared

        tile = x[0]
        for u in gl.static_range(1, 8):
            tile = gl.maximum(tile, x[u])
        tile_peak = gl.maximum(gl.max(tile, axis=0), -1e30)
        new_peak = gl.maximum(peak, tile_peak)
        old = _exp2((peak - new_peak) * alpha)[None, :]
        new = _exp2((tile_peak - new_peak) * alpha)[None, :]
        peak = new_peak
        tile_norm = zero
        p = ()
        words = _lane_words(v_words, V_RUNS, L)
        grown = ()
        shifted = ()
        for group in gl.static_range(V_GROUPS):
            value_pair = _lane_pairs(v_scales[group], G)
            vs = ()
            vo = ()
            v_top = gl.full([8], 0.0, gl.float32, layout=G)
            for u in gl.static_range(8):
                a, b = _pair(value_pair[u])
                vs = vs + (a,)
                vo = vo + (b,)
                v_top = gl.maximum(v_top, gl.abs(a))
            magic, step = _fixed_point(_largest(v_top))
            tile_shift = zero
            fixed = ()
            for u in gl.static_range(8):
                if group == 0:
                    p = p + (_exp2(x[u] * alpha[None, :] - (tile_peak * alpha)[None, :]),)
                    tile_norm = tile_norm + p[u]
                tile_shift = tile_shift + p[u] * vo[u][:, None]
                fixed = fixed + ((p[u] * vs[u][:, None] + magic[:, None]).to(gl.int32, bitcast=True),)
            if group == 0:
                norm = norm * old + tile_norm * new
            shifted = shifted + (shift[group] * old + tile_shift * new,)
            operand = ()
            for mb in gl.static_range(4):
                operand = operand + (_limbs(fixed[2 * mb], fixed[2 * mb + 1]),)
            part = _weighted(words, 0, operand, group * VE, (group + 1) * VE, V_MAIN, L)
            if V_BITS == 3:
                high = _weighted(words, D // 8, operand, group * VE, (group + 1) * VE, 1, L)
            from_fixed = new * step[:, None]
            for i in gl.static_range(VE):
                y = part[i]
                if V_BITS == 3:
                    y = y + high[i] * (4.0 * 2.0 ** (2 * ((group * VE + i) % 4) - (group * VE + i) % 8))
                grown = grown + (acc[group * VE + i] * old + y * from_fixed,)
        acc = grown
        shift = shifted
        v_words = _load_words(p_v + following * V_BLOCK, V_RUNS, run)
        if V_GROUPS == 1:
            v_scales = _load_pairs(p_vs + following * VS_BLOCK, 1, pairs)
        if RING:
            at = following

    # from here on in powers of two, and without the fixed points of the packed values
    peak = gl.where(lo < hi, peak * alpha, -1e30)
    added = ()
    for group in gl.static_range(V_GROUPS):
        added = added + (gl.sum(shift[group], axis=0)[None, :],)
    grown = ()
    for e in gl.static_range(E):
        grown = grown + (acc[e] * (2.0 ** -(V_MAIN * (e % (8 // V_MAIN)))) + added[e // VE],)
    acc = grown
    duos: gl.constexpr = gl.BlockedLayout([1, 2], [8, 4], [1, 1], [1, 0])
    place = gl.arange(0, 8, layout=gl.SliceLayout(1, duos))
    p_words += (head * rows).to(gl.int64) * (D // 2)
    p_recent_keys += batch.to(gl.int64) * key_batch + gl.program_id(1) * key_head
    p_recent_values += batch.to(gl.int64) * value_batch + gl.program_id(1) * value_head
    p_seen = p_mask + (batch * count + row % count) * recent
    # a weight that float16 would hold as a subnormal, or not at all, keeps its digits
    UNIT: gl.constexpr = 1.0 if BF16 else 2.0**15
    for chunk in range(gl.maximum(lo - whole, 0), end - whole):
        q = _row_words(p_words, gl.minimum(row_0 + place // 2, rows - 1), D // 2, D, duos, L)
        x = ()
        anyone = ()
        for part in gl.static_range(_RECENT // 16):
            token = chunk * _RECENT + part * 16 + place
            upper = _row_words(p_recent_keys, gl.minimum(token, recent - 1), KEY_ROW, D, duos, L)
            lower = _row_words(p_recent_keys, gl.minimum(token + 8, recent - 1), KEY_ROW, D, duos, L)
            c = (zero, zero, zero, zero)
            for w in gl.static_range(W):
                a = (upper[2 * w], lower[2 * w], upper[2 * w + 1], lower[2 * w + 1])
                c = _mma_floats(a[0], a[1], a[2], a[3], q[2 * w], q[2 * w + 1], c, BF16)
            for u in gl.static_range(2):
                token = chunk * _RECENT + part * 16 + u * 8 + g
                m_seen = (token[:, None] < recent) & (row[None, :] < rows)
                seen = gl.load(p_seen[None, :] + token[:, None], mask=m_seen, other=0).to(gl.int32)
                x = x + (gl.where(seen != 0, c[2 * u] * (scale * _LOG2E), -1e38),)
                anyone = anyone + (gl.max(seen, axis=1),)
        tile = x[0]
        for u in gl.static_range(1, _RECENT // 8):
            tile = gl.maximum(tile, x[u])
        new_peak = gl.maximum(peak, gl.max(tile, axis=0))
        old = _exp2(peak - new_peak)[None, :]
        peak = new_peak
        norm = norm * old
        operand = ()
        for u in gl.static_range(_RECENT // 8):
            p = _exp2(x[u] - peak[None, :])
            norm = norm + p
            operand = operand + (_transposed(_high_low(p * UNIT, BF16)),)
        turned = ()
        for u in gl.static_range(_RECENT // 8):
            token = gl.minimum(chunk * _RECENT + u * 8 + g, recent - 1)
            for e in gl.static_range(E):
                y = gl.load(p_recent_values + (token[:, None] * VALUE_ROW + e * 4 + t[None, :]))
                # a row that nobody sees may hold anything
                turned = turned + (_transposed(gl.where(anyone[u][:, None] != 0, y, 0)),)
        sums = ()
        for e in gl.static_range(0, E, 2):
            c = (zero, zero, zero, zero)
            for u in gl.static_range(0, _RECENT // 8, 2):
                a = (turned[u * E + e], turned[u * E + e + 1], turned[(u + 1) * E + e], turned[(u + 1) * E + e + 1])
                c = _mma_floats(a[0], a[1], a[2], a[3], operand[u], operand[u + 1], c, BF16)
            sums = sums + (acc[e] * old + (c[0] + c[1]) * (1 / UNIT), acc[e + 1] * old + (c[2] + c[3]) * (1 / UNIT))
        acc = sums

    place = head * part_count + part_first + split
    stats = p_stats + place.to(gl.int64) * 2 * rows + row
    gl.store(stats, peak, mask=row < rows)
    gl.store(stats + rows, gl.sum(norm, axis=0), mask=row < rows)
    out = p_out + (place.to(gl.int64) * rows + row[None, :]) * D + g[:, None]
    for e in gl.static_range(E):
        gl.store(out + 8 * e, acc[e], mask=(row[None, :] < rows) & (g[:, None] < 8))
    if CHAINED:
        # whoever waits for this kernel waits for the one before, beside which it ran
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@triton.jit
def channel_place(d, D: tl.constexpr):
    """Where the scale of channel ``d`` lies among those of its group of tokens."""
    swapped = d % 4 // 2 + d % 2 * 2
    whole = d // 32 * 32 + d % 16 // 4 * 8 + d % 32 // 16 * 4 + swapped
    return tl.where(d >= D // 32 * 32, d // 4 * 4 + swapped, whole)


@triton.jit
def _codes(p_words, word, shift, BITS: tl.constexpr):
    return (tl.load(p_words + word) >> shift) & ((1 << BITS) - 1)


@triton.jit
def _key_plane(p_words, token, d, BITS: tl.constexpr, D: tl.constexpr):
    """Codes of one plane of keys, for tokens of a block and channels ``d``."""
    N: tl.constexpr = 8 // BITS
    octet = token // 8
    i = (octet // N) * (D // 16) + d // 16
    word = (i // 4) * 128 + ((token % 8) * 4 + d % 16 // 4) * 4 + i % 4
    return _codes(p_words, word, 8 * (d % 4) + BITS * (octet % N), BITS)


@triton.jit
def _value_plane(p_words, token, d, BITS: tl.constexpr):
    """Codes of one plane of values, for tokens of a block and channels ``d``."""
    N: tl.constexpr = 8 // BITS
    octet = d // 8
    i = (octet // N) * 4 + token // 16
    word = (i // 4) * 128 + ((d % 8) * 4 + token % 8 // 2) * 4 + i % 4
    return _codes(p_words, word, 8 * (token % 2 * 2 + token % 16 // 8) + BITS * (octet % N), BITS)


@triton.jit
def key_codes(p_words, token, d, BITS: tl.constexpr, D: tl.constexpr):
    """Codes of keys, for tokens of a block and channels ``d``; 3 bits are two planes."""
    codes = _key_plane(p_words, token, d, 2 if BITS == 3 else BITS, D)
    if BITS == 3:
        codes = codes | (_key_plane(p_words + 4 * D, token, d, 1, D) << 2)
    return codes


@triton.jit
def value_codes(p_words, token, d, BITS: tl.constexpr, D: tl.constexpr):
    """Codes of values, for tokens of a block and channels ``d``; 3 bits are two planes."""
    codes = _value_plane(p_words, token, d, 2 if BITS == 3 else BITS)
    if BITS == 3:
        codes = codes | (_value_plane(p_words + 4 * D, token, d, 1) << 2)
    return codes


@triton.jit
def deal(lowest, last, origin, blocks, splits, RING: tl.constexpr, MIN_BLOCKS: tl.constexpr, more=0):
    """First block, blocks a split, and end of what is visible in a segment, as `decode_kernel` finds them.

    ``more`` counts the tiles of recent tokens that follow the blocks.
    """
    last = last - origin
    if not RING:
        last = tl.minimum(last, blocks * 64)
    low = tl.maximum(lowest - origin, 0) // 64
    whole = (tl.maximum(last, 0) + 63) // 64
    whole = tl.maximum(whole, low) + more
    return low, tl.maximum((whole - low + splits - 1) // splits, MIN_BLOCKS), whole


@triton.jit
def plain_kernel(
    p_query,
    p_keys,
    p_key_scales,
    p_values,
    p_value_scales,
    p_first,
    p_last,
    p_out,
    p_stats,
    scale,
    origin,
    blocks,
    part_first,
    part_count,
    rows,
    count,
    tiles,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    D: tl.constexpr,
    CHANNEL: tl.constexpr,
    K_GROUPS: tl.constexpr,
    V_GROUPS: tl.constexpr,
    RING: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The twin of `decode_kernel`: one query row a program, scale pointers to float16."""
    split = tl.program_id(0)
    batch = tl.program_id(2) // tiles
    row = tl.program_id(2) % tiles
    head = (batch * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    first = tl.load(p_first + batch * count + row % count)
    last = tl.load(p_last + batch)
    d = tl.arange(0, WIDTH)
    m_d = d < D
    d = tl.where(m_d, d, 0)
    query = tl.load(p_query + (head * rows + row) * D + d, mask=m_d, other=0.0).to(tl.float32)
    r = tl.arange(0, 64)
    peak = tl.full([1], -1e30, tl.float32)
    norm = tl.full([1], 0.0, tl.float32)
    acc = tl.full([WIDTH], 0.0, tl.float32)
    low, per_split, whole = deal(first, last, origin, blocks, tl.num_programs(0), RING, MIN_BLOCKS)
    lo = low + split * per_split
    hi = tl.minimum(lo + per_split, whole)
    for block in range(lo, hi):
        at = head * blocks + (block % blocks if RING else block)
        token = origin + block * 64 + r
        m_token = (token >= first) & (token < last)
        p_k = p_keys + at * 2 * D * K_BITS
        p_v = p_values + at * 2 * D * V_BITS
        k = key_codes(p_k, r[:, None], d[None, :], K_BITS, D)
        v = value_codes(p_v, r[:, None], d[None, :], V_BITS, D)
        pair = 2 * ((r % 8) * 8 + r // 8)
        if CHANNEL:
            p_ks = p_key_scales + at * 4 * D
            p_ks = p_ks + (r // 32)[:, None] * 2 * D + channel_place(d, D)[None, :]
            ks = tl.load(p_ks).to(tl.float32)
            ko = tl.load(p_ks + D).to(tl.float32)
        else:
            p_ks = p_key_scales + at * 128 * K_GROUPS + pair[:, None]
            p_ks = p_ks + 128 * (d // (D // K_GROUPS))[None, :]
            ks = tl.load(p_ks).to(tl.float32)
            ko = tl.load(p_ks + 1).to(tl.float32)
        p_vs = p_value_scales + at * 128 * V_GROUPS + pair[:, None]
        p_vs = p_vs + 128 * (d // (D // V_GROUPS))[None, :]
        vs = tl.load(p_vs, mask=m_token[:, None], other=0.0).to(tl.float32)
        vo = tl.load(p_vs + 1, mask=m_token[:, None], other=0.0).to(tl.float32)
        x = tl.sum((k.to(tl.float32) * ks + ko) * query[None, :], axis=1) * (scale * _LOG2E)
        x = tl.where(m_token, x, -1e38)
        new_peak = tl.maximum(peak, tl.max(x, axis=0))
        p = tl.exp2(x - new_peak)
        old = tl.exp2(peak - new_peak)
        norm = norm * old + tl.sum(p, axis=0)
        acc = acc * old + tl.sum(p[:, None] * (v.to(tl.float32) * vs + vo), axis=0)
        peak = new_peak
    place = head * part_count + part_first + split
    stats = place * 2 * rows + row + tl.arange(0, 1)
    tl.store(p_stats + stats, peak)
    tl.store(p_stats + stats + rows, norm)
    if lo < hi:
        tl.store(p_out + (place * rows + row) * D + d, acc, mask=m_d)


@triton.jit
def merge_kernel(
    p_query,
    p_part,
    p_stats,
    p_keys,
    p_values,
    p_mask,
    p_first,
    p_last,
    p_out,
    scale,
    segments,
    part_count,
    rows,
    count,
    recent,
    dealt,
    key_batch,
    key_head,
    value_batch,
    value_head,
    KEY_TOKEN: tl.constexpr,
    VALUE_TOKEN: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    PER_QUERY: tl.constexpr,
    RING: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    WAIT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """``CHANNELS`` of one query row: recent tokens (before the first kernel need be done), then the splits.

    ``segments`` are (origin, blocks, splits) one after the other; ``TILE`` rows share a program of the first kernel,
    which has taken ``dealt`` tiles of recent tokens, or (``EXACT``) none; ``PER_QUERY`` says that the last visible
    token is given for each query.
    """
    row = tl.program_id(0) // (WIDTH // CHANNELS)
    inner = tl.program_id(1)
    batch = tl.program_id(2)
    head = (batch * tl.num_programs(1) + inner).to(tl.int64)
    d = tl.arange(0, WIDTH)
    m_d = d < D
    c = tl.program_id(0) % (WIDTH // CHANNELS) * CHANNELS + tl.arange(0, CHANNELS)
    m_c = c < D
    acc = tl.full([CHANNELS], 0.0, tl.float32)
    norm = tl.full([1], 0.0, tl.float32)
    peak = tl.full([1], -1e30, tl.float32)
    tile = row // TILE * TILE + tl.arange(0, TILE)
    asked = batch * count + tile % count
    lowest = tl.min(tl.load(p_first + asked, mask=tile < rows, other=0x7FFFFFFF), axis=0)
    if PER_QUERY:
        last = tl.max(tl.load(p_last + asked, mask=tile < rows, other=0), axis=0)
    else:
        last = tl.load(p_last + batch)
    if EXACT:
        query = tl.load(p_query + (head * rows + row) * D + d, mask=m_d, other=0.0).to(tl.float32)
        p_k = p_keys + batch.to(tl.int64) * key_batch + inner * key_head
        p_v = p_values + batch.to(tl.int64) * value_batch + inner * value_head
        p_mask += (batch * count + row % count) * recent
        r = tl.arange(0, TOKENS)
        for start in range(0, recent, TOKENS):
            seen = tl.load(p_mask + r, mask=r < recent, other=0) != 0
            held = tl.minimum(r, recent - 1)[:, None]
            p_k_row = p_k + held * KEY_TOKEN + d[None, :]
            p_v_row = p_v + held * VALUE_TOKEN + c[None, :]
            # Without a mask a row: they would wait for the mask, and, there being seven predicates, for one another.
            if D < WIDTH:
                k = tl.load(p_k_row, mask=m_d[None, :], other=0.0).to(tl.float32)
                v = tl.load(p_v_row, mask=m_c[None, :], other=0.0).to(tl.float32)
            else:
                k = tl.load(p_k_row).to(tl.float32)
                v = tl.load(p_v_row).to(tl.float32)
            # a row that is not seen may hold anything
            v = tl.where(seen[:, None], v, 0.0)
            x = tl.where(seen, tl.sum(k * query[None, :], axis=1) * (scale * _LOG2E), -1e38)
            new_peak = tl.maximum(peak, tl.max(x, axis=0))
            p = tl.exp2(x - new_peak)
            old = tl.exp2(peak - new_peak)
            norm = norm * old + tl.sum(p, axis=0)
            acc = acc * old + tl.sum(p[:, None] * v, axis=0)
            peak = new_peak
            r += TOKENS
    if WAIT:
        gdc_wait()
        gdc_launch_dependents()
    part_first = 0
    for i in tl.static_range(len(segments) // 3):
        splits = segments[3 * i + 2]
        more = dealt if i == 0 else 0
        low, per_split, whole = deal(lowest, last, segments[3 * i], segments[3 * i + 1], splits, RING, MIN_BLOCKS, more)
        used = (whole - low + per_split - 1) // per_split
        at = head * part_count + part_first
        p_s = p_stats + at * 2 * rows + row
        p_p = p_part + (at * rows + row) * D
        for start in range(0, used, SPLITS):
            s = start + tl.arange(0, SPLITS)
            m_s = s < used
            part_peak = tl.load(p_s + s * (2 * rows), mask=m_s, other=-1e38)
            part_norm = tl.load(p_s + s * (2 * rows) + rows, mask=m_s, other=0.0)
            # Past the last split it is read again, with no weight: zeros would cost an instruction a register.
            held = tl.minimum(s, used - 1)
            part = tl.load(p_p + (held * (rows * D))[:, None] + c[None, :], mask=m_c[None, :], other=0.0)
            new_peak = tl.maximum(peak, tl.max(part_peak, axis=0))
            weight = tl.exp2(part_peak - new_peak)
            old = tl.exp2(peak - new_peak)
            norm = norm * old + tl.sum(part_norm * weight, axis=0)
            acc = acc * old + tl.sum(part * weight[:, None], axis=0)
            peak = new_peak
        part_first += splits
    out = tl.where(norm > 0, acc / norm, 0.0)
    tl.store(p_out + (head * rows + row) * D + c, out, mask=m_c)


def launch_plan(keys: SideKind, values: SideKind) -> tuple[int, int | None]:
    """Programs that fit on a processor at once, by the registers of the variant, and a cap on them if one pays."""
    bits = keys.bits + values.bits
    small = keys.head_dim <= 128 and keys.groups == 1 and values.groups == 1
    if keys.granularity == "channel":
        # left alone, ptxas settles for 168 at K2V2 with groups of values, and spills
        return (12, 168) if bits <= 4 and small else (8, 255)
    return (12, None) if bits < 12 and small else (8, None)


def saturates(keys: SideKind, values: SideKind) -> bool:
    """Whether half of the programs that run at once keep the memory busy, so few instructions does a byte take."""
    simple = keys.granularity == "token" and keys.groups == 1 and values.groups == 1
    return simple and keys.bits + values.bits >= 8


@lru_cache(maxsize=1024)
def split_plan(
    heads: int, blocks: int, programs: int, tokens: int | None, *, more: int = 0, saturates: bool = False
) -> int:
    """Splits of a segment, at least two blocks in each: as many as ``programs`` running at once, or several times that.

    One wave is best while it fills the places. Where it leaves half of them empty, or where a few programs have to wait
    until all others have ended, shorter splits in several waves are taken, if `_waves` makes that a twentieth less.

    Args:
        heads: Programs a split takes: batch times KV heads times tiles of query rows.
        blocks: Blocks that the segment can hold.
        programs: Places for programs, on all processors.
        tokens: Most tokens that any query sees, if known.
        more: Tiles of recent tokens that are dealt out with the blocks.
        saturates: Whether half of the places keep the memory busy; see `saturates`.
    """
    if tokens is not None:
        blocks = min(blocks, -(-tokens // 64) + 1)
    blocks += more

    def best(waves: int) -> int:
        splits = max(1, min(waves * programs // max(1, heads), -(-blocks // _MIN_BLOCKS)))
        return max(1, -(-blocks // splits))

    def time(per_split: int) -> float:
        waves = _waves(heads * -(-blocks // per_split), programs, saturates=saturates)
        return waves * (per_split + _START)

    per_split = best(1)
    shorter = min(map(best, range(1, _MOST_WAVES + 1)), key=time)
    if time(shorter) < 0.95 * time(per_split):
        per_split = shorter
    return max(1, -(-blocks // per_split))


def _waves(count: int, places: int, *, saturates: bool) -> float:
    """Time of ``count`` programs of a length in ``places``, in that of as many as there are places.

    Programs that wait for their instructions rather than for memory take two fifths of it even alone. Where half of
    them keep the memory busy (``saturates``), empty places cost nothing as long as a third are taken.
    """
    full, left = divmod(count, places)
    part = left / places
    return full + (0 if not left else max(part, 0.2 + 0.4 * part) if saturates else 0.4 + 0.6 * part)


def row_tile(rows: int) -> int:
    """Query rows that share a program of the kernels in plain Triton: fewer are less work around the products."""
    return 4 if rows <= 4 else 8 if rows <= 8 else 16


def merge_parts(rows: int, places: int) -> int:
    """Parts that the merge's ``rows`` are dealt out in, by their channels, to fill ``places`` processors."""
    parts = 1
    while parts < _MOST_PARTS and 2 * parts * rows <= places:
        parts *= 2
    return parts


_DECODE, _PLAIN, _MERGE = Launcher(decode_kernel), Launcher(plain_kernel), Launcher(merge_kernel)


def decode_attention(
    query: Tensor,
    segments: tuple[tuple[PackedSide, PackedSide], ...],
    visible: Visible,
    recent: Recent | None,
    scale: float,
) -> Tensor:
    """See `kernels.decode_attention.op.decode_attention`."""
    if 16 in (segments[0][0].bits, segments[0][1].bits):
        from kernels.decode_attention import exact_side

        return exact_side.decode_attention(query, segments, visible, recent, scale)
    fast = query.is_cuda
    query = query.contiguous()
    exact = exact_words(query, recent if fast else None)
    kinds = tuple([(keys.kind, values.kind) for keys, values in segments])
    held, places = exact.kind, processors(query.device)
    plan = _plan(query.shape, query.dtype, query.device, places, kinds, held, visible.max_tokens, scale)
    first, last = visible.first.contiguous(), visible.last.contiguous()
    part = torch.empty(plan.part, dtype=torch.float32, device=query.device)
    stats = torch.empty(plan.stats, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    more = (exact.query, exact.keys, exact.values, exact.mask) if fast else ()
    for launch, (keys, values) in zip(plan.launches, segments, strict=True):
        k_scales, v_scales = keys.scales.contiguous(), values.scales.contiguous()
        if fast:
            k_scales, v_scales = k_scales.view(torch.int32), v_scales.view(torch.int32)
        words = keys.words.contiguous(), values.words.contiguous()
        launch(query, words[0], k_scales, words[1], v_scales, *more, first, last, part, stats)
    left, ring = None if exact.slots else recent, segments[0][0].ring
    bounds = {"first": first, "last": last, "plan": plan.segments, "ring": ring}
    merge(query, part, stats, left, out, scale=scale, tile=plan.tile, dealt=held.tiles, **bounds)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a call of `decode_attention` launches.

    Attributes:
        launches: One of each segment.
        segments: As for `merge_kernel`: of each segment its first token, its blocks and its splits.
        part: Shape of the splits' outputs.
        stats: Shape of their peaks and sums.
        tile: Query rows of a program.
    """

    launches: tuple[Prepared, ...]
    segments: tuple[int, ...]
    part: tuple[int, ...]
    stats: tuple[int, ...]
    tile: int


@lru_cache(maxsize=1024)
def _plan(
    query: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    places: int,
    segments: tuple[tuple[SideKind, SideKind], ...],
    exact: ExactKind,
    max_tokens: int | None,
    scale: float,
) -> _Plan:
    """What a call launches, worked out from its shapes; the tensors are given later."""
    batch, heads, count, dim = query
    kv_heads = segments[0][0].words[1]
    rows = heads // kv_heads * count
    fast, early = device.type == "cuda", launches_early(device)
    tile = 4 if fast else 1
    tiles = -(-rows // tile)
    plan: tuple[int, ...] = ()
    for i, (keys, values) in enumerate(segments):
        programs = launch_plan(keys, values)[0] * places
        blocks, more = keys.words[2], exact.tiles if i == 0 else 0
        each, busy = batch * kv_heads * tiles, saturates(keys, values)
        splits = split_plan(each, blocks, programs, max_tokens, more=more, saturates=busy)
        plan += (keys.first_block * 64, blocks, splits)
    part_count, part_first = sum(plan[2::3]), 0
    launches = []
    for i, (keys, values) in enumerate(segments):
        constants = {
            "K_BITS": keys.bits,
            "V_BITS": values.bits,
            "D": dim,
            "CHANNEL": keys.granularity == "channel",
            "K_GROUPS": keys.groups,
            "V_GROUPS": values.groups,
            "RING": keys.ring,
            "MIN_BLOCKS": _MIN_BLOCKS,
        }
        numbers = (scale, *plan[3 * i : 3 * i + 2], part_first, part_count, rows, count, tiles)
        launcher, options = _PLAIN, {}
        if fast:
            launcher, options = _DECODE, {"num_warps": 1, "maxnreg": launch_plan(keys, values)[1]}
            options |= {"launch_pdl": True} if early else {}
            constants |= {"EARLY": early, "CHAINED": early and i > 0, "BF16": dtype == torch.bfloat16}
            constants |= {"KEY_ROW": exact.keys[2], "VALUE_ROW": exact.values[2]}
            numbers += (exact.slots if i == 0 else 0, *exact.keys[:2], *exact.values[:2])
        else:
            constants["WIDTH"] = next_power_of_2(dim)
        launches.append(launcher.prepare((plan[3 * i + 2], kv_heads, batch * tiles), numbers, constants, options))
        part_first += plan[3 * i + 2]
    return _Plan(
        launches=tuple(launches),
        segments=plan,
        part=(batch * kv_heads, part_count, rows, dim),
        stats=(batch * kv_heads, part_count, 2, rows),
        tile=tile,
    )


class ExactKind(NamedTuple):
    """Of recent tokens, how many, and the strides of batch, head and token of keys and values, in words."""

    slots: int
    keys: tuple[int, ...]
    values: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Tiles that they are dealt out in."""
        return -(-self.slots // _RECENT.value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactWords:
    """Recent tokens as the first kernel takes them: two 16-bit floats a word.

    Attributes:
        query: ``[B, H, Q, D / 2]`` int32.
        keys: ``[B, H_kv, R, D / 2]`` int32.
        values: Like ``keys``.
        mask: ``[B, Q, R]`` uint8.
        slots: ``R``; 0 if the first kernel takes none, and the tensors are not read.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    slots: int

    @property
    def kind(self) -> ExactKind:
        """All of these but the bytes."""
        return ExactKind(self.slots, self.keys.stride()[:3], self.values.stride()[:3])


def exact_words(query: Tensor, recent: Recent | None) -> ExactWords:
    """Recent tokens for the first kernel, which takes 16-bit floats only, of one kind."""
    kinds = {query.dtype} if recent is None else {query.dtype, recent.keys.dtype, recent.values.dtype}
    if recent is None or query.dtype == torch.float32 or len(kinds) > 1:
        nothing = query.new_empty((1, 1, 1, 1), dtype=torch.int32)
        return ExactWords(query=nothing, keys=nothing, values=nothing, mask=nothing, slots=0)
    return ExactWords(
        query=_words(query),
        keys=_words(recent.keys),
        values=_words(recent.values),
        mask=recent.mask.contiguous().view(torch.uint8),
        slots=recent.keys.shape[2],
    )


def _words(x: Tensor) -> Tensor:
    batch, head, token, last = x.stride()
    fits = last == 1 and not (batch | head | token | x.storage_offset()) % 2
    # a dimension of one may keep any stride in `contiguous`
    return (x if fits else x.clone(memory_format=torch.contiguous_format)).view(torch.int32)


def merge(
    query: Tensor,
    part: Tensor,
    stats: Tensor,
    recent: Recent | None,
    out: Tensor,
    *,
    scale: float,
    first: Tensor,
    last: Tensor,
    plan: tuple[int, ...],
    tile: int,
    ring: bool,
    dealt: int = 0,
) -> None:
    """Join the splits of ``part`` and ``stats`` and ``recent`` tokens into ``out``.

    ``plan`` and ``dealt`` as for `merge_kernel`, whose first kernel has taken the recent tokens where none are given.
    """
    k, v, mask, count = query, query, query, 0
    if recent is not None:
        k, v, mask, count = recent.keys, recent.values, recent.mask.contiguous().view(torch.uint8), recent.keys.shape[2]
        k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k, v))
    launch = _merge_plan(
        *(part.shape, query.shape, query.device, processors(query.device), count, k.stride()[:3], v.stride()[:3]),
        *(scale, plan, dealt, tile, last.ndim == 2, ring),
    )
    launch(query, part, stats, k, v, mask, first, last, out)


@lru_cache(maxsize=1024)
def _merge_plan(
    part: torch.Size,
    query: torch.Size,
    device: torch.device,
    places: int,
    count: int,
    k_strides: tuple[int, ...],
    v_strides: tuple[int, ...],
    scale: float,
    plan: tuple[int, ...],
    dealt: int,
    tile: int,
    per_query: bool,
    ring: bool,
) -> Prepared:
    """What a merge launches, worked out from its shapes; the tensors are given later."""
    heads, splits, rows, dim = part
    early = launches_early(device)
    width, parts = next_power_of_2(dim), merge_parts(heads * rows, places)
    constants = {
        "KEY_TOKEN": k_strides[2],
        "VALUE_TOKEN": v_strides[2],
        "D": dim,
        "WIDTH": width,
        "CHANNELS": width // parts,
        "SPLITS": min(128, _HELD * parts // width, next_power_of_2(splits)),
        "TOKENS": min(_RECENT_TILE, next_power_of_2(max(1, count))),
        "TILE": tile,
        "PER_QUERY": per_query,
        "RING": ring,
        "MIN_BLOCKS": _MIN_BLOCKS,
        "WAIT": early,
        "EXACT": count > 0,
    }
    options = {"launch_pdl": True, "maxnreg": _MERGE_REGISTERS} if early else {}
    numbers = (scale, plan, splits, rows, query[2], count, dealt, *k_strides[:2], *v_strides[:2])
    grid = (rows * parts, heads // query[0], query[0])
    return _MERGE.prepare(grid, numbers, constants, {"num_warps": 1} | options)
