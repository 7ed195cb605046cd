"""Attention of suffix queries over a laid-out history, as the model itself computes it."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.blocked_attention import blocked_attention, in_blocks
from kvtuner_core.runtime.interception import eager_attention, is_plain

SPLIT_SLOTS = {"cpu": 1 << 60, "cuda": 4096}
"""From so many slots on that every query sees, they are attended to by themselves, on a GPU by flash attention."""

PLANLESS_TOKENS = 4096
"""Up to so many tokens attention is left to kernels that need no plan."""

_FLASH_DIM = 256
_PLANLESS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """What the queries of a suffix see of a layout.

    Attributes:
        visible: Boolean ``[S, K]``.
        shared: Leading slots that every query sees: the packed prefix, where there is no sliding window.
    """

    visible: Tensor
    shared: int
    _folded: dict[int, Tensor] = field(default_factory=dict)
    _added: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, visible: Tensor) -> "Mask":
        """The mask of ``visible`` ``[S, K]``."""
        return cls(visible=visible, shared=int(visible.all(0).int().cumprod(0).sum()))

    def folded(self, per_head: int) -> Tensor:
        """``[per_head * S, K]``, for the query heads of a KV head as rows; kept, for every layer asks again."""
        if per_head not in self._folded:
            self._folded[per_head] = self.visible.repeat(per_head, 1) if per_head > 1 else self.visible
        return self._folded[per_head]

    def added(self, per_head: int) -> Tensor:
        """`folded` without the shared slots, as float32 numbers to add to the scores: 0 or minus infinity."""
        if per_head not in self._added:
            hidden = ~self.visible[:, self.shared :].repeat(per_head, 1)
            self._added[per_head] = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return self._added[per_head]


@contextlib.contextmanager
def planless(tokens: int) -> Iterator[None]:
    """Keep attention to at most `PLANLESS_TOKENS` from cuDNN, which on a GPU plans anew for every new shape.

    A plan costs more than all that a study attends to in one shape, and saves time with long contexts only.
    """
    if tokens > PLANLESS_TOKENS:
        yield
        return
    with sdpa_kernel(list(_PLANLESS)):
        yield


def masked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, implementation: str, **own: Any
) -> Tensor:
    """Attention of suffix queries over laid-out keys and values.

    Plain models take torch's fused attention with the query heads of a KV head folded into its
    rows, so that keys and values are never repeated, or what is faster than that on a CPU. Models with
    soft caps or learned sinks, and those that run eager, take their family's own function.

    Args:
        module: The model's attention module.
        query: ``[B, H, S, D]``.
        key: ``[B, H_kv, K, D]``.
        value: ``[B, H_kv, K, D_v]``.
        mask: What each query sees.
        implementation: What the model uses outside of `interception.intercepted`.
        own: The keyword arguments that the model passes to its attention.

    Returns:
        ``[B, S, H, D_v]``.
    """
    if implementation == "eager" or not is_plain(own):
        return weighted_attention(module, query, key, value, visible=mask.visible, **own)[0]
    batch, heads, suffix, head_dim = query.shape
    kv_heads, scaling = key.shape[1], own.get("scaling")
    per_head = heads // kv_heads
    rows = query.reshape(batch, kv_heads, per_head * suffix, head_dim)
    if splits(rows, value, mask.shared):
        output = _split(rows, key, value, mask.folded(per_head), shared=mask.shared, scaling=scaling)
    elif in_blocks(rows, key, value):
        factor = head_dim**-0.5 if scaling is None else scaling
        output = blocked_attention(rows, key, value, added=mask.added(per_head), factor=factor)
    else:
        output = nn.functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=mask.folded(per_head), scale=scaling
        )
    return output.reshape(batch, heads, suffix, value.shape[-1]).transpose(1, 2)


def weighted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, **own: Any
) -> tuple[Tensor, Tensor]:
    """Like `masked_attention`, by the family's own function, with the weights ``[B, H, S, K]``."""
    if own.get("position_bias") is not None:
        raise ModelError(f"{type(module).__name__} adds a bias per position (ALiBi), which is not supported.")
    additive = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    additive.masked_fill_(~visible, torch.finfo(query.dtype).min)
    output, weights = eager_attention(module)(module, query, key, value, additive[None, None], **own)
    if weights is None:
        raise ModelError(f"{type(module).__name__} does not give its attention weights. Use another model.")
    return output, weights


