"""Is anything missing in the middle of the write-ahead log?

SQLite believes the log up to the first frame whose checksum is wrong, takes the rest as never committed, and says
nothing: right for what a power cut tore, wrong for a log that was damaged later, because mail that was answered 250 may
stand behind the damage. The two are told apart by what else is there. Each transaction is synced before the next one is
written, so a power cut tears the last one only: two commits of the same log behind its end mean that at least one of
them had been synced. (File format: sqlite.org/fileformat2.html and walformat.html.)

Not noticed: damage in the last transaction, which is as if it had been torn, or in the last two, if it hit the commit
of the first. What stands behind the damage is not used: its pages belong to others that are lost.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

HEADER = struct.Struct(">8I")
"""Magic, version, page size, number of the checkpoint, two salts, two checksums."""
MAGIC = 0x377F0682
"""Or one more, if checksums are of big-endian words."""
FRAME = struct.Struct(">4I")
"""Page, size of the database behind a commit (else 0), the salts of its log; two checksums and the page follow."""
FRAME_BYTES = 24
BELIEVED = struct.Struct("=16xI")
"""In the shared part of the log: how many frames SQLite believes."""
PAGE_BYTES_MIN = 512
COMMITS_MAX_TORN = 1
"""That a power cut leaves behind the end of the log."""

Salts = tuple[int, int]


def count_lost_commits(database: Path) -> int:
    """Transactions of which the log knows and which cannot be read; 0 also for what may only have been torn.

    Nobody may have the database open. OSError.
    """
    log = database.with_name(f"{database.name}-wal")
    if not database.exists() or not log.exists() or log.stat().st_size <= HEADER.size:
        return 0
    believed = _count_believed(database)
    with log.open("rb", buffering=0) as file:
        header = file.read(HEADER.size)
        page_bytes = HEADER.unpack(header)[2]
        if page_bytes < PAGE_BYTES_MIN:
            return 0
        salts = HEADER.unpack(header)[4:6] if _is_sound(header) else None  # a header in one sector cannot be torn
        at = HEADER.size + believed * (FRAME_BYTES + page_bytes)
        commits = sum(1 for size, found in _read_frames(file, at, page_bytes) if size and salts in (None, found))
    return commits if commits > COMMITS_MAX_TORN else 0


def _count_believed(database: Path) -> int:
    """By SQLite itself, which computes checksums fast: a reader that may not write leaves the log as it is."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            shared = database.with_name(f"{database.name}-shm").read_bytes()
        except sqlite3.Error:  # whoever opens it next says what is wrong
            return 0
    return int(BELIEVED.unpack_from(shared)[0])


def _is_sound(header: bytes) -> bool:
    words = HEADER.unpack(header)
    if words[0] | 1 != MAGIC | 1:
        return False
    summed = struct.unpack(">6I" if words[0] & 1 else "<6I", header[:24])
    one = two = 0
    for first, second in zip(summed[::2], summed[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return (one, two) == words[6:]


def _read_frames(file: FileIO, at: int, page_bytes: int) -> Iterator[tuple[int, Salts]]:
    """Of each frame from a place on: the size that makes it a commit, and its salts."""
    while True:
        file.seek(at)
        header = file.read(FRAME.size)
        if len(header) < FRAME.size:
            return
        _, size, one, two = FRAME.unpack(header)
        yield size, (one, two)
        at += FRAME_BYTES + page_bytes
