"""PostgreSQL behind the seam of `databases`, by asyncpg.

PostgreSQL itself makes values of its types out of a row's JSON (`jsonb_populate_record`). The versions of a message's
keys are written first, in the order of the keys, so that two messages never wait for each other. A statement has a time
limit on either side; a connection on which anything went wrong is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from smtp_edge.applications.changes import Change, Poisoned, Table, dump_row
from smtp_edge.applications.databases import (
    Applied,
    NotYet,
    OutboxRow,
    Unavailable,
    key_text,
    parse_outbox_row,
    quote,
)

try:
    import asyncpg
except ImportError:  # said by the constructor
    asyncpg = None

MARGIN = 1.5
"""How much longer than the server we wait for a statement: a server that works says itself what was too slow."""
IDLE_MAX = 20
"""Connections that are kept for later."""
_DATA, _CONSTRAINT, _FOREIGN_KEY = "22", "23", "23503"
"""Classes of SQLSTATE that are a message's own fault, and one code that may not be: what it refers to may be late."""

_IN_THE_WAY = ("40P01", "40001")
"""Deadlock detected, serialization failure."""
DEADLOCKS_MAX = 4
"""That one message may lose in a row."""

TABLES = """
CREATE TABLE IF NOT EXISTS smtpmesh_applied (
    key text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now(),
    changes integer NOT NULL DEFAULT 0, stale integer NOT NULL DEFAULT 0, repeats integer NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS smtpmesh_versions (
    table_name text, key text, version bigint NOT NULL, deleted boolean NOT NULL, PRIMARY KEY (table_name, key));
CREATE TABLE IF NOT EXISTS smtpmesh_outbox (
    id bigserial PRIMARY KEY, table_name text NOT NULL, key jsonb NOT NULL, op text NOT NULL, row_json jsonb,
    made_at timestamptz NOT NULL DEFAULT now(), sent_at timestamptz, queue_id text NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS smtpmesh_outbox_unsent ON smtpmesh_outbox (id) WHERE sent_at IS NULL;
CREATE INDEX IF NOT EXISTS smtpmesh_applied_at ON smtpmesh_applied (applied_at);
"""
MADE = """
SELECT count(*) = 3 FROM pg_class WHERE pg_table_is_visible(oid)
AND relname IN ('smtpmesh_applied', 'smtpmesh_versions', 'smtpmesh_outbox')
"""
"""By a look into the table itself: to_regclass goes on saying in a transaction what was so when it began."""
CLAIM = """
INSERT INTO smtpmesh_applied (key) VALUES ($1)
ON CONFLICT (key) DO UPDATE SET repeats = smtpmesh_applied.repeats + 1 RETURNING repeats
"""
VERSIONS = """
INSERT INTO smtpmesh_versions AS there (table_name, key, version, deleted)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[])
ON CONFLICT (table_name, key) DO UPDATE SET version = excluded.version, deleted = excluded.deleted
WHERE there.version < excluded.version RETURNING table_name, key
"""
COUNT = "UPDATE smtpmesh_applied SET changes = $2, stale = $3 WHERE key = $1"
FUNCTION = """
CREATE OR REPLACE FUNCTION smtpmesh_note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND to_jsonb(OLD) -> TG_ARGV[1] <> to_jsonb(NEW) -> TG_ARGV[1] THEN
        INSERT INTO smtpmesh_outbox (table_name, key, op) VALUES (TG_ARGV[0], to_jsonb(OLD) -> TG_ARGV[1], 'delete');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO smtpmesh_outbox (table_name, key, op, row_json)
        VALUES (TG_ARGV[0], to_jsonb(NEW) -> TG_ARGV[1], 'upsert', to_jsonb(NEW));
    END IF;
    RETURN NULL;
END $$
"""
TRIGGER = """
CREATE OR REPLACE TRIGGER smtpmesh_outbox AFTER INSERT OR UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION smtpmesh_note_change('{name}', '{key}')
"""
OUTBOX = """
SELECT id, table_name, key::text, op, row_json::text FROM smtpmesh_outbox
WHERE sent_at IS NULL AND table_name = ANY($1::text[]) ORDER BY id LIMIT $2
"""
LOCK = 0x736D7470
"""Advisory lock of whoever makes tables: two at once would get in each other's way."""


class _Deadlock(Unavailable):
    """Nothing was done, and it is nobody's fault."""


