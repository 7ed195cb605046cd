from dataclasses import replace

import pytest

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, CandidateOrigin, SearchResult
from kvtuner_core.errors import CancelledError, InputError, PromptError
from kvtuner_core.services.policies import document
from kvtuner_core.services.results import load_search, load_sweep
from kvtuner_core.services.searching import search
from kvtuner_core.services.studies import search_record
from kvtuner_core.services.work import run_here
from kvtuner_core.store import from_json, to_json
from kvtuner_core.tuning import pareto_front
from tests.fakes.compute import Killed
from tests.services.drive import drive


def test_a_search_finds_a_front_scored_on_prompts_it_did_not_see(ws, search_spec):
    seen, result = drive(search(ws, search_spec, run="abc"))
    assert len(result.candidates) == 14
    assert len({candidate.policy for candidate in result.candidates}) == 14
    assert set(candidate.policy for candidate in result.front) <= {item.policy for item in result.candidates}
    bits = [candidate.effective_bits for candidate in result.front]
    assert bits == sorted(bits)
    for candidate in (*result.front, *result.baselines):
        assert candidate.evaluation.prompts == 2
        assert candidate.evaluation != candidate.calibration or candidate.policy.is_full
        assert candidate.evaluation.kl.low <= candidate.evaluation.kl.mean <= candidate.evaluation.kl.high
    assert all(candidate.evaluation is None for candidate in result.candidates)
    assert result.evaluation_digest != result.sweep.prompts_digest
    assert 0 < result.hypervolume < 1
    assert [name for name, _ in result.seconds] == ["sweep", "search", "evaluation"]
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["model", "sweep", "scores", "search", "evaluation"]
    assert from_json(SearchResult, to_json(result)) == result
    assert from_json(SearchResult, ws.store.get_result("abc")) == result


def test_uniform_baselines_and_full_precision_are_scored_by_the_same_code(ws, search_spec):
    _, result = drive(search(ws, replace(search_spec, evaluations=4)))
    by_name = {item.policy.name: item for item in result.baselines}
    assert set(by_name) == {"K16V16", "K8V8", "K8V4", "K4V4", "K4V2", "K2V2"}
    assert by_name["K16V16"].calibration.kl.mean == pytest.approx(0, abs=1e-6)
    assert by_name["K16V16"].calibration.top1_agreement == 1
    assert by_name["K2V2"].evaluation.kl.mean > by_name["K8V8"].evaluation.kl.mean
    assert all(item.origin is CandidateOrigin.BASELINE for item in result.baselines)


def test_candidates_are_seen_as_they_are_found(ws, search_spec):
    seen, result = drive(search(ws, search_spec))
    found = [progress.event for progress in seen if progress.stage == "search" and progress.event]
    assert all(isinstance(event, Candidate) for event in found)
    assert [event for event in found if event.origin is CandidateOrigin.SEARCH] == list(result.candidates)


def test_a_space_with_fewer_policies_than_evaluations_is_counted_by_its_policies(ws, search_spec):
    few = replace(search_spec, sweep=replace(search_spec.sweep, bits=(4,)), evaluations=100)
    seen, result = drive(search(ws, few))
    last = [progress for progress in seen if progress.stage == "search"][-1]
    assert len(result.candidates) < 100
    assert (last.done, last.total) == (len(result.baselines) + len(result.candidates),) * 2


def test_the_same_search_again_measures_nothing(ws, search_spec):
    _, first = drive(search(ws, search_spec))
    done = len(ws.compute.tasks)
    seen, second = drive(search(ws, search_spec))
    assert len(ws.compute.tasks) == done
    assert (second.front, second.candidates) == (first.front, first.candidates)
    assert seen[-1].reused == seen[-1].done


@pytest.mark.parametrize("strategy", [SearchStrategy.AUTO, SearchStrategy.NSGA2_LAYERS])
@pytest.mark.parametrize("objective", [Objective.P95_KL, Objective.NLL_CHANGE, Objective.TOP1_DISAGREEMENT])
def test_the_front_is_that_of_the_objective(ws, search_spec, objective, strategy):
    _, result = drive(search(ws, replace(search_spec, objective=objective, strategy=strategy)))
    assert pareto_front(result.candidates, objective)
    assert [item.policy for item in result.front] == [
        item.policy for item in pareto_front(result.candidates, objective)
    ]
    losses = [item.loss(objective) for item in result.front]
    assert losses == sorted(losses, reverse=True)
    assert all(item.evaluation.measures(objective) for item in (*result.front, *result.baselines))
    assert document(result, result.front[0]).evidence.objective == objective.definition
    assert from_json(SearchResult, to_json(result)) == result


