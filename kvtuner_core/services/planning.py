"""What a study will cost before it starts, and how much of it is stored already."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpec, SweepSpec
from kvtuner_core.domain.tasks import EvaluationSpec, ModelReport
from kvtuner_core.services.layer_scoring import SCORE_PARTS, known_parts, known_scores
from kvtuner_core.services.measuring import Measurements
from kvtuner_core.services.models import describe, report
from kvtuner_core.services.requests import calibration_session, check_search, check_sweep, evaluation_session
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import from_json
from kvtuner_core.tuning import PolicySearch, baselines, build_space, norms_of, pareto_front
from kvtuner_core.tuning.asking import Told

_TYPICAL_FRONT = 20
_LOOK_BACK = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        total: Measurements in all: layers x pairs of the sweep and its scores, and for a search the policies on
            calibration prompts plus those on evaluation prompts as far as they are known beforehand.
        known: How many of them are stored already.
        model_known: Whether the model was loaded before as it is now; without, ``known`` is 0.
        seconds: Estimate from earlier runs of the same model on the same kind of device, or
            ``None`` where there is none.
    """

    total: int
    known: int
    model_known: bool
    seconds: float | None


class _Unknown(Exception):  # noqa: N818
    """A replay met a policy whose score is not stored."""


class _StoredScorer:
    """A `Scorer` that never measures."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        """The stored scores, up to the first that is not there."""
        for policy in policies:
            known = self._measurements.known_score(policy)
            if known is None:
                raise _Unknown
            yield known

    def score_until(
        self, policies: Sequence[KVPolicy], bars: Sequence[float]
    ) -> Generator[PolicyScore | PartialScore, None, None]:
        """What is stored of each policy, up to the first of which it is not enough."""
        for policy, bar in zip(policies, bars, strict=True):
            known = self._measurements.known_until(policy, bar)
            if known is None:
                raise _Unknown
            yield known


def plan_sweep(ws: Workspace, spec: SweepSpec) -> Plan:
    """What `sweep` would measure.

    Raises:
        InputError: If the request does not fit.
    """
    check_sweep(spec)
    session = calibration_session(ws, spec)
    known_model = report(ws, spec.model)
    info = known_model.info if known_model else describe(ws, spec.model.reference)
    total = len(info.layers) * len(candidate_pairs(spec.bits)) + (SCORE_PARTS if spec.scores else 0)
    if known_model is None:
        return Plan(total=total, known=0, model_known=False, seconds=None)
    measurements = Measurements.of(ws, session, known_model)
    known = _known_profiles(measurements, spec) + known_parts(measurements, spec)
    seconds = _estimate((total - known) * _tokens(session), _paces(ws, known_model)[0])
    return Plan(total=total, known=known, model_known=True, seconds=seconds)


def plan_search(ws: Workspace, spec: SearchSpec) -> Plan:
    """What `search` would measure; a stored beginning is replayed to see how far it goes.

    Raises:
        InputError: If the request does not fit.
    """
    check_search(spec)
    session = calibration_session(ws, spec.sweep)
    evaluation = evaluation_session(ws, spec, session.prompts)
    first = plan_sweep(ws, spec.sweep)
    known_model = report(ws, spec.sweep.model)
    if known_model is None:
        total = first.total + spec.evaluations + 2 * _baseline_count(describe(ws, spec.sweep.model.reference), spec)
        return Plan(total=total, known=0, model_known=False, seconds=None)
    uniform = baselines(layers=len(known_model.info.layers), scheme=spec.sweep.scheme)
    calibrated = replace(Measurements.of(ws, session, known_model), objective=spec.objective)
    evaluated = replace(Measurements.of(ws, evaluation, known_model), objective=spec.objective)
    wanted, found = _replay(calibrated, spec, first)
    complete = len(found) == wanted
    scored = (outcome for outcome in found if isinstance(outcome, Candidate))
    front = tuple(candidate.policy for candidate in pareto_front(scored, spec.objective)) if complete else ()
    searched = len(uniform) + wanted
    searched_known = _known_scores(calibrated, uniform) + len(found)
    checked, checked_known = len(uniform) + len(front), _known_scores(evaluated, (*uniform, *front))
    left = (
        (first.total - first.known) * _tokens(session),
        (searched - searched_known) * _tokens(session)
        + (checked - checked_known + (0 if complete else _TYPICAL_FRONT)) * _tokens(evaluation),
    )
    return Plan(
        total=first.total + searched + checked,
        known=first.known + searched_known + checked_known,
        model_known=True,
        seconds=_seconds(left, _paces(ws, known_model)),
    )


def _baseline_count(info: ModelInfo, spec: SearchSpec) -> int:
    return len(baselines(layers=len(info.layers), scheme=spec.sweep.scheme))


def _known_profiles(measurements: Measurements, spec: SweepSpec) -> int:
    pairs = candidate_pairs(spec.bits)
    layers = range(len(measurements.report.info.layers))
    keys = (measurements.identity.profile(layer, pair).key for layer in layers for pair in pairs)
    return measurements.store.count_profiles(keys)


def _known_scores(measurements: Measurements, policies: Iterable[KVPolicy]) -> int:
    # One by one: a uniform policy may be on the front, too, and counts as two units of progress.
    return sum(measurements.known_score(policy) is not None for policy in policies)


def _replay(measurements: Measurements, spec: SearchSpec, first: Plan) -> tuple[int, list[Told]]:
    """Policies the search will score, and what is known to become of them up to the first unknown one."""
    found: list[Told] = []
    if first.known < first.total:
        return spec.evaluations, found
    sweep = spec.sweep
    geometry = measurements.report.info.layers
    profiles = [
        profile
        for layer in range(len(geometry))
        for pair in candidate_pairs(sweep.bits)
        if (profile := measurements.known_profile(layer, pair)) is not None
    ]
    space = build_space(profiles, sweep.pruning, sweep.grouping)
    norms = norms_of(known_scores(measurements, sweep))
    searcher = PolicySearch(spec, space=space, profiles=profiles, geometry=geometry, norms=norms)
    try:
        found.extend(searcher.outcomes(_StoredScorer(measurements)))
    except _Unknown:
        return searcher.most, found
    return len(found), found


def _tokens(session: EvaluationSpec) -> int:
    return len(session.prompts.prompts) * session.suffix_tokens


_Paces = tuple[float | None, float | None]
"""Seconds per scored token of a profile and of a policy's score."""


