"""The database's write-ahead log: when it is copied into the database. On the writer's thread.

Not SQLite's automatic checkpoints: those run within a commit, so that somebody's answer waits for them; they keep
their errors to themselves; and they stop half-way at a reader's snapshot (faults.py says why that matters). How many
pages the log has is known only when it is copied, so that is learned: pages for each change, from the last time.
"""

from __future__ import annotations

import sqlite3

from smtp_edge.queue.gate import Gate
from smtp_edge.queue.rows import SCHEMA_VERSION
from smtp_edge.queue.store import StoreError

CHECKPOINT_PAGES = 4000
"""Log pages (32 MiB) between checkpoints, each of which costs two more syncs."""
LATEST = 4
"""When the log is so many times as long, a checkpoint waits for readers instead of coming back."""
PAGES_PER_CHANGE = 8.0
"""At first; then what was seen."""
PAGES_PER_CHANGE_MIN = 0.5


class WriteAheadLog:
    """See the module. `gate` keeps this process's readers out meanwhile."""

    def __init__(self, connection: sqlite3.Connection, gate: Gate) -> None:
        self._connection, self._gate = connection, gate
        self._changes = 0
        self._pages_per_change = PAGES_PER_CHANGE

    def note(self, changes: int) -> None:
        """So many were committed; a checkpoint, if it is time. sqlite3.Error."""
        self._changes += changes
        pages = self._changes * self._pages_per_change
        if pages >= CHECKPOINT_PAGES:
            self._copy(wait=pages >= LATEST * CHECKPOINT_PAGES)

    def _copy(self, *, wait: bool) -> None:
        with self._gate.alone(wait=wait) as alone:
            if not alone:
                return
            _, pages, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < pages:  # another program reads: later
            self._changes //= 2
            return
        self._pages_per_change = max(PAGES_PER_CHANGE_MIN, pages / self._changes)
        self._changes = 0

    def empty(self) -> None:
        """Copy all of it, sync the database, cut the log to nothing. sqlite3.Error, StoreError."""
        with self._gate.alone(wait=True):
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError("another program holds the queue's database: its log cannot be emptied")
        self._changes = 0

    def try_commit(self) -> None:
        """One small commit that changes nothing. sqlite3.Error."""
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
