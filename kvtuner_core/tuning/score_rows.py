"""What a sweep's scores of its layers say side by side."""

from dataclasses import dataclass

from kvtuner_core.domain.scores import ScoreName, ScorePick, SweepScores
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.tuning.scores import ScoreTable, gradient_norms, score_table, weight_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One score beside the others.

    Attributes:
        name: Which score.
        seconds: What it cost beside the reading of the prompts, or ``None`` where that is not known.
        correlation: Rank correlation over the layers to the isolated KL, mean of all pairs; ``None`` if undefined.
        picks: What it would pick, bound by bound.
    """

    name: ScoreName
    seconds: float | None
    correlation: float | None
    picks: tuple[ScorePick, ...]


def table_of(result: SweepResult) -> ScoreTable:
    """Every score of a sweep; isolated KL and output error alone where it has no others."""
    return score_table(result.profiles, result.scores)


def score_rows(result: SweepResult) -> tuple[ScoreRow, ...]:
    """One row per score, isolated KL first."""
    table, costs = table_of(result), score_costs(result)
    picks = result.scores.picks if result.scores else ()
    return tuple(
        ScoreRow(
            name=name,
            seconds=costs[name],
            correlation=table.correlation(name, ScoreName.KL),
            picks=tuple(pick for pick in picks if pick.score is name),
        )
        for name in table.names
    )


def score_costs(result: SweepResult) -> dict[ScoreName, float | None]:
    """Seconds that each score took when it was measured, the shared reading of the prompts left out."""
    local = sum(profile.local_seconds for profile in result.profiles)
    kl = sum(profile.kl_seconds for profile in result.profiles)
    costs: dict[ScoreName, float | None] = dict.fromkeys(ScoreName)
    costs |= {ScoreName.KL: kl or None, ScoreName.OUTPUT_ERROR: local or None}
    if result.scores is not None:
        errors, weights = result.scores.errors, result.scores.weights
        costs |= {
            ScoreName.GRADIENT_ERROR: errors.gradient_seconds,
            ScoreName.FISHER_ERROR: errors.fisher_seconds,
            ScoreName.GRADIENT_NORM: weights.gradient_seconds,
            ScoreName.WEIGHT_NORM: weights.weight_seconds,
        }
    return costs


def side_values(scores: SweepScores, name: ScoreName) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """A norm of each layer's keys, and of its values; ``None`` for scores that are not norms, or are not there."""
    sides = {ScoreName.GRADIENT_NORM: gradient_norms, ScoreName.WEIGHT_NORM: weight_norms}
    if name not in sides or not scores.weights.layers:
        return None
    return sides[name](scores.weights.layers)
