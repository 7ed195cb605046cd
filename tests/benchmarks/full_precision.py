"""The decode step that packed caches are compared with: the same fused operations over keys and values in bfloat16."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from kernels.exact_attention.op import append_exact
from kvtuner_core.runtime.fused.step import FusedStep
from tests.benchmarks.timing import captured, timed


class FixedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values in full precision in a buffer of exactly one length, whose last token each step writes anew."""

    is_compileable = False
    is_sliding = False

    def __init__(self, config: PretrainedConfig, batch: int, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        self.keys, self.values = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
        self.progress = torch.tensor([length - 1], dtype=torch.int32, device="cuda")
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the last token; all of them."""
        append_exact(self.keys, self.values, new=(key_states, value_states), progress=self.progress)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens before the step."""
        return self.length - 1

    def get_max_length(self) -> int:
        """The only length there is."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that a step reads."""
        return self.length - 1 + query_length, 0


class FullPrecision:
    """A captured step in full precision: the same fused operations, the fastest of torch's attentions.

    Attributes:
        times: Milliseconds with each attention, and of the model's own forward with the fastest.
        replay: The fastest.
    """

    def __init__(self, model: PreTrainedModel, batch: int, length: int) -> None:
        cache = Cache(layers=[FixedLayer(model.config, batch, length) for _ in range(model.config.num_hidden_layers)])
        ids, position = (
            torch.randint(0, 200, (batch, 1), device="cuda"),
            torch.full((batch, 1), length - 1, device="cuda"),
        )
        fused = FusedStep(model)

        def own() -> Tensor:
            more = {"position_ids": position, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            logits: Tensor = model(input_ids=ids, **more).logits[:, -1]
            return logits

        self.times: dict[str, float] = {}
        graphs = {}
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            with sdpa_kernel([backend]):
                graphs[name] = captured(lambda: fused(ids, position, cache))
                self.times[name] = round(timed(graphs[name].replay), 4)
        best = min(self.times, key=lambda name: self.times[name])
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION if best == "cudnn" else SDPBackend.FLASH_ATTENTION]):
            off = (fused(ids, position, cache).float() - own().float()).norm() / own().float().norm()
            if not off < 0.06:
                sys.exit(f"The fused step's logits differ from the model's own by {off:.1e} of their size.")
            self.times["own_forward"] = round(timed(captured(own).replay), 4)
        self.replay = graphs[best].replay
        self.keep = (cache, ids, position, graphs)
