"""Runs and their results."""

from kvtuner_core.domain.provenance import as_utc, utc_now
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.store.database import Database, Row

_RUN = "id, kind, status, title, spec, created, started, finished, stage, done, total, error"


class Runs:
    """The tables ``runs`` and ``results``; with `add_run`, `update_run`, `run` and `runs` it is a `RunLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_run(self, record: RunRecord) -> None:
        """Keep a new record, or begin a stored one of the same id afresh, its result left in place."""
        values = (record.kind.value, record.status.value, record.title, record.spec, record.created)
        rest = (record.started, record.finished, record.stage, record.done, record.total, record.error)
        self._database.rows(
            f"INSERT INTO runs ({_RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - a constant
            "ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, status = excluded.status, title = excluded.title, "
            "spec = excluded.spec, created = excluded.created, started = excluded.started, "
            "finished = excluded.finished, stage = excluded.stage, done = excluded.done, total = excluded.total, "
            "error = excluded.error",
            [record.id, *values, *rest],
        )

    def update_run(
        self,
        run: str,
        *,
        status: RunStatus | None = None,
        progress: Progress | None = None,
        error: str | None = None,
    ) -> None:
        """Change a record; a run that was deleted meanwhile stays deleted.

        ``RUNNING`` sets ``started`` and clears ``finished`` and ``error``; a status that is not
        live sets ``finished``.
        """
        changes: dict[str, object] = {}
        if status is not None:
            changes |= {"status": status.value} | _times(status)
        if progress is not None:
            changes |= {"stage": progress.stage, "done": progress.done, "total": progress.total}
        if error is not None:
            changes["error"] = error
        if changes:
            names = ", ".join(f"{name} = ?" for name in changes)
            self._database.rows(f"UPDATE runs SET {names} WHERE id = ?", [*changes.values(), run])  # noqa: S608 - as above

    def run(self, run: str) -> RunRecord | None:
        """One record, or ``None``."""
        rows = self._database.rows(f"SELECT {_RUN} FROM runs WHERE id = ?", [run])  # noqa: S608 - as above
        return _record(rows[0]) if rows else None

    def runs(self, *, kinds: tuple[RunKind, ...] = (), statuses: tuple[RunStatus, ...] = ()) -> tuple[RunRecord, ...]:
        """Records, newest first; empty filters mean all."""
        kind_values = [kind.value for kind in kinds]
        status_values = [status.value for status in statuses]
        rows = self._database.rows(
            f"SELECT {_RUN} FROM runs "  # noqa: S608 - as above
            "WHERE (len(?::VARCHAR[]) = 0 OR kind IN (SELECT unnest(?::VARCHAR[]))) "
            "AND (len(?::VARCHAR[]) = 0 OR status IN (SELECT unnest(?::VARCHAR[]))) "
            "ORDER BY created DESC, number DESC",
            [kind_values, kind_values, status_values, status_values],
        )
        return tuple(_record(row) for row in rows)

    def delete_run(self, run: str) -> None:
        """Forget a run and its result; scores and profiles stay, because other runs share them."""
        with self._database.transaction():
            self._database.rows("DELETE FROM results WHERE run = ?", [run])
            self._database.rows("DELETE FROM runs WHERE id = ?", [run])

    def put_result(self, run: str, text: str) -> None:
        """Keep a run's result, JSON text; a second one replaces the first."""
        self._database.rows(
            "INSERT INTO results VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET body = excluded.body", [run, text]
        )

    def get_result(self, run: str) -> str | None:
        """A run's result, or ``None`` where it has none yet."""
        rows = self._database.rows("SELECT body FROM results WHERE run = ?", [run])
        return str(rows[0][0]) if rows else None


def _times(status: RunStatus) -> dict[str, object]:
    now = utc_now()
    if status is RunStatus.QUEUED:
        return {"started": "", "finished": "", "error": ""}
    if status is RunStatus.RUNNING:
        return {"started": now, "finished": "", "error": ""}
    return {"finished": now}


def _record(row: Row) -> RunRecord:
    run, kind, status, title, spec, created, started, finished, stage, done, total, error = row
    return RunRecord(
        id=run,
        kind=RunKind(kind),
        status=RunStatus(status),
        title=title,
        spec=spec,
        created=as_utc(created),
        started=as_utc(started),
        finished=as_utc(finished),
        stage=stage,
        done=done,
        total=total,
        error=error,
    )
