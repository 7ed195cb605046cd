"""The numbers of one update of the cache in plain PyTorch: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.step_numbers.op import Places


def step_numbers(counters: Tensor, padding: Tensor, count: int, places: Places) -> dict[str, Tensor]:
    """See `kernels.step_numbers.op.step_numbers`; fields by name."""
    sinks, batch, device = places.sinks, len(padding), padding.device
    packed, before = counters[:1], counters[1:]
    after = before + count
    ready = (after - (sinks + places.residual)).clamp_(min=0)
    packed_after = torch.maximum(packed, ready.div(places.unit, rounding_mode="floor") * places.unit)
    queries = before + torch.arange(count, dtype=torch.int32, device=device)
    lowest = padding[:, None].expand(batch, count)
    if places.sliding is not None:
        lowest = torch.maximum(lowest, queries - (places.sliding - 1))
    held, position = _held(after - sinks, packed, places)
    return {
        "progress": torch.cat((before, packed, packed_after, after)),
        "first": (lowest - sinks).clamp_(min=0),
        "last": packed.expand(batch).contiguous(),
        "recent": held & (position <= queries[:, None]) & (position >= lowest[:, :, None]),
        "exact_first": lowest.clamp(min=0),
        "exact_last": (queries + 1).expand(batch, count).contiguous(),
    }


def _held(after: Tensor, packed: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Which slots hold a token that is not read packed, and the position of each slot's token."""
    slots = torch.arange(places.sinks + places.ring, dtype=torch.int32, device=after.device)
    newest = after - 1
    # The newest store position that falls on a slot of the ring.
    store = newest - torch.remainder(newest - (slots - places.sinks), places.ring)
    first = slots < places.sinks
    held = torch.where(first, slots < after + places.sinks, (store >= packed) & (store >= 0))
    return held, torch.where(first, slots, store + places.sinks)
