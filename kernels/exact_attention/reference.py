"""Plain PyTorch definition of attention over preallocated buffers, and of appending to them."""

import torch
from torch import Tensor

from kernels.decode_attention.reference import attend


def exact_attention(
    query: Tensor,
    segments: tuple[tuple[Tensor, Tensor], ...],
    first: Tensor,
    last: Tensor,
    *,
    scale: float,
    ring: bool,
) -> Tensor:
    """See `kernels.exact_attention.op.exact_attention`."""
    keys, values = (torch.cat(sides, dim=2) for sides in zip(*segments, strict=True))
    capacity = keys.shape[2]
    slot = torch.arange(capacity, device=query.device)
    position = slot.expand(len(last), -1)
    if ring:
        newest = last.amax(dim=1, keepdim=True).long() - 1
        position = newest - (newest - slot) % capacity
    mask = (position[:, None] >= first[..., None]) & (position[:, None] < last[..., None])
    unseen = ~mask.any(dim=1)[:, None, :, None]
    k, v = (x.float().masked_fill(unseen, 0.0) for x in (keys, values))
    return attend(query.float(), k, v, mask, scale).to(query.dtype)


def append_exact(
    keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], progress: Tensor, *, origin: int, ring: bool
) -> None:
    """See `kernels.exact_attention.op.append_exact`."""
    begin, count, capacity = int(progress[0]), new[0].shape[2], keys.shape[2]
    slots = torch.arange(begin, begin + count, device=keys.device) - origin
    mine = torch.full_like(slots, True, dtype=torch.bool) if ring else (slots >= 0) & (slots < capacity)
    for held, fresh in zip((keys, values), new, strict=True):
        held[:, :, slots[mine] % capacity] = fresh[:, :, mine].to(held.dtype)
