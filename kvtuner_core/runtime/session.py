"""One model, one set of prompts, one scheme: everything that scoring policies needs, kept ready."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kvtuner_core.domain.memory import cache_bytes, check_layers
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.stopping import PartialScore, Stopping
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.attending import Mask, planless
from kvtuner_core.runtime.bank import Bank
from kvtuner_core.runtime.capture import batches, capture, own_logits
from kvtuner_core.runtime.divergence import Divergence, Reference, divergence, divergences
from kvtuner_core.runtime.footprint import plan_memory
from kvtuner_core.runtime.layer_graphs import LayerGraphs
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.prompts import CutPrompt, cut_prompts
from kvtuner_core.runtime.replay import (
    Banked,
    Batch,
    Captured,
    Part,
    Replayer,
    gathers,
)
from kvtuner_core.runtime.scoring import Observed, policy_score
from kvtuner_core.runtime.trail import Precisions, Trail, leading_full_layers
from kvtuner_core.runtime.visibility import Layout
from kvtuner_core.runtime.watching import Watch

MOST_TOGETHER = 16
"""Policies of one pass at most: about what the default search asks for at once, and a sweep has in a layer."""

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
        graphs: Layers of its passes that are captured, or are to be; ``None`` where they cannot be.
        trail: What passes of one policy each start from, on a CPU; ``None`` where layers cannot be skipped.
    """

    batch: Batch
    banked: list[Banked]
    reference: Reference
    outputs: list[object]
    captured: dict[int, Captured]
    graphs: LayerGraphs | None
    trail: Trail | None


