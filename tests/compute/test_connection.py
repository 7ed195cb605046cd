import os
import signal
import socket
import threading
import time

import pytest

from kvtuner_core.compute import connection
from kvtuner_core.errors import ComputeError
from tests.compute.runners import scripted
from tests.compute.test_dask_compute import started


def _cluster(workers):
    from distributed import LocalCluster

    return LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0")


@pytest.fixture(scope="module")
def elsewhere():
    """A running scheduler with two workers, as an operator would have one."""
    cluster = _cluster(2)
    yield cluster
    cluster.close()


def pids(folder):
    return {path.name for path in folder.glob("pid-*")}


def test_a_running_scheduler_is_used_and_left_running(elsewhere, tmp_path):
    compute = started(tmp_path, scheduler=elsewhere.scheduler_address)
    events = []
    assert compute.run(scripted("go"), emit=events.append).text == "0 1 2 "
    assert len(events) == 3
    assert [(worker.device, worker.pid) for worker in compute.workers()] == [("127.0.0.1", None)] * 2
    compute.close()
    again = started(tmp_path, scheduler=elsewhere.scheduler_address)
    assert again.run(scripted("go")).text == "0 1 2 "
    again.close()


def test_a_model_stays_on_its_worker_and_a_second_task_finds_the_other(elsewhere, tmp_path):
    compute = started(tmp_path, scheduler=elsewhere.scheduler_address)
    for _ in range(4):
        compute.run(scripted("go"))
    assert len(pids(tmp_path)) == 1
    other = threading.Thread(target=compute.run, args=(scripted("slow 0.5", tokens=6),))
    other.start()
    time.sleep(0.3)
    began = time.monotonic()
    compute.run(scripted("go"))
    assert time.monotonic() - began < 2.5
    other.join()
    assert len(pids(tmp_path)) == 2
    compute.close()


def test_a_task_does_not_wait_until_others_are_gathered_with_it(elsewhere):
    from distributed.batched import BatchedSend

    client = connection._client(elsewhere.scheduler_address)
    assert client.scheduler_comm.interval <= BatchedSend(interval="1ms").interval < BatchedSend("10ms").interval
    client.close()


def test_a_task_whose_home_dies_goes_to_another_worker(elsewhere, tmp_path):
    compute = started(tmp_path, scheduler=elsewhere.scheduler_address)
    compute.run(scripted("go"))
    (home,) = pids(tmp_path)
    events = []

    def kill(event):
        events.append(event.token)
        if len(events) == 3:
            os.kill(int(home.removeprefix("pid-")), signal.SIGKILL)

    answer = compute.run(scripted("slow 0.05", tokens=10), emit=kill)
    assert answer.token_ids == tuple(range(10))
    assert events == list(range(10))
    compute.close()


def test_a_scheduler_that_ends_is_one_clear_error(tmp_path):
    cluster = _cluster(1)
    compute = started(tmp_path, scheduler=cluster.scheduler_address)
    compute.run(scripted("go"))
    closer = threading.Timer(0.3, cluster.close)
    closer.start()
    with pytest.raises(ComputeError, match="connection to the workers was lost"):
        compute.run(scripted("slow 0.2", tokens=100))
    closer.join()
    compute.close()


@pytest.mark.parametrize("address", ["what", "tcp://", "tcp://127.0.0.1", "http://127.0.0.1:80", "tcp://127.0.0.1:9"])
def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path, address):
    compute = started(tmp_path, scheduler=address)
    began = time.monotonic()
    with pytest.raises(ComputeError, match=r"KVTUNER_SCHEDULER must name a running Dask scheduler") as caught:
        compute.run(scripted("go"))
    assert time.monotonic() - began < 5
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        compute = started(tmp_path, scheduler=f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ComputeError, match="gave no answer within"):
            compute.run(scripted("go"))


def test_a_scheduler_without_workers_says_how_to_start_one(tmp_path, monkeypatch):
    from distributed import Scheduler, SpecCluster

    monkeypatch.setattr(connection, "CONNECT_SECONDS", 1)
    options = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}) as empty:
        compute = started(tmp_path, scheduler=empty.scheduler_address)
        with pytest.raises(ComputeError, match=r"has no workers\. Start one with: dask worker"):
            compute.run(scripted("go"))
