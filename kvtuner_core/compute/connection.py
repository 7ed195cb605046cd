"""A client of Dask workers: sends calls, hands their events to whoever waits, and stops them."""

import contextlib
import functools
import hashlib
import queue
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kvtuner_core.compute.cluster import start_cluster
from kvtuner_core.compute.devices import Gpu
from kvtuner_core.domain.tasks import Task
from kvtuner_core.errors import ComputeError

if TYPE_CHECKING:
    from kvtuner_core.compute.worker import Reply

CONNECT_SECONDS = 10
_GATHER_SECONDS = 0.001
DONE = object()
"""Put in a call's inbox when its future is done."""


class Pending:
    """A call under way.

    Attributes:
        id: Its unique name.
        task: What is done.
        home: Address of the only worker that may do it, or ``None`` for any.
        listen: Whether anybody wants its events.
        future: Dask's future of the `Reply`.
        inbox: Pairs of number and event as they come in, and `DONE`; or, where several calls share
            one, each call itself when it is done.
    """

    def __init__(
        self, task: Task, *, home: str | None, listen: bool = False, inbox: "queue.SimpleQueue[object] | None" = None
    ) -> None:
        self.id = uuid.uuid4().hex
        self.task = task
        self.home = home
        self.listen = listen
        self.future: Any = None
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue() if inbox is None else inbox
        self.token: object = DONE if inbox is None else self


class LostConnectionError(Exception):
    """The workers cannot be reached any more."""


class NotHandedOverError(Exception):
    """An answer is there, but its worker did not hand it over in time."""


