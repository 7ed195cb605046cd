"""The layout of ``policy.json``, format ``kvtuner-policy``, version 1."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from kvtuner_core.domain.policy import MAX_LAYERS
from kvtuner_core.domain.scheme import MAX_SHARE, MAX_WINDOW

FORMAT = "kvtuner-policy"
VERSION = 1


def _whole(value: object) -> object:
    # A literal takes 4.0 and True for the whole numbers they equal.
    if value is not None and type(value) is not int:
        raise PydanticCustomError("bits", "should be 16, 8, 4, 3 or 2")
    return value


Bits = Annotated[Literal[16, 8, 4, 3, 2], BeforeValidator(_whole)]
Text = Annotated[str, Field(max_length=10_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Index = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
Window = Annotated[int, Field(ge=0, le=MAX_WINDOW)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class GeometryEntry(_Entry):
    """Shape of one layer's cache."""

    layer: Index = Field(description="Index among the layers that keep a cache, from 0.")
    type: Literal["full_attention", "sliding_attention"]
    kv_heads: Size = Field(description="Number of KV heads.")
    key_dim: Size = Field(description="Values per head of a key.")
    value_dim: Size = Field(description="Values per head of a value.")
    sliding_window: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        default=None, description="Tokens the layer looks back including the current one; null for full attention."
    )


class ModelEntry(_Entry):
    """The model the policy was made for."""

    id: Text = Field(description="Name or hub id, for people.")
    fingerprint: Text = Field(default="", description="Digest of geometry and weights; empty where unknown.")
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = Field(description="Number of layers that keep a cache.")
    geometry: Annotated[list[GeometryEntry], Field(max_length=MAX_LAYERS)] = Field(
        default=[], description="One entry per layer, first layer first; empty where unknown."
    )


class SchemeEntry(_Entry):
    """How keys and values are grouped and rounded."""

    key_granularity: Literal["token", "channel"] = Field(description="What one scale of the keys covers.")
    value_granularity: Literal["token", "channel"] = Field(description="What one scale of the values covers.")
    group_size: int | None = Field(description="Values that share a scale; null means all of head_dim.")
    symmetric: bool = Field(description="Whether there is no offset.")
    residual_length: Window = Field(description="Newest tokens kept in full precision.")
    sink_length: Window = Field(description="First tokens kept in full precision.")
    scale_dtype: Literal["float16", "float32"] = Field(description="Storage type of scales and offsets.")
    residual_share: Annotated[float, Field(ge=0, le=MAX_SHARE, allow_inf_nan=False)] = Field(
        default=0.0, description="Share of the context kept in full precision where it is more than residual_length."
    )
    rotation: Literal["none", "keys", "keys-and-values"] = Field(
        default="none", description="Sides turned by a Hadamard transform along head_dim before they are quantised."
    )


class HeadEntry(_Entry):
    """Bits of one KV head."""

    head: Index
    key_bits: Bits
    value_bits: Bits


class LayerEntry(_Entry):
    """Bits of one layer, or of each of its KV heads."""

    layer: Index = Field(description="Index among the layers that keep a cache, from 0.")
    key_bits: Bits | None = Field(default=None, description="Bits of a key scalar; needed where heads is absent.")
    value_bits: Bits | None = Field(default=None, description="Bits of a value scalar; needed where heads is absent.")
    heads: Annotated[list[HeadEntry], Field(min_length=1, max_length=MAX_LAYERS)] | None = Field(
        default=None, description="One entry per KV head; it takes the place of the layer's own bits."
    )


class MemoryEntry(_Entry):
    """What the policy costs; checked against the geometry on loading."""

    nominal_bits: Positive = Field(description="Mean bits without scales and offsets.")
    effective_bits: Positive | None = Field(
        default=None, description="Bits per cached scalar with scales, offsets and padding; windows left out."
    )
    bytes_per_token: Positive | None = Field(default=None, description="Bytes that one more token of a sequence adds.")


class IntervalEntry(_Entry):
    """A mean with its 95% bootstrap interval over prompts."""

    mean: Finite
    low: Finite
    high: Finite


class PromptsEntry(_Entry):
    """A prompt set by name and content."""

    name: Text
    digest: Text = Field(description="SHA-256 of the texts.")


class BaselineEntry(_Entry):
    """A uniform policy measured on the same evaluation prompts."""

    name: Text
    effective_bits: Positive
    kl: IntervalEntry


class EvidenceEntry(_Entry):
    """Why one may trust the policy; KL is KL(full || quantised) in nats per token."""

    objective: Text = Field(description="What was minimised, in words.")
    calibration_prompts: PromptsEntry = Field(description="The prompts the search saw.")
    calibration_kl: IntervalEntry
    evaluation_prompts: PromptsEntry | None = Field(default=None, description="Prompts the search did not see.")
    evaluation_kl: IntervalEntry | None = None
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Share of suffix tokens whose most likely next token is unchanged."
    )
    nll_change: Finite | None = Field(default=None, description="Nats per token.")
    baselines: Annotated[list[BaselineEntry], Field(max_length=100)] = []


class ProvenanceEntry(_Entry):
    """Where the measurements come from."""

    created: Text = Field(description="UTC time, ISO 8601.")
    device: Text
    device_type: Text
    dtype: Text
    versions: dict[Text, Text] = Field(default={}, description="Library versions by name.")


class PolicyFile(_Entry):
    """The bits of each layer's cached keys and values, for one model."""

    format: Literal["kvtuner-policy"]
    version: Literal[1]
    model: ModelEntry
    scheme: SchemeEntry
    layers: Annotated[list[LayerEntry], Field(min_length=1, max_length=MAX_LAYERS)] = Field(
        description="One entry per layer that keeps a cache, first layer first."
    )
    memory: MemoryEntry
    evidence: EvidenceEntry | None = Field(default=None, description="Measurements; null for a policy by hand.")
    provenance: ProvenanceEntry | None = None
    origin: Text = Field(default="", description="Run id, file or tool it came from.")
    notes: dict[Text, Text] = Field(default={}, description="Free text by name.")
