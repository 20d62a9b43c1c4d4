"""Does a queue directory hold mail? Whether or not somebody has it open: nothing is changed, nothing is locked."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from smtp_edge.queue.directory import DATABASE, find_ready

TIMEOUT_S = 2.0
COUNT = "SELECT (SELECT count(*) FROM entry) - (SELECT count(*) FROM entry WHERE finished_at IS NOT NULL)"
"""Both from indexes: a long history is not read."""


def count_mail(directory: Path) -> int:
    """Messages that are not over yet. A database that cannot be read counts as one: somebody has to look at it."""
    database = directory / DATABASE
    if find_ready(directory) is not None:
        return 1
    if not database.is_file():
        return 0
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True, timeout=TIMEOUT_S)
        ) as connection:
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                return 0  # nothing was ever stored
            return int(connection.execute(COUNT).fetchone()[0])
    except sqlite3.Error:
        return 1