class Connection:
    """One Dask client, and the local cluster where there is no other."""

    def __init__(self, client: Any, cluster: Any | None, *, plugin: str) -> None:
        self._client = client
        self._cluster = cluster
        self._plugin = plugin
        self._topic = f"kvtuner-{uuid.uuid4().hex}"
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()
        client.subscribe_topic(self._topic, self._receive)

    @classmethod
    def local(cls, factory: Any, *, gpus: tuple[Gpu, ...], workers: int) -> "Connection":
        """Start workers on this machine, one per GPU or else ``workers`` of them, and connect to them.

        Raises:
            ComputeError: If they do not start.
        """
        cluster = None
        try:
            cluster = start_cluster(gpus, workers=workers)
            client = _client(cluster)
        except (OSError, RuntimeError, TimeoutError) as error:
            if cluster is not None:
                cluster.close()
            raise ComputeError(
                f"The worker process could not be started ({_first_line(error)}). "
                "See the terminal for its output; free memory and start again."
            ) from error
        return cls._ready(client, cluster, factory, plugin="kvtuner")

    @classmethod
    def remote(cls, factory: Any, *, scheduler: str, settings: str) -> "Connection":
        """Connect to the workers of a running scheduler.

        Args:
            factory: Makes the runner in each worker.
            scheduler: Address such as ``tcp://host:8786``.
            settings: What tells this program's runner from another's on the same workers.

        Raises:
            ComputeError: If nobody answers there, or no worker is there.
        """
        try:
            _knock(scheduler)
            client = _client(scheduler)
        except (OSError, ValueError, TimeoutError):
            raise ComputeError(
                f"KVTUNER_SCHEDULER must name a running Dask scheduler such as tcp://host:8786; {scheduler} gave no "
                f"answer within {CONNECT_SECONDS} s. Start one with: dask scheduler. Or unset the variable."
            ) from None
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            client.close()
            raise ComputeError(
                f"The Dask scheduler {scheduler} has no workers. Start one with: dask worker {scheduler} --nthreads 1"
            ) from None
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        return cls._ready(client, None, factory, plugin=f"kvtuner-{digest}")

    @classmethod
    def _ready(cls, client: Any, cluster: Any | None, factory: Any, *, plugin: str) -> "Connection":
        from kvtuner_core.compute.worker import RuntimePlugin

        try:
            client.register_plugin(RuntimePlugin(factory, name=plugin))
        except Exception as error:
            client.close()
            if cluster is not None:
                cluster.close()
            raise ComputeError(
                f"The workers cannot run this program ({_first_line(error)}). "
                "Install the same version of it and of its requirements for them."
            ) from error
        return cls(client, cluster, plugin=plugin)

    def submit(self, task: Task, *, home: str | None, listen: bool) -> Pending:
        """Send a task, to the worker at address ``home`` where that is one of several."""
        single = self._cluster is not None and len(self._cluster.workers) == 1
        addresses = self._addresses() if home and not single else ()
        pending = Pending(task, home=home if len(addresses) > 1 and home in addresses else None, listen=listen)
        with self._lock:
            self._pending[pending.id] = pending
        self._send(pending)
        return pending

    def submit_to(self, home: str, task: Task, *, inbox: queue.SimpleQueue[object]) -> Pending:
        """Send a task to one worker; the call is put into ``inbox`` when it is done."""
        pending = Pending(task, home=home, inbox=inbox)
        self._send(pending)
        return pending

    def reply(self, pending: Pending, *, timeout: float | None = None) -> "Reply":
        """What a call that is done gave.

        Raises:
            ComputeError: If it killed its workers.
            NotHandedOverError: If the worker that holds the answer needs more than ``timeout`` seconds.
            LostConnectionError: If the workers cannot be reached any more.
        """
        from distributed import KilledWorker

        try:
            reply: Reply = pending.future.result(timeout=timeout)
        except KilledWorker as error:
            raise died(error.allowed_failures + 1) from None
        except Exception as error:
            if pending.future.status == "error":
                # The task's own, as it was raised.
                raise
            if timeout is not None and isinstance(error, TimeoutError):
                raise NotHandedOverError from error
            raise LostConnectionError from error
        return reply

    def follow_up(self, pending: Pending) -> None:
        """Send a call to any worker once its home is gone.

        Dask leaves a task that was bound to a dead worker waiting, even where it may go elsewhere.
        """
        if pending.home is not None and pending.home not in self._addresses() and not pending.future.done():
            lost, pending.home = pending.future, None
            self._send(pending)
            with contextlib.suppress(LostConnectionError), self._while_connected():
                lost.cancel()

    def _send(self, pending: Pending) -> None:
        from kvtuner_core.compute.worker import Call, run_call

        topic = self._topic if pending.listen else ""
        call = Call(id=pending.id, task=pending.task, plugin=self._plugin, topic=topic)
        key = f"kvtuner-{uuid.uuid4().hex}"
        with self._while_connected():
            future = self._client.submit(
                run_call, call, key=key, pure=False, workers=[pending.home] if pending.home else None
            )
        pending.future = future
        future.add_done_callback(lambda _: pending.inbox.put(pending.token) if pending.future is future else None)

    @contextlib.contextmanager
    def _while_connected(self) -> Iterator[None]:
        """Whatever Dask raises of a client that is closed, or being closed, is a lost connection."""
        try:
            yield
        except Exception as error:
            if self._client.status == "running":
                raise
            raise LostConnectionError from error

    def addresses(self) -> tuple[str, ...]:
        """Addresses of the workers that are there now, ordered by their names.

        Raises:
            LostConnectionError: If the workers cannot be reached any more.
        """
        try:
            return self._addresses()
        except Exception as error:
            raise LostConnectionError from error

    def own_addresses(self) -> tuple[str, ...]:
        """Addresses of the workers that were started here; none with another's scheduler.

        Raises:
            LostConnectionError: If the workers cannot be reached any more.
        """
        return () if self._cluster is None else self.addresses()

    def _addresses(self) -> tuple[str, ...]:
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        return tuple(sorted(known, key=lambda address: str(known[address]["name"])))

    def stop(self, pending: Pending) -> None:
        """Tell the workers to stop a call; does not wait for a worker that is too busy to listen."""
        from kvtuner_core.compute.worker import stop_call

        tell = functools.partial(self._client.run, stop_call, self._plugin, pending.id, on_error="ignore")
        threading.Thread(target=tell, name="kvtuner-stop", daemon=True).start()

    def release(self, pending: Pending) -> None:
        """Forget a call; one that has not begun never will."""
        with self._lock:
            self._pending.pop(pending.id, None)
        # A client that is closed has forgotten the call already.
        with contextlib.suppress(LostConnectionError), self._while_connected():
            if not pending.future.done():
                pending.future.cancel()
            pending.future.release()

    def workers(self) -> tuple[tuple[str, str, int | None], ...]:
        """Name, host and process id (``None`` on other machines) of each worker."""
        if self._cluster is not None:
            return tuple((str(name), "", nanny.pid) for name, nanny in sorted(self._cluster.workers.items()))
        known = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return tuple((str(worker["name"]), str(worker["host"]), None) for worker in known)

    def close(self) -> None:
        """Disconnect, and end the workers that were started here."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _receive(self, event: tuple[float, Any]) -> None:
        from kvtuner_core.compute.worker import read_event

        call, number, value = read_event(event[1])
        with self._lock:
            pending = self._pending.get(call)
        if pending is not None:
            pending.inbox.put((number, value))


def _knock(scheduler: str) -> None:
    """Fail where no scheduler listens, because Dask's own client may wait for ever; it speaks first."""
    address = urlsplit(scheduler)
    if address.scheme not in ("tcp", "tls") or not address.hostname or not address.port:
        raise ValueError(scheduler)
    with socket.create_connection((address.hostname, address.port), timeout=CONNECT_SECONDS) as caller:
        if address.scheme == "tcp" and not caller.recv(1):
            raise ValueError(scheduler)


def _client(address: Any) -> Any:
    import distributed

    connect: Any = distributed.Client
    client = connect(address, timeout=CONNECT_SECONDS, set_as_default=False)
    # Dask gathers what it sends for 10 ms: the second worker's task would wait that long behind the first one's.
    client.scheduler_comm.interval = _GATHER_SECONDS
    return client


def settings_text(cache_dir: Path, roots: tuple[Path, ...] | None) -> str:
    """What tells one program's runner from another's, as text."""
    return repr((str(cache_dir), None if roots is None else [str(root) for root in roots]))


def died(times: int) -> ComputeError:
    """The error of a task whose worker died each time it was tried."""
    return ComputeError(
        f"The worker process died {times} times on this task, probably out of memory. "
        "Take fewer or shorter prompts, a smaller dtype or a smaller model, and start again."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