def test_a_stored_score_without_the_objective_is_measured_again(ws, search_spec):
    drive(search(ws, replace(search_spec, strategy=SearchStrategy.UNIFORM)))
    done = ws.compute.scores
    ws.store._database.rows("UPDATE scores SET others = NULL")
    _, same = drive(search(ws, replace(search_spec, strategy=SearchStrategy.UNIFORM)))
    assert ws.compute.scores == done
    wanted = replace(search_spec, strategy=SearchStrategy.UNIFORM, objective=Objective.P95_KL)
    _, again = drive(search(ws, wanted))
    calibrated = {item.policy for item in (*again.candidates, *again.baselines)}
    evaluated = {item.policy for item in (*again.front, *again.baselines)}
    assert ws.compute.scores - done == len(calibrated) + len(evaluated)
    done = ws.compute.scores
    assert [item.calibration.kl for item in again.candidates] == [item.calibration.kl for item in same.candidates]
    drive(search(ws, wanted))
    assert ws.compute.scores == done


def test_a_search_that_died_goes_on_where_it_stopped(open_workspace, search_spec):
    ws = open_workspace("whole")
    _, whole = drive(search(ws, search_spec))
    tasks = len(ws.compute.tasks)
    for dies_at in (3, 12, tasks - 1):
        ws = open_workspace(f"died-{dies_at}")
        ws.compute.dies_at = dies_at
        with pytest.raises(Killed):
            drive(search(ws, search_spec))
        ws = open_workspace(f"died-{dies_at}")
        _, result = drive(search(ws, search_spec))
        assert len(ws.compute.tasks) == tasks - dies_at
        for one, other in zip(whole.candidates, result.candidates, strict=True):
            assert (one.policy, one.calibration.kl) == (other.policy, other.calibration.kl)


def test_cancelling_keeps_what_was_found(ws, search_spec):
    asked = []
    steps = search(ws, search_spec, lambda: bool(asked))
    while ws.compute.scores < 8:
        next(steps)
    asked.append(True)
    with pytest.raises(CancelledError):
        drive(steps)
    assert ws.compute.scores == 8
    _, result = drive(search(ws, search_spec))
    calibrated = {item.policy for item in (*result.candidates, *result.baselines)}
    evaluated = {item.policy for item in (*result.front, *result.baselines)}
    assert ws.compute.scores == len(calibrated) + len(evaluated)


def test_a_bound_on_bits_holds(ws, search_spec):
    _, result = drive(search(ws, replace(search_spec, max_bits=6.5)))
    assert all(candidate.effective_bits <= 6.5 for candidate in result.candidates)


def test_a_run_keeps_its_sweep_while_it_searches_and_its_result_after(ws, search_spec):
    record = search_record(search_spec)
    steps = run_here(ws, record, lambda run, cancelled: search(ws, search_spec, cancelled, run=run))
    while next(steps).stage != "search":
        pass
    swept = load_sweep(ws, record.id)
    assert swept is not None
    assert load_search(ws, record.id) is None
    _, result = drive(steps)
    assert load_search(ws, record.id) == result
    assert load_sweep(ws, record.id) == swept == result.sweep
    assert result.run == record.id


def test_calibration_and_evaluation_prompts_must_differ(ws, search_spec, tmp_path):
    with pytest.raises(PromptError, match="'calibration' has 2 shared texts"):
        drive(search(ws, replace(search_spec, evaluation_prompts="calibration")))
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("same text " * 20)
    two.write_text("same text " * 20 + "\n---\nother")
    sweep = replace(search_spec.sweep, prompts=str(one))
    with pytest.raises(PromptError, match="1 shared texts"):
        drive(search(ws, replace(search_spec, sweep=sweep, evaluation_prompts=str(two))))
    with pytest.raises(PromptError, match="a shipped calibration set"):
        drive(search(ws, replace(search_spec, sweep=sweep, evaluation_prompts="calibration")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": 0}, "evaluations must be from 1"),
        ({"population": 1}, "population must be from 2"),
        ({"evaluation_limit": 0}, "evaluation_limit must be from 1"),
        ({"evaluation_suffix_tokens": 0}, "evaluation_suffix_tokens must be from 2"),
        ({"max_bits": 0.0}, "max_bits must be a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(ws, search_spec, changes, message):
    with pytest.raises(InputError, match=message):
        drive(search(ws, replace(search_spec, **changes)))
    assert not ws.compute.tasks
