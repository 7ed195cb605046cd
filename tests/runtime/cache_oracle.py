"""What a layer of the packed cache must return, computed from the raw tokens at once."""

import torch
from torch import Tensor

from kernels.quantize import op
from kvtuner_core.domain.memory import packed_until
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import Granularity, PrefillMode, QuantScheme, Rotation, ScaleDtype
from kvtuner_core.runtime.cache_layer import PackedLayer

CHANNEL, TOKEN = Granularity.CHANNEL, Granularity.TOKEN

SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "per-token, groups": QuantScheme.per_token(group_size=8, residual_length=5, sink_length=2),
    "per-token, symmetric": QuantScheme.per_token(residual_length=3, symmetric=True),
    "kivi": QuantScheme.kivi(group_size=8, residual_length=8),
    "kivi, sinks, odd": QuantScheme.kivi(group_size=8, residual_length=3, sink_length=5, symmetric=True),
    "kivi, long window": QuantScheme.kivi(group_size=4, residual_length=30),
    "both per channel": QuantScheme(
        key_granularity=CHANNEL, value_granularity=CHANNEL, group_size=4, scale_dtype=ScaleDtype.FLOAT32
    ),
    "values per channel": QuantScheme(
        key_granularity=TOKEN, value_granularity=CHANNEL, group_size=8, residual_length=1, sink_length=1
    ),
    "per-token, rotated, share": QuantScheme.per_token(
        residual_share=0.2, sink_length=2, rotation=Rotation.KEYS_AND_VALUES
    ),
    "kivi, rotated keys, share": QuantScheme.kivi(
        group_size=8, residual_length=3, residual_share=0.37, rotation=Rotation.KEYS
    ),
}
"""Schemes that differ in every field, with groups that divide 16 and 24."""

GEOMETRY = LayerGeometry(kv_heads=3, key_dim=24, value_dim=16)
SLIDING = LayerGeometry(kv_heads=3, key_dim=24, value_dim=16, sliding_window=13)


def raw_states(tokens: int, geometry: LayerGeometry = GEOMETRY, *, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Random keys and values ``[batch, H_kv, tokens, D]`` with an outlier channel."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn((batch, geometry.kv_heads, tokens, geometry.key_dim), generator=generator)
    values = torch.randn((batch, geometry.kv_heads, tokens, geometry.value_dim), generator=generator)
    keys[..., 3] += 20
    return keys, values


def make_layer(
    scheme: QuantScheme,
    precision: LayerPrecision | str = "K4V2",
    geometry: LayerGeometry = GEOMETRY,
    *,
    prefill: PrefillMode = PrefillMode.FULL,
) -> PackedLayer:
    """An empty layer."""
    if isinstance(precision, str):
        precision = LayerPrecision(pair=PrecisionPair.parse(precision))
    return PackedLayer(geometry, precision, scheme, prefill=prefill)


def one_layer_policy(scheme: QuantScheme, precision: LayerPrecision) -> KVPolicy:
    """The policy of a model of one layer."""
    return KVPolicy(scheme=scheme, layers=(precision,))


def expected_side(
    raw: Tensor, scheme: QuantScheme, bits: int, *, keys: bool, tokens: int, window: int | None, forgets: bool = True
) -> Tensor:
    """The first ``tokens`` of ``raw`` as a query reads them, those that a sliding window ``forgets`` left out."""
    sinks = 0 if window is not None else min(tokens, scheme.sink_length)
    end = max(sinks, packed_until(scheme, tokens, sinks=sinks, sliding_window=window))
    granularity = scheme.key_granularity if keys else scheme.value_granularity
    read = raw[:, :, :tokens].clone()
    if bits != 16 and end > sinks:
        channel = granularity is CHANNEL
        read[:, :, sinks:end] = op.simulate(
            raw[:, :, sinks:end],
            bits=bits,
            granularity="channel" if channel else "token",
            group_size=scheme.flush_tokens if channel else scheme.token_group(raw.shape[-1]),
            symmetric=scheme.symmetric,
            scale_dtype=getattr(torch, scheme.scale_dtype.value),
            rotated=scheme.rotates_keys if keys else scheme.rotates_values,
        )
    return read if window is None or not forgets else read[:, :, max(0, tokens - (window - 1)) :]


def expected_history(
    states: tuple[Tensor, ...], layer: PackedLayer, *, tokens: int, forgets: bool = True
) -> tuple[Tensor, Tensor]:
    """Keys and values after ``tokens`` tokens, head by head, what a sliding window ``forgets`` left out."""
    heads = layer.precision.heads or (layer.precision.pair,) * layer.geometry.kv_heads
    window, scheme = layer.geometry.sliding_window, layer.scheme
    sides = []
    for raw, is_key in zip(states, (True, False), strict=True):
        each = [
            expected_side(
                raw[:, [h]],
                scheme,
                pair.key_bits if is_key else pair.value_bits,
                keys=is_key,
                tokens=tokens,
                window=window,
                forgets=forgets,
            )
            for h, pair in enumerate(heads)
        ]
        sides.append(torch.cat(each, dim=1))
    return sides[0], sides[1]


def feed(layer: PackedLayer, states: tuple[Tensor, ...], begin: int, end: int) -> tuple[Tensor, Tensor]:
    """One update with the tokens from ``begin`` to ``end``."""
    return layer.update(states[0][:, :, begin:end], states[1][:, :, begin:end])


def assert_history(layer: PackedLayer, states: tuple[Tensor, ...], *, tokens: int) -> None:
    """The layer holds exactly what the raw tokens make."""
    held = layer.history()
    assert held is not None
    for found, expected in zip(held, expected_history(states, layer, tokens=tokens), strict=True):
        assert torch.equal(found, expected)


def measured(layer: PackedLayer) -> int:
    """Bytes of the layer's storages."""
    return sum(tensor.untyped_storage().nbytes() for tensor in layer.tensors())
