"""What the disk did to the queue, and what follows. Pure.

SQLite says            means                                    then
FULL                   no space; nothing was synced             each change is tried for itself; 452
BUSY, LOCKED           another program holds the database       the change fails; 451
CORRUPT, NOTADB        a page is not what it should be          nothing new is taken until the next start; 451
any other I/O error    a write, a sync or a lock failed         suspect: see below; 451

**After a failed sync** nobody knows what is on disk: the kernel may have dropped the pages and marked them clean, so
that a second fsync succeeds without writing anything (Rebello and others, "Can Applications Recover from fsync
Failures?", 2020). So no sync is repeated and believed. What SQLite does in WAL mode, and what is done here about it:

    a commit's sync fails       SQLite takes the frames as never written: the next commit writes them anew, at the same
                                place, and syncs what it wrote. But they are whole in the file as the kernel shows it: a
                                start after a crash would believe them, and append to what is perhaps not on disk.
    a checkpoint's sync fails   it counts nothing as copied and copies all of it again the next time - unless an earlier
                                one had stopped half-way (at a reader's snapshot): that half counts as copied, unsynced.
    SQLite's own checkpoints    run within a commit, and keep what fails to themselves.

    here    checkpoints are made by the writer alone, between commits, when nobody reads: whole or not at all;
            while the disk is suspect nothing is committed: first everything that counts is copied from the log to the
            database, that is synced, and the log is cut to nothing (`PRAGMA wal_checkpoint(TRUNCATE)`); then a trial;
            a start does the same before it believes what it found.

Not covered: another program that reads the database during a checkpoint, together with a sync that fails.
"""

from __future__ import annotations

import enum
import errno
import sqlite3
from dataclasses import dataclass

from smtp_edge.queue.errors import StoreDoubt, StoreError, StoreFull


class Kind(enum.StrEnum):
    """What kind of trouble; see the table."""

    FULL = "full"
    SUSPECT = "suspect"
    DAMAGED = "damaged"
    STOPPED = "stopped"
    """The writer has ended: a bug, or the process is about to."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the queue takes nothing now."""

    kind: Kind
    reason: str

    @property
    def error(self) -> StoreError:
        """As whoever asks for a change hears it."""
        return (StoreFull if self.kind is Kind.FULL else StoreError)(self.reason)


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISK = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOLFS,
    }
)
FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
WAY_OUT = "stop the node and run `smtpmesh queue repair`"


def find_trouble(error: Exception) -> Trouble | None:
    """What an error says of the disk; None if it is about the one change alone."""
    if isinstance(error, OSError):
        return Trouble(Kind.FULL if error.errno in FULL_ERRORS else Kind.SUSPECT, f"the queue's disk: {error.strerror}")
    if not isinstance(error, sqlite3.Error):
        return None
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return Trouble(Kind.FULL, "no space left for the queue's database")
    if code in _DAMAGE:
        return Trouble(Kind.DAMAGED, f"the queue's database is damaged ({error}): {WAY_OUT}")
    if code in _DISK:
        name = getattr(error, "sqlite_errorname", "")
        return Trouble(Kind.SUSPECT, f"the queue's disk fails: {error}{f' ({name})' if name else ''}")
    return None


def translate(error: Exception) -> StoreError:
    """The store's error for whatever a change or a question ended with."""
    if isinstance(error, StoreError):
        return error
    trouble = find_trouble(error)
    if trouble is None:
        kind = "the queue's database" if isinstance(error, sqlite3.Error) else "the queue could not be changed"
        return StoreError(f"{kind}: {error if isinstance(error, sqlite3.Error) else repr(error)}")
    return StoreDoubt(trouble.reason) if trouble.kind is Kind.SUSPECT else trouble.error


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
