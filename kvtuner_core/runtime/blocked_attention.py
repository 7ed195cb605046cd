"""Attention on a CPU as matrix products and a softmax, so many scores at a time as stay in the processor's cache.

torch's fused attention makes its products of small blocks with MKL, which takes twice oneDNN's time where
`products.hastens`. From some rows and slots on each head is two of oneDNN's products here; below that the calls
cost what they save. Several heads in one call, as groups of a convolution, would save a fifteenth of a study, but round
otherwise with one thread than with two: several workers would find other numbers than one.
"""

import itertools

import torch
from torch import Tensor

from kvtuner_core.runtime.products import hastens, product

_SCORES_AT_ONCE = 1 << 21
_WORTH_CALLS = 1 << 16


def in_blocks(rows: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `blocked_attention` is the faster one here, and no gradient is wanted, which it has not."""
    tensors = (rows, key, value)
    return (
        rows.shape[2] * key.shape[2] >= _WORTH_CALLS
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
    batch, heads, count, _ = rows.shape
    shared = key.shape[2] - added.shape[1]
    queries, key, value = rows * factor, key.contiguous(), value.contiguous()
    output = value.new_empty((*rows.shape[:-1], value.shape[-1]))
    step = max(1, _SCORES_AT_ONCE // key.shape[2])
    for sequence, head, start in itertools.product(range(batch), range(heads), range(0, count, step)):
        some = slice(start, start + step)
        scores = product(queries[sequence, head, some], key[sequence, head])
        scores[:, shared:].add_(added[some])
        weights = torch.softmax(scores, -1, out=scores)
        output[sequence, head, some] = product(weights, value[sequence, head].mT)
    return output