def splits(rows: Tensor, value: Tensor, shared: int) -> bool:
    """Whether the slots that all queries see are many enough to be worth an attention of their own, without a mask."""
    head_dim = rows.shape[-1]
    return (
        shared >= SPLIT_SLOTS[rows.device.type]
        and (rows.dtype in (torch.bfloat16, torch.float16) or not rows.is_cuda)
        and head_dim == value.shape[-1]
        and head_dim % 8 == 0
        and head_dim <= _FLASH_DIM
    )


def _split(rows: Tensor, key: Tensor, value: Tensor, visible: Tensor, *, shared: int, scaling: float | None) -> Tensor:
    """Attention to the shared slots by flash attention, to the rest in float32, joined by their log sums."""
    factor = rows.shape[-1] ** -0.5 if scaling is None else scaling
    first, first_sum = seen_by_all(rows, key[:, :, :shared], value[:, :, :shared], factor)
    rest = plain_attention(rows, key[:, :, shared:], value[:, :, shared:], visible[:, shared:], factor)
    return joined((first.float(), first_sum), rest).to(value.dtype)


def split_attention(
    query: Tensor,
    prefixes: Iterable[tuple[Tensor, Tensor]],
    tail: tuple[Tensor, Tensor],
    visible: Tensor,
    *,
    policies: int,
    scaling: float | None,
) -> Tensor:
    """`masked_attention` of several policies whose prefixes lie apart; only these are read policy by policy.

    Args:
        query: ``[policies * R, H, S, D]``.
        prefixes: Keys and values ``[R, H_kv, P, D]`` of the first policies, which every query sees; the
            rows of the rest are padding.
        tail: Keys and values ``[policies * R, H_kv, T, D]`` behind them.
        visible: Boolean ``[S, T]``.
        policies: How many they are.
        scaling: Factor on the scores, or ``None`` for that of the head's size.

    Returns:
        ``[policies * R, S, H, D_v]``.
    """
    batch, heads, suffix, head_dim = query.shape
    kv_heads = tail[0].shape[1]
    factor = head_dim**-0.5 if scaling is None else scaling
    rows = query.reshape(batch, kv_heads, heads // kv_heads * suffix, head_dim)
    parts = rows.chunk(policies)
    found = [seen_by_all(part, *prefix, factor) for part, prefix in zip(parts, prefixes, strict=False)]
    sums = rows.new_full(rows.shape[:-1], -torch.inf, dtype=torch.float32)
    first = tail[1].new_zeros((*rows.shape[:-1], tail[1].shape[-1]), dtype=torch.float32)
    for place, (part, log_sum) in enumerate(found):
        own = slice(place * len(part), (place + 1) * len(part))
        first[own], sums[own] = part, log_sum
    output = joined((first, sums), plain_attention(rows, *tail, visible.repeat(heads // kv_heads, 1), factor))
    return output.to(tail[1].dtype).reshape(batch, heads, suffix, tail[1].shape[-1]).transpose(1, 2)


def seen_by_all(rows: Tensor, key: Tensor, value: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Attention without a mask, and the log of each row's sum of exponentials: flash attention on a GPU."""
    if not rows.is_cuda:
        every = torch.ones((1, key.shape[2]), dtype=torch.bool)
        return plain_attention(rows, key, value, every, factor)
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention(rows, key, value, scale=factor)[:2]
    return output, sums


def plain_attention(rows: Tensor, key: Tensor, value: Tensor, visible: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Attention in float32 with the log of each row's sum of exponentials, ``[B, H, R, D]`` and ``[B, H, R]``."""
    scores = (rows.float() @ key.float().mT).mul_(factor).masked_fill_(~visible, -torch.inf)
    sums = scores.logsumexp(-1)
    return scores.sub_(sums[..., None]).exp_() @ value.float(), sums


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over two sets of slots from that over each, with their log sums; every row sees some of the second."""
    share = torch.sigmoid(one[1] - other[1])[..., None]
    return one[0] * share + other[0] * (1 - share)