class Session:
    """Scores policies on the prompts of one `EvaluationSpec`.

    On a CPU each policy has a pass of its own, which starts where it leaves the one before: policies that agree
    on their first layers are best scored one after the other.

    On a GPU every pass has rows for ``together`` policies, however many are scored: a matrix product
    of another shape would be rounded in another way, so a score would depend on its company.

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
        self.plan = plan_memory(loaded, self.prompts, spec.scheme)
        self._graph_batches = self.plan.graph_batches
        self._replayer = Replayer.of(loaded.model)
        most, vocabulary = self.plan.batch_tokens, loaded.info.vocabulary
        groups = list(batches(self.prompts, device=loaded.device, vocabulary=vocabulary, most_tokens=most))
        largest = max(sum(len(prompt.suffix) for prompt in group) for group in groups)
        self.together = max(1, min(MOST_TOGETHER, self.plan.pass_rows // largest))
        self._tokens = sum(len(prompt.prefix) for prompt in self.prompts)
        self._longest = max(len(prompt.prefix) + 2 * len(prompt.suffix) for prompt in self.prompts)
        with torch.inference_mode(), planless(self._longest):
            captured = [capture(loaded, group, on_host=self.plan.on_host) for group in groups]
            self.prepared = [self._prepare(batch) for batch in captured]
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
        return self.score_many([policy], seed=seed)[0]

    def score_many(self, policies: Sequence[KVPolicy], *, seed: int = 0) -> tuple[PolicyScore, ...]:
        """Score policies by teacher forcing, ``together`` of them in a pass; each as it would be alone.

        Args:
            policies: The bits of each layer, under the session's scheme.
            seed: Seed of the bootstrap.

        Raises:
            PolicyError: If a policy does not fit the model.
        """
        for policy in policies:
            check_layers(policy, self.layers)
        scores: list[PolicyScore] = []
        for start in range(0, len(policies), self.together):
            some = policies[start : start + self.together]
            started = time.perf_counter()
            moved = self.diverge([policy.layers for policy in some])
            each = (time.perf_counter() - started) / len(some)
            scores += [self._score(policy, one, each, seed) for policy, one in zip(some, moved, strict=True)]
        return tuple(scores)

    def score_until(
        self, policies: Sequence[KVPolicy], stopping: Stopping, *, seed: int = 0
    ) -> tuple[PolicyScore | PartialScore, ...]:
        """As `score_many`, but after each pass those whose bound exceeds their bar are left as they are.

        Passes are those of `score_many`, in another order, so a score that is finished is the same.

        Args:
            policies: The bits of each layer, under the session's scheme.
            stopping: The bars.
            seed: Seed of the bootstrap.

        Raises:
            PolicyError: If a policy does not fit the model.
        """
        for policy in policies:
            check_layers(policy, self.layers)
        # Together they share passes, and fewer of them make fewer passes; alone each has passes of its own.
        size = len(policies) if self.together > 1 else 1
        scores: list[PolicyScore | PartialScore] = []
        for start in range(0, len(policies), size):
            some = policies[start : start + size]
            watch = Watch(stopping, stopping.bars[start : start + size], self.prompts)
            started = time.perf_counter()
            moved = self.diverge([policy.layers for policy in some], watch)
            seconds = time.perf_counter() - started
            for index, (policy, one) in enumerate(zip(some, moved, strict=True)):
                own = seconds * len(one) / sum(len(prompts) for prompts in moved)
                if (partial := watch.partial(index)) is None:
                    scores.append(self._score(policy, one, own, seed))
                else:
                    scores.append(replace(partial, seconds=own))
        return tuple(scores)

    def _score(self, policy: KVPolicy, moved: dict[int, Divergence], seconds: float, seed: int) -> PolicyScore:
        longest = max(len(prompt.prefix) + len(prompt.suffix) for prompt in self.prompts)
        return policy_score(
            Observed(prompts=[moved[prompt.index] for prompt in self.prompts], seed=seed),
            cache_bytes=cache_bytes(policy, self.layers, tokens=longest, full_bytes=self.loaded.dtype.itemsize),
            seconds=seconds,
        )

    def diverge(self, policies: Sequence[Precisions], watch: Watch | None = None) -> list[dict[int, Divergence]]:
        """Run policies together; for each, the divergence of every prompt by its index.

        Args:
            policies: One precision per cached layer, for each policy; what is not quantised at all
                is the reference itself and not run.
            watch: Says after each pass which policies go on; the others lack the prompts that are left.
        """
        results: list[dict[int, Divergence]] = [{} for _ in policies]
        alive = list(range(len(policies)))
        for prepared in self.prepared if watch is None else watch.ordered(self.prepared):
            prompts = prepared.batch.prompts
            run = [index for index in alive if leading_full_layers(policies[index]) < len(policies[index])]
            step = self.together if self.together > 1 else max(1, len(run))
            for index in alive:
                results[index].update(_by_prompt(prompts, Divergence.none(prepared.reference)))
            for start in range(0, len(run), step):
                part = run[start : start + step]
                for index, moved in zip(part, self._moved(prepared, [policies[one] for one in part]), strict=True):
                    results[index].update(_by_prompt(prompts, moved))
            if watch is not None:
                alive = [index for index in alive if watch.goes_on(index, results[index])]
        return results

    def _moved(self, prepared: Prepared, policies: Sequence[Precisions]) -> list[Divergence]:
        with torch.inference_mode(), planless(self._longest):
            if prepared.trail is not None and len(policies) == 1:
                along = self._replayer.logits_along(prepared.batch, prepared.banked, policies[0], prepared.trail)
                return divergences(prepared.reference, along, 1)
            logits = self._replayer.logits(
                prepared.batch,
                prepared.banked,
                policies,
                copies=self.together,
                outputs=prepared.outputs,
                graphs=prepared.graphs,
            )
            return divergences(prepared.reference, logits, len(policies))

    def _prepare(self, batch: Batch) -> Prepared:
        suffix = batch.suffix_ids.shape[1]
        banked = []
        for part in batch.parts:
            layouts = {
                window: Layout.build(self.scheme, prefix=part.prefix, suffix=suffix, window=window)
                for window in {layer.sliding_window for layer in self.layers}
            }
            masks = {window: Mask.of(layout.mask(self.loaded.device)) for window, layout in layouts.items()}
            windows = [layer.sliding_window for layer in self.layers]
            own = [layouts[window] for window in windows]
            tokens = (part.rows.stop - part.rows.start) * part.prefix
            bank = Bank(
                part.history,
                own,
                capacity=self.plan.bank_bytes * tokens // self._tokens,
                storage=self.plan.storage,
                stacked=self._stacks(batch, part, own),
            )
            banked.append(Banked(part=part, bank=bank, masks=tuple(masks[window] for window in windows)))
        try:
            logits, outputs, captured = self._replayer.record(batch, banked, copies=self.together)
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ModelError(
                f"{type(self.loaded.model).__name__} cannot run with another attention in place of its own, so it "
                f"cannot be measured ({type(error).__name__}: {error}). Use another model."
            ) from error
        reference = Reference.of(logits, batch.labels)
        if outputs and not self._can_skip(batch, banked, reference, outputs):
            outputs = []
        return Prepared(
            batch=batch,
            banked=banked,
            reference=reference,
            outputs=outputs,
            captured=captured,
            graphs=self._graphs(banked, captured),
            trail=Trail(outputs) if outputs and self.together == 1 and self.loaded.device.type == "cpu" else None,
        )

    def _stacks(self, batch: Batch, part: Part, layouts: Sequence[Layout]) -> bool:
        """Whether policies are attended to together, so that they may choose among stacked prefixes."""
        rows = self.together * len(batch.prompts)
        layers = zip(layouts, part.history, strict=True)
        return (
            self.together > 1
            and len(batch.parts) == 1
            and all(
                gathers(history.keys[0, :, 0].nbytes, rows=rows, slots=layout.slots, device=self.loaded.device)
                for layout, history in layers
            )
        )

    def _graphs(self, banked: list[Banked], captured: dict[int, Captured]) -> LayerGraphs | None:
        """For layers that may be captured: each keeps a cache of its own, and policies choose among stacked ones."""
        layers = self._replayer.layers
        own = layers is not None and len(layers) == len(self.layers) and sorted(captured) == list(range(len(layers)))
        if self.loaded.device.type != "cuda" or not (own and self._graph_batches and banked[0].bank.stacked):
            return None
        self._graph_batches -= 1
        # What a pass takes beside its layers must stay free, too.
        return LayerGraphs(room=self.plan.graph_bytes + self.plan.pass_bytes)

    def _can_skip(self, batch: Batch, banked: list[Banked], reference: Reference, outputs: list[object]) -> bool:
        """Whether starting at the middle layer gives the very same logits."""
        if len(outputs) != len(self.layers) or any(output is None for output in outputs):
            return False
        full = (LayerPrecision(),) * len(self.layers)
        again = self._replayer.from_half(batch, banked, [full], copies=self.together, outputs=outputs)
        own = again[: len(batch.labels)]
        return bool(torch.equal(Reference.of(own, batch.labels).logits, reference.logits))

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
    parts = (array.reshape(rows, -1) for array in (moved.kl, moved.agrees, moved.nll_change, moved.right))
    return {
        prompt.index: Divergence(kl=kl, agrees=agrees, nll_change=change, right=right)
        for prompt, kl, agrees, change, right in zip(prompts, *parts, strict=True)
    }