class PostgreSQL:
    """See the module. ValueError without asyncpg."""

    def __init__(self, address: str, password: str, tables: Mapping[str, Table], timeout_s: float) -> None:
        if asyncpg is None:
            raise ValueError("PostgreSQL needs asyncpg: pip install 'smtpmesh[postgres]'")
        self._address, self._password, self._timeout_s = address, password, timeout_s
        self._effects = {table.name: _statements(table) for table in tables.values()}
        self._idle: list[Any] = []
        self._made = False

    async def apply(self, key: str, changes: Sequence[Change], count: int) -> Applied:
        """See `Database`. Of two transactions in each other's way the server ends one, which begins again."""
        for _ in range(DEADLOCKS_MAX):
            try:
                return await self._apply(key, changes, count)
            except _Deadlock:
                continue
        return await self._apply(key, changes, count)

    async def _apply(self, key: str, changes: Sequence[Change], count: int) -> Applied:
        async with self._transaction() as connection:
            if await connection.fetchval(CLAIM, key):
                return Applied(repeated=True)
            ordered = sorted(changes, key=lambda change: (change.table, key_text(change)))
            rows = await connection.fetch(
                VERSIONS,
                [change.table for change in ordered],
                [key_text(change) for change in ordered],
                [change.version for change in ordered],
                [change.op == "delete" for change in ordered],
            )
            newer = {(row["table_name"], row["key"]) for row in rows}
            for change in changes:
                if (change.table, key_text(change)) in newer:
                    await self._take_effect(connection, change)
            await connection.execute(COUNT, key, len(newer), count - len(newer))
            return Applied(changes=len(newer), stale=count - len(newer))

    async def _take_effect(self, connection: Any, change: Change) -> None:
        table, delete = self._effects[change.table]
        await connection.execute(delete if change.op == "delete" else _upsert(table, change), dump_row(change.row))

    async def forget(self, days: int) -> None:
        """See `Database`."""
        async with self._transaction() as connection:
            for table, column in (("smtpmesh_applied", "applied_at"), ("smtpmesh_outbox", "sent_at")):
                await connection.execute(
                    f"DELETE FROM {table} WHERE {column} < now() - make_interval(days => $1)", days
                )

    async def install(self, tables: Sequence[Table]) -> None:
        """See `Database`."""
        async with self._transaction() as connection:
            schema = await connection.fetchval("SELECT quote_ident(current_schema())")
            await connection.execute(FUNCTION.format(schema=schema))
            for table in tables:
                await connection.execute(TRIGGER.format(table=quote(table.name), name=table.name, key=table.key))

    async def read_outbox(self, limit: int) -> list[OutboxRow]:
        """See `Database`."""
        async with self._transaction() as connection:
            rows = await connection.fetch(OUTBOX, list(self._effects), limit)
        return [parse_outbox_row(*row) for row in rows]

    async def mark_sent(self, ids: Sequence[int], queue_id: str) -> None:
        """See `Database`."""
        async with self._transaction() as connection:
            statement = "UPDATE smtpmesh_outbox SET sent_at = now(), queue_id = $2 WHERE id = ANY($1::bigint[])"
            await connection.execute(statement, list(ids), queue_id)

    async def close(self) -> None:
        """See `Database`."""
        while self._idle:
            self._idle.pop().terminate()

    # -- connections ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """A transaction, all of it within the time limit. Unavailable, Poisoned, NotYet."""
        connection = None
        try:
            async with asyncio.timeout(self._timeout_s * MARGIN):
                connection = await self._take()
                async with _ending(connection):
                    yield connection
            self._give_back(connection)
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            raise _translate(error) from error

    async def _take(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        connection = await asyncpg.connect(
            self._address,
            password=self._password or None,
            timeout=self._timeout_s,
            server_settings={
                "application_name": "smtpmesh",
                "statement_timeout": str(round(self._timeout_s * 1000)),
                "idle_in_transaction_session_timeout": str(round(self._timeout_s * 1000 * MARGIN)),
            },
        )
        if not self._made:
            try:
                await self._make_tables(connection)
            except BaseException:
                connection.terminate()
                raise
            self._made = True
        return connection

    async def _make_tables(self, connection: Any) -> None:
        """Once: CREATE INDEX locks a table even if there is nothing to do, in the way of whoever writes already."""
        if await connection.fetchval(MADE):
            return
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            if not await connection.fetchval(MADE):  # by who had the lock before us
                await connection.execute(TABLES)

    def _give_back(self, connection: Any) -> None:
        if len(self._idle) < IDLE_MAX and not connection.is_closed():
            self._idle.append(connection)
        else:
            connection.terminate()


@asynccontextmanager
async def _ending(connection: Any) -> AsyncIterator[None]:
    """BEGIN and COMMIT. After an error there is no ROLLBACK: the connection is thrown away."""
    await connection.execute("BEGIN")
    yield
    await connection.execute("COMMIT")


def _statements(table: Table) -> tuple[Table, str]:
    """The table, and the statement that deletes a row of it."""
    name, key = quote(table.name), quote(table.key)
    row = f"(SELECT {key} FROM jsonb_populate_record(NULL::{name}, $1::jsonb))"
    return table, f"DELETE FROM {name} WHERE {key} = {row}"


def _upsert(table: Table, change: Change) -> str:
    """The statement that writes the columns that the change has; asyncpg remembers those it has prepared."""
    name, key = quote(table.name), quote(table.key)
    columns = sorted(change.row)
    listed = ", ".join(map(quote, columns))
    others = [f"{quote(column)} = excluded.{quote(column)}" for column in columns if column != table.key]
    action = f"UPDATE SET {', '.join(others)}" if others else "NOTHING"
    return (
        f"INSERT INTO {name} ({listed}) SELECT {listed} FROM jsonb_populate_record(NULL::{name}, $1::jsonb) "
        f"ON CONFLICT ({key}) DO {action}"
    )


def _translate(error: BaseException) -> BaseException:
    """To the errors of the seam; ours, and cancellation, stay what they are."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(getattr(error, "sqlstate", None) or "")
        text = f"PostgreSQL: {str(error).partition(chr(10))[0][:200]} ({state})"
        if state == _FOREIGN_KEY:
            return NotYet(text)
        if state in _IN_THE_WAY:
            return _Deadlock(text)
        return Poisoned(text) if state[:2] in (_DATA, _CONSTRAINT) else Unavailable(text)
    if isinstance(error, TimeoutError):
        return Unavailable("PostgreSQL does not answer in time")
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return Unavailable(f"PostgreSQL cannot be asked: {str(error)[:200] or type(error).__name__}")
    return error
