"""One decode step whose every changing number lives on the device, so that it can be captured as a CUDA graph."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.fused.step import FusedStep

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Largest difference by norms of a fused step's logits from the model's own: rounding, and codes that it tips over."""


class PlannedStep:
    """A step of a model over the plans of its cache; running it moves the counters on the device, not those here.

    The model's layers are run by fused operations where its structure is known and where, asked once,
    they give the logits that the model gives.

    Attributes:
        ids: ``[B, 1]``, the tokens to append; to be filled in place.
        why_plain: Why the model's own forward is run; ``None`` where fused operations are.
    """

    def __init__(
        self, model: PreTrainedModel, cache: QuantizedKVCache, *, ids: Tensor, padding: Tensor | None = None
    ) -> None:
        """Plan a step of ``cache``, whose planner is `release`d by who is done with it.

        Args:
            model: In evaluation mode.
            cache: Held in buffers.
            ids: ``[B, 1]``, the tokens of the first step.
            padding: ``[B]`` int, padding positions at the front of each sequence.
        """
        batch, device = ids.shape[0], ids.device
        pads = torch.zeros(batch, dtype=torch.int32, device=device)
        if padding is not None:
            pads.copy_(padding)
        plans = cache.planner.capture(frozenset(layer.extent for layer in cache.layers), pads)
        for layer in cache.layers:
            plans[layer.extent].set(layer.tokens, layer.packed)
        self.ids = ids.clone()
        self.why_plain: str | None = None
        self._model = model
        self._cache = cache
        self._plans = list(plans.values())
        self._positions = cache.get_seq_length() - pads[:, None].long()
        self._start = self._positions.clone()
        self._saved = [plan.save() for plan in self._plans]
        self._fused: FusedStep | None = None

    def settle(self) -> None:
        """Choose between fused operations and the model's own forward, and run each once.

        Appending twice at one place is harmless: the counters are set back.
        """
        own = self._once(None)
        try:
            fused = FusedStep(self._model)
            off = _off(self._once(fused), own)
        # A model whose parts are called in another way than is known says so by any of these.
        except (ModelError, TypeError, ValueError, AttributeError, KeyError) as error:
            self.rewind()
            self._fused = None
            self.why_plain = " ".join(str(error).split())[:160]
            return
        if off <= _TOLERANCE[own.dtype]:
            self._fused = fused
            return
        self.why_plain = f"fused, its logits would differ by {off:.1e} of their size"

    def run(self) -> Tensor:
        """Append the tokens of `ids`; the logits ``[B, V]`` after them."""
        for plan in self._plans:
            plan.derive()
        logits = self._own() if self._fused is None else self._fused(self.ids, self._positions, self._cache)
        for plan in self._plans:
            plan.advance()
        self._positions.add_(1)
        return logits

    def rewind(self) -> None:
        """Set the counters on the device back to where they were at first."""
        self._positions.copy_(self._start)
        for plan, counters in zip(self._plans, self._saved, strict=True):
            plan.restore(counters)

    def _once(self, fused: FusedStep | None) -> Tensor:
        self._fused = fused
        logits = self.run()
        self.rewind()
        self._fused = None
        return logits

    def _own(self) -> Tensor:
        output = self._model(
            input_ids=self.ids,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _off(found: Tensor, expected: Tensor) -> float:
    """Difference by norms, relative; NaN if either holds one."""
    wide = expected.float()
    return float((found.float() - wide).norm() / wide.norm().clamp(min=1e-12))
