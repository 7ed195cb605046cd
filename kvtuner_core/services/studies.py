"""Studies as runs: queue a sweep or a search, resume it, cancel it."""

from kvtuner_core.domain.kinds import KindsSpec
from kvtuner_core.domain.runs import RunKind, RunRecord
from kvtuner_core.domain.study import SearchSpec, SweepSpec
from kvtuner_core.errors import InputError
from kvtuner_core.services.kinds import measure_kinds
from kvtuner_core.services.planning import Plan, plan_search, plan_sweep
from kvtuner_core.services.requests import calibration_session, check_search, check_sweep, evaluation_session
from kvtuner_core.services.results import find_run
from kvtuner_core.services.searching import search
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.work import Body, new_record, start
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import from_json, to_json

__all__ = [
    "Plan", "cancel", "plan_search", "plan_sweep", "resume", "search", "search_title", "start_search", "start_sweep",
    "sweep", "sweep_title",
]  # fmt: skip


def sweep_title(spec: SweepSpec) -> str:
    """One readable line, such as ``Sweep of smollm2-135m-instruct, kivi, 6 prompts``."""
    return f"Sweep of {spec.model.reference}, {spec.scheme.name}, {spec.limit} prompts"


def search_title(spec: SearchSpec) -> str:
    """One readable line, such as ``Search on smollm2-135m-instruct, kivi, 200 evaluations``."""
    memory = spec.constraints.memory
    bound = "" if memory is None else f", {memory.label}"
    return f"Search on {spec.sweep.model.reference}, {spec.sweep.scheme.name}, {spec.evaluations} evaluations{bound}"


def sweep_record(spec: SweepSpec) -> RunRecord:
    """The record of a sweep that has not begun."""
    return new_record(RunKind.SWEEP, title=sweep_title(spec), spec=to_json(spec))


def search_record(spec: SearchSpec) -> RunRecord:
    """The record of a search that has not begun."""
    return new_record(RunKind.SEARCH, title=search_title(spec), spec=to_json(spec))


def start_sweep(ws: Workspace, spec: SweepSpec) -> str:
    """Queue `sweep`; returns the run's id.

    Raises:
        InputError: If the request does not fit any model.
    """
    check_sweep(spec)
    calibration_session(ws, spec)
    return start(ws, sweep_record(spec), lambda run, cancelled: sweep(ws, spec, cancelled, run=run))


def start_search(ws: Workspace, spec: SearchSpec) -> str:
    """Queue `search`; returns the run's id.

    Raises:
        InputError: If the request does not fit any model.
    """
    check_search(spec)
    evaluation_session(ws, spec, calibration_session(ws, spec.sweep).prompts)
    return start(ws, search_record(spec), lambda run, cancelled: search(ws, spec, cancelled, run=run))


def resume(ws: Workspace, run: str) -> str:
    """Queue a stopped sweep, search or evaluation again; it goes on from what is stored. Returns the run's id.

    Raises:
        InputError: If there is no such run, it is at work, or it cannot be resumed.
    """
    record = find_run(ws, run)
    if record.status.is_live:
        raise InputError(f"A run must have stopped before it is resumed; {run!r} is {record.status}.")
    return start(ws, record, _body(ws, record.kind, record.spec))


def _body(ws: Workspace, kind: RunKind, text: str) -> Body:
    if kind is RunKind.SWEEP:
        swept = from_json(SweepSpec, text)
        return lambda run, cancelled: sweep(ws, swept, cancelled, run=run)
    if kind is RunKind.SEARCH:
        searched = from_json(SearchSpec, text)
        return lambda run, cancelled: search(ws, searched, cancelled, run=run)
    if kind is RunKind.EVALUATION:
        kinds = from_json(KindsSpec, text)
        return lambda run, cancelled: measure_kinds(ws, kinds, cancelled, run=run)
    raise InputError(f"Only a sweep, search or evaluation can be resumed; got a run of kind {kind}. Start it anew.")


def cancel(ws: Workspace, run: str) -> None:
    """Ask a job to stop; a finished, unknown or already cancelled one is left as it is."""
    ws.queue.cancel(run)
