from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import GroupingOptions, SweepResult
from kvtuner_core.errors import CancelledError, InputError, PromptError, SchemeError
from kvtuner_core.services.results import load_sweep
from kvtuner_core.services.studies import sweep_record
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.work import run_here
from kvtuner_core.store import from_json, to_json
from tests.fakes.compute import Killed
from tests.services.drive import drive


def _last(seen):
    """The last progress of the errors; the scores come after them."""
    return [progress for progress in seen if progress.stage == "sweep"][-1]


def test_every_layer_and_pair_is_measured_pruned_and_grouped(ws, sweep_spec):
    seen, result = drive(sweep(ws, sweep_spec))
    pairs = candidate_pairs((2, 4, 8))
    assert [(profile.layer, profile.pair) for profile in result.profiles] == [
        (layer, pair) for layer in range(3) for pair in pairs
    ]
    assert all(profile.kl > 0 and profile.output_error > 0 for profile in result.profiles)
    assert len(result.space.kept) == 3
    assert sorted(layer for group in result.space.groups for layer in group.layers) == [0, 1, 2]
    assert len(result.prompts_digest) == 64
    assert result.provenance.created.endswith("Z")
    events = [progress.event for progress in seen if isinstance(progress.event, ErrorProfile)]
    assert events == list(result.profiles)
    last = _last(seen)
    assert (last.done, last.total, last.reused) == (27, 27, 0)


def test_a_result_survives_the_store(ws, sweep_spec):
    _, result = drive(sweep(ws, sweep_spec))
    assert from_json(SweepResult, to_json(result)) == result


def test_nothing_is_measured_twice_even_for_other_candidates(ws, sweep_spec):
    drive(sweep(ws, replace(sweep_spec, bits=(4, 8))))
    assert ws.compute.profiles == 3 * 4
    seen, _ = drive(sweep(ws, sweep_spec))
    assert ws.compute.profiles == 3 * 9
    assert _last(seen).reused == 12
    drive(sweep(ws, replace(sweep_spec, seed=5, grouping=GroupingOptions(eps=0.5))))
    assert ws.compute.profiles == 3 * 9


def test_what_changes_the_number_is_measured_again(ws, sweep_spec):
    small = replace(sweep_spec, bits=(4,))
    for changed in (
        small,
        replace(small, limit=1),
        replace(small, suffix_tokens=6),
        replace(small, scheme=QuantScheme.per_token(symmetric=True)),
    ):
        before = ws.compute.profiles
        drive(sweep(ws, changed))
        assert ws.compute.profiles == before + 3


def test_a_sweep_that_died_goes_on_where_it_stopped(open_workspace, sweep_spec):
    ws = open_workspace()
    # The model's report, three tasks for the nine pairs of a layer, and one of four pairs.
    ws.compute.dies_at = 1 + 3 + 1
    with pytest.raises(Killed):
        drive(sweep(ws, sweep_spec))
    ws = open_workspace()
    seen, _ = drive(sweep(ws, sweep_spec))
    assert ws.compute.profiles == 3 * 9 - 13
    assert _last(seen).reused == 13


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_a_sweep_that_died_gives_the_numbers_of_one_that_did_not(open_workspace, sweep_spec, tasks):
    """Pairs that share a pass are stored together, so those that are left share theirs with the same ones."""
    _, whole = drive(sweep(open_workspace("whole"), sweep_spec))
    ws = open_workspace()
    ws.compute.dies_at = 1 + tasks
    with pytest.raises(Killed):
        drive(sweep(ws, sweep_spec))
    _, resumed = drive(sweep(open_workspace(), sweep_spec))
    assert resumed.profiles == whole.profiles


def test_a_cancelled_sweep_stops_before_the_next_measurement(ws, sweep_spec):
    asked = []
    steps = sweep(ws, sweep_spec, lambda: bool(asked))
    while ws.compute.profiles < 13:
        next(steps)
    asked.append(True)
    with pytest.raises(CancelledError):
        drive(steps)
    assert ws.compute.profiles == 13


def test_a_run_keeps_its_result(ws, sweep_spec):
    record = sweep_record(sweep_spec)
    _, result = drive(run_here(ws, record, lambda run, cancelled: sweep(ws, sweep_spec, cancelled, run=run)))
    assert load_sweep(ws, record.id) == result


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"limit": 0}, InputError, "limit must be from 1"),
        ({"prefix_tokens": 0}, InputError, "prefix_tokens must be from 8"),
        ({"suffix_tokens": 1}, InputError, "suffix_tokens must be from 2"),
        ({"bits": (5,)}, InputError, "must be one of 16, 8, 4, 3 or 2; got 5"),
        ({"bits": ()}, InputError, "At least one bit width"),
        ({"seed": -1}, InputError, "seed must be from 0"),
        ({"grouping": GroupingOptions(eps=float("nan"))}, InputError, "eps must be a number above 0"),
        ({"prompts": "evaluation"}, PromptError, "must not see evaluation prompts"),
        ({"scheme": QuantScheme.per_token(group_size=12)}, SchemeError, "must divide head_dim"),
    ],
)
def test_what_does_not_fit_is_refused(ws, sweep_spec, changes, error, message):
    with pytest.raises(error, match=message):
        drive(sweep(ws, replace(sweep_spec, **changes)))
    assert not ws.compute.profiles