def _paces(ws: Workspace, known: ModelReport) -> _Paces:
    sweeps, scores = [], []
    records = ws.store.runs(kinds=(RunKind.SEARCH,), statuses=(RunStatus.DONE,))
    for record in records[:_LOOK_BACK]:
        result = _result(ws, record.id)
        if result is None or not _same(result, known):
            continue
        spec = result.sweep.spec
        sweeps.append(result.sweep.seconds / max(1, len(result.sweep.profiles) * spec.limit * spec.suffix_tokens))
        calibrations = [candidate.calibration for candidate in (*result.baselines, *result.candidates)]
        tokens = sum(score.tokens for score in calibrations)
        scores.append(sum(score.seconds for score in calibrations) / max(1, tokens))
    # A run that reused measurements took less than they cost, so the slowest one tells.
    return max(sweeps, default=None), max(scores, default=None)


def _result(ws: Workspace, run: str) -> SearchResult | None:
    text = ws.store.get_result(run)
    return None if text is None else from_json(SearchResult, text)


def _same(result: SearchResult, known: ModelReport) -> bool:
    mine, theirs = result.provenance, known.provenance
    return result.sweep.model.fingerprint == known.info.fingerprint and (mine.device_type, mine.dtype) == (
        theirs.device_type,
        theirs.dtype,
    )


def _seconds(left: tuple[int, int], paces: _Paces) -> float | None:
    parts = [_estimate(tokens, pace) for tokens, pace in zip(left, paces, strict=True)]
    return None if None in parts else sum(part for part in parts if part is not None)


def _estimate(tokens: int, pace: float | None) -> float | None:
    if tokens == 0:
        return 0.0
    return None if pace is None else tokens * pace
