"""The databases of the applier and of `replicate`: one seam, PostgreSQL and SQLite behind it.

    smtpmesh_applied    one row for each message that was applied, by its idempotency key: how often it came again, how
                        many of its changes took effect, how many were older than what was there
    smtpmesh_versions   the version of each key, of removed ones too (tombstones, which are kept for ever)
    smtpmesh_outbox     changes that a trigger wrote down, until they are sent and a while longer

`apply` does all of a message in one transaction with its row in `smtpmesh_applied`: after a crash at any moment it has
been applied or not. The tables are made when they are missing; no other table is ever made or changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from smtp_edge.applications.changes import Change, Table


class Unavailable(Exception):
    """The database did not do it, for reasons that are not the message's: it is down, slow, locked, or set up wrong."""


class NotYet(Exception):
    """What the message refers to is not there yet (a foreign key): other messages fare better."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a message."""

    repeated: bool = False
    """It had been applied before: nothing was done."""
    changes: int = 0
    """That took effect."""
    stale: int = 0
    """That were not newer than what was there, or came in one message with a newer one."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A change to be sent. Its id is its version: of one key the later change has the higher one."""

    id: int
    table: str
    key: Any
    op: str
    row: Mapping[str, Any] | None


class Database(Protocol):
    """One of them. All methods: Unavailable, within the time limit that it was opened with."""

    async def apply(self, key: str, changes: Sequence[Change], count: int) -> Applied:
        """The changes of a message that has `count`, one of each row, once for its key. Poisoned, NotYet: not done."""
        ...

    async def forget(self, days: int) -> None:
        """Remove rows of `smtpmesh_applied` and sent rows of `smtpmesh_outbox` that are older."""
        ...

    async def install(self, tables: Sequence[Table]) -> None:
        """Have triggers write down what changes in these tables."""
        ...

    async def read_outbox(self, limit: int) -> list[OutboxRow]:
        """The oldest changes of its tables that are not sent."""
        ...

    async def mark_sent(self, ids: Sequence[int], queue_id: str) -> None:
        """They are in the queue, in this message."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


def open_database(address: str, password_file: str, tables: Mapping[str, Table], timeout_s: float) -> Database:
    """Nothing is connected yet. ValueError, OSError."""
    kind, separator, rest = address.partition(":")
    if timeout_s <= 0:
        raise ValueError("statement_timeout_s is a number of seconds above 0")
    if kind == "sqlite" and separator and Path(rest).is_absolute():
        from smtp_edge.applications.database_sqlite import SQLite

        return SQLite(Path(rest), tables, timeout_s)
    if kind in ("postgresql", "postgres") and rest.startswith("//"):
        from smtp_edge.applications.database_postgresql import PostgreSQL

        if urlsplit(address).password:
            raise ValueError("database holds a password: write it into a file and name that as password_file")
        password = Path(password_file).read_text(encoding="utf-8").strip() if password_file else ""
        return PostgreSQL(address, password, tables, timeout_s)
    raise ValueError(f"database = {_hide(address)!r} is neither postgresql://user@host/name nor sqlite:/path/of/file")


def _hide(address: str) -> str:
    """Without what may be a password."""
    return address if "@" not in address else address.partition(":")[0] + "://...@" + address.rpartition("@")[2]


def quote(name: str) -> str:
    """An identifier, or schema.identifier, for a statement. It was checked (`parse_tables`)."""
    return ".".join(f'"{part}"' for part in name.split("."))


def key_text(change: Change) -> str:
    """A key as text, as the versions have it: 7 and "7" are two."""
    return json.dumps(change.key)


def parse_outbox_row(number: int, table: str, key: str, op: str, row: str | None) -> OutboxRow:
    """From JSON as the trigger wrote it."""
    parsed = None if row is None else json.loads(row, parse_float=Decimal)
    return OutboxRow(number, table, json.loads(key), op, parsed)
