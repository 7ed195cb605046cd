"""The measured errors by name, with their labels and units."""

from types import MappingProxyType

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.errors import InputError

METRICS = MappingProxyType(
    {
        "kl": "KL (nats per token)",
        "output_error": "Output error (relative)",
        "score_error": "Score error (absolute, 0 to 2)",
        "key_error": "Key error (relative)",
        "value_error": "Value error (relative)",
    }
)
"""Label, unit included, of each metric of an `ErrorProfile`."""


def label(metric: str) -> str:
    """The metric's label with its unit.

    Raises:
        InputError: If there is no such metric.
    """
    if metric not in METRICS:
        raise InputError(f"A metric is one of {', '.join(METRICS)}; got {metric!r}.")
    return METRICS[metric]


def value(profile: ErrorProfile, metric: str) -> float:
    """One metric of a profile."""
    return float(getattr(profile, metric))
