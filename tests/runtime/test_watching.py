"""Evaluations that end at a pass's end, alone and in company."""

from dataclasses import replace

import pytest

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.stopping import PartialScore, Stopping
from kvtuner_core.runtime import capture, footprint
from kvtuner_core.runtime.session import Session
from tests.fakes.models import tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec

NAMES = ("K2V2", "K16V16", "K8V8", "K4V4", "K2V4")
NEVER = float("inf")


@pytest.fixture(params=[0, 2 * 17 * 2], ids=["one by one", "two a pass"])
def session(request, monkeypatch):
    """Five prompts in three passes: one, two and two, the last and shortest one first."""
    monkeypatch.setitem(capture._SUFFIX_TOKENS, "cpu", 2 * 17)
    if request.param:
        monkeypatch.setattr(footprint, "_pass_rows", lambda *_: request.param)
    texts = (*TEXTS, TEXTS[0][::-1], TEXTS[1][:50])
    made = Session(make_loaded(tiny_model("llama")), make_spec(QuantScheme.per_token(), texts=texts))
    assert [[prompt.index for prompt in one.batch.prompts] for one in made.prepared] == [[4], [0, 1], [2, 3]]
    assert made.together == (2 if request.param else 1)
    return made


@pytest.fixture
def policies():
    return [KVPolicy.uniform(name, layers=3, scheme=QuantScheme.per_token()) for name in NAMES]


def _counted(session, monkeypatch):
    """How many policies go through each pass, by the pass's first prompt."""
    passes, moved = [], session._moved

    def counting(prepared, policies):
        passes.append((prepared.batch.prompts[0].index, len(policies)))
        return moved(prepared, policies)

    monkeypatch.setattr(session, "_moved", counting)
    return passes


@pytest.mark.parametrize("objective", [Objective.MEAN_KL, Objective.TOP1_DISAGREEMENT])
def test_what_is_left_unfinished_is_what_the_whole_score_says(session, policies, objective):
    whole = session.score_many(policies)
    bars = (whole[3].loss(objective) / 4, 0.0, 0.0, NEVER, whole[0].loss(objective) * 2)
    found = session.score_until(policies, Stopping(objective=objective, bars=bars))
    for score, one, bar in zip(found, whole, bars, strict=True):
        if isinstance(score, PartialScore):
            known = one.measured(objective).per_prompt
            # Another place in memory may round a sum of a CPU in another way.
            assert score.losses == pytest.approx([known[index] for index in score.prompts], rel=1e-12)
            assert score.prompts == (4, 0, 1, 2, 3)[: len(score.prompts)]
            assert score.tokens_per_prompt == one.tokens_per_prompt
            assert bar < score.bound <= one.loss(objective)
            assert score.within(bar) == score
            assert score.seconds > 0
        else:
            assert score.measured(objective).per_prompt == pytest.approx(one.measured(objective).per_prompt, rel=1e-12)
            assert score.prompts == 5
    kinds = [isinstance(score, PartialScore) for score in found]
    # The unquantised policy loses nothing, so its bound is never above 0.
    assert (kinds[0], kinds[1], kinds[3], kinds[4]) == (True, False, False, False)


def test_who_is_stopped_leaves_at_the_end_of_a_pass(session, policies, monkeypatch):
    passes = _counted(session, monkeypatch)
    found = session.score_until(policies, Stopping(objective=Objective.MEAN_KL, bars=(0.0, 0.0, NEVER, 0.0, NEVER)))
    assert [isinstance(score, PartialScore) for score in found] == [True, False, False, True, False]
    assert [len(score.prompts) for score in found if isinstance(score, PartialScore)] == [1, 1]
    if session.together == 1:
        assert passes == [(4, 1), *[(4, 1), (0, 1), (2, 1)], (4, 1), *[(4, 1), (0, 1), (2, 1)]]
    else:
        # Four quantised policies are two passes, the two that are left are one.
        assert passes == [(4, 2), (4, 2), (0, 2), (2, 2)]


def test_passes_with_the_most_telling_prompts_come_first(session, policies):
    telling = (0.1, 0.1, 0.1, 0.6, 0.1)
    stopping = Stopping(objective=Objective.MEAN_KL, bars=(0.0,), telling=telling)
    (found,) = session.score_until(policies[:1], stopping)
    assert found.prompts == (2, 3)
    (whole,) = session.score_until(policies[:1], replace(stopping, bars=(NEVER,)))
    assert replace(whole, seconds=0.0) == replace(session.score(policies[0]), seconds=0.0)


def test_a_bound_that_is_passed_at_the_end_only_is_a_whole_score(session, policies):
    whole = session.score(policies[0])
    before = sum(whole.kl_per_prompt[index] * 17 for index in (4, 0, 1)) / (5 * 17)
    (found,) = session.score_until(policies[:1], Stopping(objective=Objective.MEAN_KL, bars=(before,)))
    assert replace(found, seconds=0.0) == replace(whole, seconds=0.0)
