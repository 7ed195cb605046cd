"""Long work: handed to the queue for the pages, or run here and now for the command line."""

import secrets
from collections.abc import Callable, Generator
from typing import TypeVar

from kvtuner_core.domain.provenance import utc_now
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.errors import CancelledError, ComputeError
from kvtuner_core.services.workspace import Workspace

Cancelled = Callable[[], bool]
"""Says whether somebody asked the work to stop."""

Body = Callable[[str, Cancelled], Generator[Progress, None, object]]
"""Long work, given its run's id and the question whether to stop."""

T = TypeVar("T")


def never() -> bool:
    """Work that nobody cancels."""
    return False


def new_run_id() -> str:
    """A short random id."""
    return secrets.token_hex(4)


def answer_of(kind: type[T], answer: object) -> T:
    """The answer, if it is of the kind the task promises; anything else is a `ComputeError`."""
    if not isinstance(answer, kind):
        raise ComputeError(f"A worker must answer with a {kind.__name__}; got a {type(answer).__name__}.")
    return answer


def new_record(kind: RunKind, *, title: str, spec: str) -> RunRecord:
    """A record of work that has not begun."""
    return RunRecord(id=new_run_id(), kind=kind, status=RunStatus.QUEUED, title=title, spec=spec, created=utc_now())


def start(ws: Workspace, record: RunRecord, body: Body) -> str:
    """Queue work, new or to be resumed; returns the id of its run.

    Where the same request waits or runs already, that run's id is returned instead.
    """
    return ws.queue.submit(record, lambda cancelled: body(record.id, cancelled))


def run_here(
    ws: Workspace, record: RunRecord, body: Callable[[str, Cancelled], Generator[Progress, None, T]]
) -> Generator[Progress, None, T]:
    """Do work in this thread and keep its record like a queued job's; yields its progress, returns its result.

    Work that is left early, by Ctrl-C for example, becomes cancelled; what it finished is kept.
    """
    ws.store.add_run(record)
    ws.store.update_run(record.id, status=RunStatus.RUNNING)
    status, error = RunStatus.CANCELLED, ""
    try:
        result = yield from _noted(ws, record.id, body(record.id, never))
        status = RunStatus.DONE
    except CancelledError:
        raise
    except Exception as failure:
        status, error = RunStatus.FAILED, " ".join(str(failure).split()) or type(failure).__name__
        raise
    finally:
        ws.store.update_run(record.id, status=status, error=error)
    return result


def _noted(ws: Workspace, run: str, steps: Generator[Progress, None, T]) -> Generator[Progress, None, T]:
    try:
        while True:
            progress = next(steps)
            ws.store.update_run(run, progress=progress)
            yield progress
    except StopIteration as finished:
        result: T = finished.value
        return result
    finally:
        steps.close()
