import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvtuner_core.compute import DaskCompute
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.ports import Compute
from kvtuner_core.domain.tasks import InspectTask, TokenEvent
from kvtuner_core.errors import CancelledError, ComputeError, ModelError
from tests.compute.runners import ScriptedRunner, scripted

ROOT = Path(__file__).parents[2]

APP = """
import functools, sys
from pathlib import Path
from kvtuner_core.compute import DaskCompute
from tests.compute.runners import ScriptedRunner, scripted

if __name__ == "__main__":
    folder = sys.argv[1]
    compute = DaskCompute(cache_dir=Path(folder), runner_factory=functools.partial(ScriptedRunner, folder))
    compute.run(scripted("go"))
    print(compute.workers()[0].pid, flush=True)
    compute.run(scripted("slow 0.5", tokens=1000))
"""


def started(folder, **rest):
    return DaskCompute(cache_dir=folder, runner_factory=functools.partial(ScriptedRunner, str(folder)), **rest)


@pytest.fixture(scope="module")
def compute(tmp_path_factory):
    opened = started(tmp_path_factory.mktemp("compute"))
    yield opened
    opened.close()


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_nothing_starts_before_the_first_task(tmp_path):
    compute: Compute = started(tmp_path)
    assert compute.workers() == ()
    compute.close()
    compute.close()
    with pytest.raises(ComputeError, match="shut down"):
        compute.run(scripted("go"))


def test_a_task_runs_in_another_process_with_all_cores(compute):
    answer = compute.run(scripted("go"))
    assert answer.text == "0 1 2 "
    assert answer.device == str(len(os.sched_getaffinity(0)))
    (worker,) = compute.workers()
    assert (worker.name, worker.device) == ("0", "cpu")
    assert worker.pid != os.getpid()


def test_events_arrive_in_order_in_the_callers_thread(compute):
    events, threads = [], set()

    def emit(event):
        events.append(event)
        threads.add(threading.current_thread())

    compute.run(scripted("go", tokens=300), emit=emit)
    assert events == [TokenEvent(token=number, text=f"{number} ") for number in range(300)]
    assert threads == {threading.current_thread()}


def test_events_stream_while_the_task_runs(compute):
    times = []
    compute.run(scripted("slow 0.05", tokens=20), emit=lambda _: times.append(time.monotonic()))
    assert times[-1] - times[0] > 0.5


def test_a_refusal_arrives_unchanged(compute, capfd):
    with pytest.raises(ModelError) as caught:
        compute.run(scripted("refuse No such model."))
    assert str(caught.value) == "No such model."
    assert "Compute Failed" not in capfd.readouterr().err


def test_a_tasks_own_error_is_not_taken_for_a_lost_connection(compute):
    with pytest.raises(FileNotFoundError, match="gone"):
        compute.run(scripted("break gone"))
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_an_error_of_the_listener_is_raised_and_the_work_goes_on(compute):
    def refuse(event):
        raise OSError(event.text)

    with pytest.raises(OSError, match="0"):
        compute.run(scripted("go"), emit=refuse)
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_a_task_at_work_is_cancelled_soon(compute):
    begun = threading.Event()
    with pytest.raises(CancelledError, match="in the worker"):
        compute.run(scripted("slow 0.05", tokens=1000), emit=lambda _: begun.set(), cancelled=begun.is_set)
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_a_worker_that_does_not_listen_is_left_to_finish(compute, monkeypatch):
    monkeypatch.setattr("kvtuner_core.compute.dask_compute._STOP_PATIENCE", 0.3)
    began = time.monotonic()
    with pytest.raises(CancelledError, match="finishes the step"):
        compute.run(scripted("slow 1.5", tokens=1), cancelled=lambda: True)
    assert time.monotonic() - began < 1.4
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_a_measurement_under_way_is_left_to_itself_at_once(compute):
    began = time.monotonic()
    with pytest.raises(CancelledError, match="finishes the step"):
        compute.run(InspectTask(model=ModelSpec(reference="slow 2")), cancelled=lambda: True)
    assert time.monotonic() - began < 1.9
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_threads_may_share_it(compute):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(compute.run(scripted("go"), emit=lambda _: None).text))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["0 1 2 "] * 8


def test_a_killed_worker_is_restarted_and_its_task_tried_again(compute):
    events = []
    compute.run(scripted("go"))
    (worker,) = compute.workers()

    def kill(event):
        events.append(event.token)
        if len(events) == 5:
            os.kill(worker.pid, signal.SIGKILL)

    answer = compute.run(scripted("slow 0.05", tokens=20), emit=kill)
    assert answer.token_ids == tuple(range(20))
    assert events == list(range(20))
    assert compute.workers()[0].pid != worker.pid


def test_a_task_that_kills_every_worker_is_given_up(compute, monkeypatch):
    compute.run(scripted("go"))
    # Each death costs a start of a process; the real limit is looked at where the cluster is tested.
    monkeypatch.setattr(compute._connection._cluster.scheduler, "allowed_failures", 1)
    with pytest.raises(ComputeError, match=r"died 2 times on this task, probably out of memory\. Take fewer") as caught:
        compute.run(scripted("die"))
    assert "\n" not in str(caught.value)
    assert compute.run(scripted("go")).text == "0 1 2 "


def test_the_workers_end_when_the_program_is_killed(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(APP, encoding="utf-8")
    program = subprocess.Popen(
        [sys.executable, str(app), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    pid = int(program.stdout.readline())
    assert is_alive(pid)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert wait_until(lambda: not is_alive(pid))


def test_the_workers_end_when_it_is_closed(tmp_path):
    compute = started(tmp_path)
    compute.run(scripted("go"))
    (worker,) = compute.workers()
    compute.close()
    assert wait_until(lambda: not is_alive(worker.pid))
    assert (tmp_path / "closed").exists()


def test_a_task_under_way_when_it_is_closed_ends_with_one_clear_error(tmp_path):
    compute = started(tmp_path)
    begun = threading.Event()
    closer = threading.Thread(target=lambda: (begun.wait(20), compute.close()))
    closer.start()
    with pytest.raises(ComputeError, match="connection to the workers was lost"):
        compute.run(scripted("slow 0.1", tokens=1000), emit=lambda _: begun.set())
    closer.join()
    with pytest.raises(ComputeError, match="shut down"):
        compute.run(scripted("go"))
