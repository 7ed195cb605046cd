"""Measurements as they come in from several workers, in any order."""

from dataclasses import replace

import pytest

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.study import SweepSpec
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.measuring import Measurements
from kvtuner_core.services.requests import calibration_session
from kvtuner_core.services.work import never
from tests.compute.runners import measured, report
from tests.fakes.measurements import profile

POLICIES = [KVPolicy.uniform(pair, layers=4, scheme=SweepSpec().scheme) for pair in candidate_pairs((2, 4, 8))]


class Backwards:
    """A compute whose last task is done first."""

    def __init__(self):
        self.given = []

    def run_many(self, tasks, *, report, cancelled):  # noqa: ARG002 - there is no model
        for index, task in reversed(tuple(enumerate(tasks))):
            self.given.append(task)
            if hasattr(task, "policy"):
                yield index, measured(task.policy)
            elif hasattr(task, "policies"):
                yield index, tuple(measured(policy) for policy in task.policies)
            else:
                yield index, tuple(profile(task.layer, pair.name) for pair in task.pairs)

    def workers(self):
        return ("one", "two", "three")


@pytest.fixture
def compute():
    return Backwards()


@pytest.fixture
def measurements(ws, compute):
    def make(cancelled=never, together=1, suffix_tokens=24):
        evaluation = calibration_session(ws, SweepSpec(limit=2, suffix_tokens=suffix_tokens))
        return Measurements(
            store=ws.store,
            compute=compute,
            evaluation=evaluation,
            report=replace(report(), together=together),
            cancelled=cancelled,
        )

    return make


def test_scores_come_in_the_order_asked_for_and_are_stored_when_they_are_done(measurements):
    taken = measurements()
    scores = taken.score_many(POLICIES)
    assert next(scores) == measured(POLICIES[0])
    # The first was done last: all the others are safe in the store already, and count as done.
    assert all(taken.known_score(policy) == measured(policy) for policy in POLICIES)
    step = taken.progress("search", 1, 9, message="", event=None)
    assert (step.done, step.reused, step.together) == (9, 0, 3)
    assert list(scores) == [measured(policy) for policy in POLICIES[1:]]
    assert taken.ahead == 0


def test_profiles_come_layer_by_layer(measurements):
    pairs = candidate_pairs((4, 8))
    taken = [(one.layer, one.pair) for one in measurements().profile_many((2, 0), pairs)]
    assert taken == [(layer, pair) for layer in (2, 0) for pair in pairs]


def test_what_is_asked_twice_or_known_is_measured_once(measurements, compute):
    first = measurements()
    list(first.score_many(POLICIES[:2]))
    assert first.reused == 0
    second = measurements()
    wanted = [POLICIES[3], POLICIES[0], POLICIES[3], POLICIES[1]]
    assert list(second.score_many(wanted)) == [measured(policy) for policy in wanted]
    assert [task.policy for task in compute.given] == [POLICIES[1], POLICIES[0], POLICIES[3]]
    assert second.reused == 3


def test_nothing_new_begins_once_it_is_cancelled(measurements, compute):
    list(measurements().score_many(POLICIES[:2]))
    assert len(list(measurements(lambda: True).score_many(POLICIES[:2]))) == 2
    with pytest.raises(CancelledError, match="what was finished is kept"):
        list(measurements(lambda: True).score_many(POLICIES[:3]))
    assert len(compute.given) == 2


def test_an_answer_of_another_kind_is_refused(measurements, compute, monkeypatch):
    monkeypatch.setattr(compute, "run_many", lambda *_args, **_rest: iter(((0, ()),)))
    with pytest.raises(ComputeError, match="must answer with 1 measurements; got"):
        measurements().score(POLICIES[0])


def test_a_device_with_room_for_many_is_asked_for_many_at_once(measurements, compute):
    taken = measurements(together=32)
    assert list(taken.score_many(POLICIES)) == [measured(policy) for policy in POLICIES]
    # Nine policies over three workers.
    assert sorted(len(task.policies) for task in compute.given) == [3, 3, 3]
    assert taken.ahead == 0
    compute.given.clear()
    profiles = list(taken.profile_many(range(2), candidate_pairs((2, 4, 8))))
    assert [(one.layer, one.pair) for one in profiles] == [
        (layer, pair) for layer in range(2) for pair in candidate_pairs((2, 4, 8))
    ]
    assert [len(task.pairs) for task in compute.given] == [9, 9]


@pytest.mark.parametrize(
    ("suffix_tokens", "sizes"),
    [(24, [4, 4, 1]), (100, [3, 3, 3]), (150, [2, 2, 2, 2, 1]), (151, [1] * 9), (999, [1] * 9)],
)
def test_pairs_of_few_tokens_share_a_pass_on_a_cpu_too(measurements, compute, suffix_tokens, sizes):
    """Two prompts; at most 600 tokens a pass, and four pairs a task."""
    pairs = candidate_pairs((2, 4, 8))
    taken = list(measurements(suffix_tokens=suffix_tokens).profile_many((3, 1), pairs))
    assert [(one.layer, one.pair) for one in taken] == [(layer, pair) for layer in (3, 1) for pair in pairs]
    for layer in (3, 1):
        given = [task.pairs for task in reversed(compute.given) if task.layer == layer]
        assert [len(some) for some in given] == sizes
        assert [pair for some in given for pair in some] == list(pairs)


def test_a_task_holds_about_a_second_of_scores(measurements, compute):
    taken = measurements(together=32)
    taken.pace = 0.6
    list(taken.score_many(POLICIES[:2]))
    assert [hasattr(task, "policy") for task in compute.given] == [True, True]


def test_an_answer_of_another_length_is_refused(measurements, compute):
    compute.run_many = lambda *_args, **_rest: iter([(0, (measured(POLICIES[0]),))])
    with pytest.raises(ComputeError, match="with 3 measurements"):
        list(measurements(together=32).score_many(POLICIES))
