import hashlib
import os
import re
import subprocess
import sys
import threading

import duckdb
import pytest

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import SearchResult, SearchSpec, SweepResult
from kvtuner_core.errors import StoreError
from kvtuner_core.store import Store, from_json, to_json
from kvtuner_core.store.database import Database, migrations
from tests.fakes.studies import search_result

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print(1, flush=True)
input()
"""


def refusal(path):
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "--store FILE" in message
    return message


def test_the_folder_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "a" / "b" / "store.duckdb"
    Store.open(path).close()
    assert path.is_file()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_opening_again_keeps_what_is_there_and_migrates_once(tmp_path):
    path = tmp_path / "store.duckdb"
    for _ in range(2):
        database = Database.open(path)
        assert database.rows("SELECT version FROM schema_version") == [(n,) for n in range(1, len(migrations()) + 1)]
        database.close()


def test_migrations_are_numbered_and_never_edited():
    digests = [hashlib.sha256(sql.encode()).hexdigest()[:16] for sql in migrations()]
    assert digests == [
        "99de6f6e362d9a0c",
        "587703c703c624f9",
        "6eab98aa3ace59e0",
        "3a33a14a85697bdb",
        "5d0aff7d0f08a34f",
        "a80e13d4dd549822",
    ]


def test_a_migration_happens_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "store.duckdb"
    broken = (*migrations(), "CREATE TABLE half (n INTEGER); CREATE TABLE half (n INTEGER);")
    with monkeypatch.context() as patch:
        patch.setattr("kvtuner_core.store.database.migrations", lambda: broken)
        refusal(path)
    database = Database.open(path)
    assert database.rows("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'") == [(0,)]
    assert database.rows("SELECT max(version) FROM schema_version") == [(len(migrations()),)]


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "store.duckdb"
    Store.open(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99)")
    assert f"has schema 99; this program knows up to {len(migrations())}" in refusal(path)


def test_a_file_held_by_another_process_names_its_pid(tmp_path):
    path = tmp_path / "store.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline().strip() == "1"
        assert f"in use by another process (PID {holder.pid})" in refusal(path)
    finally:
        holder.communicate("\n")


@pytest.mark.parametrize("name", ["notes.txt", "policy.json", "table.csv", "demo.parquet"])
@pytest.mark.parametrize("content", [b"", b"hello" * 1000, b'{"a": 1}\n'])
def test_a_file_that_is_no_database_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert "is not a result store" in refusal(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "theirs.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE theirs (n INTEGER)")
    assert "is a database of another program" in refusal(path)


@pytest.mark.parametrize("damage", ["middle", "cut"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "store.duckdb"
    Store.open(path).close()
    content = path.read_bytes()
    path.write_bytes(content[:9000] if damage == "cut" else content[:4096] + b"\xff" * 20000 + content[24096:])
    assert "is damaged" in refusal(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in refusal(tmp_path / "file" / "store.duckdb")


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    assert "cannot be written" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(tmp_path / "store.duckdb")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'out.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH 'other.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
    ],
)
def test_the_connection_reaches_nothing_else(sql):
    with pytest.raises(StoreError):
        Database.open(None).rows(sql)


def test_a_closed_store_says_so_and_closes_twice():
    database = Database.open(None)
    database.close()
    database.close()
    with pytest.raises(StoreError, match="is closed"):
        database.rows("SELECT 1")


def test_a_transaction_that_fails_leaves_nothing():
    database = Database.open(None)

    def fail():
        with database.transaction():
            database.rows("INSERT INTO results VALUES ('a', 'b')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert database.rows("SELECT * FROM results") == []


def test_a_transaction_keeps_other_threads_out():
    database = Database.open(None)
    seen = []
    with database.transaction():
        database.rows("INSERT INTO results VALUES ('a', 'b')")
        other = threading.Thread(target=lambda: seen.extend(database.rows("SELECT run FROM results")))
        other.start()
        other.join(0.05)
        assert seen == []
        database.rows("INSERT INTO results VALUES ('c', 'd')")
    other.join()
    assert seen == [("a",), ("c",)]


def test_searches_from_before_strategies_stay_what_they_were(tmp_path, monkeypatch):
    old = search_result(layers=4, evaluations=12)
    record = RunRecord(
        id="old",
        kind=RunKind.SEARCH,
        status=RunStatus.DONE,
        title="old",
        spec=_before(to_json(old.spec)),
        created="now",
    )
    path = tmp_path / "store.duckdb"
    with monkeypatch.context() as patch:
        first = migrations()[:1]
        patch.setattr("kvtuner_core.store.database.migrations", lambda: first)
        store = Store.open(path)
        store.add_run(record)
        store.put_result("old", _before(to_json(old)))
        store.put_result("sweep", to_json(old.sweep))
        store.close()
    store = Store.open(path)
    assert from_json(SearchSpec, store.run("old").spec) == old.spec
    assert from_json(SearchResult, store.get_result("old")) == old
    assert from_json(SweepResult, store.get_result("sweep")) == old.sweep
    assert old.spec.strategy is SearchStrategy.NSGA2
    store.close()


def _before(text):
    """The JSON text as it was written before searches had a strategy and constraints."""
    changed = re.sub(r',"strategy":"nsga2","constraints":\{[^}]*\}', "", text)
    assert changed != text
    return changed


def test_ctrl_c_during_a_statement_is_ctrl_c():
    class Interrupted:
        def execute(self, *_arguments):
            raise RuntimeError("Query interrupted")

    with pytest.raises(KeyboardInterrupt):
        Database(Interrupted(), name="x").rows("SELECT 1")


def test_what_breaks_another_rule_than_a_known_key_is_refused_and_nothing_of_it_kept():
    database = Database.open(None)
    sql = "INSERT INTO uploads VALUES (?, ?, ?, ?), (?, ?, ?, ?)"
    with pytest.raises(StoreError, match="NOT NULL"):
        database.insert(sql, ["a", "a.txt", b"", "now", "b", None, b"", "now"], conflict="DO NOTHING")
    assert database.rows("SELECT count(*) FROM uploads") == [(0,)]
    database.close()
