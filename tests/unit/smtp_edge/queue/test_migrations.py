"""Queues of earlier releases are brought up to date whole or not at all; those of later ones are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from smtp_edge.queue import migrations
from smtp_edge.queue.rows import SCHEMA, SCHEMA_VERSION
from smtp_edge.queue.store import StoreError
from tests.unit.smtp_edge.queue.builders import AT, build_new
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store

OLD = {1: Path(__file__).with_name("schema_1.sql")}
"""Dumps of queues that earlier releases wrote: a queued, a deferred, a held, a claimed and a finished message."""


def make_old(folder: Path, schema: int) -> Path:
    folder.mkdir()
    with sqlite3.connect(folder / "queue.db") as connection:
        connection.executescript(OLD[schema].read_text("utf-8"))
    connection.close()
    return folder


def tables_of(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {(kind, name, " ".join(sql.split())) for kind, name, sql in rows}


def test_every_schema_has_a_step_and_a_dump() -> None:
    assert list(migrations.STEPS) == list(OLD) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("schema", OLD)
async def test_an_old_queue_is_brought_up_to_date_with_all_its_mail(tmp_path: Path, schema: int) -> None:
    store = build_store(make_old(tmp_path / "queue", schema))
    await store.open()
    summary = await store.summary()
    assert {item.class_id: (item.count, item.deferred) for item in summary.classes} == {"one": (2, 0), "two": (1, 1)}
    assert (summary.held, summary.relayed, summary.corrupt) == (1, 1, 0)
    claims = await store.claim(10, AT)
    assert [claim.entry.envelope.sender for claim in claims] == ["claimed@a.example", "queued@a.example"]
    await store.put(build_new())
    await store.close()
    with sqlite3.connect(":memory:") as fresh, sqlite3.connect(tmp_path / "queue" / "queue.db") as migrated:
        fresh.executescript(SCHEMA)
        assert tables_of(migrated) == tables_of(fresh)
        assert migrated.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    fresh.close()
    migrated.close()


async def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_old(tmp_path / "queue", 1)
    monkeypatch.setattr(migrations, "STEPS", {1: "DROP INDEX delivery_queued; DROP INDEX there_is_none"})
    with pytest.raises(StoreError, match="there_is_none"):
        await build_store(queue).open()
    monkeypatch.undo()
    store = build_store(queue)
    await store.open()
    assert len(await store.claim(10, AT)) == 2
    await store.close()


async def test_a_queue_of_a_newer_release_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    with sqlite3.connect(tmp_path / "queue" / "queue.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=r"newer release \(schema \d+, this one knows \d+\): run that release"):
        await build_store(tmp_path / "queue").open()
