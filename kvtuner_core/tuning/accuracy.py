"""Shares of right answers with intervals, and how a policy differs from full precision on the same questions."""

import math
from collections.abc import Sequence

import numpy as np

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.questions import Reply, TaskDifference, TaskKind, TaskScore, same_questions
from kvtuner_core.errors import InputError

_RESAMPLES = 2000
_Z = 1.959964


def task_score(kind: TaskKind, replies: Sequence[Reply], *, seed: int = 0) -> TaskScore:
    """Join replies to a score.

    Args:
        kind: The task.
        replies: At least one.
        seed: Seed of the bootstrap.

    Raises:
        InputError: If there are no replies.
    """
    if not replies:
        raise InputError("A task needs at least one question; got none.")
    nll = np.array([reply.nll for reply in replies])
    right = sum(reply.correct for reply in replies)
    return TaskScore(kind=kind, accuracy=wilson(right, len(replies)), nll=_mean(nll, seed), replies=tuple(replies))


def wilson(right: int, count: int) -> Interval:
    """A share with its 95% Wilson score interval, which is of use at 0 and 1, too (Wilson 1927)."""
    share, spread = right / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return Interval(mean=share, low=max(0.0, min(share, middle - half)), high=min(1.0, max(share, middle + half)))


def task_difference(score: TaskScore, full: TaskScore, *, seed: int = 0) -> TaskDifference:
    """A policy minus full precision; questions are resampled together, 2,000 times.

    Raises:
        InputError: If the scores are not of the same questions.
    """
    if not same_questions(score, full):
        raise InputError(
            f"Scores are compared on the same questions; got {len(score.replies)} of {score.kind} and "
            f"{len(full.replies)} of {full.kind}. Use the same task, number of items and seed."
        )
    pairs = list(zip(score.replies, full.replies, strict=True))
    right = np.array([float(one.correct) - float(other.correct) for one, other in pairs])
    return TaskDifference(
        accuracy=_mean(right, seed),
        nll=_mean(np.array([one.nll - other.nll for one, other in pairs]), seed),
        lost=int((right < 0).sum()),
        gained=int((right > 0).sum()),
    )


def _mean(values: np.ndarray, seed: int) -> Interval:
    mean = float(values.mean())
    if len(values) == 1 or not np.isfinite(values).all():
        return Interval(mean=mean, low=mean, high=mean)
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(mean=mean, low=float(low), high=float(high))
