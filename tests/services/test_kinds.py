from dataclasses import replace

import pytest

from kvtuner_core.domain.kinds import KIND_TASKS, KindsSpec
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.prompts import PromptKind
from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import AskTask
from kvtuner_core.errors import CancelledError, InputError
from kvtuner_core.services import question_files, studies
from kvtuner_core.services.kinds import kinds_run, kinds_spec, load_kinds, measure_kinds, start_kinds, work_of
from kvtuner_core.services.results import find_run, list_runs
from tests.fakes.models import save_tiny
from tests.fakes.studies import search_result
from tests.services.drive import drive


@pytest.fixture(scope="session")
def long_tiny(tmp_path_factory):
    # The shipped prompts of the multiple-choice task and of recall have some hundred bytes, a token each here.
    return save_tiny(tmp_path_factory.mktemp("model") / "long", max_position_embeddings=2048)


@pytest.fixture
def spec(long_tiny):
    policy = KVPolicy.uniform("K4V2", layers=3, scheme=QuantScheme.per_token())
    model = ModelSpec(reference=str(long_tiny))
    return KindsSpec(model=model, policy=policy, prefix_tokens=48, suffix_tokens=8, items=1)


def test_every_kind_is_measured_with_its_task_beside_it(ws, spec):
    seen, found = drive(measure_kinds(ws, spec))
    assert [row.kind for row in found.rows] == list(PromptKind)
    assert all(row.score.kl.low <= row.score.kl.mean <= row.score.kl.high for row in found.rows)
    assert [str(row.task.kind) if row.task else None for row in found.rows] == [
        "multiple-choice", None, None, "recall",
    ]  # fmt: skip
    assert all((row.full is None) == (row.task is None) for row in found.rows)
    assert (seen[-1].done, seen[-1].total) == (work_of(spec), work_of(spec)) == (6, 6)
    done = [progress.done for progress in seen if progress.stage == "kinds"]
    assert done == sorted(done)


def test_it_is_a_run_that_is_never_computed_twice(ws, spec):
    assert kinds_run(ws, spec) is None
    run = start_kinds(ws, spec)
    assert ws.queue.wait(run, 120).record.status is RunStatus.DONE
    found = load_kinds(ws, run)
    assert found.run == run
    assert start_kinds(ws, spec) == run
    assert kinds_run(ws, spec).id == run
    assert kinds_run(ws, replace(spec, items=2)) is None
    assert find_run(ws, run).kind is RunKind.EVALUATION
    assert run in [record.id for record in list_runs(ws)]
    tasks = len(ws.compute.tasks)
    _, again = drive(measure_kinds(ws, spec))
    assert len(ws.compute.tasks) == tasks
    assert again.rows == found.rows
    studies.resume(ws, run)
    assert ws.queue.wait(run, 60).record.status is RunStatus.DONE
    assert len(ws.compute.tasks) == tasks


def test_a_cancel_goes_on_from_what_is_stored(ws, spec):
    asked = []
    steps = measure_kinds(ws, spec, lambda: bool(asked))
    while (at := next(steps)).stage != "kinds" or at.done < 3:
        pass
    asked.append(True)
    with pytest.raises(CancelledError):
        drive(steps)
    before = len(ws.compute.tasks)
    seen, _ = drive(measure_kinds(ws, spec))
    assert seen[-1].reused >= 3
    assert len(ws.compute.tasks) - before < 6


def test_exact_match_is_asked_only_where_somebody_wants_it(ws, spec, monkeypatch):
    one = (question_files.Question(kind="exact-match", prompt="2+2=", answer="4", max_new_tokens=3),)
    monkeypatch.setattr(question_files, "read_questions", lambda *_: one)
    _, found = drive(measure_kinds(ws, replace(spec, items=0, exact_match_items=1)))
    assert [row.kind for row in found.rows if row.task] == [PromptKind.MATHS]
    assert ws.compute.count(AskTask) == 2


def test_a_policy_of_a_search_is_measured_as_the_search_was():
    result = search_result(layers=6, evaluations=20)
    made = kinds_spec(result, result.front[0].policy)
    assert (made.prefix_tokens, made.suffix_tokens) == (512, result.spec.evaluation_suffix_tokens)
    assert made.items_of(None) == 0
    assert [made.items_of(task) for _, task in KIND_TASKS] == [25, 0, 0, 25]


@pytest.mark.parametrize(
    "changes", [{"prefix_tokens": 1}, {"suffix_tokens": 1}, {"items": -1}, {"exact_match_items": 9999}, {"seed": -1}]
)
def test_what_does_not_fit_is_refused(ws, spec, changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        start_kinds(ws, replace(spec, **changes))
