from dataclasses import replace

import pytest

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.runs import RunStatus
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import GenerateTask, TokenEvent
from kvtuner_core.errors import InputError, ModelError
from kvtuner_core.services.generating import generate, load_generation, start_generation
from tests.services.drive import drive


@pytest.fixture
def task(tiny):
    return GenerateTask(
        model=ModelSpec(reference=str(tiny)),
        policy=KVPolicy.uniform("K4V2", layers=3, scheme=QuantScheme.per_token()),
        prompt="Some words to go on from, " * 4,
        max_new_tokens=12,
        temperature=1.0,
        seed=3,
    )


def test_each_token_is_seen_as_it_comes(ws, task):
    seen, result = drive(generate(ws, task))
    events = [progress.event for progress in seen if isinstance(progress.event, TokenEvent)]
    assert [event.token for event in events] == list(result.token_ids)
    # Half a character at the very end has no event of its own.
    assert result.text.startswith("".join(event.text for event in events))
    assert 0 < result.cache_bytes < result.full_precision_bytes
    assert [progress.done for progress in seen if progress.event] == list(range(1, len(events) + 1))


def test_full_precision_generates_too(ws, task):
    _, result = drive(generate(ws, replace(task, policy=None)))
    assert result.cache_bytes == result.full_precision_bytes


def test_leaving_early_stops_the_model(ws, task):
    steps = generate(ws, replace(task, max_new_tokens=400))
    while next(steps).done < 3:
        pass
    steps.close()
    _, after = drive(generate(ws, task))
    assert after.token_ids


def test_cancelling_returns_what_there_is(ws, task):
    asked = []
    steps = generate(ws, replace(task, max_new_tokens=400), lambda: bool(asked))
    while next(steps).done < 3:
        pass
    asked.append(True)
    _, result = drive(steps)
    assert 3 <= len(result.token_ids) < 400


def test_a_queued_generation_is_kept(ws, task):
    run = start_generation(ws, task)
    assert ws.queue.wait(run, 60).record.status is RunStatus.DONE
    assert load_generation(ws, run).token_ids == drive(generate(ws, task))[1].token_ids
    assert load_generation(ws, "nothing") is None


def test_a_failure_reaches_the_caller(ws, task):
    with pytest.raises(ModelError):
        drive(generate(ws, replace(task, model=ModelSpec(reference="/gone"))))


@pytest.mark.parametrize(
    "changes",
    [{"prompt": " "}, {"prompt": "x" * 200_001}, {"prompt": "half \udcff"}, {"max_new_tokens": 0},
     {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": -1}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(ws, task, changes):
    with pytest.raises(InputError):
        start_generation(ws, replace(task, **changes))
    assert not ws.store.runs()
