"""Pair pruning: the pairs of each layer that are worth keeping (KVTuner, section 5.1).

Per layer, the Pareto front of (mean bits, output error), both minimised, everything else dropped.
"""

from collections.abc import Sequence

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.study import PruningOptions
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.profiles import by_layer, finite_error, widest_first


def prune_pairs(profiles: Sequence[ErrorProfile], options: PruningOptions) -> tuple[tuple[PrecisionPair, ...], ...]:
    """Surviving pairs per layer, most bits first; never empty.

    Of pairs with equal bits the one with the lower output error survives, of pairs equal in both
    the one with more key bits. With a tolerance above 0 a pair goes only where another is no wider
    and better by more than the tolerance.

    Args:
        profiles: One profile per layer and pair.
        options: Whether to prune, and the tolerance.

    Raises:
        InputError: If a profile is missing or the tolerance is negative.
    """
    if not options.tolerance >= 0:
        raise InputError(f"The pruning tolerance must be 0 or more; got {options.tolerance}. Use 0 for the full front.")
    return tuple(_survivors(table, options) for table in by_layer(profiles))


def _survivors(table: dict[PrecisionPair, ErrorProfile], options: PruningOptions) -> tuple[PrecisionPair, ...]:
    ordered = widest_first(table)
    if not options.enabled:
        return ordered
    errors = {pair: finite_error(table[pair].output_error) for pair in ordered}
    return tuple(
        pair
        for pair in ordered
        if not any(_dominates(other, pair, errors, options.tolerance) for other in ordered if other != pair)
    )


def _dominates(other: PrecisionPair, pair: PrecisionPair, errors: dict[PrecisionPair, float], tolerance: float) -> bool:
    if other.nominal_bits > pair.nominal_bits:
        return False
    if errors[other] != errors[pair] or tolerance > 0:
        return errors[other] < errors[pair] - tolerance
    return other.nominal_bits < pair.nominal_bits or other.key_bits > pair.key_bits
