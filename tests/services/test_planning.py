from dataclasses import replace

import pytest

from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import GroupingOptions, PruningOptions
from kvtuner_core.errors import InputError
from kvtuner_core.services.planning import plan_search, plan_sweep
from kvtuner_core.services.searching import search
from kvtuner_core.services.studies import search_record
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.work import run_here
from tests.fakes.compute import Killed
from tests.services.drive import drive


def test_before_the_model_was_loaded_nothing_is_known(ws, search_spec):
    plan = plan_sweep(ws, search_spec.sweep)
    assert (plan.total, plan.known, plan.model_known, plan.seconds) == (29, 0, False, None)
    plan = plan_search(ws, search_spec)
    assert (plan.total, plan.known, plan.model_known, plan.seconds) == (29 + 14 + 2 * 6, 0, False, None)
    assert not ws.compute.tasks


def test_a_sweeps_stored_pairs_are_counted(ws, sweep_spec):
    drive(sweep(ws, replace(sweep_spec, bits=(4, 8))))
    plan = plan_sweep(ws, sweep_spec)
    assert (plan.total, plan.known, plan.model_known) == (29, 13, True)
    assert plan_sweep(ws, replace(sweep_spec, limit=1)).known == 0


def test_a_search_is_replayed_as_far_as_it_is_stored(ws, search_spec):
    # 27 profiles are nine tasks.
    ws.compute.dies_at = 1 + 9 + 2 + 6 + 5
    with pytest.raises(Killed):
        drive(search(ws, search_spec))
    ws.compute.dies_at = None
    plan = plan_search(ws, search_spec)
    # Uniform policies among the candidates were scored as baselines already.
    assert 29 + 6 + 5 <= plan.known < plan.total == 29 + 20 + 6
    record = search_record(search_spec)
    _, result = drive(run_here(ws, record, lambda run, cancelled: search(ws, search_spec, cancelled, run=run)))
    done = plan_search(ws, search_spec)
    assert done.known == done.total == 29 + 20 + 6 + len(result.front)
    assert done.seconds == 0
    again = plan_search(ws, replace(search_spec, sweep=replace(search_spec.sweep, limit=1)))
    # Baselines on evaluation prompts do not depend on the calibration prompts.
    assert again.known == 6
    assert again.seconds > 0


def test_a_small_space_needs_fewer_evaluations(ws, search_spec):
    few = replace(search_spec.sweep, pruning=PruningOptions(), grouping=GroupingOptions(eps=50.0), bits=(4, 8))
    drive(sweep(ws, few))
    spec = replace(search_spec, sweep=few, strategy=SearchStrategy.NSGA2)
    before = plan_search(ws, spec)
    _, result = drive(search(ws, spec))
    assert len(result.candidates) < 14
    assert before.total == 12 + 2 + len(result.candidates) + 6 + 6


def test_a_plan_checks_the_request(ws, search_spec):
    with pytest.raises(InputError, match="evaluations"):
        plan_search(ws, replace(search_spec, evaluations=0))
    with pytest.raises(InputError, match="limit"):
        plan_sweep(ws, replace(search_spec.sweep, limit=0))
