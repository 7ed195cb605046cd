"""The memory model: how many bytes a cache occupies, to the byte.

`QuantizedKVCache` stores exactly what is predicted here; tests compare the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.domain.scheme import Granularity, QuantScheme
from kvtuner_core.errors import PolicyError

FULL_BYTES = 2
"""Bytes of an unquantised scalar where a cache is served (bfloat16 or float16)."""

_PACK = {8: (1, 1), 4: (2, 1), 3: (8, 3), 2: (4, 1)}


def packed_row_bytes(values: int, bits: int) -> int:
    """Bytes of ``values`` codes of ``bits`` bits: 4-bit two to a byte, 2-bit four, 3-bit eight in three."""
    unit_values, unit_bytes = _PACK[bits]
    return -(-values // unit_values) * unit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTokens:
    """How one layer holds its history.

    Attributes:
        sinks: First tokens, in full precision.
        packed: Quantised tokens; with per-channel groups a whole number of groups.
        window: Newest tokens, in full precision.
        stale: Tokens at the front (of the packed ones, or of the window where none is packed) that
            a sliding window no longer shows; an unquantised side does not hold them.
    """

    sinks: int
    packed: int
    window: int
    stale: int = 0


def packed_until(scheme: QuantScheme, tokens: int, *, sinks: int = 0, sliding_window: int | None = None) -> int:
    """Index of the first of ``tokens`` tokens that is not quantised yet, ``sinks`` of them left out.

    It never falls as tokens come, so each token is quantised once. A window that is a share of the
    context is, in a sliding-window layer, that share of the tokens that the next query sees.
    """
    seen = tokens if sliding_window is None else min(tokens, sliding_window - 1)
    ready = max(0, tokens - sinks - scheme.window_tokens(seen))
    return sinks + ready // scheme.flush_tokens * scheme.flush_tokens


def stored_tokens(scheme: QuantScheme, tokens: int, sliding_window: int | None = None) -> StoredTokens:
    """How a layer holds ``tokens`` tokens after the last of them was appended.

    A sliding-window layer keeps what the next query can still see, ``sliding_window - 1``
    tokens, has no sinks, and gives up its oldest tokens by whole groups, packed or not: a group
    whose first tokens were gone could not be quantised any more.
    """
    if sliding_window is None:
        sinks = min(tokens, scheme.sink_length)
        end = packed_until(scheme, tokens, sinks=sinks)
        return StoredTokens(sinks=sinks, packed=end - sinks, window=tokens - end)
    first_visible = max(0, tokens - (sliding_window - 1))
    start = first_visible // scheme.flush_tokens * scheme.flush_tokens
    end = max(start, packed_until(scheme, tokens, sliding_window=sliding_window))
    return StoredTokens(sinks=0, packed=end - start, window=tokens - end, stale=first_visible - start)


def packed_bytes(scheme: QuantScheme, granularity: Granularity, *, bits: int, tokens: int, head_dim: int) -> int:
    """Bytes of ``tokens`` packed tokens of one head and one side, scales and offsets included.

    Raises:
        SchemeError: If the group size does not divide head_dim.
    """
    codes = tokens * packed_row_bytes(head_dim, bits)
    numbers = 1 if scheme.symmetric else 2
    if granularity is Granularity.TOKEN:
        groups = tokens * (head_dim // scheme.token_group(head_dim))
    else:
        groups = tokens // scheme.flush_tokens * head_dim
    return codes + groups * numbers * scheme.scale_dtype.bytes


def _head_pairs(precision: LayerPrecision, kv_heads: int, layer: int) -> tuple[tuple[int, int], ...]:
    if precision.heads and len(precision.heads) != kv_heads:
        raise PolicyError(f"Layer {layer} has {kv_heads} KV heads; the policy gives {len(precision.heads)}.")
    pairs = precision.heads or (precision.pair,) * kv_heads
    return tuple((pair.key_bits, pair.value_bits) for pair in pairs)


def _side_bytes(
    scheme: QuantScheme, granularity: Granularity, held: StoredTokens, *, bits: int, head_dim: int, full_bytes: int
) -> int:
    if bits == FULL_BITS:
        return (held.sinks + held.packed + held.window - held.stale) * head_dim * full_bytes
    return (held.sinks + held.window) * head_dim * full_bytes + packed_bytes(
        scheme, granularity, bits=bits, tokens=held.packed, head_dim=head_dim
    )


def layer_bytes(
    policy: KVPolicy, layer: int, geometry: LayerGeometry, *, tokens: int, batch: int = 1, full_bytes: int = FULL_BYTES
) -> int:
    """Bytes of one layer's cache after ``tokens`` tokens of each of ``batch`` sequences."""
    held = stored_tokens(policy.scheme, tokens, geometry.sliding_window)
    total = 0
    for key_bits, value_bits in _head_pairs(policy.layers[layer], geometry.kv_heads, layer):
        total += _side_bytes(
            policy.scheme,
            policy.scheme.key_granularity,
            held,
            bits=key_bits,
            head_dim=geometry.key_dim,
            full_bytes=full_bytes,
        )
        total += _side_bytes(
            policy.scheme,
            policy.scheme.value_granularity,
            held,
            bits=value_bits,
            head_dim=geometry.value_dim,
            full_bytes=full_bytes,
        )
    return total * batch


