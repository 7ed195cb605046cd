"""A policy on every kind of text, in real values."""

from dataclasses import replace

from kvtuner_core.domain.kinds import KIND_TASKS, KindRow, KindsResult, KindsSpec
from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.questions import Reply, TaskKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.tuning.accuracy import task_difference, task_score
from tests.fakes.studies import SyntheticScorer, model_info, provenance


def kinds_result(spec=None, *, run="kinds", right=22):
    """A K4V4 policy that loses one answer in each task and gains another."""
    info = model_info(4)
    policy = KVPolicy.uniform("K4V4", layers=4, scheme=QuantScheme.per_token())
    spec = spec or KindsSpec(model=ModelSpec(), policy=policy)
    score = SyntheticScorer(info).score(policy)
    rows = tuple(KindRow(kind=kind, prompts=str(kind), prompts_digest="d" * 64, score=score) for kind, _ in KIND_TASKS)
    result = KindsResult(
        run=run, spec=spec, model=info, rows=rows, effective_bits=4.5, provenance=provenance(), seconds=40.0
    )
    for kind, task in KIND_TASKS:
        if spec.items_of(task):
            result = with_right(result, kind, own=right, full=right, turned=1)
    return result


def with_kl(result, kind, kl, *, low=None):
    """The same with another KL on one kind."""
    interval = Interval(mean=kl, low=0.9 * kl if low is None else low, high=1.1 * kl)
    return _changed(result, kind, lambda row: replace(row, score=replace(row.score, kl=interval)))


def with_right(result, kind, *, own, full, count=25, turned=0):
    """The same with other numbers of right answers; ``turned`` questions are right with the policy alone."""
    task = dict(KIND_TASKS)[kind] or TaskKind.RECALL
    scores = [
        task_score(task, [_reply(shift <= number < shift + right) for number in range(count)])
        for right, shift in ((own, turned), (full, 0))
    ]
    change = task_difference(*scores)
    return _changed(result, kind, lambda row: replace(row, task=scores[0], full=scores[1], difference=change))


def _reply(correct):
    return Reply(correct=correct, nll=0.4 if correct else 2.0, given="12345", prompt_tokens=350, seconds=0.8)


def _changed(result, kind, change):
    return replace(result, rows=tuple(change(row) if row.kind == kind else row for row in result.rows))
