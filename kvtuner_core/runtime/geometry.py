"""What a model's cache looks like, and which models have a cache we can quantise.

A model is known here by its transformers config; the kinds of cache layers are decided by
transformers itself, so that this module, `DynamicCache` and our own cache always agree.
"""

import hashlib
import json
from pathlib import PurePath

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvtuner_core.domain.model import LayerGeometry, ModelInfo
from kvtuner_core.errors import ModelError

_SAMPLES = 64


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The decoder's part of a config, for models that also read images or sound."""
    decoder: PretrainedConfig = config.get_text_config(decoder=True)
    return decoder


def layer_geometry(config: PretrainedConfig) -> tuple[LayerGeometry, ...]:
    """Shape of the cache of every layer that keeps one, first layer first.

    Args:
        config: A model's config; of a multi-modal model the decoder's part is read.

    Returns:
        One entry per cached layer; trailing layers that reuse another layer's cache have none.

    Raises:
        ModelError: If the model has no cache, or one of another kind than keys and values per token.
    """
    decoder = text_config(config)
    _refuse_unsupported(config, decoder)
    windows = _sliding_windows(decoder)
    per_layer = getattr(decoder, "per_layer_config", None)
    configs = list(per_layer)[: len(windows)] if per_layer is not None else [decoder] * len(windows)
    return tuple(_one_layer(layer, window) for layer, window in zip(configs, windows, strict=True))


def model_info(reference: str, model: PreTrainedModel) -> ModelInfo:
    """Identity and geometry of a loaded model, fingerprint included.

    Raises:
        ModelError: If its cache cannot be quantised.
    """
    return _info(
        reference,
        model.config,
        architecture=type(model).__name__,
        fingerprint=fingerprint(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def describe_config(reference: str, config: PretrainedConfig) -> ModelInfo:
    """Identity and geometry of a model whose weights were not read; its fingerprint is empty.

    Raises:
        ModelError: If its cache cannot be quantised.
    """
    return _info(reference, config, architecture=_architecture(config), fingerprint="", parameters=0)


def fingerprint(model: PreTrainedModel) -> str:
    """Digest of the cache geometry and of sampled weights.

    Up to 64 evenly spaced values of every parameter are read through bfloat16, so that loading in
    float32 or bfloat16, on any device, gives the same digest. Tied parameters count once.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(_geometry_text(type(model).__name__, layer_geometry(model.config)).encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step][:_SAMPLES].to(torch.bfloat16).contiguous().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _info(
    reference: str, config: PretrainedConfig, *, architecture: str, fingerprint: str, parameters: int
) -> ModelInfo:
    layers = layer_geometry(config)
    decoder = text_config(config)
    digest = hashlib.sha256(_geometry_text(architecture, layers).encode()).hexdigest()[:32]
    return ModelInfo(
        reference=reference,
        name=PurePath(reference).stem if reference.endswith(".gguf") else PurePath(reference).name or reference,
        architecture=architecture,
        fingerprint=fingerprint,
        geometry_digest=digest,
        layers=layers,
        query_heads=int(decoder.num_attention_heads),
        hidden_size=int(decoder.hidden_size),
        max_positions=int(getattr(decoder, "max_position_embeddings", None) or 0) or 1_000_000,
        vocabulary=int(decoder.vocab_size),
        parameters=parameters,
    )


def _geometry_text(architecture: str, layers: tuple[LayerGeometry, ...]) -> str:
    rows = [[layer.kv_heads, layer.key_dim, layer.value_dim, layer.sliding_window] for layer in layers]
    return json.dumps([architecture, rows])


def _architecture(config: PretrainedConfig) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = list(getattr(config, "architectures", None) or [])
    return str(named[0] if named else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type))


def _refuse_unsupported(config: PretrainedConfig, decoder: PretrainedConfig) -> None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False) or getattr(decoder, "is_encoder_decoder", False):
        raise ModelError(f"Only decoder-only models can be tuned; {kind} is an encoder-decoder. Use another model.")
    if getattr(decoder, "num_attention_heads", None) is None or not getattr(decoder, "hidden_size", None):
        raise ModelError(f"Only attention models keep keys and values; {kind} has no attention heads.")
    if getattr(decoder, "kv_lora_rank", None):
        raise ModelError(f"{kind} caches latent vectors (multi-head latent attention) instead of keys and values.")
    _refuse_special_attention(kind, decoder)


def _refuse_special_attention(kind: str, decoder: PretrainedConfig) -> None:
    if getattr(decoder, "keep_window_size", None):
        raise ModelError(
            f"{kind} makes its attention mask from the cached values, which is not supported. Use another model."
        )
    types = set(getattr(decoder, "layer_types", None) or ())
    if "chunked_attention" in types or getattr(decoder, "attention_chunk_size", None):
        raise ModelError(f"{kind} has chunked attention, whose cache is not supported. Use another model.")
    blocks = set(getattr(decoder, "layers_block_type", None) or ())
    if blocks - {"attention", "full_attention", "sliding_attention"}:
        raise ModelError(f"{kind} mixes attention with recurrent layers, whose state is not keys and values.")


def _sliding_windows(decoder: PretrainedConfig) -> tuple[int | None, ...]:
    """The window of each cached layer, as transformers' own cache decides it."""
    try:
        layers = DynamicCache(config=decoder).layers
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{decoder.model_type} has no standard key-value cache ({error}).") from error
    kinds = [type(layer) for layer in layers]
    while kinds and kinds[-1].__name__ == "DummyLayer":
        kinds.pop()
    for index, kind in enumerate(kinds):
        if kind not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ModelError(
                f"Every layer must cache keys and values per token; layer {index} of {decoder.model_type} "
                f"keeps a {kind.__name__}. Use a model of attention layers only."
            )
    if not kinds:
        raise ModelError(f"{decoder.model_type} keeps no key-value cache.")
    return tuple(getattr(layer, "sliding_window", None) for layer in layers[: len(kinds)])


def _head_dim(config: PretrainedConfig, query_heads: int) -> int:
    given = getattr(config, "head_dim", None)
    if given is not None:
        return int(given)
    return int(config.hidden_size) // query_heads if query_heads > 0 else 0


def _one_layer(config: PretrainedConfig, window: int | None) -> LayerGeometry:
    query_heads = int(config.num_attention_heads)
    head_dim = _head_dim(config, query_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    # Falcon's newer models cache their KV heads repeated for every query head.
    if getattr(config, "new_decoder_architecture", False):
        kv_heads = query_heads
    elif getattr(config, "multi_query", False):
        kv_heads = 1
    if head_dim < 1 or query_heads < 1:
        raise ModelError(
            f"A model's heads must each hold values; its config gives {query_heads} heads of {head_dim}. "
            "Check head_dim, hidden_size and num_attention_heads."
        )
    return LayerGeometry(
        kv_heads=int(kv_heads or query_heads),
        key_dim=head_dim,
        value_dim=int(getattr(config, "v_head_dim", None) or head_dim),
        sliding_window=None if window is None else int(window),
    )
