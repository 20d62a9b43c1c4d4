"""From the tables of an earlier release to those of this one: one step for each schema, all in one transaction.

A step is never changed once it was released; the newest tables stand in rows.py, and a test compares what the steps
make of an old database with a new one. There is no way back: a migrated queue is refused by the release that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection

from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.rows import SCHEMA, SCHEMA_VERSION

STEPS: Mapping[int, str] = {
    1: """
DROP INDEX delivery_queued;
CREATE INDEX delivery_class_queued ON delivery (class_id, received_at) WHERE state = 'queued';
CREATE INDEX entry_spool ON entry (spool) WHERE spool IS NOT NULL;
""",
}
"""Schema -> the statements that make the next one of it."""


def migrate(connection: Connection, place: str) -> int:
    """Bring the database to the schema of this release, within the transaction that is open; the schema that it had.

    0: it was empty. StoreError for a newer one: nothing is changed, it may hold what this release cannot keep.
    """
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        known = f"schema {found}, this one knows {SCHEMA_VERSION}"
        way_out = "run that release, or give this one another node.data_dir"
        raise StoreError(f"{place} was written by a newer release ({known}): {way_out}")
    for schema in range(found, SCHEMA_VERSION) if found else ():
        _run(connection, STEPS[schema])
    if not found:
        _run(connection, SCHEMA)
    if found != SCHEMA_VERSION:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return found


def _run(connection: Connection, statements: str) -> None:
    """One by one: `executescript` would commit first."""
    for statement in statements.split(";"):
        connection.execute(statement)
