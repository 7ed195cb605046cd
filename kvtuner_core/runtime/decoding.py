"""Decodes token by token: as a captured CUDA graph where the cache allows it, through Python elsewhere."""

from enum import StrEnum

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.capturing import undone_where_it_fails
from kvtuner_core.runtime.in_place.support import Kernels
from kvtuner_core.runtime.planned_step import PlannedStep


class DecodeMode(StrEnum):
    """How tokens are decoded."""

    GRAPH = "graph"
    EAGER = "eager"


class Decoder:
    """Feeds a model and its cache: the prompt at once, then one token of each sequence a step.

    A step of a `QuantizedKVCache` that lies in preallocated buffers is captured once as a CUDA
    graph: its kernels read every number that changes from small tensors on the device, so that the
    one graph is right at every length the buffers have room for. Where that is not possible the
    model is called for each token, and `why_eager` says why.

    Attributes:
        why_eager: Why steps are not captured; ``None`` as long as nothing speaks against it.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, *, padding: Tensor | None = None, capture: bool = True
    ) -> None:
        """Decode with ``model`` into ``cache``.

        Args:
            model: In evaluation mode.
            cache: Empty, or filled by the same model.
            padding: ``[B]`` int, padding positions at the front of each sequence.
            capture: Whether steps may be captured.
        """
        self._model = model
        self._cache = cache
        self._padding = padding
        self._graph: torch.cuda.CUDAGraph | None = None
        # What a captured step reads and writes must live as long as the graph.
        self._step: PlannedStep | None = None
        self._logits = torch.empty(0)
        self.why_eager: str | None = None if capture else "it was not asked for"

    @property
    def path(self) -> str:
        """How the last step was run, in words."""
        if self._graph is not None and self._step is not None:
            why = self._step.why_plain
            return (
                f"fused kernels, CUDA graph (layers as they are: {why})"
                if why
                else "fused kernels and layers, CUDA graph"
            )
        fused = isinstance(self._cache, QuantizedKVCache) and self._cache.kernels is Kernels.TRITON
        kernels = "fused kernels" if fused else "reference kernels"
        return f"{kernels}, called from Python" + (f" ({self.why_eager})" if self.why_eager else "")

    @property
    def mode(self) -> DecodeMode:
        """How the last step was run."""
        return DecodeMode.EAGER if self._graph is None else DecodeMode.GRAPH

    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt ``[B, T]``; the logits ``[B, V]`` after its last token."""
        return self._eager(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Append one token ``[B, 1]`` of each sequence; the logits ``[B, V]`` after it.

        The tensor returned may be overwritten by the next step.
        """
        if self._graph is None and self.why_eager is None:
            self._prepare(ids)
        if self._graph is not None and not self._has_room():
            self.close()
            self.why_eager = "the cache is longer than max_tokens"
        if self._graph is None or self._step is None:
            return self._eager(ids)
        self._step.ids.copy_(ids)
        self._graph.replay()
        self._count()
        return self._logits

    def close(self) -> None:
        """Let the graph go; the cache can be used by others again."""
        if self._graph is not None and isinstance(self._cache, QuantizedKVCache):
            self._cache.planner.release()
        self._graph = self._step = None
        self.why_eager = "the decoder was closed"

    def _has_room(self) -> bool:
        cache = self._cache
        return isinstance(cache, QuantizedKVCache) and cache.get_seq_length() < cache.planner.max_tokens

    def _eager(self, ids: Tensor) -> Tensor:
        more: dict[str, Tensor] = {}
        if self._padding is not None:
            past = self._cache.get_seq_length()
            at = torch.arange(past + ids.shape[1], device=ids.device)
            more["attention_mask"] = (at >= self._padding[:, None]).long()
            more["position_ids"] = (at[past:] - self._padding[:, None]).clamp(min=0)
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **more)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _prepare(self, ids: Tensor) -> None:
        """Capture a step, or note why not."""
        self.why_eager = self._obstacle(ids)
        if self.why_eager is not None:
            return
        cache = self._cache
        assert isinstance(cache, QuantizedKVCache)  # noqa: S101
        try:
            self._capture(cache, ids)
        # Whatever a model does that a graph cannot hold comes as another kind of RuntimeError.
        except (RuntimeError, ValueError) as error:
            self._graph = self._step = None
            cache.planner.release()
            self.why_eager = f"the model's step cannot be captured ({' '.join(str(error).split())[:160]})"

    def _obstacle(self, ids: Tensor) -> str | None:
        cache = self._cache
        if ids.device.type != "cuda":
            return f"CUDA graphs need a CUDA device; the model is on {ids.device.type}"
        if not isinstance(cache, QuantizedKVCache):
            return f"a {type(cache).__name__} grows by new tensors"
        if cache.why_reference is not None:
            return cache.why_reference
        if cache.planner.max_tokens <= cache.get_seq_length():
            return "the cache was not made with max_tokens"
        return None

    def _capture(self, cache: QuantizedKVCache, ids: Tensor) -> None:
        step = PlannedStep(self._model, cache, ids=ids, padding=self._padding)
        side = torch.cuda.Stream(ids.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(side):
            # Kernels are compiled and libraries set up here.
            step.settle()
            step.run()
            step.rewind()
        torch.cuda.current_stream(ids.device).wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with undone_where_it_fails(pool, ids.device), torch.cuda.graph(graph, pool=pool):
            self._logits = step.run()
        self._step, self._graph = step, graph

    def _count(self) -> None:
        """Tell the layers of the token that the graph appended."""
        for layer in self._cache.layers:
            layer.advance(1)  # type: ignore[union-attr]
