"""Sensitivity sweeps: every layer under every pair, then pruning and grouping."""

import time
from collections.abc import Generator
from contextlib import closing

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.study import SweepResult, SweepSpec
from kvtuner_core.services.layer_scoring import layer_scores
from kvtuner_core.services.measuring import Measurements, stamped
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.requests import calibration_session, check_scheme, check_sweep
from kvtuner_core.services.work import Cancelled, never
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import to_json
from kvtuner_core.tuning import build_space

SWEEP_STAGE = "sweep"


def sweep(
    ws: Workspace, spec: SweepSpec, cancelled: Cancelled = never, *, run: str | None = None
) -> Generator[Progress, None, SweepResult]:
    """Measure every layer under every pair, then prune pairs and group layers.

    Args:
        ws: The workspace.
        spec: What to sweep.
        cancelled: Polled before each measurement.
        run: Id under which the result is stored, or ``None`` to return it only.

    Yields:
        A `Progress` per layer and pair with the `ErrorProfile` as its event, then one per score.

    Raises:
        InputError: If the request does not fit.
        CancelledError: If somebody asked to stop; what was measured is kept.
    """
    started = time.perf_counter()
    check_sweep(spec)
    session = calibration_session(ws, spec)
    report = yield from ensure_report(ws, spec.model, cancelled)
    check_scheme(spec.scheme, report.info)
    measurements = Measurements.of(ws, session, report, cancelled)
    profiles = yield from _profiles(measurements, spec)
    scores = yield from layer_scores(measurements, spec, profiles)
    result = SweepResult(
        spec=spec,
        model=report.info,
        profiles=profiles,
        space=build_space(profiles, spec.pruning, spec.grouping),
        provenance=stamped(report),
        seconds=time.perf_counter() - started,
        prompts_digest=session.prompts.digest,
        scores=scores,
    )
    if run is not None:
        ws.store.put_result(run, to_json(result))
    return result


def _profiles(measurements: Measurements, spec: SweepSpec) -> Generator[Progress, None, tuple[ErrorProfile, ...]]:
    pairs = candidate_pairs(spec.bits)
    layers = len(measurements.report.info.layers)
    total = layers * len(pairs)
    profiles: list[ErrorProfile] = []
    message = f"Reading the prompts; then {layers} layers, {len(pairs)} pairs each"
    yield Progress(stage=SWEEP_STAGE, done=0, total=total, message=message)
    with closing(measurements.profile_many(range(layers), pairs)) as measured:
        for profile in measured:
            profiles.append(profile)
            message = f"Layer {profile.layer}, {profile.pair.name}"
            yield measurements.progress(SWEEP_STAGE, len(profiles), total, message=message, event=profile)
    return tuple(profiles)
