"""Whether a worker measures what a job began to measure: its numbers are stored under one address."""

from kvtuner_core.domain.tasks import ModelReport
from kvtuner_core.errors import ComputeError


def check_agreement(found: ModelReport, expected: ModelReport, *, worker: str) -> None:
    """Raise `ComputeError` unless the weights, the kind of device and the dtype are the expected ones.

    Args:
        found: What the worker has loaded.
        expected: What the job began with.
        worker: The worker's readable name.
    """
    if found.info.fingerprint != expected.info.fingerprint:
        raise ComputeError(
            f"All workers of a job must have the same weights; {worker} has others than the job began with. "
            "Give every worker the same model files, then load the model again."
        )
    mine, theirs = _rounding(found), _rounding(expected)
    if mine != theirs:
        raise ComputeError(
            f"All workers of a job must measure alike; {worker} has the model as {mine}, the job began with {theirs}. "
            "Set the model's device and dtype, or load the model again."
        )


def _rounding(report: ModelReport) -> str:
    """What numbers depend on besides the weights, such as ``cuda bfloat16``."""
    return f"{report.provenance.device_type} {report.provenance.dtype}"
