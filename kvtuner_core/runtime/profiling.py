"""Errors of one layer under several pairs (KVTuner, arXiv 2502.04420, section 4).

Everything is measured on one captured full-precision pass: the layer's exact queries, keys and
values. Queries are the suffix positions; each reads what token-by-token decoding would read. The
errors follow the numbers of the paper, not its formula: ratios of norms per (prompt, head, query),
then the mean.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS, FULL_PAIR, PrecisionPair
from kvtuner_core.domain.tasks import PROFILED_TOKENS
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.attending import weighted_attention
from kvtuner_core.runtime.bank import Side
from kvtuner_core.runtime.interception import attention_implementation, is_plain
from kvtuner_core.runtime.replay import Banked, Captured
from kvtuner_core.runtime.session import Session

_KEPT_WIDTHS = 5
_WEIGHTS_AT_ONCE = 4


class LayerProfiler:
    """Measures one layer under any pairs; what the pairs have in common is computed once.

    Attributes:
        session: The model, prompts and scheme.
        layer: Index among the cached layers.
    """

    def __init__(self, session: Session, layer: int) -> None:
        """Compute the layer's attention in full precision.

        Raises:
            ModelError: If there is no such layer, or its attention cannot be measured.
        """
        count = len(session.layers)
        if not 0 <= layer < count:
            raise ModelError(f"layer must be from 0 to {count - 1} for this model; got {layer}.")
        self.session = session
        self.layer = layer
        self._errors = _LocalErrors(session, layer)

    def profile(self, pairs: Sequence[PrecisionPair]) -> tuple[ErrorProfile, ...]:
        """One profile per pair, in order, everything else in full precision."""
        started = time.perf_counter()
        divergences = _divergences(self.session, self.layer, pairs)
        kl_seconds = (time.perf_counter() - started) / len(pairs)
        return tuple(self._one(pair, kl, kl_seconds) for pair, kl in zip(pairs, divergences, strict=True))

    def _one(self, pair: PrecisionPair, kl: float, kl_seconds: float) -> ErrorProfile:
        started = time.perf_counter()
        found = ErrorProfile(
            layer=self.layer,
            pair=pair,
            key_error=self._errors.side(Side.KEY, pair.key_bits),
            value_error=self._errors.side(Side.VALUE, pair.value_bits),
            score_error=self._errors.score(pair),
            output_error=self._errors.output(pair),
            kl=kl,
        )
        return replace(found, local_seconds=time.perf_counter() - started, kl_seconds=kl_seconds)


def profile_layer(session: Session, layer: int, pairs: Sequence[PrecisionPair]) -> tuple[ErrorProfile, ...]:
    """Measure one layer under each pair; see `LayerProfiler`."""
    return LayerProfiler(session, layer).profile(pairs)


def _divergences(session: Session, layer: int, pairs: Sequence[PrecisionPair]) -> list[float]:
    """End-to-end KL of each pair at this layer alone; several pairs run together."""
    chosen = [pair for pair in dict.fromkeys(pairs) if not pair.is_full]
    together = max(_together(session), 1)
    found = {FULL_PAIR: 0.0}
    for start in range(0, len(chosen), together):
        group = chosen[start : start + together]
        policies = [
            tuple(LayerPrecision(pair=pair if index == layer else FULL_PAIR) for index in range(len(session.layers)))
            for pair in group
        ]
        for pair, moved in zip(group, session.diverge(policies), strict=True):
            tokens = sum(one.kl.size for one in moved.values())
            found[pair] = float(sum(one.kl.sum() for one in moved.values()) / tokens)
    return [found[pair] for pair in pairs]


def _together(session: Session) -> int:
    if session.together > 1:
        return session.together
    rows = max(prepared.reference.labels.numel() for prepared in session.prepared)
    # Runs of another shape round bfloat16 differently than the reference did.
    return PROFILED_TOKENS // rows if session.loaded.dtype == torch.float32 else 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """Some queries of one part: as many as their attention weights have room for.

    Attributes:
        banked: The part.
        captured: Exact inputs of the part's batch.
        queries: Suffix positions.
    """

    banked: Banked
    captured: Captured
    queries: slice


class _LocalErrors:
    """Errors of one layer over all prompts; attention weights are computed once per key width where they fit."""

    def __init__(self, session: Session, layer: int) -> None:
        self._layer = layer
        self._plain = attention_implementation(session.loaded.model) != "eager"
        self._parts = [
            (banked, prepared.captured[layer]) for prepared in session.prepared for banked in prepared.banked
        ]
        room = session.plan.weights_bytes
        self._places = [place for banked, captured in self._parts for place in _places(banked, captured, layer, room)]
        total = sum(_weight_bytes(captured, banked, layer) for banked, captured in self._parts)
        self._keeps = _KEPT_WIDTHS * total <= room
        self._weights: dict[int, list[Tensor]] = {}
        self._sides: dict[tuple[Side, int], float] = {}
        self._scores: dict[int, float] = {}
        with torch.inference_mode():
            weighted = zip(self._places, self._weights_at(FULL_BITS), strict=True)
            self._exact = [_weigh(weights, self._values(place, FULL_BITS)) for place, weights in weighted]

    def side(self, side: Side, bits: int) -> float:
        """Mean over prompts and KV heads of ‖x − x'‖ / ‖x‖ over the tokens that are quantised."""
        if bits == FULL_BITS:
            return 0.0
        if (side, bits) not in self._sides:
            self._sides[side, bits] = self._side(side, bits)
        return self._sides[side, bits]

    def _side(self, side: Side, bits: int) -> float:
        ratios = []
        with torch.inference_mode():
            for banked, captured in self._parts:
                exact = self._quantised_tokens(banked, captured, side, FULL_BITS)
                moved = self._quantised_tokens(banked, captured, side, bits)
                ratios.append(_ratio(moved - exact, exact, dims=(-2, -1)))
        return _mean(ratios)

    def score(self, pair: PrecisionPair) -> float:
        """Mean over prompts, heads and queries of the summed absolute change of attention weights."""
        if pair.key_bits == FULL_BITS:
            return 0.0
        if pair.key_bits not in self._scores:
            with torch.inference_mode():
                weights = zip(self._weights_at(pair.key_bits), self._weights_at(FULL_BITS), strict=True)
                self._scores[pair.key_bits] = _mean([(moved - full).abs_().sum(-1) for moved, full in weights])
        return self._scores[pair.key_bits]

    def output(self, pair: PrecisionPair) -> float:
        """Mean over prompts, heads and queries of ‖o − o'‖ / ‖o‖."""
        if pair.is_full:
            return 0.0
        ratios = []
        with torch.inference_mode():
            places = zip(self._places, self._weights_at(pair.key_bits), self._exact, strict=True)
            for place, weights, exact in places:
                values = self._values(place, pair.value_bits)
                ratios.append(_ratio(_weigh(weights, values) - exact, exact, dims=(-1,)))
        return _mean(ratios)

    def _weights_at(self, bits: int) -> Iterable[Tensor]:
        """Attention weights of every place under ``bits`` keys; one after the other where they are not kept."""
        if not self._keeps:
            return (self._attend(place, bits) for place in self._places)
        if bits not in self._weights:
            self._weights[bits] = [self._attend(place, bits) for place in self._places]
        return self._weights[bits]

    def _attend(self, place: _Place, bits: int) -> Tensor:
        """Attention weights ``[R, H, S, K]`` in float32 under ``bits`` keys."""
        banked, captured = place.banked, place.captured
        query = captured.query[banked.part.rows, :, place.queries].float()
        keys = self._laid_out(banked, captured, Side.KEY, bits).float()
        visible = banked.masks[self._layer].visible[place.queries]
        if self._plain and is_plain(captured.own):
            return _plain_weights(query, keys, visible, captured.own.get("scaling"))
        values = self._values(place, FULL_BITS).float()
        output, weights = weighted_attention(captured.module, query, keys, values, visible=visible, **captured.own)
        own = _weigh(weights, values)
        if not torch.allclose(own, output.transpose(1, 2), rtol=1e-3, atol=1e-3 * float(own.abs().amax())):
            raise ModelError(
                f"The attention of {type(captured.module).__name__} is not weights times values, "
                "so its errors cannot be measured. Use another model."
            )
        return weights.float()

    def _values(self, place: _Place, bits: int) -> Tensor:
        return self._laid_out(place.banked, place.captured, Side.VALUE, bits)

    def _laid_out(self, banked: Banked, captured: Captured, side: Side, bits: int) -> Tensor:
        suffix = captured.key if side is Side.KEY else captured.value
        pair = PrecisionPair(key_bits=bits, value_bits=bits)
        return banked.bank.with_suffix(self._layer, side, LayerPrecision(pair=pair), suffix[banked.part.rows])

    def _quantised_tokens(self, banked: Banked, captured: Captured, side: Side, bits: int) -> Tensor:
        layout = banked.bank.layout(self._layer)
        laid_out = self._laid_out(banked, captured, side, bits)
        return torch.cat([laid_out[:, :, layout.packed.slots], laid_out[:, :, layout.boundary.slots]], dim=2)


