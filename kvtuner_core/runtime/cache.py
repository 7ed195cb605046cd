"""The packed mixed-precision cache for transformers' ``generate()``."""

import torch
from transformers import Cache, PretrainedConfig, PreTrainedModel

from kvtuner_core.domain.memory import check_layers
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import PrefillMode
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.geometry import layer_geometry
from kvtuner_core.runtime.in_place.attention import install
from kvtuner_core.runtime.in_place.layer import InPlaceLayer
from kvtuner_core.runtime.in_place.planner import Planner
from kvtuner_core.runtime.in_place.support import Kernels


class QuantizedKVCache(Cache):
    """A transformers cache that really stores each layer's keys and values at its policy's bits.

    ::

        cache = QuantizedKVCache(policy, model)
        model.generate(**inputs, past_key_values=cache)

    A token is quantised once, from its own value, when it leaves the residual window; queries
    read the packed history dequantised, and sinks, window and their own step in full precision
    (`PackedLayer` tells the order of things). 16 bits on a side keep it exact, so an unquantised
    policy generates what `DynamicCache` does.

    Left padding: the cache does not know the attention mask, so padding is stored like any token.
    Masked attention never reads it, but per-channel groups that hold both padding and first
    tokens of a text share their scales, so that those few tokens are rounded a little more
    coarsely than in a batch without padding; and sink tokens are the first *positions*, padding
    included. Per-token groups know no such neighbours: each sequence is stored as it would be alone.

    On CUDA the tokens lie in preallocated buffers that fused kernels fill and attend to in place
    (`InPlaceLayer`), where policy and model allow it: built with the model at hand, the cache adds
    an attention of its own to the model's, which all other caches pass by. ``KVTUNER_KERNELS`` set
    to ``reference`` or ``triton`` overrides the choice, and `kernels` says what came of it.

    Attributes:
        policy: The bits of every layer.
        geometry: The model's cache geometry, one entry per layer.
        layers: One `InPlaceLayer` per model layer that keeps a cache.
        planner: What the layers share.
    """

    layers: list[InPlaceLayer]  # type: ignore[assignment]

    def __init__(
        self,
        policy: KVPolicy,
        config: PretrainedConfig | PreTrainedModel,
        *,
        prefill: PrefillMode = PrefillMode.FULL,
        max_tokens: int = 0,
        in_place: bool | None = None,
    ) -> None:
        """Make an empty cache.

        Args:
            policy: One entry per cached layer of the model.
            config: The model, or its config.
            prefill: What the tokens of an update of more than one token attend to.
            max_tokens: Tokens of a sequence to make buffers for at once; 0 lets them grow.
            in_place: Whether to use buffers; ``None`` lets device and ``KVTUNER_KERNELS`` decide.

        Raises:
            PolicyError: If the policy is not one for this geometry.
            SchemeError: If the group size does not fit head_dim.
            ModelError: If the model keeps another kind of cache.
        """
        geometry = layer_geometry(config.config if isinstance(config, torch.nn.Module) else config)
        check_layers(policy, geometry)
        self.policy = policy
        self.geometry = geometry
        self.planner = Planner(max_tokens=max_tokens, in_place=in_place)
        if isinstance(config, PreTrainedModel) and self.planner.wants_buffers(config.device):
            install(config)
        super().__init__(
            layers=[
                InPlaceLayer(layer, precision, policy.scheme, prefill=prefill, planner=self.planner)
                for layer, precision in zip(geometry, policy.layers, strict=True)
            ]
        )

    @property
    def kernels(self) -> Kernels:
        """What reads the cache: the fused kernels, or, if a single layer cannot take them, also the reference."""
        return Kernels.TRITON if all(layer.stores for layer in self.layers) else Kernels.REFERENCE

    @property
    def why_reference(self) -> str | None:
        """Why a layer is read by the reference; ``None`` if none is, or before the first update."""
        found = ((index, layer.why_plain) for index, layer in enumerate(self.layers) if layer.why_plain)
        index, reason = next(found, (0, None))
        return None if reason is None else f"layer {index}: {reason}"

    def measured_bytes(self) -> int:
        """Bytes of all tokens that the cache holds, as they are stored.

        Plain layers hold tensors of exactly this size. Buffers filled in place also have free room
        (`reserved_bytes`).
        """
        return sum(layer.used_bytes() for layer in self.layers)

    def reserved_bytes(self) -> int:
        """Bytes of the storages of all tensors of the cache, free room in buffers included."""
        storages = {}
        for layer in self.layers:
            for tensor in layer.tensors():
                storage = tensor.untyped_storage()
                storages[tensor.device, storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())


def build_cache(
    policy: KVPolicy, model: PreTrainedModel, *, prefill: PrefillMode = PrefillMode.FULL, max_tokens: int = 0
) -> QuantizedKVCache:
    """An empty `QuantizedKVCache` for ``model.generate()``; arguments and errors are its own.

    Raises:
        ModelError: Also if the model is set not to use a cache: ``generate()`` would feed a given one the
            whole text again at every step, and go wrong without a word.
    """
    if getattr(getattr(model, "generation_config", None), "use_cache", None) is False:
        raise ModelError(
            "generate() fills a cache only where generation_config.use_cache is true; this model's is False. "
            "Set model.generation_config.use_cache = True before building the cache."
        )
    return QuantizedKVCache(policy, model, prefill=prefill, max_tokens=max_tokens)
