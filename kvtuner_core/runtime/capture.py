"""Reads prompts once in full precision and keeps what every later measurement needs."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.bank import LayerHistory
from kvtuner_core.runtime.footprint import chunk_tokens
from kvtuner_core.runtime.interception import decoder_of
from kvtuner_core.runtime.loading import LoadedModel, filled_layers
from kvtuner_core.runtime.prompts import CutPrompt
from kvtuner_core.runtime.replay import Batch, Part

_SUFFIX_TOKENS = {"cpu": 512, "cuda": 4096}
_LOGITS_BYTES = 1 << 30


def batches(
    prompts: Sequence[CutPrompt], *, device: torch.device, vocabulary: int, most_tokens: int | None = None
) -> Iterator[tuple[CutPrompt, ...]]:
    """Prompts that are scored together: equal suffix lengths, bounded tokens and logits.

    Args:
        prompts: The prompts.
        device: Where they are scored.
        vocabulary: Logits of a token.
        most_tokens: Most tokens of the prompts of a batch, prefixes included; a longer one is alone.
    """
    tokens = min(_SUFFIX_TOKENS.get(device.type, 512), max(1, _LOGITS_BYTES // (4 * vocabulary)))
    ordered = sorted(prompts, key=lambda prompt: (len(prompt.suffix), len(prompt.prefix)))
    for length, group in itertools.groupby(ordered, key=lambda prompt: len(prompt.suffix)):
        equal = list(group)
        rows = max(1, tokens // length)
        if most_tokens is not None:
            rows = max(1, min(rows, most_tokens // (len(equal[-1].prefix) + 2 * length)))
        count = -(-len(equal) // rows)
        # Batches of nearly one size: the last would otherwise be a small and slow one.
        for index in range(count):
            yield tuple(equal[index * len(equal) // count : (index + 1) * len(equal) // count])


def capture(loaded: LoadedModel, prompts: tuple[CutPrompt, ...], *, on_host: bool = False) -> Batch:
    """Read the prefixes of a batch in full precision and keep each layer's keys and values.

    Args:
        loaded: The model.
        prompts: A batch.
        on_host: Whether to keep them in the host's memory.
    """
    parts = []
    start = 0
    for length, group in itertools.groupby(prompts, key=lambda prompt: len(prompt.prefix)):
        ids = torch.tensor([prompt.prefix for prompt in group], device=loaded.device)
        history = _read(loaded.model, ids, loaded.info.layers)
        if on_host:
            history = tuple(layer.on_host() for layer in history)
        parts.append(Part(rows=slice(start, start + len(ids)), prefix=length, history=history))
        start += len(ids)
    suffix = len(prompts[0].suffix)
    offsets = torch.tensor([len(prompt.prefix) for prompt in prompts], device=loaded.device)
    labels = [[*prompt.suffix[1:], -1 if prompt.following is None else prompt.following] for prompt in prompts]
    return Batch(
        prompts=prompts,
        parts=tuple(parts),
        suffix_ids=torch.tensor([prompt.suffix for prompt in prompts], device=loaded.device),
        positions=offsets[:, None] + torch.arange(suffix, device=loaded.device),
        labels=torch.tensor(labels, device=loaded.device).flatten(),
    )


def own_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits ``[S, V]`` of the batch's first row as the model itself computes them with its own cache."""
    part = batch.parts[0]
    cache = DynamicCache()
    for index, layer in enumerate(part.history):
        keys, values = (side[:1].to(batch.suffix_ids.device, copy=True) for side in (layer.keys, layer.values))
        cache.update(keys, values, index)
    logits: Tensor = model(
        input_ids=batch.suffix_ids[:1], position_ids=batch.positions[:1], past_key_values=cache, use_cache=True
    ).logits
    return logits[0]


def _read(model: PreTrainedModel, ids: Tensor, layers: Sequence[LayerGeometry]) -> tuple[LayerHistory, ...]:
    """Exact keys and values of every cached layer for ``ids`` ``[R, P]``, some rows at a time."""
    step = max(1, chunk_tokens(ids.device, ids.shape[1]) // ids.shape[1])
    pieces = [list(_read_rows(model, rows, layers)) for rows in torch.split(ids, step)]
    if len(pieces) == 1:
        return tuple(pieces[0])
    joined = []
    for _ in layers:
        # A layer's pieces go as soon as they are joined: the history never lies in memory twice.
        same = [piece.pop(0) for piece in pieces]
        keys, values = torch.cat([history.keys for history in same]), torch.cat([history.values for history in same])
        joined.append(LayerHistory(keys=keys, values=values))
    return tuple(joined)


def _read_rows(model: PreTrainedModel, ids: Tensor, layers: Sequence[LayerGeometry]) -> tuple[LayerHistory, ...]:
    """A plain cache is filled, which forgets nothing.

    The models' masks still keep sliding layers to their window, and groups per channel may begin
    before it.
    """
    decoder = decoder_of(model)
    cache = DynamicCache()
    rows, prefix = ids.shape
    step = max(1, chunk_tokens(ids.device, prefix) // rows)
    for start in range(0, prefix, step):
        stop = min(prefix, start + step)
        positions = torch.arange(start, stop, device=ids.device)[None].expand(rows, -1)
        decoder(input_ids=ids[:, start:stop], position_ids=positions, past_key_values=cache, use_cache=True)
    filled = filled_layers(cache)
    if len(filled) != len(layers):
        raise ModelError(f"{type(model).__name__} filled {len(filled)} of {len(layers)} cache layers.")
    return tuple(LayerHistory(keys=keys, values=values) for keys, values in filled)
