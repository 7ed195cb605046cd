"""Errors of one layer under several pairs (KVTuner, arXiv 2502.04420, section 4).

Everything is measured on one captured full-precision pass: the layer's exact queries, keys and
values. Queries are the suffix positions; each reads what token-by-token decoding would read. The
errors follow the numbers of the paper, not its formula: ratios of norms per (prompt, head, query),
then the mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS, FULL_PAIR, PrecisionPair
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.bank import Side
from kvtuner_core.runtime.interception import weighted_attention
from kvtuner_core.runtime.replay import Banked, Captured
from kvtuner_core.runtime.session import Session

_FUSED_ROWS = 300


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
        errors = self._errors
        divergences = _divergences(self.session, self.layer, pairs)
        return tuple(
            ErrorProfile(
                layer=self.layer,
                pair=pair,
                key_error=errors.side(Side.KEY, pair.key_bits),
                value_error=errors.side(Side.VALUE, pair.value_bits),
                score_error=errors.score(pair),
                output_error=errors.output(pair),
                kl=kl,
            )
            for pair, kl in zip(pairs, divergences, strict=True)
        )


def profile_layer(session: Session, layer: int, pairs: Sequence[PrecisionPair]) -> tuple[ErrorProfile, ...]:
    """Measure one layer under each pair; see `LayerProfiler`."""
    return LayerProfiler(session, layer).profile(pairs)


def _divergences(session: Session, layer: int, pairs: Sequence[PrecisionPair]) -> list[float]:
    """End-to-end KL of each pair at this layer alone; several pairs run together."""
    chosen = [pair for pair in dict.fromkeys(pairs) if not pair.is_full]
    rows = max(prepared.reference.labels.numel() for prepared in session.prepared)
    # Runs of another shape round bfloat16 differently than the reference did.
    together = max(1, _FUSED_ROWS // rows) if session.loaded.dtype == torch.float32 else 1
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


class _LocalErrors:
    """Errors of one layer over all prompts; attention weights are computed once per key width."""

    def __init__(self, session: Session, layer: int) -> None:
        self._layer = layer
        self._places = [
            (banked, prepared.captured[layer]) for prepared in session.prepared for banked in prepared.banked
        ]
        with torch.inference_mode():
            self._full = [self._attend(banked, captured, FULL_BITS) for banked, captured in self._places]
        self._weights: dict[int, list[Tensor]] = {FULL_BITS: [weights for weights, _ in self._full]}

    def side(self, side: Side, bits: int) -> float:
        """Mean over prompts and KV heads of ‖x − x'‖ / ‖x‖ over the tokens that are quantised."""
        if bits == FULL_BITS:
            return 0.0
        ratios = []
        with torch.inference_mode():
            for banked, captured in self._places:
                exact = self._quantised_tokens(banked, captured, side, FULL_BITS)
                moved = self._quantised_tokens(banked, captured, side, bits)
                ratios.append(_ratio(moved - exact, exact, dims=(-2, -1)))
        return _mean(ratios)

    def score(self, pair: PrecisionPair) -> float:
        """Mean over prompts, heads and queries of the summed absolute change of attention weights."""
        if pair.key_bits == FULL_BITS:
            return 0.0
        with torch.inference_mode():
            pairs = zip(self._weights_at(pair.key_bits), self._full, strict=True)
            return _mean([(moved - full[0]).abs().sum(-1) for moved, full in pairs])

    def output(self, pair: PrecisionPair) -> float:
        """Mean over prompts, heads and queries of ‖o − o'‖ / ‖o‖."""
        if pair.is_full:
            return 0.0
        ratios = []
        with torch.inference_mode():
            places = zip(self._places, self._weights_at(pair.key_bits), self._full, strict=True)
            for (banked, captured), weights, (_, exact) in places:
                values = self._laid_out(banked, captured, Side.VALUE, pair.value_bits)
                ratios.append(_ratio(_weigh(weights, values) - exact, exact, dims=(-1,)))
        return _mean(ratios)

    def _weights_at(self, bits: int) -> list[Tensor]:
        if bits not in self._weights:
            self._weights[bits] = [self._attend(banked, captured, bits)[0] for banked, captured in self._places]
        return self._weights[bits]

    def _attend(self, banked: Banked, captured: Captured, bits: int) -> tuple[Tensor, Tensor]:
        """Attention weights ``[R, H, S, K]`` under ``bits`` keys and their exact-value output, in float32."""
        rows = banked.part.rows
        keys = self._laid_out(banked, captured, Side.KEY, bits)
        values = self._laid_out(banked, captured, Side.VALUE, FULL_BITS)
        output, weights = weighted_attention(
            captured.module,
            captured.query[rows].float(),
            keys.float(),
            values.float(),
            mask=banked.masks[self._layer],
            **captured.own,
        )
        own = _weigh(weights, values)
        if not torch.allclose(own, output.transpose(1, 2), rtol=1e-3, atol=1e-3 * float(own.abs().amax())):
            raise ModelError(
                f"The attention of {type(captured.module).__name__} is not weights times values, "
                "so its errors cannot be measured. Use another model."
            )
        return weights.float(), own

    def _laid_out(self, banked: Banked, captured: Captured, side: Side, bits: int) -> Tensor:
        suffix = captured.key if side is Side.KEY else captured.value
        pair = PrecisionPair(key_bits=bits, value_bits=bits)
        return banked.bank.with_suffix(self._layer, side, LayerPrecision(pair=pair), suffix[banked.part.rows])

    def _quantised_tokens(self, banked: Banked, captured: Captured, side: Side, bits: int) -> Tensor:
        layout = banked.bank.layout(self._layer)
        laid_out = self._laid_out(banked, captured, side, bits)
        return torch.cat([laid_out[:, :, layout.packed.slots], laid_out[:, :, layout.boundary.slots]], dim=2)


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
