"""The DuckDB file: opened, locked down, migrated, and reached by one thread at a time."""

import functools
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from kvtuner_core.errors import StoreError

Row = tuple[Any, ...]

_MIGRATIONS = Path(__file__).parent / "migrations"
# The store's SQL needs no file, network or extension, so nothing in it may reach one.
_CONFIG = (
    ("enable_external_access", "false"),
    ("autoinstall_known_extensions", "false"),
    ("autoload_known_extensions", "false"),
    ("threads", "2"),
)
_MAGIC = slice(8, 12)
_HOLDER = re.compile(r"\(PID (\d+)\)")


@functools.cache
def migrations() -> tuple[str, ...]:
    """The SQL of every migration in order; the first brings an empty file to schema 1."""
    return tuple(path.read_text(encoding="utf-8") for path in sorted(_MIGRATIONS.glob("[0-9]*.sql")))


class Database:
    """One connection and one lock: statements of all threads run one after the other.

    A commit costs about a millisecond, and every statement of the store is short, so that a single
    writer is simpler than cursors that can conflict, and fast enough.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, name: str) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = connection
        self._lock = threading.RLock()
        self._name = name

    @classmethod
    def open(cls, path: Path | None) -> "Database":
        """Open or create the file, or a database in memory for ``None``, and bring it to the newest schema.

        Raises:
            StoreError: If the file is held by another process, damaged, newer, or out of reach.
        """
        name = ":memory:" if path is None else str(path)
        if path is not None:
            _make_folder(path)
            _check_file(path)
        try:
            connection = duckdb.connect(name, config=dict(_CONFIG))
        except duckdb.Error as error:
            raise StoreError(_explain(name, str(error))) from None
        database = cls(connection, name=name)
        try:
            connection.execute("SET lock_configuration = true")
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return all its rows.

        Raises:
            StoreError: If the store is closed or DuckDB refuses.
        """
        with self._lock, self._guard() as connection:
            return connection.execute(sql, list(values)).fetchall()

    def insert(self, sql: str, values: Sequence[object], *, conflict: str) -> None:
        """Run an ``INSERT``, outside of a `transaction`; where a row is there already, again ``ON CONFLICT``.

        What is new is inserted in half the time that DuckDB takes for a statement that may conflict.

        Args:
            sql: The statement, without a conflict clause.
            values: Of its parameters.
            conflict: What is done instead, such as ``DO NOTHING``.

        Raises:
            StoreError: If the store is closed or DuckDB refuses.
        """
        with self._lock, self._guard() as connection:
            try:
                connection.execute(sql, list(values)).fetchall()
            except duckdb.ConstraintException:
                connection.execute(f"{sql} ON CONFLICT {conflict}", list(values)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Statements of this thread in here happen together or not at all; other threads wait.

        Raises:
            StoreError: If the store is closed or DuckDB refuses.
        """
        with self._lock:
            with self._guard() as connection:
                connection.execute("BEGIN")
            try:
                yield
            except BaseException:
                with self._guard() as connection:
                    connection.execute("ROLLBACK")
                raise
            with self._guard() as connection:
                connection.execute("COMMIT")

    def close(self) -> None:
        """Write everything to the file and release it; a second call does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _guard(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._connection is None:
            raise StoreError(f"The result store {self._name} is closed. Open it again.")
        try:
            yield self._connection
        except duckdb.Error as error:
            raise StoreError(_explain(self._name, str(error))) from error
        except RuntimeError as error:
            # DuckDB turns Ctrl-C during a statement into this.
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise

    def _migrate(self) -> None:
        tables = {row[0] for row in self.rows("SELECT table_name FROM duckdb_tables()")}
        if "schema_version" not in tables:
            if tables:
                raise StoreError(
                    f"The file {self._name} is a database of another program. Give another one with --store FILE."
                )
            self.rows("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        version = self.rows("SELECT coalesce(max(version), 0) FROM schema_version")[0][0]
        known = migrations()
        if version > len(known):
            raise StoreError(
                f"The result store {self._name} has schema {version}; this program knows up to {len(known)}. "
                "Use the newer program that wrote it, or give another file with --store FILE."
            )
        for number, sql in enumerate(known[version:], start=version + 1):
            with self.transaction():
                self.rows(sql)
                self.rows("INSERT INTO schema_version VALUES (?)", [number])


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder of the result store {path} cannot be made ({error.strerror}). "
            "Give a file in a folder you may write to with --store FILE."
        ) from None


def _check_file(path: Path) -> None:
    """DuckDB would show a JSON, CSV or Parquet file as a database that lives in memory, and lose what is stored."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(_MAGIC.stop)
    except OSError:
        # DuckDB says better why it cannot be read.
        return
    if start[_MAGIC] != b"DUCK":
        raise StoreError(
            f"The file {path} is not a result store. Move it away, or give another file with --store FILE."
        )


def _explain(name: str, message: str) -> str:
    first = message.strip().split("\n")[0]
    holder = _HOLDER.search(message)
    if holder is not None:
        return (
            f"The result store {name} is in use by another process (PID {holder[1]}). "
            "Close that dashboard or command, or give another file with --store FILE."
        )
    if "ermission denied" in first or "Read-only file system" in first or "Is a directory" in first:
        return f"The result store {name} cannot be written ({first}). Give another file with --store FILE."
    if "not a valid DuckDB database file" in first:
        return f"The file {name} is not a result store. Move it away, or give another file with --store FILE."
    if "orrupt" in first or "Could not read enough bytes" in first or "erializ" in first:
        return f"The result store {name} is damaged ({first[:200]}). Move it away, or give another with --store FILE."
    return f"The result store {name} cannot be used ({first[:200]}). Give another file with --store FILE."
