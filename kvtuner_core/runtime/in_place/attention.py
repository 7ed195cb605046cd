"""Attention and mask functions of ours in transformers' registries, around those a model had before.

For each attention a model may use (``sdpa``, ``eager``, ...) a pair of functions is registered
under that name with `PREFIX` in front. They do what the originals do, but for the few tokens of a
decode step whose keys come from an `InPlaceLayer`: those attend to its buffers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtuner_core.runtime.in_place.layer import Reading, reading_of
from kvtuner_core.runtime.interception import PREFIX, Attention, eager_attention, is_plain, model_configs

_INTERVAL = "kvtuner_interval"


def install(model: PreTrainedModel) -> None:
    """Let the attention of ``model`` know the in-place cache; harmless for every other cache, and done once."""
    for config in model_configs(model):
        name = str(config._attn_implementation_internal or "eager")
        if name.startswith(PREFIX):
            continue
        _register(name)
        config._attn_implementation_internal = PREFIX + name


def _register(name: str) -> None:
    AttentionInterface.register(PREFIX + name, _attention(name))
    AttentionMaskInterface.register(PREFIX + name, _mask(name))


def _attention(name: str) -> Attention:
    def fused(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **own: Any
    ) -> tuple[Tensor, Tensor | None]:
        reading = reading_of(key)
        # Values that the model changed on the way (DiffLlama halves them) are not those of the buffers.
        if reading is None or reading.values is not value:
            return _original(name, module)(module, query, key, value, attention_mask, **own)
        reading.layer.noticed = True
        if reading.plan is None:
            return _original(name, module)(module, query, key, value, attention_mask, **own)
        if not is_plain(own) or not _is_interval(attention_mask):
            key, value = reading.layer.read(reading.span)
            return _original(name, module)(module, query, key, value, attention_mask, **own)
        output = reading.layer.attend(query, _padded(reading, attention_mask), scale=own.get("scaling"))
        return output.transpose(1, 2), None

    return fused


def _padded(reading: Reading, mask: Tensor | None) -> Reading:
    if mask is None or reading.plan is None:
        return reading
    first = reading.layer.first_visible(reading.span.before)
    return replace(reading, plan=reading.layer.planner.padded(reading.plan, mask, first=first))


def _original(name: str, module: nn.Module) -> Attention:
    function: Attention | None = ALL_ATTENTION_FUNCTIONS.get(name)
    return eager_attention(module) if function is None else function


def _mask(name: str) -> Callable[..., Any]:
    """The mask function of ``name``; it marks masks that hide nothing but the front and the future."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        # A captured step is one token over buffers that know what it sees.
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return None
        made = _original_mask(name)(*args, **kwargs)
        if isinstance(made, Tensor):
            setattr(made, _INTERVAL, not kwargs.get("use_vmap") and _hides_the_front(kwargs.get("attention_mask")))
        return made

    return mask


def _original_mask(name: str) -> Callable[..., Any]:
    known: dict[str, Any] = AttentionMaskInterface._global_mapping
    function: Callable[..., Any] = known.get(name, _no_mask)
    return function


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


def _is_interval(mask: Tensor | None) -> bool:
    return mask is None or bool(getattr(mask, _INTERVAL, False))


def _hides_the_front(padding: Tensor | None) -> bool:
    """Whether a padding mask ``[B, T]`` is zeros, then ones, in each sequence."""
    if padding is None:
        return True
    seen = padding.bool()
    return bool(torch.all(seen[:, 1:] >= seen[:, :-1])) if seen.ndim == 2 else False
