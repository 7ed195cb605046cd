"""Plain PyTorch definition of attention over preallocated buffers, and of appending to them."""

import torch
from torch import Tensor

from kernels.decode_attention.reference import attend


def exact_attention(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, last: Tensor, *, scale: float, ring: bool
) -> Tensor:
    """See `kernels.exact_attention.op.exact_attention`."""
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


def append_exact(keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], progress: Tensor) -> None:
    """See `kernels.exact_attention.op.append_exact`."""
    begin, count = int(progress[0]), new[0].shape[2]
    slots = torch.arange(begin, begin + count, device=keys.device) % keys.shape[2]
    for held, fresh in zip((keys, values), new, strict=True):
        held[:, :, slots] = fresh.to(held.dtype)
