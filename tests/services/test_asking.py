from dataclasses import replace

import pytest

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.questions import TaskKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import AskTask
from kvtuner_core.errors import CancelledError, InputError
from kvtuner_core.services.asking import QuestionSource, TaskRequest, evaluate_task
from kvtuner_core.services.policies import choose_policy
from tests.fakes.compute import Killed
from tests.services.drive import drive

RECALL = QuestionSource(kind=TaskKind.RECALL, items=3, pairs=4)


@pytest.fixture
def request_(tiny):
    return TaskRequest(
        model=ModelSpec(reference=str(tiny)), policy=choose_policy("K2V2", QuantScheme.per_token()), source=RECALL
    )


def test_a_policy_and_full_precision_are_asked_the_same(ws, request_):
    seen, found = drive(evaluate_task(ws, request_))
    assert ws.compute.count(AskTask) == 6
    assert [len(score.replies) for score in (found.score, found.full)] == [3, 3]
    assert [one.prompt_tokens for one in found.score.replies] == [one.prompt_tokens for one in found.full.replies]
    assert found.score.nll.mean != found.full.nll.mean
    assert found.difference.nll.mean == pytest.approx(found.score.nll.mean - found.full.nll.mean)
    assert [progress.done for progress in seen if progress.stage == "recall"] == [0, 1, 2, 3]


def test_nothing_is_asked_twice_and_more_questions_go_on_from_there(ws, request_):
    _, first = drive(evaluate_task(ws, request_))
    _, again = drive(evaluate_task(ws, request_))
    assert ws.compute.count(AskTask) == 6
    assert again.reused == 6
    assert again.score == first.score
    drive(evaluate_task(ws, replace(request_, source=replace(RECALL, items=4))))
    assert ws.compute.count(AskTask) == 8
    _, other = drive(evaluate_task(ws, replace(request_, policy=choose_policy("KV8", QuantScheme.per_token()))))
    assert ws.compute.count(AskTask) == 11, "Full precision is known."
    assert other.reused == 3


def test_a_death_loses_at_most_one_reply(open_workspace, request_):
    ws = open_workspace()
    ws.compute.dies_at = 4
    with pytest.raises(Killed):
        drive(evaluate_task(ws, request_))
    ws = open_workspace()
    _, found = drive(evaluate_task(ws, request_))
    assert found.reused == 3
    assert ws.compute.count(AskTask) == 3


def test_a_cancel_keeps_what_was_answered(ws, request_):
    asked = []
    steps = evaluate_task(ws, request_, lambda: bool(asked))
    while (seen := next(steps)).stage != "recall" or seen.done < 1:
        pass
    asked.append(True)
    with pytest.raises(CancelledError):
        drive(steps)
    _, found = drive(evaluate_task(ws, request_))
    assert found.reused == 2


def test_without_a_policy_full_precision_is_asked_once(ws, request_):
    _, found = drive(evaluate_task(ws, replace(request_, policy=choose_policy("full"))))
    assert ws.compute.count(AskTask) == 3
    assert found.score == found.full
    assert (found.difference.lost, found.difference.gained) == (0, 0)
    assert found.effective_bits == 16


def test_questions_of_a_file_are_asked(ws, request_, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one and one is", "answer": " b", "choices": [" a", " b"]}\n')
    source = QuestionSource(kind=TaskKind.MULTIPLE_CHOICE, items=1, file=str(path))
    _, found = drive(evaluate_task(ws, replace(request_, source=source)))
    assert found.score.replies[0].given in (" a", " b")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({"items": 0}, "items"), ({"seed": -1}, "seed"), ({"pairs": 0}, "pairs"), ({"file": "a.jsonl"}, "from a seed")],
)
def test_what_does_not_fit_is_refused_before_any_work(ws, request_, changes, rule):
    with pytest.raises(InputError, match=rule):
        drive(evaluate_task(ws, replace(request_, source=replace(RECALL, **changes))))
    assert not ws.compute.tasks
