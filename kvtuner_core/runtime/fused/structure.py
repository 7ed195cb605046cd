"""Recognises models whose decode step can be run by fused operations, by what their modules are."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from kernels.norm.op import Norm
from kernels.rotary.op import Heads
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.fused.merging import merged
from kvtuner_core.runtime.products import is_linear

Activation = Literal["silu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_MODEL = frozenset({"model", "lm_head"})
_DECODER = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_HEAD_NORMS = ("q_norm", "k_norm")
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
_NORMS = frozenset({"input_layernorm", "post_attention_layernorm"})
_SANDWICH = frozenset({"pre_feedforward_layernorm", "post_feedforward_layernorm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What is known of a family beyond its structure.

    Attributes:
        offset: Whether the factor of its norms is ``1 + weight``.
        sandwich: Whether what a block makes is normed, too, before it is added.
        head_norms: Whether queries and keys are normed.
    """

    offset: bool = False
    sandwich: bool = False
    head_norms: bool = False


_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(),
    "Qwen2ForCausalLM": _Family(),
    "Qwen3ForCausalLM": _Family(head_norms=True),
    "Gemma3ForCausalLM": _Family(offset=True, sandwich=True, head_norms=True),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """One decoder layer as fused operations see it.

    Attributes:
        attention: The layer's attention module, which attention functions are called with.
        heads: How the columns of the first product are heads.
        projection: ``[(H + 2 H_kv) D, hidden]``, the weights of queries, keys and values.
        output: The attention's output projection.
        gate_up: ``[2 N, hidden]``, the gate's weight and that of the other factor.
        down: The projection back.
        activation: Of the gate.
        before_mlp: Norm of the residual stream before the MLP.
        after_attention: Norm of what the attention made; ``None`` for none.
        after_mlp: Norm of what the MLP made; ``None`` for none.
    """

    attention: Any
    heads: Heads
    projection: torch.Tensor
    output: nn.Linear
    gate_up: torch.Tensor
    down: nn.Linear
    activation: Activation
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """A model as fused operations see it.

    Attributes:
        embedding: Token embedding, called as it is.
        rotary: Gives cosine and sine, called as it is.
        layer_types: The kinds of layers if ``rotary`` is asked for each kind; empty if not.
        blocks: The decoder layers.
        norms: Before each layer's attention, then before the head.
        head: The language model's head.
    """

    embedding: Any
    rotary: Any
    layer_types: tuple[str, ...]
    blocks: tuple[Block, ...]
    norms: tuple[Norm, ...]
    head: nn.Linear


def structure_of(model: PreTrainedModel) -> Structure:
    """Check the structure of ``model``, and merge weights that are read together (`merged`).

    Raises:
        ModelError: If it is not one of those that are known, to its last module; the message says where.
    """
    family = _FAMILIES.get(type(model).__name__)
    if family is None or not _is_ours(model, model):
        raise ModelError(f"a {type(model).__name__} is not among the families whose layers are fused")
    if model.training:
        raise ModelError("it is in training mode")
    _check_modules(model)
    _children(model, _MODEL)
    decoder: Any = model.model
    config: Any = model.config
    _children(decoder, _DECODER)
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if getattr(config, name, None):
            raise ModelError(f"{name} is set")
    layers = list(decoder.layers)
    checked = [_checked(layer, family) for layer in layers]
    norms = [_norm(model, layer.input_layernorm, family) for layer in checked]
    return Structure(
        embedding=decoder.embed_tokens,
        rotary=decoder.rotary_emb,
        layer_types=tuple(config.layer_types) if family.offset else (),
        blocks=tuple(_block(model, layer, family) for layer in checked),
        norms=(*norms, _norm(model, decoder.norm, family)),
        head=_linear(model.lm_head, bias=False),
    )


def _checked(layer: Any, family: _Family) -> Any:
    """``layer`` once it is known to have the modules of its family and no others."""
    _children(layer, {"self_attn", "mlp"} | _NORMS | (_SANDWICH if family.sandwich else set()))
    _children(layer.self_attn, {*_PROJECTIONS, "o_proj"} | set(_HEAD_NORMS if family.head_norms else ()))
    _children(layer.mlp, _MLP)
    _linear(layer.mlp.gate_proj, bias=False)
    _linear(layer.mlp.up_proj, bias=False)
    biases = {_linear(getattr(layer.self_attn, name)).bias is None for name in _PROJECTIONS}
    if len(biases) > 1:
        raise ModelError("only some of the queries, keys and values have a bias")
    return layer


def _block(model: PreTrainedModel, layer: Any, family: _Family) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    dim = int(attention.head_dim)
    projections = [getattr(attention, name) for name in _PROJECTIONS]
    norms = [_norm(model, getattr(attention, name), family) if family.head_norms else None for name in _HEAD_NORMS]
    weight, bias = merged(projections)
    gate_up, _ = merged([mlp.gate_proj, mlp.up_proj])
    return Block(
        attention=attention,
        heads=Heads(
            queries=projections[0].out_features // dim,
            keys=projections[1].out_features // dim,
            dim=dim,
            bias=bias,
            query_norm=norms[0],
            key_norm=norms[1],
        ),
        projection=weight,
        output=_linear(attention.o_proj),
        gate_up=gate_up,
        down=_linear(mlp.down_proj),
        activation=_activation(model),
        before_mlp=_norm(
            model, layer.pre_feedforward_layernorm if family.sandwich else layer.post_attention_layernorm, family
        ),
        after_attention=_norm(model, layer.post_attention_layernorm, family) if family.sandwich else None,
        after_mlp=_norm(model, layer.post_feedforward_layernorm, family) if family.sandwich else None,
    )


def _activation(model: PreTrainedModel) -> Activation:
    name = str(getattr(model.config, "hidden_activation", None) or model.config.hidden_act)
    if name not in _ACTIVATIONS:
        raise ModelError(f"its activation is {name}, not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _norm(model: PreTrainedModel, module: Any, family: _Family) -> Norm:
    if not type(module).__name__.endswith("RMSNorm") or not _is_ours(module, model):
        raise ModelError(f"a {type(module).__name__} stands where a norm of its family is expected")
    eps = module.eps if family.offset else module.variance_epsilon
    return Norm(weight=module.weight.detach(), eps=float(eps), offset=family.offset)


def _linear(module: Any, *, bias: bool = True) -> nn.Linear:
    if not is_linear(module):
        raise ModelError(f"a {type(module).__name__} stands where a plain linear layer is expected")
    if not bias and module.bias is not None:
        raise ModelError("a linear layer has a bias where its family has none")
    return module


def _is_ours(module: Any, model: PreTrainedModel) -> bool:
    """Whether the class of ``module`` is transformers' own, of the family of ``model``."""
    own = type(module).__module__
    return own.startswith("transformers.models.") and own == type(model).__module__


def _children(module: Any, names: AbstractSet[str]) -> None:
    found = {name for name, _ in module.named_children()}
    if found != names:
        raise ModelError(f"{type(module).__name__} holds {_listed(found ^ names)} beside or short of what is known")


def _listed(names: AbstractSet[str]) -> str:
    return ", ".join(sorted(names))


def _check_modules(model: PreTrainedModel) -> None:
    """Nothing may be hooked in, replaced, spread over devices, or of another dtype."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise ModelError(f"{name or 'the model'} has a hook or a forward of its own")
    kinds = set(_kinds(model))
    if len(kinds) > 1:
        raise ModelError("its weights differ in dtype or device")


def _kinds(model: PreTrainedModel) -> Iterator[tuple[torch.dtype, torch.device]]:
    for parameter in model.parameters():
        yield parameter.dtype, parameter.device
