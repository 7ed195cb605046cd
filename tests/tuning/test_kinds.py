from dataclasses import replace

import pytest

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.tuning.kinds import kind_checks
from tests.fakes.kinds import kinds_result, with_kl, with_right


def _checks(result, tuned=None):
    return {check.name: check for check in kind_checks(result, tuned)}


def test_alike_kinds_are_nothing_to_look_at():
    found = _checks(kinds_result())
    assert set(found) == {"kinds", "multiple-choice", "recall"}
    assert all(check.good for check in found.values())
    assert "Not distinguishable" in found["recall"].text


def test_a_kind_far_worse_than_the_prompts_of_the_search_is_named():
    result = kinds_result()
    tuned = result.rows[0].score
    worse = with_kl(result, "retrieval", 6 * tuned.kl.mean)
    found = _checks(worse, tuned)["kinds"]
    assert not found.good
    assert "highest on retrieval" in found.text
    assert "6.0 times that on the search's evaluation prompts" in found.text
    assert not _checks(worse)["kinds"].good, "Without a search the kinds are held against each other."


def test_a_kind_whose_interval_reaches_the_others_is_not_called_worse():
    result = kinds_result()
    wide = with_kl(result, "chat", 3 * result.rows[0].score.kl.mean, low=0.0)
    assert _checks(wide, result.rows[0].score)["kinds"].good


def test_right_answers_lost_beyond_chance_are_named():
    lost = with_right(kinds_result(), "retrieval", own=8, full=22)
    found = _checks(lost)["recall"]
    assert not found.good
    assert "32% right of 25 questions, full precision 88%; 14 lost, 0 gained" in found.text


def test_few_questions_say_so():
    few = with_right(kinds_result(), "retrieval", own=4, full=4, count=5)
    assert "at least 20" in _checks(few)["recall"].text
    assert not _checks(few)["recall"].good


@pytest.mark.parametrize("tuned", [True, False])
def test_full_precision_has_no_worse_kind(tuned):
    result = kinds_result()
    spec = replace(result.spec, policy=KVPolicy.uniform("KV16", layers=4, scheme=QuantScheme.per_token()))
    assert _checks(replace(result, spec=spec), result.rows[0].score if tuned else None)["kinds"].good
