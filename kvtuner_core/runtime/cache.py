"""The packed mixed-precision cache for transformers' ``generate()``."""

import torch
from transformers import Cache, PretrainedConfig, PreTrainedModel

from kvtuner_core.domain.memory import check_layers
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import PrefillMode
from kvtuner_core.runtime.cache_layer import PackedLayer
from kvtuner_core.runtime.geometry import layer_geometry


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

    Attributes:
        policy: The bits of every layer.
        geometry: The model's cache geometry, one entry per layer.
        layers: One `PackedLayer` per model layer that keeps a cache.
    """

    layers: list[PackedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        policy: KVPolicy,
        config: PretrainedConfig | PreTrainedModel,
        *,
        prefill: PrefillMode = PrefillMode.FULL,
    ) -> None:
        """Make an empty cache.

        Args:
            policy: One entry per cached layer of the model.
            config: The model, or its config.
            prefill: What the tokens of an update of more than one token attend to.

        Raises:
            PolicyError: If the policy is not one for this geometry.
            SchemeError: If the group size does not fit head_dim.
            ModelError: If the model keeps another kind of cache.
        """
        geometry = layer_geometry(config.config if isinstance(config, torch.nn.Module) else config)
        check_layers(policy, geometry)
        self.policy = policy
        self.geometry = geometry
        super().__init__(
            layers=[
                PackedLayer(layer, precision, policy.scheme, prefill=prefill)
                for layer, precision in zip(geometry, policy.layers, strict=True)
            ]
        )

    def measured_bytes(self) -> int:
        """Bytes of the storages of all tensors that the cache holds."""
        storages = {}
        for layer in self.layers:
            for tensor in layer.tensors():
                storage = tensor.untyped_storage()
                storages[tensor.device, storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())


def build_cache(
    policy: KVPolicy, model: PreTrainedModel, *, prefill: PrefillMode = PrefillMode.FULL
) -> QuantizedKVCache:
    """An empty `QuantizedKVCache` for ``model``; errors are its own."""
    return QuantizedKVCache(policy, model, prefill=prefill)
