"""Puts a function of ours in the place of a model's attention, and undoes itself.

transformers looks attention functions up by name for nearly all of its models, after the rotary
embedding and with the model's own scaling, soft cap and sinks. A name of ours is registered for
the time of a ``with`` block, with a mask function that builds no mask: the function of ours knows
what may be seen.
"""

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from kvtuner_core.errors import ModelError

PREFIX = "kvtuner_in_place_"
"""What the names of attentions that know the in-place cache begin with; the model's own name follows."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""``(module, query, key, value, mask, **model's own arguments)`` gives ``[B, S, H, D]`` and weights."""


@contextlib.contextmanager
def intercepted(
    model: PreTrainedModel, attention: Attention, *, configs: Sequence[PretrainedConfig] = ()
) -> Iterator[None]:
    """Let every attention of ``model`` call ``attention`` instead of its own function.

    ``attention`` gets the module, query ``[B, H, S, D]``, key and value ``[B, H_kv, S, D]`` of the
    tokens at hand, no mask, and the model's own keyword arguments. ``configs`` are those that
    `model_configs` found, looked for here where none are given.
    """
    name = f"kvtuner_{uuid.uuid4().hex}"
    configs = configs or model_configs(model)
    before = [config._attn_implementation_internal for config in configs]
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)
    for config in configs:
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def attention_implementation(model: PreTrainedModel) -> str:
    """Name of the attention that the decoder uses, such as ``sdpa`` or ``eager``."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation or "eager").removeprefix(PREFIX)


def eager_attention(module: nn.Module) -> Attention:
    """The readable attention function of the module's own family, which returns its weights.

    Raises:
        ModelError: If the family has none.
    """
    function: Attention | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise ModelError(
            f"{type(module).__name__} does not take its attention from transformers' attention interface, "
            "so its errors cannot be measured. Use another model."
        )
    return function


def is_plain(own: dict[str, Any]) -> bool:
    """Whether attention is softmax(scaling q k) v and nothing else."""
    return all(own.get(name) is None for name in ("softcap", "s_aux", "position_bias", "head_mask"))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The text decoder without its head."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of decoder layers, or ``None`` where the model keeps them in another way."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        module for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return lists[0] if len(lists) == 1 else None


@contextlib.contextmanager
def recorded_outputs(layers: nn.ModuleList) -> Iterator[list[Any]]:
    """Collect what each layer returns, in order, during the block."""
    outputs: list[Any] = [None] * len(layers)

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[index] = output

        return hook

    handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def skipped_layers(layers: nn.ModuleList | None, count: int, output: Any) -> Iterator[None]:
    """Let the first ``count`` layers do nothing, the last of them returning ``output``."""
    if layers is None or count == 0:
        yield
        return
    chosen = list(layers)[:count]
    for index, layer in enumerate(chosen):
        layer.forward = _constant(output) if index == count - 1 else _identity
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output


def _identity(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


def model_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Every config that some module of ``model`` looks its attention up in."""
    found: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            for part in (config, config.get_text_config(decoder=True)):
                found[id(part)] = part
    return list(found.values())
