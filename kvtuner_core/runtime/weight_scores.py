"""Scores of a layer's projections: KVmix's gradient norms, and the norms of the weights themselves.

KVmix (AAAI 2026, arXiv 2506.08018) ranks layers by ||dL/dW_k|| and ||dL/dW_v||, L the next-token
cross-entropy of the full-precision model, the mean of the norms over its prompts. One forward and
one backward pass per prompt give every layer. A text's first tokens are enough to rank layers, and
bound time and memory whatever the context, so each prompt is read up to `MOST_TOKENS`.
"""

import itertools
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvtuner_core.domain.scores import LayerNorms, WeightScores
from kvtuner_core.runtime.attending import planless
from kvtuner_core.runtime.head import Head, final_states
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.projections import Projected, Projection, find_projections, recorded_projections
from kvtuner_core.runtime.prompts import CutPrompt
from kvtuner_core.runtime.provenance import device_memory

MOST_TOKENS = 256
"""Tokens of each prompt that the loss is taken over."""

_MEMORY_SHARE = 0.25
_KEPT_COPIES = 24
_LOGITS_COPIES = 6
_CPU_TOKENS = 512


def weight_scores(loaded: LoadedModel, prompts: Sequence[CutPrompt]) -> WeightScores:
    """Norms of W_k and W_v and of their gradients, for every cached layer.

    Args:
        loaded: The model.
        prompts: Calibration prompts; those of equal length are read together, so none is padded.
    """
    with planless(MOST_TOKENS):
        projections = find_projections(loaded.model, len(loaded.info.layers))
    if projections is None:
        return WeightScores(
            layers=(),
            absent=f"The rows of W_k and W_v of {type(loaded.model).__name__} cannot be told apart.",
            tokens=0,
            gradient_seconds=0.0,
            weight_seconds=0.0,
        )
    started = time.perf_counter()
    weights = [(_norm(layer.keys), _norm(layer.values)) for layer in projections]
    between = time.perf_counter()
    texts = [(*prompt.prefix, *prompt.suffix)[:MOST_TOKENS] for prompt in prompts]
    flat = [side for layer in projections for side in (layer.keys, layer.values)]
    with planless(MOST_TOKENS):
        gradients = _mean_norms(loaded, texts, flat)
    return WeightScores(
        layers=tuple(
            LayerNorms(
                layer=layer,
                key_gradient=gradients[2 * layer],
                value_gradient=gradients[2 * layer + 1],
                key_weight=keys,
                value_weight=values,
            )
            for layer, (keys, values) in enumerate(weights)
        ),
        absent="",
        tokens=max(map(len, texts)),
        gradient_seconds=time.perf_counter() - between,
        weight_seconds=between - started,
    )


def _norm(projection: Projection) -> float:
    return float(torch.linalg.vector_norm(projection.weight.detach().double()))


def _mean_norms(loaded: LoadedModel, texts: Sequence[Sequence[int]], projections: Sequence[Projection]) -> list[float]:
    """Of each projection, the mean over the texts of the norm of the mean loss' gradient."""
    sums = dict.fromkeys(projections, 0.0)
    head = _head(loaded)
    for rows in _equal_texts(loaded, texts, head):
        ids = torch.tensor(rows, device=loaded.device)
        with torch.enable_grad(), recorded_projections(projections) as recorded:
            gradients = _gradients(loaded, ids, recorded, head)
        norms = [one.gradient_norms(gradient) for one, gradient in zip(recorded, gradients, strict=True)]
        for one, total in zip(recorded, torch.stack(norms).double().sum(1).tolist(), strict=True):
            sums[one.projection] += total / (ids.shape[1] - 1)
    return [total / len(texts) for total in sums.values()]


def _head(loaded: LoadedModel) -> Head | None:
    """What spares a model on a CPU its whole logits; ``None`` where they are its own business.

    Those of a 16-bit model are: the head's would keep digits that the model's own rounding drops.
    """
    spares = loaded.device.type == "cpu" and loaded.dtype.itemsize >= torch.float32.itemsize
    return Head.of(loaded.model) if spares else None


def _equal_texts(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], head: Head | None
) -> Iterator[list[Sequence[int]]]:
    """Texts of one length, as many at a time as a share of the free memory has room for; at least one.

    Where no logits are held no more than `_CPU_TOKENS` are read at once: more only take memory, and time to get it.
    """
    info, free = loaded.info, device_memory(loaded.device)[0]
    token = _KEPT_COPIES * len(info.layers) * info.hidden_size * loaded.dtype.itemsize
    tokens = _CPU_TOKENS
    if head is None:
        token += _LOGITS_COPIES * 4 * info.vocabulary
        tokens = sum(map(len, texts))
    for length, group in itertools.groupby(sorted(texts, key=len), key=len):
        equal = list(group)
        most = max(1, min(int(_MEMORY_SHARE * free) // (token * length), tokens // length))
        for start in range(0, len(equal), most):
            yield equal[start : start + most]


def _gradients(
    loaded: LoadedModel, ids: Tensor, recorded: Sequence[Projected], head: Head | None
) -> tuple[Tensor, ...]:
    """Of the summed loss, with respect to what each projection gives while the model reads ``ids`` ``[R, T]``.

    The sum is what is differentiated: the small gradients of a mean would vanish in float16.
    """
    if head is None:
        loss = _summed_loss(loaded.model(input_ids=ids, use_cache=False).logits, ids)
        return torch.autograd.grad(loss, [one.output for one in recorded])
    states = final_states(loaded.model, input_ids=ids)[:, :-1].flatten(0, 1)
    slope = head.loss_gradient(states, ids[:, 1:].flatten())
    return torch.autograd.grad(states, [one.output for one in recorded], slope)


def _summed_loss(logits: Tensor, ids: Tensor) -> Tensor:
    exact = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(exact.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
