"""What runs in a Dask worker process: one runtime, kept between tasks."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distributed import WorkerPlugin, get_worker
from distributed.protocol.serialize import deserialize_bytes, serialize_bytes

from kvtuner_core.compute.threads import let_idle_threads_sleep
from kvtuner_core.domain.ports import Emit
from kvtuner_core.domain.tasks import Answer, Task
from kvtuner_core.errors import CancelledError, KVTunerError


class Runner(Protocol):
    """What does the work in a worker process; `Runtime` is the real one."""

    def run(self, task: Task, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None) -> Answer:
        """Run one task to its end."""
        ...

    def close(self) -> None:
        """Release what is loaded."""
        ...


RunnerFactory = Callable[[], Runner]

_SWITCH_SECONDS = 0.0005
"""How long a running measurement may keep Python to itself while the worker has messages to handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One task on its way to a worker.

    Attributes:
        id: Unique name; a task tried again keeps it.
        task: What to do.
        plugin: Name of the `RuntimePlugin` that does it.
        topic: Where its events are published, or empty where nobody listens.
    """

    id: str
    task: Task
    plugin: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with the worker that gave it and the number of events it published before.

    What a task raises on purpose is an answer too: Dask would log it as a failure of the worker.
    """

    answer: Answer | KVTunerError
    worker: str
    events: int


class RuntimePlugin(WorkerPlugin):
    """Holds the worker's runner; Dask sets it up again in a worker that was restarted."""

    # A program that connects again to the same workers finds the model still loaded.
    idempotent = True

    def __init__(self, factory: RunnerFactory, *, name: str) -> None:
        self.name = name
        self._factory = factory

    def setup(self, worker: object) -> None:  # noqa: ARG002 - Dask's signature
        """Called in the worker process when it starts."""
        # A measurement launches kernels from Python; at the default of 5 ms, each message that fetches
        # an answer or brings the next task would wait that long for its turn.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._runner: Runner | None = None
        self._lock = threading.Lock()
        self._stopped: set[str] = set()

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - Dask's signature
        """Called in the worker process when it ends in good order."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def run(self, call: Call, emit: Emit | None) -> Answer:
        """Run one call; a second one waits, for a worker holds one model at a time."""
        with self._lock:
            if call.id in self._stopped:
                self._stopped.discard(call.id)
                raise CancelledError("The work was cancelled before it began.")
            if self._runner is None:
                self._runner = self._factory()
            try:
                return self._runner.run(call.task, emit=emit, cancelled=lambda: call.id in self._stopped)
            finally:
                self._stopped.discard(call.id)

    def stop(self, call: str) -> None:
        """Let the call named stop soon; called from the worker's event loop while the call is at work."""
        self._stopped.add(call)


def open_runtime(cache_dir: Path, roots: tuple[Path, ...] | None) -> Runner:
    """The real runner; torch and transformers are imported here, in the worker alone."""
    let_idle_threads_sleep()
    from kvtuner_core.runtime.worker import Runtime

    return Runtime(cache_dir=cache_dir, roots=roots)


def run_call(call: Call) -> Reply:
    """The Dask task: run one call on this worker and publish its events."""
    worker = get_worker()
    plugin = _plugin(worker, call.plugin)
    published = 0

    def publish(event: object) -> None:
        nonlocal published
        worker.log_event(call.topic, (call.id, published, serialize_bytes(event)))
        published += 1

    answer: Answer | KVTunerError
    try:
        answer = plugin.run(call, publish if call.topic else None)
    except KVTunerError as error:
        answer = error.with_traceback(None)
    return Reply(answer=answer, worker=worker.address, events=published)


def stop_call(plugin: str, call: str, dask_worker: object = None) -> None:
    """Tell this worker to stop one call; Dask hands the worker over under that name."""
    _plugin(dask_worker, plugin).stop(call)


def read_event(message: tuple[str, int, bytes]) -> tuple[str, int, object]:
    """The call, the number and the value of a published event."""
    call, number, value = message
    return call, number, deserialize_bytes(value)


def _plugin(worker: object, name: str) -> RuntimePlugin:
    plugin: RuntimePlugin = worker.plugins[name]  # type: ignore[attr-defined]
    return plugin
