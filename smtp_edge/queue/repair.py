"""`queue repair`: a queue that is damaged gets a new database with all that can be read of the old one (salvage.py).

    lock              nobody else has the queue open, and nobody opens it meanwhile
    check             what SQLite finds wrong; without problems nothing is done, unless it is forced
    build             `damaged-TIME/new.db`, from a copy of the old files: opening them would change their log
    rename            it is `damaged-TIME.ready`: from here on the repair is done, and only has to be finished
    move              spool files that no message names, then the old database, into `damaged-TIME`
    rename            it is `queue.db`

Cut off before the first rename, nothing has changed. Cut off behind it, the queue does not start until the next
`queue repair` has done the rest: the old log beside the new database would destroy it. It takes twice the space of the
database. Not attempted: reading pages that SQLite itself cannot find a way to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from smtp_edge.queue.directory import DAMAGED, DATABASE, PARTS, READY, find_ready
from smtp_edge.queue.lock import LOCK, DirectoryLock
from smtp_edge.queue.logcheck import count_lost_commits
from smtp_edge.queue.rows import PAGE_BYTES, SCHEMA_VERSION
from smtp_edge.queue.salvage import Report, Salvage
from smtp_edge.queue.spool import INCOMING, SPOOL, create_directories, sync, sync_directory
from smtp_edge.queue.store import StoreError

PROBLEMS_MAX = 20
BUILT = "new.db"
REPORT = "report.txt"
LOST_COMMITS = "transactions in the log cannot be read"


def check(directory: Path) -> list[str]:
    """What SQLite finds wrong, a few of all. StoreError if the queue is in use, or there is none."""
    with _locked(directory):
        return _check(directory)


def repair(directory: Path, *, class_of: Callable[[str], str], at: datetime, force: bool = False) -> Report:
    """See the module. `class_of`: the class of a recipient's domain. StoreError: nothing was changed.

    A database without problems is left alone, unless forced.
    """
    with _locked(directory):
        report = Report(problems=_check(directory))
        ready = find_ready(directory)
        if not (report.problems or force):
            return report
        folder = ready.with_suffix("") if ready is not None else directory / f"{DAMAGED}{at:%Y%m%d-%H%M%S}"
        try:
            if ready is None:
                ready = _build(directory, folder, report, class_of, at)
            else:
                report.problems.append(f"what was found then is in {folder / REPORT}")
            report.files = _finish(directory, folder, ready)
        except OSError as error:
            raise StoreError(f"{directory} cannot be repaired: {error}") from error
        report.folder = folder
        return report


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    if not (directory / DATABASE).exists() and not (directory / SPOOL).exists():
        raise StoreError(f"there is no queue in {directory}")
    lock = DirectoryLock(directory)
    lock.acquire("repair")
    try:
        _give_to_owner(directory / LOCK, directory)
        yield
    finally:
        lock.release()


def _check(directory: Path) -> list[str]:
    """On the file as it is: a check reads only, and what it leaves of a log is what it found."""
    database = directory / DATABASE
    if find_ready(directory) is not None:
        return ["an earlier repair was cut off"]
    if not database.exists():
        return ["there is no database"]
    lost = count_lost_commits(database)
    problems = [f"{lost} {LOST_COMMITS}"] if lost else []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            found = connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})").fetchall()
    except sqlite3.Error as error:
        return [*problems, str(error)]
    if version > SCHEMA_VERSION:
        raise StoreError(f"{database} was written by a newer release: repair it with that one")
    return problems + [line for (text,) in found if text != "ok" for line in str(text).splitlines()]


# -- the new database --------------------------------------------------------------------------------------------------


def _build(directory: Path, folder: Path, report: Report, class_of: Callable[[str], str], at: datetime) -> Path:
    """The new database, whole and on disk. OSError, StoreError: nothing was changed."""
    folder.mkdir(mode=0o700)
    try:
        create_directories(directory)
        _give_to_owner(directory / SPOOL, directory)
        _give_to_owner(directory / SPOOL / INCOMING, directory)
        with _open_copy(directory, folder / "reading") as old, _open_new(folder / BUILT) as new:
            new.execute("BEGIN")
            Salvage(old, new, directory / SPOOL, folder, report, class_of, at).run()
            report.holes |= any(problem.endswith(LOST_COMMITS) for problem in report.problems)
            new.execute("COMMIT")
        shutil.rmtree(folder / "reading")
        report.folder = folder
        report.files = len(_find_strays(directory, folder / BUILT))
        (folder / REPORT).write_text("\n".join(report.lines()) + "\n", encoding="utf-8")
        for path in (folder, *folder.rglob("*")):
            sync(path)
            _give_to_owner(path, directory)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"the new database cannot be written: {error}; nothing was changed") from error
        raise
    ready = directory / f"{folder.name}{READY}"
    (folder / BUILT).rename(ready)
    sync_directory(directory)
    return ready


@contextlib.contextmanager
def _open_copy(directory: Path, work: Path) -> Iterator[sqlite3.Connection]:
    work.mkdir()
    for part in PARTS[:2]:  # what is shared of a log is made anew
        if (directory / (DATABASE + part)).exists():
            shutil.copyfile(directory / (DATABASE + part), work / (DATABASE + part))
    with contextlib.closing(sqlite3.connect(work / DATABASE)) as connection:
        yield connection


@contextlib.contextmanager
def _open_new(path: Path) -> Iterator[sqlite3.Connection]:
    """Without a log: it is renamed, and would leave that behind. It is synced once, when it is whole."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


# -- in its place ------------------------------------------------------------------------------------------------------


def _finish(directory: Path, folder: Path, ready: Path) -> int:
    """Everything behind the first rename; can be repeated. How many spool files went to the folder."""
    strays = _find_strays(directory, ready)
    for file in strays:
        (folder / SPOOL).mkdir(exist_ok=True)
        _give_to_owner(folder / SPOOL, directory)
        file.rename(folder / SPOOL / file.name)
    for part in PARTS:
        if (directory / (DATABASE + part)).exists():
            (directory / (DATABASE + part)).rename(folder / (DATABASE + part))
    for place in (folder, directory):  # the old log is away before the new database is here
        sync_directory(place)
    ready.rename(directory / DATABASE)
    sync_directory(directory)
    return len(strays)


def _find_strays(directory: Path, database: Path) -> list[Path]:
    """Spool files that the next start would remove as nobody's: but here nobody knows whose they were."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        named = {row[0] for row in connection.execute("SELECT spool FROM entry WHERE spool IS NOT NULL")}
    return sorted(file for file in (directory / SPOOL).iterdir() if file.is_file() and file.name not in named)


def _give_to_owner(path: Path, directory: Path) -> None:
    """The node's user has to open what root has repaired."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
