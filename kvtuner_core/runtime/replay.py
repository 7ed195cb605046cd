"""Runs suffixes through a model whose history is quantised, all positions in one pass.

A batch holds prompts with suffixes of one length. Their prefixes may differ in length; prompts
with equal prefixes form a part. The prefix was read once; here the model runs on the suffix alone
while a function of ours, in the place of its attention, reads the bank.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.attending import Mask, masked_attention, split_attention, splits
from kvtuner_core.runtime.bank import Bank, LayerHistory, Side
from kvtuner_core.runtime.chosen import Choices
from kvtuner_core.runtime.footprint import GATHERED_BYTES
from kvtuner_core.runtime.head import Head, final_states
from kvtuner_core.runtime.interception import (
    attention_implementation,
    decoder_layers,
    intercepted,
    is_plain,
    model_configs,
    recorded_outputs,
    skipped_layers,
)
from kvtuner_core.runtime.layer_graphs import LayerGraphs
from kvtuner_core.runtime.prompts import CutPrompt
from kvtuner_core.runtime.trail import Precisions, Trail, leading_full_layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Prompts of a batch with prefixes of one length.

    Attributes:
        rows: Their rows in the batch.
        prefix: Tokens of each prefix.
        history: Exact keys and values of each cached layer.
    """

    rows: slice
    prefix: int
    history: tuple[LayerHistory, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Prompts that are scored together.

    Attributes:
        prompts: In the order of the rows.
        parts: Groups of rows.
        suffix_ids: ``[R, S]``.
        positions: ``[R, S]``, absolute positions of the suffix tokens.
        labels: ``[R * S]``, next tokens of the text, or -1.
    """

    prompts: tuple[CutPrompt, ...]
    parts: tuple[Part, ...]
    suffix_ids: Tensor
    positions: Tensor
    labels: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class Captured:
    """Exact attention inputs of one layer for a batch's suffix.

    Attributes:
        module: The attention module.
        query: ``[R, H, S, D]``.
        key: ``[R, H_kv, S, D]``.
        value: ``[R, H_kv, S, D_v]``.
        own: The model's keyword arguments to its attention.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    own: dict[str, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Banked:
    """A part with its bank and the masks of its layouts.

    Attributes:
        part: The prompts.
        bank: Their laid-out history.
        masks: What each cached layer's queries see; layers of one window share one.
    """

    part: Part
    bank: Bank
    masks: tuple[Mask, ...]


@dataclass(slots=True, eq=False)
class SuffixAttention:
    """The attention of one pass over a batch's suffix.

    Attributes:
        banked: The parts of the batch.
        rows: Prompts of the batch, ``R``.
        policies: Precisions of each layer; the pass has ``copies * R`` rows, policy by policy.
        copies: Policies that the pass has rows for; rows beyond the given ones are left at zero.
        implementation: What the model uses by itself.
        captured: Filled with each layer's exact inputs where given.
        choices: The same precisions on the device, where the bank is stacked and they can be told so.
    """

    banked: Sequence[Banked]
    rows: int
    policies: Sequence[Precisions]
    copies: int
    implementation: str
    captured: dict[int, Captured] | None = None
    choices: Choices | None = None
    calls: int = 0
    _sources: list[tuple[Tensor, int]] = field(default_factory=list)

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None = None, **own: Any
    ) -> tuple[Tensor, None]:
        """Attend to the laid-out history; see `interception.Attention`."""
        own.setdefault("scaling", getattr(module, "scaling", None))
        layer = self._cached_layer(module, key)
        self.calls += 1
        if self.captured is not None:
            self._check_states(module, layer, key, value)
            query_, key_, value_ = (
                side[: self.rows].clone() if self.copies > 1 else side for side in (query, key, value)
            )
            self.captured.setdefault(layer, Captured(module=module, query=query_, key=key_, value=value_, own=own))
        attend = functools.partial(masked_attention, module, implementation=self.implementation, **own)
        if len(self.banked) == 1 and self.copies > 1 and self._gathers(key, layer):
            output = self._together(layer, query, key, value, attend)
        elif len(self.banked) == 1 and self.copies > 1 and self._splits(query, value, layer, own):
            output = self._apart(layer, query, key, value, own)
        else:
            output = self._one_by_one(layer, query, key, value, attend)
        missing = query.shape[0] - output.shape[0]
        return (torch.cat([output, output.new_zeros((missing, *output.shape[1:]))]) if missing else output), None

    def _check_states(self, module: nn.Module, layer: int, key: Tensor, value: Tensor) -> None:
        """Refuse a model that attends to something else than what it caches."""
        cached = self.banked[0].part.history[layer]
        shapes = [(side.shape[1], side.shape[3]) for side in (key, value, cached.keys, cached.values)]
        if shapes[:2] != shapes[2:]:
            raise ModelError(
                f"{type(module).__name__} changes keys and values between its cache and its attention "
                f"(heads and sizes {shapes[2:]} become {shapes[:2]}), so it cannot be measured. Use another model."
            )

    def _gathers(self, key: Tensor, layer: int) -> bool:
        slots = self.banked[0].bank.layout(layer).slots
        return gathers(key[:, :, :1].nbytes // key.shape[0], rows=key.shape[0], slots=slots, device=key.device)

    def choose(self, device: torch.device) -> None:
        """Say on the device what each policy reads, and lay that out, where the bank is stacked."""
        if len(self.banked) != 1 or self.copies == 1 or not self.banked[0].bank.stacked:
            return
        policies = list(self.policies)
        padded = policies + policies[-1:] * (self.copies - len(policies))
        self.choices = Choices.of(padded, rows=self.rows, device=device)
        if self.choices is None:
            return
        for layer, sides in enumerate(self.choices.widths):
            for side, widths in zip((Side.KEY, Side.VALUE), sides, strict=True):
                self.banked[0].bank.fill(layer, side, (FULL_BITS, *widths), device)

    def _splits(self, query: Tensor, value: Tensor, layer: int, own: dict[str, Any]) -> bool:
        (banked,) = self.banked
        edge = banked.bank.layout(layer).exact.slot
        plain = self.implementation != "eager" and is_plain(own)
        return plain and banked.masks[layer].shared >= edge and splits(query, value, edge)

    def _padded(self, layer: int) -> list[LayerPrecision]:
        """The layer's bits under each policy of the pass; rows beyond the given ones take the last one's."""
        own = [policy[layer] for policy in self.policies]
        return own + own[-1:] * (self.copies - len(own))

    def _apart(self, layer: int, query: Tensor, key: Tensor, value: Tensor, own: dict[str, Any]) -> Tensor:
        """Long histories where they lie, policy by policy; what is short, for all rows of the pass at once."""
        (banked,) = self.banked
        bank, precisions = banked.bank, self._padded(layer)
        tail_key, tail_value = (
            bank.tails(layer, side, precisions, suffix) for side, suffix in ((Side.KEY, key), (Side.VALUE, value))
        )
        # One after the other: where codes are kept, each is laid out when its turn comes.
        prefixes = (
            (bank.prefix(layer, Side.KEY, one, key), bank.prefix(layer, Side.VALUE, one, value))
            for one in precisions[: len(self.policies)]
        )
        visible = banked.masks[layer].visible[:, bank.layout(layer).exact.slot :]
        return split_attention(
            query, prefixes, (tail_key, tail_value), visible, policies=self.copies, scaling=own.get("scaling")
        )

    def _together(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """All rows of the pass at once; short histories are sooner copied than launched one by one."""
        (banked,) = self.banked
        if self.choices is not None:
            keys, values = (
                banked.bank.chosen(layer, side, self.choices.at(layer, side), suffix)
                for side, suffix in ((Side.KEY, key), (Side.VALUE, value))
            )
            return attend(query, keys, values, mask=banked.masks[layer])
        precisions = self._padded(layer)
        keys = banked.bank.gathered(layer, Side.KEY, precisions, key)
        values = banked.bank.gathered(layer, Side.VALUE, precisions, value)
        return attend(query, keys, values, mask=banked.masks[layer])

    def _one_by_one(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]
    ) -> Tensor:
        pieces = []
        for index, policy in enumerate(self.policies):
            for banked in self.banked:
                rows = slice(index * self.rows + banked.part.rows.start, index * self.rows + banked.part.rows.stop)
                keys = banked.bank.with_suffix(layer, Side.KEY, policy[layer], key[rows])
                values = banked.bank.with_suffix(layer, Side.VALUE, policy[layer], value[rows])
                pieces.append(attend(query[rows], keys, values, mask=banked.masks[layer]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _cached_layer(self, module: nn.Module, key: Tensor) -> int:
        """Index among the cached layers; layers that reuse keys of another read its history."""
        for source, index in self._sources:
            if source is key:
                return index
        index = int(getattr(module, "layer_idx", len(self._sources)))
        self._sources.append((key, index))
        return index


def gathers(token_bytes: int, *, rows: int, slots: int, device: torch.device) -> bool:
    """Whether keys of so many bytes a token, rows and slots are copied together for the policies of a pass."""
    return token_bytes * rows * slots <= GATHERED_BYTES[device.type]


@dataclass(slots=True, kw_only=True, eq=False)
class Replayer:
    """Runs a model over suffixes.

    Attributes:
        model: The model.
        layers: Its decoder layers where leading ones may be skipped, else ``None``.
        head: Its last matrix, or ``None`` where the model must compute its logits itself.
        configs: What the model's modules look their attention up in.
    """

    model: PreTrainedModel
    layers: nn.ModuleList | None
    head: Head | None
    configs: tuple[PretrainedConfig, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Replayer":
        """Prepare for a model."""
        configs = tuple(model_configs(model))
        return cls(model=model, layers=decoder_layers(model), head=Head.of(model), configs=configs)

    def record(
        self, batch: Batch, banked: Sequence[Banked], *, copies: int = 1
    ) -> tuple[Tensor, list[Any], dict[int, Captured]]:
        """Run in full precision; give logits ``[R * S, V]``, each layer's output, each layer's inputs.

        Logits, here and below, are valid until the next run. The pass has as many rows as one of
        ``copies`` policies, so that it is rounded as they are; what it gives is of the first copy.
        """
        full = (LayerPrecision(),) * len(batch.parts[0].history)
        captured: dict[int, Captured] = {}
        attention = self._attention(batch, banked, [full], copies)
        attention.captured = captured
        if self.layers is None:
            return self._logits(batch, attention)[: len(batch.labels)], [], captured
        with recorded_outputs(self.layers) as outputs:
            logits = self._logits(batch, attention)
        rows = len(batch.prompts)
        kept = [_first_rows(output, rows, of=rows * attention.copies) for output in outputs]
        return logits[: len(batch.labels)], kept, captured

    def logits(
        self,
        batch: Batch,
        banked: Sequence[Banked],
        policies: Sequence[Precisions],
        *,
        copies: int = 1,
        outputs: Sequence[Any] = (),
        graphs: LayerGraphs | None = None,
    ) -> Tensor:
        """Logits ``[copies * R * S, V]`` under some policies, those of the padding behind theirs.

        Args:
            batch: The prompts.
            banked: Their parts.
            policies: One precision per cached layer, for each policy.
            copies: Policies that the pass has rows for; more than are given are padding, which only
                rounds the pass as others are.
            outputs: What `record` gave, so that layers before the first quantised one are skipped.
            graphs: Layers of this batch's passes that are captured, or are to be.
        """
        start = min(leading_full_layers(policy) for policy in policies) if outputs else 0
        attention = self._attention(batch, banked, policies, copies)
        captured: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if graphs is not None and attention.choices is not None and self.layers is not None:
            attention.choices = graphs.begin(attention.choices)
            captured = graphs.instead_of(self.layers, start)
        with captured:
            return self._from(batch, attention, start, outputs)

    def logits_along(self, batch: Batch, banked: Sequence[Banked], policy: Precisions, trail: Trail) -> Tensor:
        """Like `logits` of one policy, from the layer where it leaves the trail, which then is its own."""
        if self.layers is None:
            raise ValueError("A trail needs decoder layers that can be skipped.")
        start, known = trail.start(policy)
        known = known[:start]
        # What lies beyond goes before the pass fills its place: two outputs of a layer are held, never three.
        trail.keep(policy[:start], known)
        with recorded_outputs(self.layers) as outputs:
            logits = self._from(batch, self._attention(batch, banked, [policy], 1), start, known)
        trail.keep(policy, [*known, *outputs[start:]])
        return logits

    def from_half(
        self,
        batch: Batch,
        banked: Sequence[Banked],
        policies: Sequence[Precisions],
        *,
        copies: int,
        outputs: Sequence[Any],
    ) -> Tensor:
        """Like `logits`, with the first half of the layers replaced by their recorded ``outputs``."""
        return self._from(batch, self._attention(batch, banked, policies, copies), len(outputs) // 2, outputs)

    def _from(self, batch: Batch, attention: SuffixAttention, start: int, outputs: Sequence[Any]) -> Tensor:
        output = _repeated(outputs[start - 1], attention.copies) if start else None
        with skipped_layers(self.layers, start, output):
            return self._logits(batch, attention)

    def _attention(
        self, batch: Batch, banked: Sequence[Banked], policies: Sequence[Precisions], copies: int
    ) -> SuffixAttention:
        attention = SuffixAttention(
            banked,
            rows=len(batch.prompts),
            policies=policies,
            copies=max(copies, len(policies)),
            implementation=attention_implementation(self.model),
        )
        attention.choose(batch.suffix_ids.device)
        return attention

    def _logits(self, batch: Batch, attention: SuffixAttention) -> Tensor:
        copies = attention.copies
        with intercepted(self.model, attention, configs=self.configs):
            ids, positions = batch.suffix_ids.repeat(copies, 1), batch.positions.repeat(copies, 1)
            if self.head is not None:
                states = final_states(self.model, input_ids=ids, position_ids=positions)
                return self.head.logits(states.flatten(0, 1))
            logits: Tensor = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits.flatten(0, 1)


def _first_rows(output: Any, rows: int, *, of: int) -> Any:
    """The first copy of what a layer gave for ``of`` rows; ``None`` where it is not one state per token of each."""
    states = output[0] if isinstance(output, tuple) else output
    if states is None or states.ndim != 3 or states.shape[0] != of:
        return None
    first = states[:rows].clone()
    return (first, *output[1:]) if isinstance(output, tuple) else first


def _repeated(output: Any, copies: int) -> Any:
    if copies == 1:
        return output
    if isinstance(output, tuple):
        return (output[0].repeat(copies, 1, 1), *output[1:])
    return output.repeat(copies, 1, 1)
