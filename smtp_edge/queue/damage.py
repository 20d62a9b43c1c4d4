"""Reading a damaged database: every row that SQLite can find a way to.

SQLite walks from page to page, and ends at the first that is not what it should be. So a table is read from its
beginning up to the damage, from its end down to it, and what lies between in halves of halves: the large pieces that
can be read are found first, and the work is bounded where pages of the way are lost with all that they led to.

Python's cursor asks for the next row before it hands out this one, and drops it if that fails: the last row before
damage comes only when it is asked for alone.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PROBES_MAX = 200_000
"""Pieces of a table that are tried: some ten seconds."""
BEYOND = 1 << 20
"""So far behind the first damage rows are looked for, if the end of the table cannot be read."""
ENDLESS = 1 << 62
BEHIND_ALL = "\U0010ffff"
"""Sorts behind every queue id."""
COPIES_MAX = 64
"""Deliveries of a message that are asked for one by one."""

WITHIN = "rowid > ? AND rowid <= ?"

Row = Sequence[Any]


def read_rows(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[Row]:
    """Rows with their rowid before them. In its order, as long as nothing is damaged."""
    select = f"SELECT rowid, {columns} FROM {table}"
    try:
        connection.execute(f"{select} LIMIT 0")
    except sqlite3.Error:
        return
    pieces = deque([_Piece(0, _find_last(connection, table))])
    for _ in range(PROBES_MAX):
        if not pieces:
            return
        piece = pieces.popleft()
        if piece.high - piece.low == 1:
            yield from _read(connection, f"{select} WHERE rowid = ?", (piece.high,))
        elif not (yield from piece.ascend(connection, select)):
            if piece.high == ENDLESS:
                piece.high = piece.low + BEYOND
            if not (yield from piece.descend(connection, select)):
                pieces += piece.halve()


@dataclass(slots=True)
class _Piece:
    """Rowids above `low`, up to `high`, that were not read yet."""

    low: int
    high: int

    def ascend(self, connection: sqlite3.Connection, select: str) -> Generator[Row, None, bool]:
        """From its beginning; False if there is damage."""
        try:
            for row in connection.execute(f"{select} WHERE {WITHIN} ORDER BY rowid", (self.low, self.high)):
                self.low = row[0]
                yield row
        except sqlite3.Error:
            return False
        return True

    def descend(self, connection: sqlite3.Connection, select: str) -> Generator[Row, None, bool]:
        """From its end; False if there is damage."""
        try:
            for row in connection.execute(f"{select} WHERE {WITHIN} ORDER BY rowid DESC", (self.low, self.high)):
                self.high = row[0] - 1
                yield row
        except sqlite3.Error:
            return False
        return True

    def halve(self) -> list[_Piece]:
        """What is left of it."""
        middle = (self.low + self.high) // 2
        return [piece for piece in (_Piece(self.low, middle), _Piece(middle, self.high)) if piece.low < piece.high]


def read_deliveries(connection: sqlite3.Connection, columns: str, queue_id: str) -> list[Row]:
    """Those of a message, in the order of their copies."""
    select = f"SELECT {columns} FROM delivery WHERE queue_id = ?"
    try:
        return connection.execute(f"{select} ORDER BY copy", (queue_id,)).fetchall()
    except sqlite3.Error:
        one = f"{select} AND copy = ?"
        return [row for copy in range(COPIES_MAX) for row in _read(connection, one, (queue_id, copy))]


def read_ends(connection: sqlite3.Connection, columns: str) -> Iterator[Row]:
    """Deliveries from the first up to the damage, and from the last down to it; a few perhaps twice."""
    for order in ("ASC", "DESC"):
        yield from _read(connection, f"SELECT {columns} FROM delivery ORDER BY queue_id {order}, copy {order}", ())


def find_gap(connection: sqlite3.Connection) -> tuple[str, str] | None:
    """Between which queue ids, both included, deliveries may be missing; None: nowhere.

    They lie in the order of their queue ids: what is read from one end without a break is complete.
    """
    low = high = ""
    try:
        for row in connection.execute("SELECT queue_id, recipients FROM delivery ORDER BY queue_id, copy"):
            low = row[0]
    except sqlite3.Error:
        for row in _read(connection, "SELECT queue_id, recipients FROM delivery ORDER BY queue_id DESC, copy DESC", ()):
            high = row[0]
        return low, high or BEHIND_ALL
    return None


def is_whole(connection: sqlite3.Connection, table: str, column: str) -> bool:
    """All of its rows can be read, as far as that column."""
    try:
        connection.execute(f"SELECT sum(length({column})) FROM {table} NOT INDEXED").fetchone()
    except sqlite3.Error:
        return False
    return True


def _read(connection: sqlite3.Connection, question: str, values: Sequence[Any]) -> Iterator[Row]:
    """As many as there are before an error."""
    try:
        yield from connection.execute(question, values)
    except sqlite3.Error:
        return


def _find_last(connection: sqlite3.Connection, table: str) -> int:
    try:
        return connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
    except sqlite3.Error:
        return ENDLESS
