"""What is known of a model without holding it."""

from dataclasses import dataclass
from enum import StrEnum

BUNDLED_MODEL = "smollm2-135m-instruct"
"""Name of the bundled model on the command line and in the pages."""


class DeviceChoice(StrEnum):
    """Where the model runs; ``AUTO`` is CUDA where there is one, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DtypeChoice(StrEnum):
    """The model's number format; ``AUTO`` is bfloat16 on CUDA and float32 on the CPU."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model to load, and how.

    Attributes:
        reference: The bundled model's name, a folder in Hugging Face layout, a ``.gguf`` file,
            or a hub id.
        device: Where it runs.
        dtype: The number format of weights and cache.
    """

    reference: str = BUNDLED_MODEL
    device: DeviceChoice = DeviceChoice.AUTO
    dtype: DtypeChoice = DtypeChoice.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGeometry:
    """Shape of one layer's cache.

    Attributes:
        kv_heads: Number of KV heads (not of query heads).
        key_dim: Values per head of a key.
        value_dim: Values per head of a value.
        sliding_window: Tokens the layer looks back including the current one, or ``None``.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model's identity and geometry.

    Attributes:
        reference: As given in the `ModelSpec`.
        name: Short readable name.
        architecture: The transformers class, such as ``LlamaForCausalLM``.
        fingerprint: Digest of geometry and sampled weights, empty where weights were not read.
        geometry_digest: Digest of architecture and cache geometry alone.
        layers: Cache geometry per layer that keeps a cache, first layer first.
        query_heads: Number of query heads.
        hidden_size: Width of the residual stream.
        max_positions: Longest supported context in tokens.
        vocabulary: Number of tokens in the vocabulary.
        parameters: Number of parameters, 0 where weights were not read.
    """

    reference: str
    name: str
    architecture: str
    fingerprint: str
    geometry_digest: str
    layers: tuple[LayerGeometry, ...]
    query_heads: int
    hidden_size: int
    max_positions: int
    vocabulary: int
    parameters: int = 0
