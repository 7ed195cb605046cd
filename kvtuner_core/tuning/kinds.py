"""Whether a policy does on other kinds of text what the prompts of its search promise."""

from collections.abc import Iterator

from kvtuner_core.domain.kinds import KindRow, KindsResult
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.tuning.checks import Check

_FAR_WORSE = 2.0
_FEW_ITEMS = 20


def kind_checks(result: KindsResult, tuned: PolicyScore | None = None) -> tuple[Check, ...]:
    """Findings on a policy's kinds, in plain words.

    Args:
        result: The policy on every kind.
        tuned: The policy on the evaluation prompts of its search, which are of the kinds it was tuned
            on; ``None`` where there was no search: the kinds are then held against each other.
    """
    return (_differ(result, tuned), *_tasks(result))


def _differ(result: KindsResult, tuned: PolicyScore | None) -> Check:
    """Whether KL on a kind is far above that on the prompts of the search, by more than both intervals."""
    if result.spec.policy.is_full:
        return Check(name="kinds", good=True, text="Nothing is quantised: every kind is as in full precision.")
    calmest = min(result.rows, key=lambda row: row.score.kl.mean)
    base = tuned or calmest.score
    where = "the search's evaluation prompts" if tuned else f"{calmest.kind}"
    worst = max(result.rows, key=lambda row: row.score.kl.mean)
    ratio = worst.score.kl.mean / base.kl.mean if base.kl.mean > 0 else 1.0
    text = (
        f"KL is highest on {worst.kind}: {worst.score.kl.mean:.3g} nats, {ratio:.1f} times that on {where} "
        f"({base.kl.mean:.3g})."
    )
    if ratio >= _FAR_WORSE and worst.score.kl.low > base.kl.high:
        return Check(name="kinds", good=False, text=f"{text} Calibrate on texts of this kind if you serve them.")
    return Check(name="kinds", good=True, text=text)


def _tasks(result: KindsResult) -> Iterator[Check]:
    for row in result.rows:
        check = _task(row)
        if check is not None:
            yield check


def _task(row: KindRow) -> Check | None:
    """Whether right answers are lost, by more than chance."""
    if row.task is None or row.full is None or row.difference is None:
        return None
    own, full, change, count = row.task.accuracy, row.full.accuracy, row.difference, len(row.task.replies)
    text = (
        f"{100 * own.mean:.0f}% right of {count} questions, full precision {100 * full.mean:.0f}%; "
        f"{change.lost} lost, {change.gained} gained."
    )
    name = f"{row.task.kind}"
    if change.accuracy.high < 0:
        return Check(name=name, good=False, text=f"{text} Use a policy with more bits where answers must be exact.")
    if count < _FEW_ITEMS:
        return Check(name=name, good=False, text=f"{text} So few questions tell little: use at least {_FEW_ITEMS}.")
    if change.lost + change.gained and change.accuracy.low <= 0 <= change.accuracy.high:
        return Check(name=name, good=True, text=f"{text} Not distinguishable from full precision.")
    return Check(name=name, good=True, text=text)
