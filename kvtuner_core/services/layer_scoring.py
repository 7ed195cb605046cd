"""Scores of a sweep's layers beside its errors, and the policies that each score would pick."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair, candidate_pairs
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.scores import ErrorScores, ScoreName, ScorePick, SweepScores, WeightScores
from kvtuner_core.domain.study import SweepSpec
from kvtuner_core.domain.tasks import ErrorScoresTask, WeightScoresTask
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.measuring import Measurements, stamped
from kvtuner_core.services.work import answer_of
from kvtuner_core.store import Identity
from kvtuner_core.tuning.scores import implied_policy, score_table

SCORES_STAGE = "scores"

BUDGET_PAIRS = tuple(PrecisionPair.parse(name) for name in ("K4V4", "K4V2"))
"""Uniform policies whose effective bits bound what each score may pick."""

SCORE_PARTS = 2
"""Gradients times errors, and the norms of the weights and of their gradients."""


def known_parts(measurements: Measurements, spec: SweepSpec) -> int:
    """How many of the parts that the sweep asks for are stored."""
    if not spec.scores:
        return 0
    return (_known_errors(measurements, spec) is not None) + (_known_weights(measurements) is not None)


def known_scores(measurements: Measurements, spec: SweepSpec) -> SweepScores | None:
    """The stored scores that the sweep asks for, without picks; ``None`` unless all are stored."""
    if not spec.scores:
        return None
    errors, weights = _known_errors(measurements, spec), _known_weights(measurements)
    return None if errors is None or weights is None else SweepScores(errors=errors, weights=weights)


def layer_scores(
    measurements: Measurements, spec: SweepSpec, profiles: Sequence[ErrorProfile]
) -> Generator[Progress, None, SweepScores | None]:
    """Score the layers by gradients and weights, on the calibration prompts alone; each part is stored when it is done.

    Args:
        measurements: Of the calibration prompts.
        spec: The sweep; ``None`` comes back unless it asks for scores.
        profiles: The sweep's errors, which the picks are compared with.

    Yields:
        A `Progress` per part, and per policy picked.

    Raises:
        CancelledError: If somebody asked to stop; what was finished is kept.
    """
    if not spec.scores:
        return None
    total = SCORE_PARTS + (len(ScoreName) * len(BUDGET_PAIRS) if spec.compare_scores else 0)
    yield Progress(stage=SCORES_STAGE, done=0, total=total, message="Gradients times errors")
    for done in _measured(measurements, spec):
        yield Progress(stage=SCORES_STAGE, done=done, total=total, message="Gradients of the weights")
    scores = known_scores(measurements, spec)
    if scores is None:
        raise ComputeError("A worker must answer what it was asked; the scores of the layers are not all there.")
    if spec.compare_scores:
        picks = yield from _picks(measurements, spec, profiles, scores)
        scores = replace(scores, picks=picks)
    return scores


def evaluated_picks(measurements: Measurements, scores: SweepScores) -> Generator[Progress, None, SweepScores]:
    """Score what each score picked on evaluation prompts, too."""
    done: list[ScorePick] = []
    with closing(measurements.score_many([pick.policy for pick in scores.picks])) as measured:
        for pick, score in zip(scores.picks, measured, strict=True):
            done.append(replace(pick, evaluation=score))
            yield _pick_progress(done[-1], len(done), len(scores.picks))
    return replace(scores, picks=tuple(done))


def _picks(
    measurements: Measurements, spec: SweepSpec, profiles: Sequence[ErrorProfile], scores: SweepScores
) -> Generator[Progress, None, tuple[ScorePick, ...]]:
    geometry = measurements.report.info.layers
    table = score_table(profiles, scores)
    wanted = [
        (name, bits, implied_policy(table, name, scheme=spec.scheme, geometry=geometry, max_bits=bits))
        for bits in budgets(spec, len(geometry), measurements)
        for name in table.names
    ]
    picks: list[ScorePick] = []
    with closing(measurements.score_many([policy for _, _, policy in wanted])) as measured:
        for (name, bits, policy), score in zip(wanted, measured, strict=True):
            own = effective_bits(policy, geometry)
            picks.append(ScorePick(score=name, max_bits=bits, policy=policy, effective_bits=own, calibration=score))
            yield _pick_progress(picks[-1], SCORE_PARTS + len(picks), SCORE_PARTS + len(wanted))
    return tuple(picks)


def budgets(spec: SweepSpec, layers: int, measurements: Measurements) -> tuple[float, ...]:
    """Effective bits of those uniform policies of `BUDGET_PAIRS` whose pair was swept, most first."""
    swept = candidate_pairs(spec.bits)
    uniform = [KVPolicy.uniform(pair, layers=layers, scheme=spec.scheme) for pair in BUDGET_PAIRS if pair in swept]
    return tuple(effective_bits(policy, measurements.report.info.layers) for policy in uniform)


def _pick_progress(pick: ScorePick, done: int, total: int) -> Progress:
    kl = (pick.evaluation or pick.calibration).kl.mean
    message = f"Picked by {pick.score} at {pick.effective_bits:.2f} effective bits: KL {kl:.4g}"
    return Progress(stage=SCORES_STAGE, done=done, total=total, message=message)


def _measured(measurements: Measurements, spec: SweepSpec) -> Generator[int, None, None]:
    """Measure and store what is not stored yet, side by side where there are several workers; yields how many are."""
    pairs = candidate_pairs(spec.bits)
    identity, evaluation = measurements.identity, measurements.evaluation
    missing: list[tuple[Identity, ErrorScoresTask | WeightScoresTask]] = []
    if _known_errors(measurements, spec) is None:
        missing.append((identity.error_scores(pairs), ErrorScoresTask(evaluation=evaluation, pairs=pairs)))
    if _known_weights(measurements) is None:
        missing.append((identity.weight_scores(), WeightScoresTask(evaluation=evaluation)))
    done = SCORE_PARTS - len(missing)
    if missing and measurements.cancelled():
        raise CancelledError("The work was stopped on request; what was finished is kept.")
    tasks = [task for _, task in missing]
    with closing(
        measurements.compute.run_many(tasks, report=measurements.report, cancelled=measurements.cancelled)
    ) as answers:
        for index, answer in answers:
            is_errors = isinstance(tasks[index], ErrorScoresTask)
            found = answer_of(ErrorScores, answer) if is_errors else answer_of(WeightScores, answer)
            measurements.store.put_layer_scores(missing[index][0], found, stamped(measurements.report))
            done += 1
            yield done


def _known_errors(measurements: Measurements, spec: SweepSpec) -> ErrorScores | None:
    identity = measurements.identity.error_scores(candidate_pairs(spec.bits))
    return measurements.store.get_layer_scores(ErrorScores, identity.key)


def _known_weights(measurements: Measurements) -> WeightScores | None:
    return measurements.store.get_layer_scores(WeightScores, measurements.identity.weight_scores().key)
