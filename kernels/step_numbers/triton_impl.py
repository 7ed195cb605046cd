# mypy: ignore-errors
# ruff: noqa: N803, PLR0913, PLR0917
"""The numbers of one update of the cache in one small kernel: a program a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from kernels.step_numbers.op import Places


@triton.jit
def numbers_kernel(
    p_counters,
    p_padding,
    p_progress,
    p_first,
    p_last,
    p_recent,
    p_exact_first,
    p_exact_last,
    sinks,
    residual,
    unit,
    ring,
    sliding,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
    SLIDING: tl.constexpr,
):
    """One sequence."""
    batch = tl.program_id(0)
    packed = tl.load(p_counters)
    before = tl.load(p_counters + 1)
    after = before + COUNT
    if batch == 0:
        ready = tl.maximum(after - (sinks + residual), 0)
        tl.store(p_progress, before)
        tl.store(p_progress + 1, packed)
        tl.store(p_progress + 2, tl.maximum(packed, ready // unit * unit))
        tl.store(p_progress + 3, after)
    tl.store(p_last + batch, packed)
    padding = tl.load(p_padding + batch)
    slot = tl.arange(0, SLOTS)
    m_slot = slot < sinks + ring
    newest = after - sinks - 1
    behind = (newest - (slot - sinks)) % ring
    # the newest store position that falls on a slot of the ring
    store = newest - tl.where(behind < 0, behind + ring, behind)
    held = tl.where(slot < sinks, slot < after, (store >= packed) & (store >= 0))
    position = tl.where(slot < sinks, slot, store + sinks)
    for i in tl.static_range(COUNT):
        query = before + i
        lowest = padding
        if SLIDING:
            lowest = tl.maximum(lowest, query - (sliding - 1))
        at = batch * COUNT + i
        tl.store(p_first + at, tl.maximum(lowest - sinks, 0))
        tl.store(p_exact_first + at, tl.maximum(lowest, 0))
        tl.store(p_exact_last + at, query + 1)
        seen = held & (position <= query) & (position >= lowest)
        tl.store(p_recent + at * (sinks + ring) + slot, seen.to(tl.uint8), mask=m_slot)


def step_numbers(counters: Tensor, padding: Tensor, count: int, places: Places) -> dict[str, Tensor]:
    """See `kernels.step_numbers.op.step_numbers`; fields by name."""
    batch, slots = len(padding), places.sinks + places.ring

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=padding.device)

    made = {
        "progress": numbers(4),
        "first": numbers(batch, count),
        "last": numbers(batch),
        "recent": torch.empty((batch, count, slots), dtype=torch.bool, device=padding.device),
        "exact_first": numbers(batch, count),
        "exact_last": numbers(batch, count),
    }
    numbers_kernel[(batch,)](
        counters,
        padding,
        *(x.view(torch.uint8) if x.dtype is torch.bool else x for x in made.values()),
        places.sinks,
        places.residual,
        places.unit,
        places.ring,
        places.sliding or 0,
        COUNT=count,
        SLOTS=triton.next_power_of_2(slots),
        SLIDING=places.sliding is not None,
        num_warps=1,
    )
    return made
