"""What stands in a queue directory, and what must not stand there when a store opens it.

    queue.db, -wal, -shm    the database (sqlite.py)
    spool/                  mail data above the inline bound (spool.py)
    lock                    held by the process that has it open (lock.py)
    offers                  peers that may have what is under way (offers.py)
    reserve                 disk space for the ends of what is under way (reserve.py)
    damaged-TIME/           what a repair replaced; nobody here looks at it again (repair.py)
    damaged-TIME.ready      the database that a repair has built, until it is in its place

Nothing else is looked for, and nothing else is touched.
"""

from __future__ import annotations

from pathlib import Path

from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.logcheck import count_lost_commits
from smtp_edge.queue.spool import SPOOL

DATABASE = "queue.db"
PARTS = ("", "-wal", "-shm")
"""Of the database's files, by how their names end."""
DAMAGED = "damaged-"
READY = ".ready"


def find_ready(directory: Path) -> Path | None:
    """The database of a repair that was cut off before it was in its place."""
    return next(iter(sorted(directory.glob(f"{DAMAGED}*{READY}"))), None)


def demand_no_repair(directory: Path) -> None:
    """StoreError if a repair was cut off: the database may be away, or without its log."""
    if find_ready(directory) is not None:
        raise StoreError(f"a repair of {directory} was cut off: `smtpmesh queue repair` finishes it")


def demand_whole_log(directory: Path) -> None:
    """StoreError if transactions are missing in the middle of the log: SQLite would drop the later ones as well."""
    lost = count_lost_commits(directory / DATABASE)
    if lost:
        what = f"{lost} transactions in {DATABASE}-wal cannot be read, though the disk had said that it keeps them"
        raise StoreError(f"the queue's database is damaged ({what}): `smtpmesh queue repair` goes on without them")


def demand_fresh(directory: Path) -> None:
    """A new queue has no files yet. If there are some, somebody took the database away: they are not orphans."""
    files = [file for file in (directory / SPOOL).iterdir() if file.is_file()]
    if files:
        count = f"{len(files)} spool file{'s' if len(files) > 1 else ''}"
        way_out = "put the database back, or start anew and keep the files: `smtpmesh queue repair --force`"
        raise StoreError(f"{directory / DATABASE} has no messages, but there is {count} of some: {way_out}")
