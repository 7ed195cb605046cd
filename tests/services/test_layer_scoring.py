from dataclasses import replace

import pytest

from kvtuner_core.domain.prompts import PromptRole
from kvtuner_core.domain.scores import ScoreName
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.domain.tasks import ErrorScoresTask, ScoreTask, WeightScoresTask
from kvtuner_core.errors import CancelledError, InputError
from kvtuner_core.services.planning import plan_search, plan_sweep
from kvtuner_core.services.searching import search
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.store import from_json, to_json
from kvtuner_core.tuning.heuristics import kvmix_policy
from kvtuner_core.tuning.scores import gradient_norms
from tests.fakes.compute import Killed
from tests.services.drive import drive


def _parts(ws):
    return ws.compute.count(ErrorScoresTask), ws.compute.count(WeightScoresTask)


def test_a_sweep_scores_its_layers_once_and_for_all(ws, sweep_spec):
    seen, result = drive(sweep(ws, sweep_spec))
    scores = result.scores
    assert [(found.layer, found.pair) for found in scores.errors.pairs] == [
        (profile.layer, profile.pair) for profile in result.profiles
    ]
    assert all(found.fisher_error > 0 and found.gradient_error > 0 for found in scores.errors.pairs)
    assert all(layer.key_gradient > 0 and layer.value_weight > 0 for layer in scores.weights.layers)
    assert scores.picks == ()
    assert from_json(SweepResult, to_json(result)) == result
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("scores", 2, 2)
    _, again = drive(sweep(ws, sweep_spec))
    assert again.scores == scores
    assert _parts(ws) == (1, 1)


def test_the_two_parts_know_what_changes_them(ws, sweep_spec):
    small = replace(sweep_spec, bits=(4,))
    drive(sweep(ws, small))
    drive(sweep(ws, replace(small, bits=(2, 4))))
    assert _parts(ws) == (2, 1)
    drive(sweep(ws, replace(small, seed=1)))
    assert _parts(ws) == (3, 1)
    drive(sweep(ws, replace(small, scheme=replace(small.scheme, symmetric=True))))
    assert _parts(ws) == (4, 1)
    drive(sweep(ws, replace(small, limit=1)))
    assert _parts(ws) == (5, 2)


def test_scores_can_be_left_out(ws, sweep_spec):
    seen, result = drive(sweep(ws, replace(sweep_spec, scores=False)))
    assert result.scores is None
    assert _parts(ws) == (0, 0)
    assert seen[-1].stage == "sweep"
    with pytest.raises(InputError, match="without scores"):
        drive(sweep(ws, replace(sweep_spec, scores=False, compare_scores=True)))


def test_a_death_between_the_parts_loses_neither(open_workspace, sweep_spec):
    ws = open_workspace()
    ws.compute.dies_at = 1 + 3 * 3 + 1
    with pytest.raises(Killed):
        drive(sweep(ws, sweep_spec))
    assert _parts(ws) == (1, 0)
    ws = open_workspace()
    plan = plan_sweep(ws, sweep_spec)
    assert (plan.total, plan.known) == (29, 28)
    drive(sweep(ws, sweep_spec))
    assert _parts(ws) == (0, 1)
    assert plan_sweep(ws, sweep_spec).known == 29


def test_a_cancelled_sweep_keeps_its_errors_and_takes_no_scores(ws, sweep_spec):
    steps = sweep(ws, sweep_spec, lambda: ws.compute.profiles == 27)
    with pytest.raises(CancelledError):
        drive(steps)
    assert _parts(ws) == (0, 0)


def test_compared_scores_are_evaluated_at_the_bits_of_uniform_policies(ws, sweep_spec):
    spec = replace(sweep_spec, compare_scores=True)
    seen, result = drive(sweep(ws, spec))
    picks = result.scores.picks
    assert [pick.score for pick in picks] == [*ScoreName, *ScoreName]
    # 16 values a head and fp16 scale and offset: two bits on top.
    assert [round(pick.max_bits, 6) for pick in picks[::6]] == [6.0, 5.0]
    assert all(pick.effective_bits <= pick.max_bits for pick in picks)
    assert all(pick.calibration.kl.mean > 0 and pick.evaluation is None for pick in picks)
    assert (seen[-1].done, seen[-1].total) == (14, 14)
    different = {pick.policy for pick in picks}
    assert ws.compute.scores == len(different)
    drive(sweep(ws, spec))
    assert ws.compute.scores == len(different)


def test_only_calibration_prompts_are_scored_before_the_picks_are_made(ws, search_spec):
    spec = replace(search_spec, evaluations=2, sweep=replace(search_spec.sweep, compare_scores=True))
    _, result = drive(search(ws, spec))
    before = [
        task.evaluation.prompts.role
        for task in ws.compute.tasks
        if isinstance(task, ErrorScoresTask | WeightScoresTask)
    ]
    assert before == [PromptRole.CALIBRATION] * 2
    roles = [task.evaluation.prompts.role for task in ws.compute.tasks if isinstance(task, ScoreTask)]
    first = roles.index(PromptRole.EVALUATION)
    assert set(roles[:first]) == {PromptRole.CALIBRATION}
    assert set(roles[first:]) == {PromptRole.EVALUATION}
    assert all(pick.evaluation is not None for pick in result.sweep.scores.picks)
    assert result.ranked_by == ""


def test_kvmix_takes_its_published_score_where_there_is_one(ws, search_spec):
    spec = replace(search_spec, evaluations=1, strategy=SearchStrategy.KVMIX)
    _, result = drive(search(ws, spec))
    assert result.ranked_by == "gradient_norm"
    norms = gradient_norms(result.sweep.scores.weights.layers)
    assert result.candidates[0].policy == kvmix_policy(norms, spec.sweep.scheme)
    plan = plan_search(ws, spec)
    assert plan.known == plan.total
    _, without = drive(search(ws, replace(spec, sweep=replace(spec.sweep, scores=False))))
    assert without.ranked_by == "kl"