def _weight_bytes(captured: Captured, banked: Banked, layer: int) -> int:
    rows: int = banked.part.rows.stop - banked.part.rows.start
    return 4 * rows * captured.query.shape[1] * captured.query.shape[2] * banked.bank.layout(layer).slots


def _places(banked: Banked, captured: Captured, layer: int, room: int) -> Iterator[_Place]:
    suffix = captured.query.shape[2]
    # Scores, weights, and their change from others are in memory at once.
    chunks = -(-_WEIGHTS_AT_ONCE * _weight_bytes(captured, banked, layer) // room)
    step = max(1, -(-suffix // chunks))
    for start in range(0, suffix, step):
        yield _Place(banked=banked, captured=captured, queries=slice(start, min(suffix, start + step)))


def _plain_weights(query: Tensor, keys: Tensor, visible: Tensor, scaling: float | None) -> Tensor:
    """softmax(scaling q k), the query heads of a KV head as rows, so that keys are never repeated."""
    rows, heads, suffix, head_dim = query.shape
    kv_heads = keys.shape[1]
    folded = query.reshape(rows, kv_heads, heads // kv_heads * suffix, head_dim)
    scores = (folded @ keys.mT).mul_(head_dim**-0.5 if scaling is None else scaling)
    scores = scores.view(rows, heads, suffix, keys.shape[2]).masked_fill_(~visible, -torch.inf)
    return scores.softmax(-1)


def _weigh(weights: Tensor, values: Tensor) -> Tensor:
    """``[R, H, S, K]`` times ``[R, H_kv, K, D]`` in float32, without repeating the KV heads."""
    rows, heads, suffix, slots = weights.shape
    kv_heads = values.shape[1]
    folded = weights.float().reshape(rows, kv_heads, heads // kv_heads * suffix, slots)
    return (folded @ values.float()).reshape(rows, heads, suffix, values.shape[-1])


def _ratio(change: Tensor, exact: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    norm = torch.linalg.vector_norm(exact.float(), dim=dims)
    moved = torch.linalg.vector_norm(change.float(), dim=dims)
    return torch.where(norm > 0, moved / norm.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def _mean(parts: Sequence[Tensor]) -> float:
    total = sum(float(part.double().sum()) for part in parts)
    return total / sum(part.numel() for part in parts)
