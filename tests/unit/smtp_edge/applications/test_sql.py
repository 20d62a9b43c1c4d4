"""Mail in a database: the contract of stores on SQLite, and what settings mean."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.applications import sql
from smtp_edge.applications.sql import Sql
from smtp_edge.sinks.testing import deliver
from tests.unit.smtp_edge.applications.sql_killed import KILL_STEPS, check_kills
from tests.unit.smtp_edge.applications.store_contract import (
    ANN,
    BOB,
    TEXT,
    Shelf,
    StoreContract,
    codes,
    delivery_of,
    spooled_delivery,
)


class SQLiteShelf:
    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        self.sink = Sql(f"sqlite+aiosqlite:///{path}", **settings)  # type: ignore[arg-type]

    async def mails(self, address: str) -> list[bytes]:
        with sqlite3.connect(self.path, timeout=30) as connection:
            return [
                b"".join(row[0] for row in connection.execute(CHUNKS, (number,)))
                for (number,) in connection.execute(MESSAGES, (address,)).fetchall()
            ]


MESSAGES = "SELECT id FROM smtpmesh_message WHERE recipient = ? ORDER BY id"
CHUNKS = "SELECT content FROM smtpmesh_chunk WHERE message_id = ? ORDER BY number"


async def open_shelf(path: Path, **settings: object) -> SQLiteShelf:
    shelf = SQLiteShelf(path, **settings)
    await shelf.sink.start()
    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO smtpmesh_mailbox VALUES (?)", [(ANN,), (BOB,)])
    return shelf


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    opened = await open_shelf(tmp_path / "mail.db")
    yield opened
    await opened.sink.stop()


class TestSQLite(StoreContract):
    """The contract."""


async def test_any_mailbox_and_a_largest_size(tmp_path: Path) -> None:
    shelf = SQLiteShelf(tmp_path / "mail.db", mailboxes="any", size_bytes_max=len(TEXT) - 1)
    await shelf.sink.start()
    assert await codes(shelf.sink, await delivery_of("whoever@box.test")) == [552]
    assert await deliver(shelf.sink, b"Subject: x\r\n\r\n", recipients=("whoever@box.test",)) == ("250 2.0.0 stored",)
    await shelf.sink.stop()


async def test_a_database_that_is_not_there_lets_mail_wait_until_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    shelf = SQLiteShelf(folder / "mail.db", mailboxes="any")
    await shelf.sink.start()
    assert await codes(shelf.sink, await delivery_of(ANN)) == [451]
    folder.mkdir()
    assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
    assert len(await shelf.mails(ANN)) == 1
    await shelf.sink.stop()


async def test_a_database_that_somebody_locks_lets_mail_wait(tmp_path: Path) -> None:
    shelf = await open_shelf(tmp_path / "mail.db", timeout_s=0.3)
    with sqlite3.connect(tmp_path / "mail.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        assert await codes(shelf.sink, await delivery_of(ANN)) == [451]
        other.rollback()
    assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
    await shelf.sink.stop()


async def test_a_large_message_has_the_time_that_it_needs_as_long_as_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sql._Tables.append

    async def slowly(*arguments: Any) -> None:
        await asyncio.sleep(0.7)
        await real(*arguments)

    monkeypatch.setattr(sql._Tables, "append", slowly)
    shelf = await open_shelf(tmp_path / "mail.db", timeout_s=2)
    delivery = await spooled_delivery(tmp_path / "large", 5 * sql.CHUNK_BYTES, ANN)
    assert await codes(shelf.sink, delivery) == [250]
    await shelf.sink.stop()


def test_a_kill_at_any_step_leaves_exactly_one_copy_when_it_is_asked_again(tmp_path: Path) -> None:
    shelf = SQLiteShelf(tmp_path / "mail.db", mailboxes="any")
    steps = check_kills(shelf, f"sqlite+aiosqlite:///{tmp_path / 'mail.db'}", "", tmp_path)
    assert steps == KILL_STEPS


@pytest.mark.parametrize(
    ("url", "more", "words"),
    [
        ("mysql://here/db", {}, "url is none of"),
        ("nonsense", {}, "url is none of"),
        ("postgresql+asyncpg://u:secret@here/db", {}, "a password does not belong into url"),
        ("sqlite+aiosqlite://", {"mailboxes": "some"}, "mailboxes = 'some'"),
        ("sqlite+aiosqlite://", {"timeout_s": 0}, "timeout_s more than 0"),
    ],
)
def test_settings_that_mean_nothing(url: str, more: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sql(url, **more)  # type: ignore[arg-type]
