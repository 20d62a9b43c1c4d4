"""SQLite behind the seam of `databases`: one connection, in a thread of its own.

Journal WAL, synchronous FULL: what was committed is on stable storage. SQLite checks few types by itself; the kinds of
the columns do (`changes`), and STRICT tables. Infinite numbers and blobs are not for its triggers: JSON has neither.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from smtp_edge.applications.changes import Change, Poisoned, Table
from smtp_edge.applications.databases import Applied, NotYet, OutboxRow, Unavailable, key_text, parse_outbox_row, quote

TABLES = """
CREATE TABLE IF NOT EXISTS smtpmesh_applied (
    key TEXT PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    changes INTEGER NOT NULL DEFAULT 0, stale INTEGER NOT NULL DEFAULT 0, repeats INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS smtpmesh_versions (
    table_name TEXT, key TEXT, version INTEGER NOT NULL, deleted INTEGER NOT NULL, PRIMARY KEY (table_name, key));
CREATE TABLE IF NOT EXISTS smtpmesh_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, key TEXT NOT NULL, op TEXT NOT NULL, row_json TEXT,
    made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, sent_at TEXT, queue_id TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS smtpmesh_outbox_unsent ON smtpmesh_outbox (id) WHERE sent_at IS NULL;
CREATE INDEX IF NOT EXISTS smtpmesh_applied_at ON smtpmesh_applied (applied_at);
"""
CLAIM = """
INSERT INTO smtpmesh_applied (key) VALUES (?)
ON CONFLICT (key) DO UPDATE SET repeats = repeats + 1 RETURNING repeats
"""
VERSION = """
INSERT INTO smtpmesh_versions (table_name, key, version, deleted) VALUES (?, ?, ?, ?)
ON CONFLICT (table_name, key) DO UPDATE SET version = excluded.version, deleted = excluded.deleted
WHERE version < excluded.version
"""
COUNT = "UPDATE smtpmesh_applied SET changes = ?, stale = ? WHERE key = ?"
OUTBOX = """
SELECT id, table_name, key, op, row_json FROM smtpmesh_outbox
WHERE sent_at IS NULL AND table_name IN ({marks}) ORDER BY id LIMIT ?
"""
NOTE = """
INSERT INTO smtpmesh_outbox (table_name, key, op, row_json)
SELECT '{name}', json_quote({side}.{key}), '{op}', {row}{condition};
"""
TRIGGER = "CREATE TRIGGER {trigger} AFTER {event} ON {table} FOR EACH ROW BEGIN {notes} END"
REAL = "CASE WHEN typeof(NEW.{0}) <> 'real' THEN NEW.{0} ELSE json(printf('%!.17g', NEW.{0})) END"
"""SQLite's own JSON has 15 digits of a number; a double needs 17."""
_Answer = TypeVar("_Answer")


class SQLite:
    """See the module. ValueError."""

    def __init__(self, path: Path, tables: Mapping[str, Table], timeout_s: float) -> None:
        if dotted := [name for name in tables if "." in name]:
            raise ValueError(f"tables.{dotted[0]}: SQLite has no schemas")
        self._path, self._tables, self._timeout_s = path, tables, timeout_s
        self._thread = ThreadPoolExecutor(1, "smtpmesh-sqlite")
        self._connection: sqlite3.Connection | None = None

    async def apply(self, key: str, changes: Sequence[Change], count: int) -> Applied:
        """See `Database`."""

        def work(connection: sqlite3.Connection) -> Applied:
            if connection.execute(CLAIM, (key,)).fetchone()[0]:
                return Applied(repeated=True)
            done = sum(self._take_effect(connection, change) for change in changes)
            connection.execute(COUNT, (done, count - done, key))
            return Applied(changes=done, stale=count - done)

        return await self._do(work)

    def _take_effect(self, connection: sqlite3.Connection, change: Change) -> bool:
        """False: what is there is as new."""
        noted = (change.table, key_text(change), change.version, change.op == "delete")
        if not connection.execute(VERSION, noted).rowcount:
            return False
        table = self._tables[change.table]
        if change.op == "delete":
            connection.execute(f"DELETE FROM {quote(table.name)} WHERE {quote(table.key)} = ?", (change.key,))
        else:
            connection.execute(_upsert(table, change), [_value(table, *item) for item in sorted(change.row.items())])
        return True

    async def forget(self, days: int) -> None:
        """See `Database`."""

        def work(connection: sqlite3.Connection) -> None:
            for table, column in (("smtpmesh_applied", "applied_at"), ("smtpmesh_outbox", "sent_at")):
                connection.execute(f"DELETE FROM {table} WHERE {column} < datetime('now', ?)", (f"-{days} days",))

        await self._do(work)

    async def install(self, tables: Sequence[Table]) -> None:
        """See `Database`."""

        def work(connection: sqlite3.Connection) -> None:
            for table in tables:
                for name, statement in _triggers(table).items():
                    connection.execute(f"DROP TRIGGER IF EXISTS {name}")
                    connection.execute(statement)

        await self._do(work)

    async def read_outbox(self, limit: int) -> list[OutboxRow]:
        """See `Database`."""
        statement = OUTBOX.format(marks=", ".join("?" * len(self._tables)))
        rows = await self._do(lambda connection: connection.execute(statement, (*self._tables, limit)).fetchall())
        return [self._outbox_row(*row) for row in rows]

    def _outbox_row(self, number: int, name: str, key: str, op: str, row: str | None) -> OutboxRow:
        """With truth values and JSON, which SQLite has not, as what they are."""
        found = parse_outbox_row(number, name, key, op, row)
        if found.row is None:
            return found
        kinds = self._tables[name].columns
        restored = {column: _restore(kinds.get(column, ""), value) for column, value in found.row.items()}
        return OutboxRow(number, name, found.key, op, restored)

    async def mark_sent(self, ids: Sequence[int], queue_id: str) -> None:
        """See `Database`."""
        statement = "UPDATE smtpmesh_outbox SET sent_at = CURRENT_TIMESTAMP, queue_id = ? WHERE id = ?"
        rows = [(queue_id, number) for number in ids]
        await self._do(lambda connection: connection.executemany(statement, rows))

    async def close(self) -> None:
        """See `Database`."""

        def work() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._thread.shutdown(wait=False)

    # -- the thread ----------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """In one transaction. Unavailable, Poisoned, NotYet. If nobody waits any more it is done all the same."""

        def run() -> _Answer:
            with _translated():
                if self._connection is None:
                    self._connection = self._open()
                with _transaction(self._connection):
                    return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw", self._timeout_s, isolation_level=None, check_same_thread=False, uri=True
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.executescript(TABLES)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of SQLite as those of the seam."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        may_come = error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
        raise (NotYet if may_come else Poisoned)(f"SQLite: {error}") from error
    except sqlite3.Error as error:
        raise Unavailable(f"SQLite: {error}") from error


def _upsert(table: Table, change: Change) -> str:
    columns = sorted(change.row)
    others = [f"{quote(column)} = excluded.{quote(column)}" for column in columns if column != table.key]
    action = f"UPDATE SET {', '.join(others)}" if others else "NOTHING"
    listed, marks = ", ".join(map(quote, columns)), ", ".join("?" * len(columns))
    return f"INSERT INTO {quote(table.name)} ({listed}) VALUES ({marks}) ON CONFLICT ({quote(table.key)}) DO {action}"


def _value(table: Table, column: str, value: object) -> object:
    """As SQLite keeps it: JSON as text, numbers as doubles."""
    if value is not None and table.columns[column] == "json":
        return json.dumps(value, default=float)
    return float(value) if isinstance(value, Decimal) else value


def _restore(kind: str, value: Any) -> Any:
    if kind == "boolean" and value in (0, 1):
        return bool(value)
    if kind == "json" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _triggers(table: Table) -> dict[str, str]:
    """Name -> statement: one for each of INSERT, UPDATE and DELETE."""
    key, name = quote(table.key), table.name
    columns = ", ".join(f"'{column}', {REAL.format(quote(column))}" for column in table.columns)
    written = NOTE.format(name=name, side="NEW", key=key, op="upsert", row=f"json_object({columns})", condition="")
    removed = NOTE.format(name=name, side="OLD", key=key, op="delete", row="NULL", condition="{}")
    moved = removed.format(f" WHERE OLD.{key} IS NOT NEW.{key}")
    notes = {"insert": written, "update": moved + written, "delete": removed.format("")}
    return {
        f'"smtpmesh_{event}_{name}"': TRIGGER.format(
            trigger=f'"smtpmesh_{event}_{name}"', event=event.upper(), table=quote(name), notes=body
        )
        for event, body in notes.items()
    }
