"""Damage in the middle of the log is told apart from what a power cut tore; mail is never dropped without a word."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from smtp_edge.queue.logcheck import FRAME_BYTES, HEADER, count_lost_commits
from smtp_edge.queue.repair import check, repair
from smtp_edge.queue.rows import PAGE_BYTES
from smtp_edge.queue.store import StoreError
from tests.unit.smtp_edge.queue.builders import AT, build_new
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store

STEP = FRAME_BYTES + PAGE_BYTES


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """What a kill leaves: an old log that was copied, begun anew, and has ten messages."""
    store = build_store(tmp_path / "queue")
    await store.open()
    for _ in range(10):
        await store.put(build_new())
    shutil.copytree(tmp_path / "queue", tmp_path / "killed")
    await store.close()
    return tmp_path / "killed"


def read_log(queue: Path) -> bytes:
    return (queue / "queue.db-wal").read_bytes()


def write_log(queue: Path, content: bytes) -> None:
    (queue / "queue.db-wal").write_bytes(content)


def commits(log: bytes) -> list[int]:
    """Frames that end a transaction."""
    frames = range((len(log) - HEADER.size) // STEP)
    return [n for n in frames if any(log[HEADER.size + n * STEP + 4 :][:4])]


def spoil(log: bytes, frame: int) -> bytes:
    """One bit of its page."""
    at = HEADER.size + frame * STEP + FRAME_BYTES + 4000
    return log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]


async def count_mail(queue: Path) -> int:
    store = build_store(queue)
    await store.open()
    found = len(await store.claim(100, AT))
    await store.close()
    return found


async def test_a_whole_log_is_believed(killed: Path) -> None:
    log = read_log(killed)
    assert len(commits(log)) >= 10
    assert count_lost_commits(killed / "queue.db") == 0
    assert read_log(killed) == log
    assert await count_mail(killed) == 10


async def test_damage_in_the_middle_is_not_passed_over(killed: Path) -> None:
    log = read_log(killed)
    ends = commits(log)
    lost = len(ends) - 5
    write_log(killed, spoil(log, ends[5]))
    with pytest.raises(StoreError, match=rf"{lost} transactions in queue.db-wal cannot be read.*smtpmesh queue repair"):
        await build_store(killed).open()
    assert read_log(killed) == spoil(log, ends[5])
    assert check(killed) == [f"{lost} transactions in the log cannot be read"]
    report = repair(killed, class_of=lambda domain: domain, at=AT)
    assert report.holes
    assert not report.clean
    assert report.folder is not None
    assert (report.folder / "queue.db-wal").read_bytes() == spoil(log, ends[5])
    assert await count_mail(killed) == report.kept == 10 - lost


async def test_a_header_that_is_damaged_is_not_passed_over(killed: Path) -> None:
    log = read_log(killed)
    write_log(killed, log[:17] + bytes([log[17] ^ 1]) + log[18:])
    with pytest.raises(StoreError, match=r"transactions in queue.db-wal cannot be read"):
        await build_store(killed).open()


async def test_a_transaction_that_a_power_cut_tore_is_dropped(killed: Path) -> None:
    """Its pages may be there in any selection, its commit among them."""
    log = read_log(killed)
    *_, before, last = commits(log)
    for frame in range(before + 1, last + 1):
        write_log(killed, spoil(log, frame))
        assert count_lost_commits(killed / "queue.db") == 0
    write_log(killed, log[: -STEP // 2])
    assert count_lost_commits(killed / "queue.db") == 0
    assert await count_mail(killed) == 9


def test_what_is_left_of_an_older_log_is_no_damage(tmp_path: Path) -> None:
    """A log that was copied is begun anew from its front; behind the new end the old frames stay."""
    database = tmp_path / "queue.db"
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (x)")
    for number in range(20):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    connection.execute("INSERT INTO t VALUES (20)")
    for name in ("killed.db", "torn.db"):
        shutil.copy(database, tmp_path / name)
        shutil.copy(f"{database}-wal", tmp_path / f"{name}-wal")
    connection.close()
    assert len(commits((tmp_path / "killed.db-wal").read_bytes())) > 10
    assert count_lost_commits(tmp_path / "killed.db") == 0
    torn = tmp_path / "torn.db-wal"
    torn.write_bytes(spoil(torn.read_bytes(), 0))
    assert count_lost_commits(tmp_path / "torn.db") == 0


def test_where_there_is_no_log_nothing_is_missing(tmp_path: Path) -> None:
    assert count_lost_commits(tmp_path / "queue.db") == 0
    (tmp_path / "queue.db").write_bytes(b"nonsense" * 2000)
    (tmp_path / "queue.db-wal").write_bytes(b"nonsense" * 2000)
    assert count_lost_commits(tmp_path / "queue.db") in (0, 1)
