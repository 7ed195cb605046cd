"""Loads a model and its tokenizer, safely and quietly."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kvtuner_core.domain.model import DeviceChoice, DtypeChoice, LayerGeometry, ModelInfo, ModelSpec
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.geometry import describe_config, layer_geometry, model_info
from kvtuner_core.runtime.gguf import converted_folder, gguf_config
from kvtuner_core.runtime.products import hasten
from kvtuner_core.runtime.provenance import is_out_of_memory
from kvtuner_core.runtime.references import ReferenceKind, ResolvedReference, bundled_model_path, resolve_reference

__all__ = ["LoadedModel", "bundled_model_path", "choose_device", "describe", "filled_layers", "load", "quiet"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model in memory, ready for inference.

    Attributes:
        model: In evaluation mode on its device.
        tokenizer: The tokenizer that came with it.
        info: Identity and geometry, fingerprint included.
        device: Where it is.
        dtype: Its number format.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    device: torch.device
    dtype: torch.dtype


def load(spec: ModelSpec, *, cache_dir: Path, roots: tuple[Path, ...] | None = None) -> LoadedModel:
    """Load what ``spec`` names, from safetensors only and without code from the model's folder.

    Args:
        spec: Which model, where, in which number format.
        cache_dir: Where conversions of GGUF files are kept.
        roots: Folders that local models must lie in, or ``None`` for no restriction.

    Raises:
        ModelError: If it cannot be found, read or quantised; the line says why and what to do.
    """
    _check_kernels_package()
    device, dtype = choose_device(spec)
    resolved = resolve_reference(spec.reference, roots=roots)
    with quiet():
        source = _source(resolved, cache_dir)
        config = _read_config(resolved, cache_dir)
        layer_geometry(config)
        model = _read_model(resolved, source, device=device, dtype=dtype, eager=has_soft_cap(config))
        tokenizer = _read_tokenizer(resolved, source)
        info = model_info(spec.reference, model)
        _check_cache(model, info.layers)
    return LoadedModel(model=model, tokenizer=tokenizer, info=info, device=device, dtype=dtype)


def describe(reference: str, *, cache_dir: Path, roots: tuple[Path, ...] | None = None) -> ModelInfo:
    """Geometry of a model from its config alone; the fingerprint is empty.

    Raises:
        ModelError: If it cannot be found or read, or its cache cannot be quantised.
    """
    resolved = resolve_reference(reference, roots=roots)
    with quiet():
        return describe_config(reference, _read_config(resolved, cache_dir))


def choose_device(spec: ModelSpec) -> tuple[torch.device, torch.dtype]:
    """Device and dtype: bfloat16 on CUDA where there is one, else float32 on the CPU.

    Raises:
        ModelError: If CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if spec.device is DeviceChoice.CUDA and not available:
        raise ModelError("device cuda needs a CUDA GPU and a CUDA build of torch; this machine has none. Use cpu.")
    kind = "cuda" if available and spec.device is not DeviceChoice.CPU else "cpu"
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    if spec.dtype is not DtypeChoice.AUTO:
        return device, getattr(torch, spec.dtype.value)
    return device, torch.bfloat16 if kind == "cuda" else torch.float32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of transformers and of the hub's client, and progress bars, off the terminal, and restore them."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def filled_layers(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values ``[B, H_kv, T, D]`` of every layer of a plain cache that holds some."""
    pairs = ((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)
    return [(keys, values) for keys, values in pairs if keys is not None and values is not None]


def _check_kernels_package() -> None:
    """The Hugging Face package of that name shadows, or is shadowed by, this project's folder."""
    try:
        version = metadata.version("kernels")
    except metadata.PackageNotFoundError:
        return
    raise ModelError(
        f"The package 'kernels' {version} collides with this project's folder of that name. "
        "Run `pip uninstall kernels` in this environment."
    )


def _source(resolved: ResolvedReference, cache_dir: Path) -> str:
    if resolved.kind is ReferenceKind.GGUF and resolved.path is not None:
        return str(converted_folder(resolved.path, cache_dir))
    return str(resolved.path or resolved.reference)


def _read_config(resolved: ResolvedReference, cache_dir: Path) -> PretrainedConfig:
    if resolved.kind is ReferenceKind.GGUF and resolved.path is not None:
        return gguf_config(resolved.path, cache_dir)
    with _reading(resolved):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(resolved.path or resolved.reference), trust_remote_code=False
        )
    return config


def has_soft_cap(config: PretrainedConfig) -> bool:
    """Whether attention scores are capped, which only the eager attention computes."""
    return bool(getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None))


def _read_model(
    resolved: ResolvedReference, source: str, *, device: torch.device, dtype: torch.dtype, eager: bool
) -> PreTrainedModel:
    placed: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    if eager:
        placed["attn_implementation"] = "eager"
    with _reading(resolved):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **placed
        )
    model: PreTrainedModel
    model, found = loaded
    _check_complete(resolved, found["missing_keys"])
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    if device.type == "cpu":
        hasten(model)
    return model


def _check_complete(resolved: ResolvedReference, missing: Collection[str]) -> None:
    """Refuse a model of which transformers made up weights: it only warns, and any number would be of noise."""
    if missing:
        raise ModelError(
            f"A model's files must hold all its weights; {resolved.reference} lacks {len(missing)}, such as "
            f"{min(missing)}. Check that its config.json and .safetensors files belong together."
        )


def _read_tokenizer(resolved: ResolvedReference, source: str) -> PreTrainedTokenizerBase:
    with _reading(resolved, part="tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return tokenizer


@contextlib.contextmanager
def _reading(resolved: ResolvedReference, *, part: str = "model") -> Iterator[None]:
    """Turn what transformers raises into one line."""
    try:
        yield
    # The libraries below transformers (safetensors, tokenizers) raise plain exceptions at damaged files.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:240] or type(error).__name__
        if resolved.kind is ReferenceKind.HUB:
            raise ModelError(
                f"The {part} {resolved.reference} is no local folder and could not be read from the hub "
                f"(offline, unknown or gated): {text}"
            ) from error
        raise ModelError(f"The {part} {resolved.reference} could not be read: {text}") from error


def _check_cache(model: PreTrainedModel, layers: tuple[LayerGeometry, ...]) -> None:
    """Run two tokens and compare the cache that the model really fills with the geometry."""
    cache = DynamicCache()
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = filled_layers(cache)
    if len(found) != len(layers):
        raise ModelError(
            f"{type(model).__name__} filled the cache of {len(found)} layers where its config promises {len(layers)}."
        )
    for index, ((keys, values), layer) in enumerate(zip(found, layers, strict=True)):
        shapes = (tuple(keys.shape), tuple(values.shape))
        promised = ((1, layer.kv_heads, 2, layer.key_dim), (1, layer.kv_heads, 2, layer.value_dim))
        if shapes != promised:
            raise ModelError(
                f"Layer {index} of {type(model).__name__} caches keys and values of shape {shapes} "
                f"where its config promises {promised}."
            )
