"""Stored runs and their results, the shipped demo study included."""

import csv
import io
from functools import cache
from pathlib import Path

from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpace, SearchSpec, SweepResult
from kvtuner_core.errors import InputError
from kvtuner_core.services.workspace import DATA_FOLDER, Workspace
from kvtuner_core.store import from_json, to_json

DEMO_RUN = "demo"
"""Id of the demo study's run."""

DEMO_FILE = DATA_FOLDER / "demo_study.json"
"""The shipped study of the bundled model."""


def demo_study() -> SearchResult | None:
    """The shipped study, or ``None`` where its file is missing."""
    if not DEMO_FILE.is_file():
        return None
    return _demo(DEMO_FILE, DEMO_FILE.stat().st_mtime_ns)


@cache
def _demo(path: Path, changed: int) -> SearchResult:
    del changed
    return from_json(SearchResult, path.read_text(encoding="utf-8"))


def demo_record() -> RunRecord | None:
    """The demo study as a finished run."""
    study = demo_study()
    if study is None:
        return None
    return RunRecord(
        id=DEMO_RUN,
        kind=RunKind.SEARCH,
        status=RunStatus.DONE,
        title=f"Demo study of {study.sweep.model.name}, {study.sweep.spec.scheme.name}",
        spec=to_json(study.spec),
        created=study.provenance.created,
        started=study.provenance.created,
        finished=study.provenance.created,
        stage="evaluation",
        done=study.evaluations,
        total=study.evaluations,
    )


def list_runs(ws: Workspace) -> tuple[RunRecord, ...]:
    """Stored runs, newest first, then the demo study; work without a result of its own is left out."""
    stored = ws.store.runs(kinds=(RunKind.SWEEP, RunKind.SEARCH, RunKind.EVALUATION, RunKind.GENERATION))
    demo = demo_record()
    return stored if demo is None else (*stored, demo)


def find_run(ws: Workspace, run: str) -> RunRecord:
    """One run, or the demo study.

    Raises:
        InputError: If there is none of this id.
    """
    record = demo_record() if run == DEMO_RUN else ws.store.run(run)
    if record is None:
        raise InputError(f"A run must be one of the stored ones; got {run!r}. List them with: runs.")
    return record


def load_sweep(ws: Workspace, run: str) -> SweepResult | None:
    """The sweep a run made or started from, or ``None`` while there is none.

    Raises:
        InputError: If there is no such run.
    """
    if find_run(ws, run).kind is RunKind.SEARCH:
        study = load_search(ws, run)
        if study is not None:
            return study.sweep
        text = ws.store.get_result(sweep_part(run))
    else:
        text = ws.store.get_result(run)
    return None if text is None else from_json(SweepResult, text)


def load_search(ws: Workspace, run: str) -> SearchResult | None:
    """The finished search of a run, or ``None`` if it is not finished or no search.

    Raises:
        InputError: If there is no such run.
    """
    if run == DEMO_RUN:
        study = demo_study()
        if study is not None:
            return study
    if find_run(ws, run).kind is not RunKind.SEARCH:
        return None
    text = ws.store.get_result(run)
    return None if text is None else from_json(SearchResult, text)


def objective_of(record: RunRecord) -> Objective:
    """What a search's record asks to minimise; the mean KL where it is no search."""
    return from_json(SearchSpec, record.spec).objective if record.kind is RunKind.SEARCH else Objective.MEAN_KL


def sweep_part(run: str) -> str:
    """Key under which a search that is still running keeps its sweep."""
    return f"{run}/sweep"


def delete_run(ws: Workspace, run: str) -> None:
    """Forget a run and its result; the single measurements stay and are used again.

    Raises:
        InputError: If there is no such run, it is at work, or it is the demo study.
    """
    if run == DEMO_RUN:
        raise InputError("The demo study ships with the project and cannot be deleted; got run 'demo'.")
    if find_run(ws, run).status.is_live:
        raise InputError(f"A run must not be at work when it is deleted; got {run!r}. Cancel it first.")
    ws.store.delete_run(sweep_part(run))
    ws.store.delete_run(run)


def runs_csv(ws: Workspace) -> str:
    """All runs as a CSV table with a header."""
    fields = ("id", "kind", "status", "title", "created", "started", "finished", "stage", "done", "total", "error")
    rows = [[str(getattr(record, name)) for name in fields] for record in list_runs(ws)]
    return _csv(fields, rows)


def candidates_csv(result: SearchResult) -> str:
    """Every candidate of a search and its baselines as a CSV table; one column a layer at the end."""
    header = (
        "order", "origin", "on_front", "nominal_bits", "effective_bits",
        "calibration_kl", "calibration_kl_low", "calibration_kl_high", "calibration_top1", "calibration_nll_change",
        "evaluation_kl", "evaluation_kl_low", "evaluation_kl_high", "evaluation_top1", "evaluation_nll_change",
        *_layer_names(result.sweep.model),
    )  # fmt: skip
    front = {candidate.policy: candidate for candidate in result.front}
    rows = [_candidate_row(candidate, False) for candidate in result.baselines]
    for candidate in result.candidates:
        rows.append(_candidate_row(front.get(candidate.policy, candidate), candidate.policy in front))
    return _csv(header, rows)


def sweep_csv(result: SweepResult) -> str:
    """Every error profile of a sweep as a CSV table, with whether the pair was kept."""
    header = ("layer", "pair", "key_error", "value_error", "score_error", "output_error", "kl", "kept")
    rows = [
        [
            str(profile.layer), profile.pair.name, repr(profile.key_error), repr(profile.value_error),
            repr(profile.score_error), repr(profile.output_error), repr(profile.kl),
            str(profile.pair in result.space.kept[profile.layer]).lower(),
        ]
        for profile in result.profiles
    ]  # fmt: skip
    return _csv(header, rows)


def group_of(space: SearchSpace, layer: int) -> int | None:
    """Index of the group that holds a layer, or ``None``."""
    return next((index for index, group in enumerate(space.groups) if layer in group.layers), None)


def _layer_names(model: ModelInfo) -> list[str]:
    return [f"layer_{index}" for index in range(len(model.layers))]


def _candidate_row(candidate: Candidate, on_front: bool) -> list[str]:
    row = [str(candidate.order), str(candidate.origin), str(on_front).lower()]
    row += [repr(candidate.nominal_bits), repr(candidate.effective_bits)]
    for score in (candidate.calibration, candidate.evaluation):
        if score is None:
            row += [""] * 5
        else:
            row += [repr(number) for number in (score.kl.mean, score.kl.low, score.kl.high)]
            row += [repr(score.top1_agreement), repr(score.nll_change)]
    return row + [layer.name for layer in candidate.policy.layers]


def _csv(header: tuple[str, ...], rows: list[list[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_plain(cell) for cell in row] for row in rows])
    return out.getvalue()


def _plain(cell: str) -> str:
    # A spreadsheet would run a cell that begins so as a formula; numbers are left alone.
    if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        try:
            float(cell)
        except ValueError:
            return "'" + cell
    return cell
