"""Searches that stop evaluations early: on a live model, from the store, after a kill."""

from dataclasses import replace

import pytest

from kvtuner_core.compute import InlineCompute
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchResult, StoppedCandidate
from kvtuner_core.domain.tasks import ScoreManyTask
from kvtuner_core.errors import InputError
from kvtuner_core.runtime import capture, footprint, worker
from kvtuner_core.services import trust
from kvtuner_core.services.measuring import Measurements
from kvtuner_core.services.models import report
from kvtuner_core.services.planning import plan_search
from kvtuner_core.services.requests import calibration_session
from kvtuner_core.services.results import candidates_csv
from kvtuner_core.services.searching import search
from kvtuner_core.store import from_json, to_json
from kvtuner_core.tuning import stopping
from tests.fakes.compute import CountingCompute, Killed
from tests.services.drive import drive


@pytest.fixture(autouse=True)
def one_prompt_a_pass(monkeypatch):
    monkeypatch.setitem(capture._SUFFIX_TOKENS, "cpu", 8)
    monkeypatch.setattr(stopping, "ROUND", 8)


@pytest.fixture
def spec(search_spec):
    sweep = replace(search_spec.sweep, limit=4, scores=False)
    return replace(search_spec, sweep=sweep, evaluations=24, strategy=SearchStrategy.RANDOM, stop_early=True)


def _values(items):
    return [(item.policy, item.calibration.kl, item.calibration.kl_per_prompt) for item in items]


def test_the_front_is_the_one_without_stopping_and_prompts_are_spared(open_workspace, spec):
    _, whole = drive(search(open_workspace("whole"), replace(spec, stop_early=False)))
    seen, result = drive(search(open_workspace("stopping"), spec))
    assert _values(result.front) == _values(whole.front)
    assert result.hypervolume == whole.hypervolume
    assert (result.evaluations, len(whole.stopped), whole.spared) == (24, 0, (0, 96))
    spared, every = result.spared
    assert 0 < len(result.stopped) <= spared < every == 96
    losses = {item.policy: item.calibration.kl.mean for item in whole.candidates}
    known = {item.order: item for item in result.candidates}
    for item in result.stopped:
        better = known[item.dominated_by]
        assert better.effective_bits <= item.effective_bits
        assert better.calibration.kl.mean < item.partial.bound <= losses[item.policy]
    events = [progress.event for progress in seen if progress.stage == "search" and progress.event]
    assert [item for item in events if isinstance(item, StoppedCandidate)] == list(result.stopped)
    assert len(events) == 6 + 24
    assert seen[-1].done == seen[-1].total
    assert from_json(SearchResult, to_json(result)) == result
    assert len(candidates_csv(result).splitlines()) == 1 + 6 + len(result.candidates)
    assert trust.stops(result) == (
        f"Stopped early: {len(result.stopped)} of 24 policies, beaten for certain; {spared} of 96 prompts spared."
    )
    assert trust.stops(whole) == ""


@pytest.mark.parametrize("strategy", [SearchStrategy.RANDOM, SearchStrategy.NSGA2, SearchStrategy.AUTO])
def test_a_search_that_was_killed_goes_on_where_it_stopped(open_workspace, spec, strategy):
    spec = replace(spec, strategy=strategy)
    ws = open_workspace("whole")
    _, whole = drive(search(ws, spec))
    tasks = len(ws.compute.tasks)
    stopped_at = [index for index, task in enumerate(ws.compute.tasks) if isinstance(task, ScoreManyTask)]
    for dies_at in (stopped_at[3], stopped_at[-1], tasks - 1):
        name = f"died-{dies_at}"
        ws = open_workspace(name)
        ws.compute.dies_at = dies_at
        with pytest.raises(Killed):
            drive(search(ws, spec))
        ws = open_workspace(name)
        before = plan_search(ws, spec)
        assert 0 < before.known < before.total
        _, result = drive(search(ws, spec))
        assert len(ws.compute.tasks) == tasks - dies_at
        assert _values(result.candidates) == _values(whole.candidates)
        assert result.stopped == whole.stopped
        assert _values(result.front) == _values(whole.front)
        done = plan_search(ws, spec)
        assert done.known == done.total


def test_policies_that_share_passes_stop_where_they_do_alone(open_workspace, spec, monkeypatch, tmp_path):
    spec = replace(spec, strategy=SearchStrategy.NSGA2)
    _, alone = drive(search(open_workspace("alone"), spec))
    inspect = worker.Runtime._inspect
    monkeypatch.setattr(footprint, "_pass_rows", lambda *_: 4 * 8)
    monkeypatch.setattr(worker.Runtime, "_inspect", lambda self, model: replace(inspect(self, model), together=4))
    compute = InlineCompute(cache_dir=tmp_path)
    ws = replace(open_workspace("company"), compute=CountingCompute(compute))
    _, together = drive(search(ws, spec))
    compute.close()
    assert max(len(task.policies) for task in ws.compute.tasks if isinstance(task, ScoreManyTask)) > 1
    assert len(together.stopped) > 0
    for one, other in zip(alone.stopped, together.stopped, strict=True):
        assert (one.policy, one.dominated_by) == (other.policy, other.dominated_by)
        assert one.partial.prompts == other.partial.prompts
    assert [item.policy for item in together.front] == [item.policy for item in alone.front]


def test_a_full_evaluation_is_not_taken_from_what_was_seen(ws, spec):
    _, result = drive(search(ws, spec))
    stopped = result.stopped[0]
    measurements = Measurements.of(ws, calibration_session(ws, spec.sweep), report(ws, spec.sweep.model))
    assert measurements.known_score(stopped.policy) is None
    assert measurements.known_until(stopped.policy, 0.0).prompts == stopped.partial.prompts[:1]
    assert measurements.known_until(stopped.policy, 1e9) is None
    done = len(ws.compute.tasks)
    score = measurements.score(stopped.policy)
    assert (len(ws.compute.tasks), score.prompts) == (done + 1, 4)
    assert score.kl.mean >= stopped.partial.bound
    # From now on it is known to the end.
    assert measurements.known_until(stopped.policy, 0.0) == score


def test_a_higher_bar_than_before_is_measured_again(ws, spec):
    _, result = drive(search(ws, spec))
    stopped = result.stopped[0]
    measurements = Measurements.of(ws, calibration_session(ws, spec.sweep), report(ws, spec.sweep.model))
    (again,) = measurements.score_until([stopped.policy], [1e9])
    assert again.prompts == 4


def test_objectives_without_a_bound_are_refused_in_one_line(ws, spec):
    for objective in (Objective.P95_KL, Objective.NLL_CHANGE):
        with pytest.raises(InputError, match="Leave out --stop-early, or choose one of them"):
            next(search(ws, replace(spec, objective=objective)))
    _, result = drive(search(ws, replace(spec, objective=Objective.TOP1_DISAGREEMENT)))
    assert {item.partial.objective for item in result.stopped} == {Objective.TOP1_DISAGREEMENT}
    assert all(isinstance(item, Candidate) for item in result.candidates)
