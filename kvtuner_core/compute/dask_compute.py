"""Model work on Dask workers: this machine's own, or those of a running scheduler."""

import functools
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_core.compute.connection import DONE, Connection, LostConnectionError, Pending, settings_text
from kvtuner_core.compute.describing import Describer
from kvtuner_core.compute.devices import Gpu, list_gpus
from kvtuner_core.compute.spreading import Spread
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.ports import Emit
from kvtuner_core.domain.tasks import (
    Answer,
    GenerateTask,
    InspectTask,
    MeasureTask,
    ModelReport,
    Task,
    WorkerInfo,
    model_of,
)
from kvtuner_core.errors import CancelledError, ComputeError, KVTunerError

if TYPE_CHECKING:
    from kvtuner_core.compute.worker import RunnerFactory

_POLL = 0.1
_EVERY = 1.0
_STOP_PATIENCE = 5.0
_LATE_EVENTS = 2.0


class DaskCompute:
    """Runs tasks in worker processes, so that a crash or a full memory never reaches this one.

    Workers start at the first task. A worker that dies is restarted and its task tried again; after
    the fourth death the task is given up with a `ComputeError`. A single task goes to the worker that
    has its model loaded, unless that one is busy with another task of this program; many tasks go to
    all workers.
    """

    def __init__(
        self,
        *,
        cache_dir: Path,
        roots: tuple[Path, ...] | None = None,
        scheduler: str | None = None,
        processes: int | None = None,
        runner_factory: "RunnerFactory | None" = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            cache_dir: Folder for converted models.
            roots: Folders that local models may lie in, or ``None`` for any.
            scheduler: Address of a running scheduler, or ``None`` for workers of our own.
            processes: Workers of our own that share the CPU, or most of those with a GPU each; by
                default one, or one per GPU.
            runner_factory: Makes what does the work in each worker; by default the model runtime.
        """
        self._describer = Describer(cache_dir=cache_dir, roots=roots)
        self._cache_dir = cache_dir
        self._roots = roots
        self._scheduler = scheduler
        self._processes = processes
        self._factory = runner_factory
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._gpus: tuple[Gpu, ...] = ()
        self._closed = False
        self._homes: dict[ModelSpec, str] = {}
        self._busy: list[str] = []
        self._loading: list[Pending] = []
        self._agreed: dict[tuple[str, object], ModelReport] = {}

    def run(self, task: Task, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None) -> Answer:
        """Run one task to its end, as `Compute.run`; events are emitted in the caller's thread.

        Raises:
            CancelledError: If it was cancelled; a generation gets a few seconds to end by itself first.
            ComputeError: If its workers died or cannot be reached.
            KVTunerError: What the task raised, unchanged.
        """
        connection = self._connected()
        model = model_of(task)
        home = self._take_home(model)
        pending = None
        try:
            pending = connection.submit(task, home=home, listen=emit is not None)
            if isinstance(task, InspectTask):
                self._load_elsewhere(connection, task)
            patience = _STOP_PATIENCE if isinstance(task, GenerateTask) else 0.0
            emitted = _follow(connection, pending, emit, cancelled, patience=patience)
            reply = connection.reply(pending)
            _finish(pending, emit, emitted=emitted, events=reply.events)
        except LostConnectionError as error:
            raise self._lost(connection) from error
        finally:
            if pending is not None:
                connection.release(pending)
            self._leave_home(home)
        with self._lock:
            self._homes[model] = reply.worker
        if isinstance(reply.answer, KVTunerError):
            raise reply.answer
        return reply.answer

    def run_many(
        self,
        tasks: Sequence[MeasureTask],
        *,
        report: ModelReport,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generator[tuple[int, Answer], None, None]:
        """Run tasks on all workers at once, as `Compute.run_many`; three at most are on their way to each.

        Raises:
            CancelledError: If it was cancelled.
            ComputeError: If workers disagree, died or cannot be reached.
            KVTunerError: What a task raised, unchanged.
        """
        if not tasks:
            return
        connection = self._connected()
        spread = Spread(connection, tasks, report=report, agreed=self._agreed)
        try:
            with closing(spread.answers(cancelled)) as answers:
                for index, address, answer in answers:
                    with self._lock:
                        self._homes[tasks[index].evaluation.model] = address
                    yield index, answer
        except LostConnectionError as error:
            raise self._lost(connection) from error

    def _load_elsewhere(self, connection: Connection, task: InspectTask) -> None:
        """Let all workers of our own load a model while one of them looks at it; a study will need them all."""
        others = connection.own_addresses()
        with self._lock:
            done = [pending for pending in self._loading if pending.future.done()]
            for pending in done:
                self._loading.remove(pending)
                connection.release(pending)
            if len(others) > 1:
                inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
                self._loading += [connection.submit_to(address, task, inbox=inbox) for address in others]

    def describe(self, reference: str, *, version: str = "") -> ModelInfo:
        """Geometry of a model from its configuration, as `Compute.describe`; read in a process of its own.

        Raises:
            ModelError: If there is no such model, or its cache cannot be quantised.
            ComputeError: If that process died.
        """
        return self._describer.describe(reference, version=version)

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The worker processes; empty before the first task."""
        with self._lock:
            connection, gpus = self._connection, self._gpus
        if connection is None:
            return ()
        names = [gpu.name for gpu in gpus] or ["cpu"] * (self._processes or 1)
        return tuple(
            WorkerInfo(name=name, device=host or names[number], pid=pid)
            for number, (name, host, pid) in enumerate(connection.workers())
        )

    def close(self) -> None:
        """End the workers that were started here; a second call does nothing."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        with self._lock:
            if self._closed:
                raise ComputeError("The workers are shut down because the program is closing. Start it again.")
            if self._connection is None:
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> Connection:
        from kvtuner_core.compute.worker import open_runtime

        factory = self._factory or functools.partial(open_runtime, self._cache_dir, self._roots)
        if self._scheduler:
            settings = settings_text(self._cache_dir, self._roots)
            return Connection.remote(factory, scheduler=self._scheduler, settings=settings)
        self._gpus = list_gpus()[: self._processes]
        return Connection.local(factory, gpus=self._gpus, workers=self._processes or 1)

    def _take_home(self, model: ModelSpec) -> str | None:
        with self._lock:
            home = self._homes.get(model)
            if home is None or home in self._busy:
                return None
            self._busy.append(home)
            return home

    def _leave_home(self, home: str | None) -> None:
        with self._lock:
            if home in self._busy:
                self._busy.remove(home)

    def _lost(self, connection: Connection) -> ComputeError:
        """Let a broken connection go, so that the next task makes a new one."""
        with self._lock:
            known = self._connection is connection
            if known:
                self._connection = None
                self._homes.clear()
                self._agreed.clear()
                self._loading.clear()
        if known:
            connection.close()
        return ComputeError(
            "The connection to the workers was lost. Start the job again; it goes on from where it stopped."
        )


def _follow(
    connection: Connection,
    pending: Pending,
    emit: Emit | None,
    cancelled: Callable[[], bool] | None,
    *,
    patience: float,
) -> int:
    """Pass events on until the call is done; how many were emitted.

    A cancelled call is told to stop, and left to itself after ``patience`` seconds.
    """
    emitted = 0
    asked = told = looked = 0.0
    while (event := _next(pending, _POLL)) is not DONE:
        emitted = _pass_on(event, emitted, emit)
        now = time.monotonic()
        if now - looked > _EVERY:
            connection.follow_up(pending)
            looked = now
        if cancelled is None or not cancelled():
            continue
        asked = asked or now
        # A worker that was restarted meanwhile has not heard of it.
        if now - told > _EVERY:
            connection.stop(pending)
            told = now
        if now - asked >= patience:
            raise CancelledError("Cancelled; the worker finishes the step under way by itself.")
    return emitted


def _finish(pending: Pending, emit: Emit | None, *, emitted: int, events: int) -> None:
    """Pass on the events that were published before the answer and come in after it."""
    deadline = time.monotonic() + _LATE_EVENTS
    while emit is not None and emitted < events and time.monotonic() < deadline:
        emitted = _pass_on(_next(pending, _POLL), emitted, emit)


def _next(pending: Pending, timeout: float) -> object:
    try:
        return pending.inbox.get(timeout=timeout)
    except queue.Empty:
        return None


def _pass_on(event: object, emitted: int, emit: Emit | None) -> int:
    """Emit an event unless a first try of the task has emitted it already; how many there are now."""
    if not isinstance(event, tuple) or emit is None or event[0] < emitted:
        return emitted
    emit(event[1])
    return emitted + 1
