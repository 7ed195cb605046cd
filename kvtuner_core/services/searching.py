"""Searches: sweep, search what is left, and score the front again on prompts the search did not see."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.stopping import telling
from kvtuner_core.domain.study import (
    Candidate,
    CandidateOrigin,
    SearchResult,
    SearchSpec,
    StoppedCandidate,
    SweepResult,
)
from kvtuner_core.services.layer_scoring import evaluated_picks
from kvtuner_core.services.measuring import Measurements, stamped
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.requests import calibration_session, check_search, evaluation_session
from kvtuner_core.services.results import sweep_part
from kvtuner_core.services.sweeping import SWEEP_STAGE, sweep
from kvtuner_core.services.work import Cancelled, never, new_run_id
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import to_json
from kvtuner_core.tuning import PolicySearch, baselines, hypervolume, norms_of, pareto_front, ranked_by

SEARCH_STAGE = "search"
EVALUATION_STAGE = "evaluation"


def search(
    ws: Workspace, spec: SearchSpec, cancelled: Cancelled = never, *, run: str | None = None
) -> Generator[Progress, None, SearchResult]:
    """Sweep, search the space that is left, and score the front again on evaluation prompts.

    The search is deterministic given the scores, so the same request started again replays what
    the store knows and goes on from there.

    Args:
        ws: The workspace.
        spec: What to search.
        cancelled: Polled before each measurement.
        run: Id under which the result is stored, or ``None`` to store none.

    Yields:
        The sweep's progress, then a `Progress` per policy with the `Candidate` as its event (a
        `StoppedCandidate` where it was stopped): first the baselines, then the searched ones, then
        front and baselines with their evaluation.

    Raises:
        InputError: If the request does not fit.
        CancelledError: If somebody asked to stop; what was measured is kept.
    """
    check_search(spec)
    calibration = calibration_session(ws, spec.sweep)
    evaluation = evaluation_session(ws, spec, calibration.prompts)
    swept = yield from sweep(ws, spec.sweep, cancelled, run=None if run is None else sweep_part(run))
    report = yield from ensure_report(ws, spec.sweep.model, cancelled)
    started = time.perf_counter()
    measurements = replace(Measurements.of(ws, calibration, report, cancelled), objective=spec.objective)
    uniform, found, stopped = yield from _search(measurements, spec, swept)
    searched = time.perf_counter()
    checks = replace(Measurements.of(ws, evaluation, report, cancelled), objective=spec.objective)
    uniform, front = yield from _evaluate(checks, uniform, pareto_front(found, spec.objective))
    if swept.scores is not None and swept.scores.picks:
        swept = replace(swept, scores=(yield from evaluated_picks(checks, swept.scores)))
    result = SearchResult(
        run=run or new_run_id(),
        spec=spec,
        sweep=swept,
        candidates=found,
        front=front,
        baselines=uniform,
        hypervolume=hypervolume(front, spec.objective),
        provenance=stamped(report),
        seconds=(
            (SWEEP_STAGE, swept.seconds),
            (SEARCH_STAGE, searched - started),
            (EVALUATION_STAGE, time.perf_counter() - searched),
        ),
        evaluation_digest=evaluation.prompts.digest,
        ranked_by=ranked_by(spec.strategy, norms_of(swept.scores)),
        stopped=stopped,
    )
    if run is not None:
        ws.store.put_result(run, to_json(result))
    return result


_Found = tuple[Candidate, ...]


def _search(
    measurements: Measurements, spec: SearchSpec, swept: SweepResult
) -> Generator[Progress, None, tuple[_Found, _Found, tuple[StoppedCandidate, ...]]]:
    geometry = swept.model.layers
    policies = baselines(layers=len(geometry), scheme=spec.sweep.scheme)
    searcher = PolicySearch(
        spec, space=swept.space, profiles=swept.profiles, geometry=geometry, norms=norms_of(swept.scores)
    )
    total = len(policies) + searcher.most
    uniform: list[Candidate] = []
    yield Progress(stage=SEARCH_STAGE, done=0, total=total, message=f"{len(swept.space.groups)} layer groups")
    with closing(measurements.score_many(policies)) as scores:
        for policy, score in zip(policies, scores, strict=True):
            uniform.append(_baseline(policy, score, geometry, order=len(uniform)))
            yield _candidate_progress(measurements, SEARCH_STAGE, uniform[-1], (len(uniform), total))
    measurements.telling = telling([item.calibration for item in uniform], spec.objective)
    found: list[Candidate] = []
    stopped: list[StoppedCandidate] = []
    for outcome in searcher.outcomes(measurements):
        if isinstance(outcome, Candidate):
            found.append(outcome)
        else:
            stopped.append(outcome)
        done = len(uniform) + len(found) + len(stopped)
        yield _candidate_progress(measurements, SEARCH_STAGE, outcome, (done, total))
    return tuple(uniform), tuple(found), tuple(stopped)


def _baseline(policy: KVPolicy, score: PolicyScore, geometry: tuple[LayerGeometry, ...], *, order: int) -> Candidate:
    return Candidate(
        policy=policy,
        origin=CandidateOrigin.BASELINE,
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, geometry),
        calibration=score,
        order=order,
    )


def _evaluate(
    measurements: Measurements, uniform: _Found, front: _Found
) -> Generator[Progress, None, tuple[_Found, _Found]]:
    chosen = (*uniform, *front)
    total = len(chosen)
    scored: dict[int, Candidate] = {}
    yield Progress(stage=EVALUATION_STAGE, done=0, total=total, message="Front and baselines on evaluation prompts")
    order = sorted(range(total), key=lambda place: chosen[place].policy.by_layers)
    with closing(measurements.score_many([chosen[place].policy for place in order])) as scores:
        for place, score in zip(order, scores, strict=True):
            scored[place] = replace(chosen[place], evaluation=score)
            yield _candidate_progress(measurements, EVALUATION_STAGE, scored[place], (len(scored), total))
    both = tuple(scored[place] for place in range(total))
    return both[: len(uniform)], both[len(uniform) :]


def _candidate_progress(
    measurements: Measurements, stage: str, candidate: Candidate | StoppedCandidate, count: tuple[int, int]
) -> Progress:
    objective = measurements.objective
    if isinstance(candidate, Candidate):
        found = f"{objective.label} {candidate.value(objective).mean:.4g}"
    else:
        found = f"stopped, {objective.label} at least {candidate.partial.bound:.4g}"
    message = f"{candidate.policy.name}: {found} at {candidate.effective_bits:.2f} effective bits"
    return measurements.progress(stage, *count, message=message, event=candidate)
