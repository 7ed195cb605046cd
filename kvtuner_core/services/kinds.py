"""One policy on kinds of text that it was not tuned on, as a stored run."""

import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from kvtuner_core.domain.kinds import KIND_TASKS, KindRow, KindsResult, KindsSpec
from kvtuner_core.domain.memory import check_layers, effective_bits
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.prompts import MIN_PREFIX, MIN_SUFFIX, PromptKind
from kvtuner_core.domain.questions import Question, Reply, TaskKind
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.domain.study import SearchResult
from kvtuner_core.domain.tasks import EvaluationSpec, ModelReport
from kvtuner_core.services.asking import DEFAULT_ITEMS, MAX_ITEMS, Asker, QuestionSource, questions_of, scores
from kvtuner_core.services.measuring import Measurements, stamped
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.prompts import shipped_of_kind
from kvtuner_core.services.requests import MAX_SEED, MAX_TOKENS, check_between
from kvtuner_core.services.work import Cancelled, never, new_record, new_run_id, start
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import from_json, to_json
from kvtuner_core.tuning.accuracy import task_difference

KINDS_STAGE = "kinds"


def kinds_spec(
    result: SearchResult, policy: KVPolicy, *, items: int = DEFAULT_ITEMS, exact_match_items: int = 0
) -> KindsSpec:
    """What to measure of a policy of a search: texts are cut as the search's were, tasks are as asked for."""
    sweep = result.spec.sweep
    return KindsSpec(
        model=sweep.model,
        policy=policy,
        prefix_tokens=sweep.prefix_tokens,
        suffix_tokens=result.spec.evaluation_suffix_tokens,
        items=items,
        exact_match_items=exact_match_items,
        seed=sweep.seed,
    )


def check_kinds(spec: KindsSpec) -> None:
    """Raise `InputError` for a request that cannot be run on any model."""
    check_between("prefix_tokens", spec.prefix_tokens, MIN_PREFIX, MAX_TOKENS)
    check_between("suffix_tokens", spec.suffix_tokens, MIN_SUFFIX, MAX_TOKENS)
    check_between("seed", spec.seed, 0, MAX_SEED)
    check_between("items", spec.items, 0, MAX_ITEMS)
    check_between("exact_match_items", spec.exact_match_items, 0, MAX_ITEMS)


def measure_kinds(
    ws: Workspace, spec: KindsSpec, cancelled: Cancelled = never, *, run: str | None = None
) -> Generator[Progress, None, KindsResult]:
    """Measure a policy on every kind; what is stored is used again, down to the single question.

    Args:
        ws: The workspace.
        spec: What to measure.
        cancelled: Polled before each measurement.
        run: Id under which the result is stored, or ``None`` to store none.

    Raises:
        InputError: If the request does not fit.
        CancelledError: If somebody asked to stop; what was measured is kept.
    """
    check_kinds(spec)
    started = time.perf_counter()
    report = yield from ensure_report(ws, spec.model, cancelled)
    check_layers(spec.policy, report.info.layers)
    rows = []
    asker = Asker(ws=ws, model=spec.model, report=report, cancelled=cancelled, seed=spec.seed)
    done, total, reused = 0, work_of(spec), 0
    for kind, task in KIND_TASKS:
        message = f"{spec.policy.name} on {kind}"
        yield Progress(stage=KINDS_STAGE, done=done, total=total, reused=reused + asker.reused // 2, message=message)
        row, known = _row(ws, spec, report, kind, cancelled)
        done, reused = done + 1, reused + known
        replies = []
        for both in asker.both(spec.policy, _questions(ws, spec, task)):
            replies.append(both)
            done += 1
            yield Progress(
                stage=KINDS_STAGE,
                done=done,
                total=total,
                reused=reused + asker.reused // 2,
                message=f"{message}, {task}",
            )
        rows.append(_with_task(row, task, replies, seed=spec.seed) if task and replies else row)
    yield Progress(stage=KINDS_STAGE, done=total, total=total, reused=reused + asker.reused // 2)
    result = KindsResult(
        run=run or new_run_id(),
        spec=spec,
        model=report.info,
        rows=tuple(rows),
        effective_bits=effective_bits(spec.policy, report.info.layers),
        provenance=stamped(report),
        seconds=time.perf_counter() - started,
    )
    if run is not None:
        ws.store.put_result(run, to_json(result))
    return result


def work_of(spec: KindsSpec) -> int:
    """Units of work: a score of each kind, and each question asked twice."""
    return sum(1 + spec.items_of(task) for _, task in KIND_TASKS)


def _row(
    ws: Workspace, spec: KindsSpec, report: ModelReport, kind: PromptKind, cancelled: Cancelled
) -> tuple[KindRow, int]:
    """The score on one kind, and whether (1 or 0) it was stored already."""
    prompts = shipped_of_kind(kind)
    evaluation = EvaluationSpec(
        model=spec.model,
        prompts=prompts,
        scheme=spec.policy.scheme,
        prefix_tokens=spec.prefix_tokens,
        suffix_tokens=spec.suffix_tokens,
        seed=spec.seed,
    )
    measurements = Measurements.of(ws, evaluation, report, cancelled)
    score = measurements.score(spec.policy)
    return KindRow(kind=kind, prompts=prompts.name, prompts_digest=prompts.digest, score=score), measurements.reused


def _questions(ws: Workspace, spec: KindsSpec, task: TaskKind | None) -> tuple[Question, ...]:
    items = spec.items_of(task)
    if task is None or not items:
        return ()
    return questions_of(ws, spec.model, QuestionSource(kind=task, items=items, seed=spec.seed))


def _with_task(row: KindRow, task: TaskKind, replies: Sequence[tuple[Reply, Reply]], *, seed: int) -> KindRow:
    own, full = scores(task, replies, seed=seed)
    return replace(row, task=own, full=full, difference=task_difference(own, full, seed=seed))


def kinds_record(spec: KindsSpec) -> RunRecord:
    """The record of a measurement that has not begun."""
    title = f"{spec.policy.name} of {spec.model.reference} on other kinds of text"
    return new_record(RunKind.EVALUATION, title=title, spec=to_json(spec))


def start_kinds(ws: Workspace, spec: KindsSpec) -> str:
    """Queue `measure_kinds`; returns the run's id.

    Where the same request was begun before, that run goes on from what is stored; a finished one is left as it is.

    Raises:
        InputError: If the request does not fit any model.
    """
    check_kinds(spec)
    record = kinds_run(ws, spec) or kinds_record(spec)
    if record.status is RunStatus.DONE:
        return record.id
    return start(ws, record, lambda run, cancelled: measure_kinds(ws, spec, cancelled, run=run))


def kinds_run(ws: Workspace, spec: KindsSpec) -> RunRecord | None:
    """The run of this very request, the finished one before any other, or ``None``."""
    wanted = to_json(spec)
    found = [record for record in ws.store.runs(kinds=(RunKind.EVALUATION,)) if record.spec == wanted]
    return next((record for record in found if record.status is RunStatus.DONE), next(iter(found), None))


def load_kinds(ws: Workspace, run: str) -> KindsResult | None:
    """What a run found, or ``None`` while there is nothing."""
    text = ws.store.get_result(run)
    return None if text is None else from_json(KindsResult, text)
