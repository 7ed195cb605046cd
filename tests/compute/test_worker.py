import threading
from types import SimpleNamespace

import pytest
from distributed.protocol.serialize import serialize_bytes

from kvtuner_core.compute.worker import Call, RuntimePlugin, read_event, stop_call
from kvtuner_core.domain.tasks import TokenEvent
from kvtuner_core.errors import CancelledError
from tests.compute.runners import ScriptedRunner, scripted


@pytest.fixture
def plugin(tmp_path):
    made = RuntimePlugin(lambda: ScriptedRunner(tmp_path), name="p")
    made.setup(object())
    return made


def call(task, name="c"):
    return Call(id=name, task=task, plugin="p", topic="")


def test_the_runner_is_made_at_the_first_call_and_kept(tmp_path):
    made = []

    def factory():
        made.append(1)
        return ScriptedRunner(tmp_path)

    plugin = RuntimePlugin(factory, name="p")
    plugin.setup(object())
    assert made == []
    for _ in range(2):
        assert plugin.run(call(scripted("go")), None).text == "0 1 2 "
    assert made == [1]
    plugin.teardown(object())
    plugin.teardown(object())
    assert (tmp_path / "closed").exists()


def test_a_call_that_was_stopped_before_it_began_does_nothing(plugin, tmp_path):
    stop_call("p", "c", dask_worker=SimpleNamespace(plugins={"p": plugin}))
    with pytest.raises(CancelledError, match="before it began"):
        plugin.run(call(scripted("go")), None)
    assert list(tmp_path.iterdir()) == []
    assert plugin.run(call(scripted("go")), None).text == "0 1 2 "


def test_a_call_at_work_is_stopped(plugin):
    events = []

    def emit(event):
        events.append(event)
        if len(events) == 2:
            plugin.stop("c")

    with pytest.raises(CancelledError, match="in the worker"):
        plugin.run(call(scripted("go", tokens=100)), emit)
    assert len(events) == 2


def test_two_calls_take_turns(plugin):
    spans = []

    def run():
        events = []
        plugin.run(call(scripted("slow 0.01")), events.append)
        spans.append(len(events))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spans == [3, 3]


def test_an_event_crosses_as_bytes():
    event = TokenEvent(token=5, text="é")
    assert read_event(("c", 2, serialize_bytes(event))) == ("c", 2, event)
