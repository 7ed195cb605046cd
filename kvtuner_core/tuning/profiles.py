"""Error profiles as a complete table: every layer, every pair."""

import math
from collections.abc import Iterable, Sequence

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.errors import InputError


def widest_first(pairs: Iterable[PrecisionPair]) -> tuple[PrecisionPair, ...]:
    """Distinct ``pairs``, most mean bits first; at equal bits the one with more key bits first."""
    return tuple(sorted(set(pairs), key=lambda pair: (-pair.nominal_bits, -pair.key_bits)))


def finite_error(value: float) -> float:
    """``value``, or infinity where it is not a number, so that it loses every comparison."""
    return math.inf if math.isnan(value) else value


def by_layer(profiles: Sequence[ErrorProfile]) -> tuple[dict[PrecisionPair, ErrorProfile], ...]:
    """The profiles of each layer by pair, first layer first.

    Raises:
        InputError: Unless there is exactly one profile for every layer from 0 and every pair.
    """
    layers = sorted({profile.layer for profile in profiles})
    if not layers or layers != list(range(len(layers))):
        raise InputError(f"Profiles are needed for every layer from 0; got layers {layers[:8]}. Run the sweep again.")
    tables: tuple[dict[PrecisionPair, ErrorProfile], ...] = tuple({} for _ in layers)
    for profile in profiles:
        if profile.pair in tables[profile.layer]:
            raise InputError(f"Layer {profile.layer} may be profiled once per pair; got {profile.pair} twice.")
        tables[profile.layer][profile.pair] = profile
    for layer, table in enumerate(tables):
        if table.keys() != tables[0].keys():
            raise InputError(
                f"Every layer needs a profile of each of the {len(tables[0])} pairs of layer 0; "
                f"layer {layer} has {len(table)} that differ. Run the sweep again."
            )
    return tables
