"""Around damaged pages every row is found that can be found at all."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from smtp_edge.queue import damage
from smtp_edge.queue.damage import read_deliveries, read_rows
from smtp_edge.queue.rows import SCHEMA

PAGE_BYTES = 512
"""Small, so that few rows make a tree of three levels."""
ROWS = 3000


def build(path: Path, gaps: range = range(0)) -> int:
    """A database with rows of many sizes; its pages."""
    rng = random.Random(7)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("CREATE TABLE t (number INTEGER, text TEXT)")
        rows = [(number, "x" * rng.randrange(300)) for number in range(1, ROWS + 1) if number not in gaps]
        connection.executemany("INSERT INTO t (rowid, number, text) VALUES (?1, ?1, ?2)", rows)
        pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    return pages


def wreck(path: Path, *pages: int) -> None:
    with path.open("r+b") as file:
        for number in pages:
            file.seek((number - 1) * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)


def read_one_by_one(connection: sqlite3.Connection) -> set[int]:
    found = set()
    for number in range(1, ROWS + 1):
        try:
            found |= {row[0] for row in connection.execute("SELECT number FROM t WHERE rowid = ?", (number,))}
        except sqlite3.Error:
            continue
    return found


@pytest.mark.parametrize("seed", range(12))
def test_all_rows_that_can_be_asked_for_one_by_one_are_read_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "t.db"
    pages = build(path, range(1000, 1000 + 200 * (seed % 3)))
    wreck(path, *rng.sample(range(3, pages + 1), rng.choice((1, 2, 10, 60))))
    connection = sqlite3.connect(path)
    rows = [row[0] for row in read_rows(connection, "t", "text")]
    assert len(rows) == len(set(rows))
    assert set(rows) == read_one_by_one(connection)
    assert 0 < len(rows) < ROWS
    connection.close()


def test_without_damage_the_order_is_that_of_the_table(tmp_path: Path) -> None:
    build(tmp_path / "t.db")
    with sqlite3.connect(tmp_path / "t.db") as connection:
        assert [row[1] for row in read_rows(connection, "t", "number")] == list(range(1, ROWS + 1))
    connection.close()


def test_a_table_without_its_root_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "PROBES_MAX", 100)
    path = tmp_path / "t.db"
    build(path)
    wreck(path, 2)
    with sqlite3.connect(path) as connection:
        assert list(read_rows(connection, "t", "number")) == []
        assert list(read_rows(connection, "no_such_table", "number")) == []
    connection.close()


def test_deliveries_before_and_behind_the_damage_are_found(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.executescript(SCHEMA)
        connection.executemany(
            "INSERT INTO delivery VALUES ('id', ?, 'one', 0, 'held', 0, '', 0, NULL, '', '', '', 0, '', ?)",
            [(copy, "x" * 50) for copy in range(40)],
        )
    connection.close()
    content = path.read_bytes()
    places = range(0, len(content), PAGE_BYTES)
    full = [n for n, at in enumerate(places, 1) if content[at : at + PAGE_BYTES].count(b"x") > 100]
    wreck(path, full[len(full) // 2])
    connection = sqlite3.connect(path)
    found = [row[0] for row in read_deliveries(connection, "copy", "id")]
    connection.close()
    assert {found[0], found[-1]} == {0, 39}
    assert 30 < len(found) < 40
