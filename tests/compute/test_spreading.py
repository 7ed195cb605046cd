import functools
import os
import queue
import signal
import threading
import time

import pytest

from kvtuner_core.compute import DaskCompute, spreading
from kvtuner_core.compute.connection import LostConnectionError
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import EvaluationSpec, ProfileTask, ScoreTask
from kvtuner_core.errors import CancelledError, ComputeError, ModelError
from tests.compute.runners import MeasuringRunner, measured, report, scripted

SCHEME = QuantScheme.per_token()
EVALUATION = EvaluationSpec(
    model=ModelSpec(reference="tiny"),
    prompts=PromptSet(name="one", role=PromptRole.USER, prompts=(Prompt(text="one"),)),
    scheme=SCHEME,
    prefix_tokens=8,
    suffix_tokens=8,
)
PAIRS = candidate_pairs((2, 4, 8))
POLICIES = tuple(
    KVPolicy.from_pairs((pair, other, pair, other), scheme=SCHEME) for pair in PAIRS for other in PAIRS[:4]
)
SCORES = tuple(ScoreTask(evaluation=EVALUATION, policy=policy) for policy in POLICIES)
PROFILES = tuple(ProfileTask(evaluation=EVALUATION, layer=layer, pairs=(pair,)) for layer in range(4) for pair in PAIRS)
EXPECTED = {index: measured(policy) for index, policy in enumerate(POLICIES)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two CPU workers, and the folder that their runners look into."""
    folder = tmp_path_factory.mktemp("spread")
    compute = DaskCompute(cache_dir=folder, processes=2, runner_factory=functools.partial(MeasuringRunner, str(folder)))
    yield compute, folder
    compute.close()


@pytest.fixture
def compute(pair):
    return pair[0]


@pytest.fixture
def folder(pair):
    for path in pair[1].iterdir():
        path.unlink()
    return pair[1]


def begun(folder):
    """What was begun, by which process, in order of time."""
    parts = [path.name.split() for path in folder.glob("begun *")]
    return [(" ".join(words[1:-2]), int(words[-2])) for words in sorted(parts, key=lambda words: int(words[-1]))]


def run(compute, tasks, **rest):
    return dict(compute.run_many(tasks, report=report(), **rest))


def test_all_workers_measure_and_each_answer_is_its_tasks(compute, folder):
    (folder / "slow").write_text("0.01")
    assert run(compute, SCORES) == EXPECTED
    shares = [sum(pid == one.pid for _, pid in begun(folder)) for one in compute.workers()]
    assert sum(shares) == len(SCORES)
    assert min(shares) >= len(SCORES) // 3


def test_a_layer_stays_on_one_worker(compute, folder):
    (folder / "slow").write_text("0.01")
    answers = run(compute, PROFILES)
    assert [(answers[index][0].layer, answers[index][0].pair) for index in range(len(PROFILES))] == [
        (task.layer, task.pairs[0]) for task in PROFILES
    ]
    seen = begun(folder)
    for layer in range(4):
        assert len({pid for what, pid in seen if what == f"layer {layer}"}) == 1
    assert len({pid for _, pid in seen}) == 2


def test_nothing_to_do_starts_nothing(tmp_path):
    compute = DaskCompute(cache_dir=tmp_path)
    assert run(compute, ()) == {}
    assert compute.workers() == ()


def test_a_killed_worker_is_replaced_and_what_it_had_is_done_again(compute, folder):
    (folder / "slow").write_text("0.1")
    victim = compute.workers()[0].pid
    answers = {}
    for index, answer in compute.run_many(SCORES, report=report()):
        answers[index] = answer
        if len(answers) == 4:
            os.kill(victim, signal.SIGKILL)
    assert answers == EXPECTED
    assert victim not in [worker.pid for worker in compute.workers()]


def test_a_task_that_kills_every_worker_is_given_up(compute, folder, monkeypatch):
    # Each death costs a start of a process.
    monkeypatch.setattr(spreading, "MOST_DEATHS", 2)
    (folder / f"die {POLICIES[0].name}").touch()
    with pytest.raises(ComputeError, match=r"died 2 times on this task, probably out of memory\. Take fewer") as caught:
        run(compute, SCORES[:1])
    assert "\n" not in str(caught.value)
    assert run(compute, SCORES[1:2]) == {0: measured(POLICIES[1])}


def test_a_refusal_arrives_unchanged(compute, folder):
    (folder / f"refuse {POLICIES[5].name}").touch()
    with pytest.raises(ModelError) as caught:
        run(compute, SCORES)
    assert str(caught.value) == f"No {POLICIES[5].name}."


def test_it_is_cancelled_at_once_and_what_waits_never_begins(compute, folder):
    run(compute, SCORES[:4])
    (folder / "slow").write_text("2.0")
    for path in folder.glob("begun *"):
        path.unlink()
    started = time.monotonic()
    with pytest.raises(CancelledError, match="finish the steps under way"):
        run(compute, SCORES, cancelled=lambda: time.monotonic() - started > 0.3)
    assert time.monotonic() - started < 1.6
    (folder / "slow").unlink()
    run(compute, SCORES[-2:])
    assert {what for what, _ in begun(folder)} <= {policy.name for policy in (*POLICIES[:2], *POLICIES[-2:])}


def test_leaving_early_lets_go_what_has_not_begun(compute, folder):
    (folder / "slow").write_text("0.1")
    answers = compute.run_many(SCORES, report=report())
    next(answers)
    answers.close()
    run(compute, SCORES[-2:])
    # What each of two workers has at hand when the first is done, then the last two.
    assert len(begun(folder)) <= 1 + 2 * spreading.AT_HAND + 2


def test_another_task_has_its_turn_in_between(compute, folder):
    (folder / "slow").write_text("0.1")
    left = len(SCORES)
    when = []

    def ask():
        compute.run(scripted("go"))
        when.append(left)

    other = threading.Thread(target=ask)
    for _ in compute.run_many(SCORES, report=report()):
        if left == len(SCORES):
            other.start()
        left -= 1
    other.join()
    assert when[0] > len(SCORES) // 3


def test_a_worker_that_measures_otherwise_is_refused(tmp_path):
    (tmp_path / "odd").touch()
    compute = DaskCompute(
        cache_dir=tmp_path, processes=2, runner_factory=functools.partial(MeasuringRunner, str(tmp_path))
    )
    (tmp_path / "slow").write_text("0.2")
    try:
        with pytest.raises(ComputeError) as caught:
            run(compute, SCORES)
    finally:
        compute.close()
    text = str(caught.value)
    assert "has the model as cpu bfloat16, the job began with cpu float32. Set the model's device" in text
    assert "\n" not in text


def test_a_call_of_a_connection_that_was_closed_can_be_released_and_no_other_is_sent(tmp_path):
    """Closing may come between any two steps of who waits for the answers."""
    compute = DaskCompute(
        cache_dir=tmp_path, processes=1, runner_factory=functools.partial(MeasuringRunner, str(tmp_path))
    )
    connection = compute._connected()
    (tmp_path / "slow").write_text("0.5")
    inbox = queue.SimpleQueue()
    pending = connection.submit_to(connection.addresses()[0], SCORES[0], inbox=inbox)
    compute.close()
    connection.release(pending)
    with pytest.raises(LostConnectionError):
        connection.submit_to("tcp://127.0.0.1:1", SCORES[1], inbox=inbox)


def test_closing_in_the_middle_is_one_clear_error(tmp_path):
    compute = DaskCompute(
        cache_dir=tmp_path, processes=2, runner_factory=functools.partial(MeasuringRunner, str(tmp_path))
    )
    (tmp_path / "slow").write_text("0.2")
    answers = compute.run_many(SCORES, report=report())
    next(answers)
    closer = threading.Thread(target=compute.close)
    closer.start()
    with pytest.raises(ComputeError, match="connection to the workers was lost"):
        list(answers)
    closer.join()
