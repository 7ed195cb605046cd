"""Attention on a CPU as matrix products and a softmax, so many scores at a time as stay in the processor's cache.

torch's fused attention makes its products of small blocks with MKL, which takes twice oneDNN's time where
`products.hastens`. Heads of many rows and slots are two products each. Of those with fewer, for which a call costs as
much as its product, several are multiplied in one: torch gives batched products to MKL, too, but convolutions to
oneDNN, and one of width 1 whose groups are the heads is a batched product.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight

from kvtuner_core.runtime.products import hastens, product

_SCORES_OF_A_HEAD = 1 << 21
_SCORES_OF_HEADS = 1 << 20
_FEWEST = 1 << 12
_ALONE = 1 << 17
_BLOCKED = 4


def in_blocks(rows: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `blocked_attention` is the faster one here, and no gradient is wanted, which it has not."""
    tensors = (rows, key, value)
    return (
        rows.shape[2] * key.shape[2] >= _FEWEST
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.is_autocast_enabled("cpu")
        and hastens()
    )


def blocked_attention(rows: Tensor, key: Tensor, value: Tensor, *, added: Tensor, factor: float) -> Tensor:
    """softmax(factor q k) v, to the rounding of float32.

    Args:
        rows: Queries ``[B, H, R, D]``.
        key: ``[B, H, K, D]``.
        value: ``[B, H, K, D_v]``.
        added: ``[R, T]``, added to the scores of the last T slots: 0, or minus infinity for what a row does not see.
        factor: On the scores.

    Returns:
        ``[B, H, R, D_v]``.
    """
    queries, keys, values = (side.contiguous().flatten(0, 1) for side in (rows * factor, key, value))
    attend = _one_by_one if rows.shape[2] * key.shape[2] >= _ALONE else _some_at_once
    return attend(queries, keys, values, added).view(*rows.shape[:-1], value.shape[-1])


def _one_by_one(rows: Tensor, key: Tensor, value: Tensor, added: Tensor) -> Tensor:
    """Attention of heads ``[N, ...]``, each by itself."""
    output = value.new_empty((*rows.shape[:2], value.shape[2]))
    step = max(1, _SCORES_OF_A_HEAD // key.shape[1])
    for head, start in itertools.product(range(len(rows)), range(0, rows.shape[1], step)):
        some = slice(start, start + step)
        weights = _weights(product(rows[head, some], key[head]), added[some])
        output[head, some] = product(weights, value[head].mT)
    return output


def _some_at_once(rows: Tensor, key: Tensor, value: Tensor, added: Tensor) -> Tensor:
    """Attention of heads ``[N, ...]``, as many at once as have so few scores."""
    count, slots = rows.shape[1], key.shape[1]
    if count % _BLOCKED == 0 and slots % _BLOCKED == 0:
        # oneDNN would put both into an order of blocks first, which costs more than the product does.
        rows, added = (nn.functional.pad(side, (0, 0, 0, 1)) for side in (rows, added))
    threads = torch.get_num_threads()
    step = threads * max(1, _SCORES_OF_HEADS // (threads * rows.shape[1] * slots))
    found = []
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        weights = _weights(_times_transposed(rows[some], key[some]), added)
        found.append(_times(weights, value[some]))
    return torch.cat(found)[:, :count]


def _weights(scores: Tensor, added: Tensor) -> Tensor:
    """The softmax of scores ``[..., K]``, in their place; the slots before those of ``added`` are seen by every row."""
    scores[..., scores.shape[-1] - added.shape[-1] :].add_(added)
    weights: Tensor = torch.softmax(scores, -1, out=scores)
    return weights


def _times(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of contiguous ``[N, R, K]`` and ``[N, K, D]``."""
    count, rows, inner = left.shape
    found = nn.functional.conv1d(right.reshape(1, -1, right.shape[2]), left.reshape(-1, inner, 1), groups=count)
    return found.view(count, rows, -1)


def _times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.mT`` of contiguous ``[N, R, D]`` and ``[N, K, D]``: the gradient of such a product's left side."""
    (count, rows, inner), slots = left.shape, right.shape[1]
    shape = torch.Size((count * rows, slots, 1))
    found: Tensor = conv1d_weight(  # type: ignore[no-untyped-call]
        right.reshape(1, -1, inner), shape, left.reshape(1, -1, inner), groups=count
    )
    return found.view(count, rows, slots)
