"""The policies that every search result is shown beside."""

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import BASELINE_PAIRS, FULL_PAIR
from kvtuner_core.domain.scheme import QuantScheme


def baselines(*, layers: int, scheme: QuantScheme) -> tuple[KVPolicy, ...]:
    """The unquantised policy and the uniform ones, most bits first.

    Args:
        layers: Number of layers that keep a cache.
        scheme: Grouping and rounding, the same as the search's.
    """
    return tuple(KVPolicy.uniform(pair, layers=layers, scheme=scheme) for pair in (FULL_PAIR, *BASELINE_PAIRS))
