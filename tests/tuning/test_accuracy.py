import pytest

from kvtuner_core.domain.questions import Reply, TaskKind
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.accuracy import task_difference, task_score, wilson


def _replies(right, nll=()):
    nll = nll or (1.0,) * len(right)
    return [
        Reply(correct=bool(one), nll=value, given="", prompt_tokens=9, seconds=0.1)
        for one, value in zip(right, nll, strict=True)
    ]


def _score(*right, nll=()):
    return task_score(TaskKind.RECALL, _replies(right, nll))


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_wilsons(right, count, low, high):
    found = wilson(right, count)
    assert found.mean == right / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_share_of_all_has_an_interval_below_it():
    assert wilson(25, 25).high == 1
    assert 0.8 < wilson(25, 25).low < 0.9


def test_a_difference_counts_questions_lost_and_gained():
    change = task_difference(_score(1, 0, 0, 1, 0, 1), _score(1, 1, 1, 1, 1, 0))
    assert (change.lost, change.gained) == (3, 1)
    assert change.accuracy.mean == pytest.approx(-2 / 6)
    assert change.accuracy.low < change.accuracy.mean < change.accuracy.high


def test_the_same_loss_on_every_question_is_sure():
    worse = task_difference(_score(0, 0, 0, nll=(2.0, 3.0, 9.0)), _score(1, 1, 1, nll=(1.0, 2.0, 8.0)))
    assert (worse.accuracy.low, worse.accuracy.high) == (-1, -1)
    assert (worse.nll.low, worse.nll.mean, worse.nll.high) == pytest.approx((1, 1, 1))
    none = task_difference(_score(1, 0), _score(1, 0))
    assert (none.accuracy.low, none.accuracy.high) == (0, 0)


def test_only_the_same_questions_are_compared():
    with pytest.raises(InputError, match="same questions"):
        task_difference(_score(1, 1), _score(1))
    with pytest.raises(InputError, match="at least one question"):
        _score()


def test_infinite_likelihoods_are_kept():
    assert _score(0, 1, nll=(float("inf"), 1.0)).nll.mean == float("inf")
