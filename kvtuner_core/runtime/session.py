"""One model, one set of prompts, one scheme: everything that scoring policies needs, kept ready."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvtuner_core.domain.memory import cache_bytes, check_layers
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.bank import Bank
from kvtuner_core.runtime.capture import batches, capture, check_memory, own_logits
from kvtuner_core.runtime.divergence import Divergence, Reference, divergence
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.prompts import CutPrompt, cut_prompts
from kvtuner_core.runtime.provenance import device_memory
from kvtuner_core.runtime.replay import Banked, Batch, Captured, Precisions, Replayer, leading_full_layers
from kvtuner_core.runtime.scoring import Observed, policy_score
from kvtuner_core.runtime.visibility import Layout

_BANK_SHARE = 0.25
_SELF_CHECK_KL = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}


@dataclass(slots=True, kw_only=True, eq=False)
class Prepared:
    """A batch with everything measured of it in full precision.

    Attributes:
        batch: The prompts.
        banked: Their parts with banks.
        reference: Full-precision predictions.
        outputs: Each decoder layer's output, empty where layers cannot be skipped.
        captured: Each cached layer's attention inputs.
    """

    batch: Batch
    banked: list[Banked]
    reference: Reference
    outputs: list[object]
    captured: dict[int, Captured]


class Session:
    """Scores policies on the prompts of one `EvaluationSpec`.

    Args:
        loaded: The model that the spec names.
        spec: Prompts, scheme, and how prompts are cut.

    Raises:
        PromptError: If a prompt is too short.
        SchemeError: If the scheme does not fit the model.
        ModelError: If the model's attention cannot be replayed.
        ComputeError: If the prompts do not fit into memory.
    """

    def __init__(self, loaded: LoadedModel, spec: EvaluationSpec) -> None:
        self.loaded = loaded
        self.scheme = spec.scheme
        layers = loaded.info.layers
        check_layers(KVPolicy(scheme=spec.scheme, layers=(LayerPrecision(),) * len(layers)), layers)
        self.prompts = cut_prompts(
            spec.prompts.prompts,
            loaded.tokenizer,
            prefix_tokens=spec.prefix_tokens,
            suffix_tokens=spec.suffix_tokens,
            max_positions=loaded.info.max_positions,
        )
        check_memory(loaded, self.prompts)
        self._replayer = Replayer.of(loaded.model)
        groups = list(batches(self.prompts, device=loaded.device, vocabulary=loaded.info.vocabulary))
        with torch.inference_mode():
            captured = [capture(loaded, group) for group in groups]
            capacity = int(_BANK_SHARE * device_memory(loaded.device)[0]) // len(captured)
            self.prepared = [self._prepare(batch, capacity) for batch in captured]
            self._check(self.prepared[0])

    @property
    def layers(self) -> tuple[LayerGeometry, ...]:
        """Geometry of the model's cached layers."""
        return self.loaded.info.layers

    def score(self, policy: KVPolicy, *, seed: int = 0) -> PolicyScore:
        """Score one policy by teacher forcing.

        Args:
            policy: The bits of each layer, under the session's scheme.
            seed: Seed of the bootstrap.

        Raises:
            PolicyError: If the policy does not fit the model.
        """
        started = time.perf_counter()
        check_layers(policy, self.layers)
        moved = self.diverge([policy.layers])[0]
        longest = max(len(prompt.prefix) + len(prompt.suffix) for prompt in self.prompts)
        return policy_score(
            Observed(prompts=[moved[prompt.index] for prompt in self.prompts], seed=seed),
            cache_bytes=cache_bytes(policy, self.layers, tokens=longest, full_bytes=self.loaded.dtype.itemsize),
            seconds=time.perf_counter() - started,
        )

    def diverge(self, policies: Sequence[Precisions]) -> list[dict[int, Divergence]]:
        """Run policies together; for each, the divergence of every prompt by its index.

        Args:
            policies: One precision per cached layer, for each policy; what is not quantised at all
                is the reference itself and not run.
        """
        results: list[dict[int, Divergence]] = [{} for _ in policies]
        run = [index for index, policy in enumerate(policies) if leading_full_layers(policy) < len(policy)]
        for prepared in self.prepared:
            prompts = prepared.batch.prompts
            for result in results:
                result.update(_by_prompt(prompts, Divergence.none(prepared.reference.labels)))
            if run:
                chosen = [policies[index] for index in run]
                with torch.inference_mode():
                    logits = self._replayer.logits(prepared.batch, prepared.banked, chosen, outputs=prepared.outputs)
                    for index, own in zip(run, logits.chunk(len(run)), strict=True):
                        results[index].update(_by_prompt(prompts, divergence(prepared.reference, own)))
        return results

    def _prepare(self, batch: Batch, capacity: int) -> Prepared:
        suffix = batch.suffix_ids.shape[1]
        banked = []
        for part in batch.parts:
            layouts = {
                window: Layout.build(self.scheme, prefix=part.prefix, suffix=suffix, window=window)
                for window in {layer.sliding_window for layer in self.layers}
            }
            masks = {window: layout.mask(self.loaded.device) for window, layout in layouts.items()}
            windows = [layer.sliding_window for layer in self.layers]
            bank = Bank(part.history, [layouts[window] for window in windows], capacity=capacity // len(batch.parts))
            banked.append(Banked(part=part, bank=bank, masks=tuple(masks[window] for window in windows)))
        try:
            logits, outputs, captured = self._replayer.record(batch, banked)
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ModelError(
                f"{type(self.loaded.model).__name__} cannot run with another attention in place of its own, so it "
                f"cannot be measured ({type(error).__name__}: {error}). Use another model."
            ) from error
        reference = Reference.of(logits, batch.labels)
        if outputs and not self._can_skip(batch, banked, reference, outputs):
            outputs = []
        return Prepared(batch=batch, banked=banked, reference=reference, outputs=outputs, captured=captured)

    def _can_skip(self, batch: Batch, banked: list[Banked], reference: Reference, outputs: list[object]) -> bool:
        """Whether starting at the middle layer gives the very same logits."""
        if len(outputs) != len(self.layers) or any(output is None for output in outputs):
            return False
        full = (LayerPrecision(),) * len(self.layers)
        again = self._replayer.from_layer(batch, banked, [full], start=len(outputs) // 2, outputs=outputs)
        return bool(torch.equal(Reference.of(again, batch.labels).logits, reference.logits))

    def _check(self, prepared: Prepared) -> None:
        """Compare the replay in full precision with the model's own forward pass."""
        captured = len(prepared.captured)
        if captured != len(self.layers):
            raise ModelError(
                f"{type(self.loaded.model).__name__} takes the attention of {captured} of its {len(self.layers)} "
                "layers from transformers' attention interface, so it cannot be measured. Use another model."
            )
        own = own_logits(self.loaded.model, prepared.batch)
        reference = Reference.of(own, prepared.batch.labels[: len(own)])
        suffix = prepared.batch.suffix_ids.shape[1]
        replayed = prepared.reference.logits[:suffix]
        kl = float(divergence(reference, replayed).kl.mean())
        if not kl <= _SELF_CHECK_KL.get(self.loaded.dtype, _SELF_CHECK_KL[torch.float32]):
            raise ModelError(
                f"Replaying {type(self.loaded.model).__name__} in full precision differs from its own forward pass "
                f"(KL {kl:.2g}), so it cannot be measured. Use another model."
            )


def _by_prompt(prompts: Sequence[CutPrompt], moved: Divergence) -> dict[int, Divergence]:
    rows = len(prompts)
    parts = (array.reshape(rows, -1) for array in (moved.kl, moved.agrees, moved.nll_change))
    return {
        prompt.index: Divergence(kl=kl, agrees=agrees, nll_change=change)
        for prompt, kl, agrees, change in zip(prompts, *parts, strict=True)
    }
