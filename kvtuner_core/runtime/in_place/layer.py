"""One layer of the packed cache in preallocated buffers, read by fused attention."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.runtime.cache_layer import PackedLayer
from kvtuner_core.runtime.in_place.plan import MAX_QUERIES, Extent, StepPlan
from kvtuner_core.runtime.in_place.planner import Planner
from kvtuner_core.runtime.in_place.span import Span
from kvtuner_core.runtime.in_place.store import ExactStore, PackedStore, Store, StoreShape
from kvtuner_core.runtime.in_place.support import unsupported


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What the attention of one update has to know; it travels on the key tensor of `InPlaceLayer.update`.

    Attributes:
        layer: The layer that was updated.
        span: The host's numbers of the update.
        plan: The device's, or ``None`` where the tensors returned are all there is to read.
        values: The value tensor returned beside the key tensor.
    """

    layer: "InPlaceLayer"
    span: Span
    plan: StepPlan | None
    values: Tensor


def reading_of(keys: Tensor) -> Reading | None:
    """The `Reading` of a key tensor that an update returned."""
    reading: Reading | None = getattr(keys, "kvtuner_reading", None)
    return reading


class InPlaceLayer(PackedLayer):  # type: ignore[no-untyped-call]
    """A `PackedLayer` that keeps its tokens in preallocated buffers where fused kernels can.

    Whether they can is known at the first update (device, `support.unsupported`), and whether the
    model's attention is ours at the second: if nobody took notice of the first, whose tensors are
    complete in themselves, the layer goes on as a plain `PackedLayer`, with the same codes.

    An update of a few tokens returns its own tokens only; their key tensor carries the `Reading`
    with which the registered attention (`attention.fused`) attends to the buffers. Longer updates
    return the whole history, as `PackedLayer` does.

    Attributes:
        why_plain: Why the layer is held as a plain `PackedLayer`; ``None`` while it is not.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        precision: LayerPrecision,
        scheme: QuantScheme,
        *,
        prefill: PrefillMode,
        planner: Planner,
    ) -> None:
        super().__init__(geometry, precision, scheme, prefill=prefill)
        self.extent = Extent.of(scheme, geometry.sliding_window)
        self.planner = planner
        self.stores: tuple[Store, ...] = ()
        self.packed = 0
        self.noticed = False
        self.why_plain: str | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Check the first states, and make the buffers where fused kernels can hold them.

        Raises:
            ModelError: If their shapes are those of another model.
            InputError: If ``KVTUNER_KERNELS`` is wrong.
        """
        super().lazy_initialization(key_states, value_states)
        self.why_plain = self._reason()
        if self.why_plain is not None:
            return
        shape = StoreShape(
            batch=key_states.shape[0],
            heads=0,
            head_dim=self.geometry.key_dim,
            dtype=self.dtype,
            device=key_states.device,
        )
        self.stores = tuple(self._store(shape, index) for index in range(len(self.groups)))
        for store in self.stores:
            store.reserve(self.planner.max_tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values; see `PackedLayer.update` and the class."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.stores and self.tokens and not self.noticed:
            self.make_plain("the model's attention is not the fused one")
        if not self.stores:
            return super().update(key_states, value_states, *args, **kwargs)
        span = self._span(key_states.shape[2])
        stored = self.prefill is PrefillMode.QUANTISED and span.count > 1
        few = span.count <= MAX_QUERIES and span.before > 0 and not stored
        if few:
            return self._update_few(key_states, value_states, span)
        return self._update_many(key_states, value_states, span, stored=stored)

    def attend(self, query: Tensor, reading: Reading, *, scale: float | None) -> Tensor:
        """Attention of an update's queries.

        Args:
            query: ``[B, H, count, D]``.
            reading: That of the update, with a plan.
            scale: Factor of the scores.

        Returns:
            ``[B, H, count, D]``.
        """
        if reading.plan is None:
            raise RuntimeError("An update that returned its whole history has nothing left to attend to.")
        if len(self.stores) == 1:
            return self.stores[0].attend(query, reading.plan, scale=scale)
        batch, heads, count, head_dim = query.shape
        grouped = query.view(batch, self.geometry.kv_heads, heads // self.geometry.kv_heads, count, head_dim)
        whole = torch.empty_like(grouped)
        for store, group in zip(self.stores, self.groups, strict=True):
            members = list(group.heads)
            part = grouped[:, members].flatten(1, 2)
            found = store.attend(part, reading.plan, scale=scale)
            whole[:, members] = found.view(batch, len(members), -1, count, head_dim)
        return whole.view(query.shape)

    def read(self, span: Span) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H_kv, T, D]`` that the queries of an update of a few tokens read."""
        visible = self.first_visible(span.before)
        keys, values = zip(*(store.read(span, visible) for store in self.stores), strict=True)
        return self._joined(keys), self._joined(values)

    def history(self) -> tuple[Tensor, Tensor] | None:
        """See `PackedLayer.history`."""
        if not self.stores:
            return super().history()
        return self.read(self._span(0))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the layer holds."""
        for store in self.stores:
            yield from store.tensors()
        yield from super().tensors()

    def used_bytes(self) -> int:
        """Bytes of the tokens that are held; the buffers are larger by what is still free in them."""
        visible = self.first_visible(self.tokens)
        if self.stores:
            return sum(store.used_bytes(self._span(0), visible) for store in self.stores)
        return sum(tensor.untyped_storage().nbytes() for tensor in super().tensors())

    def activate_past_recording(self) -> None:
        """See `PackedLayer`; a layer that may have to go back is held plainly from here on."""
        super().activate_past_recording()
        self.make_plain("tokens may be taken back (assisted decoding)")

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens; see `PackedLayer.crop`."""
        if not self.stores or tokens_to_remove > 0 or self.geometry.sliding_window is not None:
            self.make_plain("it was cropped")
            super().crop(tokens_to_remove)
            return
        tokens = self.tokens - min(-tokens_to_remove, self.tokens)
        left = max(0, tokens - self.extent.sinks)
        if left < self.packed:
            whole = left // self.extent.unit * self.extent.unit
            for store in self.stores:
                if left > whole and isinstance(store, PackedStore):
                    store.put_back(whole, left, *store.unpack(whole, left))
            self.packed = whole
        self.tokens = tokens

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.stores = ()
        self.packed = 0
        self.noticed = False

    def offload(self) -> None:
        """Move what is held to the CPU."""
        self.make_plain("it was moved off the device")
        super().offload()

    def make_plain(self, reason: str) -> None:
        """Hold the layer as a plain `PackedLayer` from here on, every code and scale as it is."""
        self.why_plain = self.why_plain or reason
        if not self.stores:
            return
        span, visible = self._span(0), self.first_visible(self.tokens)
        for store, group in zip(self.stores, self.groups, strict=True):
            store.hand_over((group.keys, group.values), span, visible)
        self.stores = ()

    def advance(self, count: int) -> None:
        """Count tokens that a captured step appended."""
        span = self._span(count)
        self.tokens, self.packed = span.after, span.packed_after

    def _update_few(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        plan = self.planner.plan(self.extent, span, batch=keys.shape[0], device=keys.device)
        # a captured step works its numbers out before the first layer
        settled = self.planner.captured
        for store, group in zip(self.stores, self.groups, strict=True):
            new = self._heads(keys, group), self._heads(values, group)
            store.append(*new, span, progress=plan.progress, settled=settled)
        if not self.planner.captured:
            self.tokens, self.packed = span.after, span.packed_after
        return self._tagged(keys, values, span, plan), values

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Append tokens ``[B, H_kv, N, D]`` whose queries were answered elsewhere; nothing is read."""
        span = self._skipping(self._span(keys.shape[2]))
        progress = self.planner.progress(span, keys.device)
        for store, group in zip(self.stores, self.groups, strict=True):
            store.append(self._heads(keys, group), self._heads(values, group), span, progress=progress)
        self.tokens, self.packed = span.after, span.packed_after

    def _update_many(self, keys: Tensor, values: Tensor, span: Span, *, stored: bool) -> tuple[Tensor, Tensor]:
        before = self.read(self._span(0)) if self.tokens and not stored else None
        self.extend(keys, values)
        if stored:
            keys, values = self.read(self._span(0))
        elif before is not None:
            keys, values = torch.cat((before[0], keys), dim=2), torch.cat((before[1], values), dim=2)
        return self._tagged(keys, values, span, None), values

    def _tagged(self, keys: Tensor, values: Tensor, span: Span, plan: StepPlan | None) -> Tensor:
        # A tensor of its own: one that the model goes on using must not carry the mark into another attention.
        keys = keys.view(keys.shape)
        keys.kvtuner_reading = Reading(layer=self, span=span, plan=plan, values=values)  # type: ignore[attr-defined]
        return keys

    def _span(self, count: int) -> Span:
        after = self.tokens + count
        return Span(
            before=self.tokens,
            count=count,
            packed_before=self.packed,
            packed_after=self.extent.packed_after(after, self.packed),
        )

    def _skipping(self, span: Span) -> Span:
        """``span`` without packing what a sliding window will have forgotten."""
        kept = self.first_visible(span.after) // self.extent.unit * self.extent.unit
        return replace(span, packed_before=min(max(span.packed_before, kept), span.packed_after))

    def _reason(self) -> str | None:
        if not self.planner.wants_buffers(self.device):
            return "the reference was chosen"
        if self.dtype not in (torch.bfloat16, torch.float16) and self.device.type == "cuda":
            return f"the fused kernels take bfloat16 and float16, not {str(self.dtype).removeprefix('torch.')}"
        if self.record_past:
            return "tokens may be taken back (assisted decoding)"
        if self.prefill is PrefillMode.QUANTISED and self.geometry.sliding_window is not None:
            return "a prompt that reads its quantised self needs more than a sliding window's ring"
        return unsupported(self.geometry, self.precision, self.scheme)

    def _store(self, shape: StoreShape, index: int) -> Store:
        group = self.groups[index]
        shape = replace(shape, heads=len(group.heads))
        if group.pair.is_full:
            return ExactStore(shape, self.extent)
        return PackedStore(shape, group.pair, self.scheme, self.extent)

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            for store in self.stores:
                store.apply(change)
        super()._apply(change)