def check_layers(policy: KVPolicy, layers: Sequence[LayerGeometry]) -> None:
    """Raise `PolicyError` or `SchemeError` unless ``policy`` fits the geometry."""
    if len(policy.layers) != len(layers):
        raise PolicyError(
            f"A policy needs one entry per cached layer ({len(layers)}); got {len(policy.layers)}. "
            "Use a policy made for this model."
        )
    for index, (precision, geometry) in enumerate(zip(policy.layers, layers, strict=True)):
        _head_pairs(precision, geometry.kv_heads, index)
        for granularity, head_dim in (
            (policy.scheme.key_granularity, geometry.key_dim),
            (policy.scheme.value_granularity, geometry.value_dim),
        ):
            policy.scheme.check_head(head_dim)
            if granularity is Granularity.TOKEN:
                policy.scheme.token_group(head_dim)


def cache_bytes(
    policy: KVPolicy, layers: Sequence[LayerGeometry], *, tokens: int, batch: int = 1, full_bytes: int = FULL_BYTES
) -> int:
    """Bytes of the whole cache after ``tokens`` tokens of each of ``batch`` sequences.

    Args:
        policy: The bits of each layer.
        layers: Geometry of each cached layer.
        tokens: Tokens seen so far by each sequence.
        batch: Number of sequences.
        full_bytes: Bytes of an unquantised scalar: 2 where a cache is served, 4 for a float32 model.

    Raises:
        PolicyError: If the policy does not fit the geometry.
        SchemeError: If the group size does not fit head_dim.
    """
    check_layers(policy, layers)
    return sum(
        layer_bytes(policy, index, geometry, tokens=tokens, batch=batch, full_bytes=full_bytes)
        for index, geometry in enumerate(layers)
    )


def effective_bits(policy: KVPolicy, layers: Sequence[LayerGeometry]) -> float:
    """Bits per cached scalar with scales, offsets and padding; windows and sinks left out.

    8 x bytes of a long packed history / number of its scalars. An unquantised side counts 16.
    """
    check_layers(policy, layers)
    scheme = policy.scheme
    tokens = scheme.flush_tokens
    held = StoredTokens(sinks=0, packed=tokens, window=0)
    total_bytes = 0
    scalars = 0
    for precision, geometry in zip(policy.layers, layers, strict=True):
        # Heads that share a pair are counted once.
        heads = geometry.kv_heads // len(precision.pairs)
        for pair in precision.pairs:
            for bits, granularity, head_dim in (
                (pair.key_bits, scheme.key_granularity, geometry.key_dim),
                (pair.value_bits, scheme.value_granularity, geometry.value_dim),
            ):
                total_bytes += heads * _side_bytes(
                    scheme, granularity, held, bits=bits, head_dim=head_dim, full_bytes=FULL_BYTES
                )
                scalars += heads * tokens * head_dim
    return 8 * total_bytes / scalars


def bytes_per_token(policy: KVPolicy, layers: Sequence[LayerGeometry]) -> float:
    """Bytes that one more token adds to one sequence's cache before any sliding window is full, in the mean.

    A window that is a share of the context takes its share of each token in full precision.
    """
    scalars = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    share = policy.scheme.residual_share
    packed = effective_bits(policy, layers)
    bits = packed if not share else (1 - share) * packed + share * FULL_BITS
    return bits * scalars / 8
