# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
"""Products of a few rows with a large weight on a GPU: as fast as the weight can be read.

The weight's rows are the tall side of the tensor-core tile, the few rows of ``x`` its short one. A program
takes one tile of weight rows and one split of the inner side. It is launched while the kernel before it still
runs, asks for its first bytes of the weight, which no kernel writes, and only then waits for ``x``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver

_INNER = 128
_LINES = 4
"""128-byte lines of each weight row that are asked for ahead."""
_FULL = 0.95
"""Share of the processors (times those that fit on one) that a launch should fill."""
_WIDE = 16384
"""Weight rows from which larger tiles pay for many rows of ``x``."""


@triton.jit
def _ask(p):
    """Fetch the lines at ``p`` into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [p], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _activated(gate, GELU: tl.constexpr):
    """SiLU, or GELU in its tanh form, in float32."""
    if GELU:
        # (1 + tanh z) / 2 is the logistic function of 2 z
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * tl.sigmoid(gate)


@triton.jit
def linear_kernel(
    p_x,
    p_weight,
    p_out,
    rows,
    outer,
    inner,
    share,
    ROWS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    LINES: tl.constexpr,
    EARLY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``OUTER`` weight rows times one split of the inner side.

    ``GATED`` takes a row of the gate and its partner in turn; ``EVEN`` says that the inner side is a multiple of
    ``INNER``.
    """
    split = tl.program_id(1)
    place = tl.arange(0, OUTER)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, INNER)
    if GATED:
        out = tl.program_id(0) * (OUTER // 2) + place // 2
        bound = outer // 2
        source = out + place % 2 * bound
    else:
        out = tl.program_id(0) * OUTER + place
        bound = outer
        source = out
    source = tl.where(out < bound, source, 0)
    begin = split * share
    end = tl.minimum(begin + share, inner)
    p_w = p_weight + source.to(tl.int64)[:, None] * inner
    if EARLY:
        if LINES > 0:
            _ask(p_w + tl.minimum(begin + tl.arange(0, LINES) * 64, inner - 1)[None, :])
        gdc_wait()
        gdc_launch_dependents()
    p_r = p_x + m[:, None] * inner
    m_row = (m < rows)[:, None]
    acc = tl.zeros([OUTER, ROWS], tl.float32)
    for start in tl.range(begin, end, INNER, num_stages=STAGES):
        at = (start + k)[None, :]
        if EVEN:
            w = tl.load(p_w + at)
            x = tl.load(p_r + at, mask=m_row, other=0.0)
        else:
            w = tl.load(p_w + at, mask=at < end, other=0.0)
            x = tl.load(p_r + at, mask=m_row & (at < end), other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
    T: tl.constexpr = p_x.dtype.element_ty
    if GATED:
        gate, up = tl.split(acc.reshape([OUTER // 2, 2, ROWS]).permute(0, 2, 1))
        # rounded where a model rounds that computes these one after the other
        gate = _activated(gate.to(T).to(tl.float32), GELU).to(T).to(tl.float32)
        y = (gate * up.to(T).to(tl.float32)).to(T)
        out = tl.program_id(0) * (OUTER // 2) + tl.arange(0, OUTER // 2)
        tl.store(p_out + m[None, :] * bound + out[:, None], y, mask=(m < rows)[None, :] & (out < bound)[:, None])
    else:
        to = p_out + (split * rows + m).to(tl.int64)[None, :] * outer + out[:, None]
        tl.store(to, acc.to(p_out.dtype.element_ty), mask=(m < rows)[None, :] & (out < bound)[:, None])


def linear(x: Tensor, weight: Tensor, *, whole: bool) -> Tensor:
    """See `kernels.linear.op.linear`."""
    rows, (outer, inner) = x.shape[0], weight.shape
    tile = _tile(rows, outer)
    steps = -(-inner // _INNER)
    splits = 1 if whole else _splits(-(-outer // tile[0]), steps, rows, x)
    share = -(-steps // splits) * _INNER
    splits = -(-inner // share)
    out = torch.empty(splits, rows, outer, dtype=x.dtype if whole else torch.float32, device=x.device)
    _launch(x, weight, out, grid=(-(-outer // tile[0]), splits), share=share, tile=tile)
    return out


def gated_linear(x: Tensor, weight: Tensor, *, activation: str) -> Tensor:
    """See `kernels.linear.op.gated_linear`."""
    rows, (outer, inner) = x.shape[0], weight.shape
    tile = _tile(rows, outer)
    out = torch.empty(rows, outer // 2, dtype=x.dtype, device=x.device)
    share = -(-inner // _INNER) * _INNER
    _launch(x, weight, out, grid=(-(-outer // tile[0]), 1), share=share, tile=tile, gate=activation)
    return out


def _launch(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    grid: tuple[int, int],
    share: int,
    tile: tuple[int, int, int],
    gate: str | None = None,
) -> None:
    rows, (outer, inner) = x.shape[0], weight.shape
    early = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9
    width = max(16, triton.next_power_of_2(rows))
    stages = min(tile[1], _room(x) // ((tile[0] + width) * _INNER * x.element_size()))
    linear_kernel[grid](
        x.contiguous(),
        weight,
        out,
        rows,
        outer,
        inner,
        share,
        ROWS=width,
        OUTER=tile[0],
        INNER=_INNER,
        STAGES=stages,
        EVEN=inner % _INNER == 0,
        GATED=gate is not None,
        GELU=gate == "gelu_tanh",
        LINES=_LINES,
        EARLY=early,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tile[2],
        **({"launch_pdl": True} if early else {}),
    )


def _room(x: Tensor) -> int:
    """Bytes of shared memory that a program may have; smaller cards take fewer loads in flight."""
    if not x.is_cuda:
        return 1 << 20
    return driver.active.utils.get_device_properties(x.device.index)["max_shared_mem"]


def _tile(rows: int, outer: int) -> tuple[int, int, int]:
    """Weight rows of a program, loads in flight, warps: as measured (`kernels/README.md`)."""
    if rows > 32 and outer >= _WIDE:
        return 128, 3, 8
    return 64, 4, 4


def _splits(tiles: int, steps: int, rows: int, x: Tensor) -> int:
    """Splits of the inner side: as many as fill the processors, two programs on each where that many fit."""
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    wanted = _FULL * processors * (1 if rows > 32 else 2)
    splits = 1
    while tiles * splits < wanted and splits * 2 <= min(8, steps):
        splits *= 2
    return splits
