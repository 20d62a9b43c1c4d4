"""The applier against SQLite and a real PostgreSQL: each change once, in the order of versions, poison is parked."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator

import pytest

from smtp_edge.applications.applier import APPLIED, LATER, NOT_YET, REPEATED, Applier
from smtp_edge.applications.changes import build_message
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Quarantine
from tests.e2e.postgresql import PostgreSQL
from tests.unit.smtp_edge.applications.deliveries import build_delivery
from tests.unit.smtp_edge.applications.places import TABLES, Place, make_postgresql

_numbers = itertools.count()


@pytest.fixture
async def applier(place: Place) -> AsyncIterator[Applier]:
    sink = place.applier(statement_timeout_s=5)
    await sink.start()
    yield sink
    await sink.stop()


def part(key: int, version: int, op: str = "upsert", **row: object) -> dict[str, object]:
    change: dict[str, object] = {"table": "parts", "key": key, "op": op, "version": version}
    return change | ({"row": row} if op == "upsert" else {})


async def apply(sink: Applier, *changes: object, key: str = "", to: str = "apply@b.replication") -> Reply | Quarantine:
    """What it answers to a message with these changes; without a `key` it is another message each time."""
    message = build_message([json.dumps(change) for change in changes], {}, b"")
    delivery = await build_delivery(message, to, key=key or f"node/Q{next(_numbers)}/0")
    (answer,) = await sink.deliver(delivery)
    return answer


async def test_a_row_is_written_changed_in_part_and_deleted(applier: Applier, place: Place) -> None:
    whole = part(7, 1, name="bolt \N{SNOWMAN}'\"", price=0.1, good=True, more={"a": [1, None]})
    assert await apply(applier, whole) == APPLIED
    ((number, name, price, good, kind, more),) = place.query("SELECT * FROM parts")
    assert (number, name, price, kind) == ("7", "bolt \N{SNOWMAN}'\"", "0.1", "")
    assert good in ("t", "1")
    assert json.loads(str(more)) == {"a": [1, None]}
    assert await apply(applier, part(7, 2, name="nut", good=None)) == APPLIED
    assert place.query("SELECT name, price, good FROM parts") == [("nut", "0.1", "")]
    assert await apply(applier, part(7, 3, "delete")) == APPLIED
    assert place.query("SELECT * FROM parts") == []


async def test_a_message_that_comes_again_does_nothing(applier: Applier, place: Place) -> None:
    assert await apply(applier, part(7, 1, name="bolt"), key="node/Q1/0") == APPLIED
    place.query("UPDATE parts SET name = 'by hand'")
    assert [await apply(applier, part(7, 1, name="bolt"), key="node/Q1/0") for _ in range(3)] == [REPEATED] * 3
    assert place.query("SELECT name FROM parts") == [("by hand",)]
    assert place.query("SELECT key, changes, stale, repeats FROM smtpmesh_applied") == [
        ("node/Q1/0/apply@b.replication", "1", "0", "3")
    ]


async def test_the_newest_version_stays_in_whatever_order_they_come(applier: Applier, place: Place) -> None:
    for version in (3, 1, 2, 3):
        assert await apply(applier, part(7, version, name=f"v{version}")) == APPLIED
    assert place.query("SELECT name FROM parts") == [("v3",)]
    assert place.query("SELECT sum(changes), sum(stale) FROM smtpmesh_applied") == [("1", "3")]


async def test_what_was_deleted_stays_deleted_when_an_older_change_comes_late(applier: Applier, place: Place) -> None:
    assert await apply(applier, part(7, 5, "delete")) == APPLIED
    assert await apply(applier, part(7, 4, name="late")) == APPLIED
    assert place.query("SELECT * FROM parts") == []
    assert await apply(applier, part(7, 6, name="anew")) == APPLIED
    assert place.query("SELECT name FROM parts") == [("anew",)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (part(8, 1, name=None), "null|NOT NULL"),
        (part(8, 1, name="x", price=-1), "constraint"),
        (part(8, 1, price="dear"), "parts.price is number"),
        ({"table": "smtpmesh_applied", "key": 1, "op": "delete", "version": 1}, "unknown table"),
    ],
)
async def test_poison_is_parked_and_nothing_of_its_message_is_done(
    applier: Applier, place: Place, bad: object, reason: str
) -> None:
    answer = await apply(applier, part(7, 1, name="bolt"), bad)
    assert isinstance(answer, Quarantine)
    assert any(word in answer.reason for word in reason.split("|")), answer.reason
    assert await apply(applier, part(9, 1, name="good")) == APPLIED
    assert place.query("SELECT id FROM parts") == [("9",)]
    assert place.query("SELECT key FROM smtpmesh_versions") == [("9",)]


async def test_a_row_that_another_refers_to_may_be_late(applier: Applier, place: Place) -> None:
    assert await apply(applier, part(7, 1, name="bolt", kind="steel"), key="node/Q1/0") == NOT_YET
    assert await apply(applier, {"table": "kinds", "key": "steel", "op": "upsert", "version": 1, "row": {}}) == APPLIED
    assert await apply(applier, part(7, 1, name="bolt", kind="steel"), key="node/Q1/0") == APPLIED
    assert place.query("SELECT kind FROM parts") == [("steel",)]


async def test_each_recipient_of_a_message_is_counted_once(applier: Applier, place: Place) -> None:
    message = build_message([json.dumps(part(7, 1, name="bolt"))], {}, b"")
    delivery = await build_delivery(message, "a@b.replication", "b@b.replication")
    assert await applier.deliver(delivery) == [APPLIED, APPLIED]
    assert place.query("SELECT key, changes, stale FROM smtpmesh_applied ORDER BY key") == [
        ("node/Q1/0/a@b.replication", "1", "0"),
        ("node/Q1/0/b@b.replication", "0", "1"),
    ]


async def test_many_at_once_in_any_order_with_repeats_come_out_as_if_one_after_another(
    applier: Applier, place: Place
) -> None:
    """40 messages, each three times, over 10 keys that they have in common: no deadlock, nothing lost or doubled."""
    slots = asyncio.Semaphore(20)

    async def one(changes: list[dict[str, object]], key: str) -> Reply | Quarantine:
        async with slots:
            return await apply(applier, *changes, key=key)

    messages = [
        ([part((number + step) % 10, number * 3 + step, name=f"{number}") for step in (2, 0, 1)], f"node/Q{number}/0")
        for number in range(40)
    ]
    mixed = [messages[(at * 17) % 40] for at in range(120)]
    answers = await asyncio.gather(*(one(changes, key) for changes, key in mixed))
    assert (answers.count(APPLIED), answers.count(REPEATED)) == (40, 80)
    expected = {(number + step) % 10: f"{number}" for number in range(40) for step in (0, 1, 2)}
    assert place.query("SELECT id, name FROM parts ORDER BY id") == [
        (str(key), name) for key, name in sorted(expected.items())
    ]
    assert place.query("SELECT count(*), sum(repeats), sum(changes) + sum(stale) FROM smtpmesh_applied") == [
        ("40", "80", "120")
    ]


@pytest.mark.peer("initdb")
async def test_twenty_that_find_no_tables_make_them_once_and_are_in_nobodys_way(server: PostgreSQL) -> None:
    for _ in range(5):
        place = make_postgresql(server)
        sinks = [place.applier() for _ in range(20)]
        answers = await asyncio.gather(*(apply(sink, part(1, 1, name="x")) for sink in sinks))
        assert answers == [APPLIED] * 20
        for sink in sinks:
            await sink.stop()
    assert "deadlock detected" not in (server.folder / "log").read_text()


async def test_a_database_that_is_set_up_wrong_is_no_fault_of_the_message(applier: Applier, place: Place) -> None:
    place.query("ALTER TABLE parts RENAME TO other")
    assert await apply(applier, part(7, 1, name="bolt"), key="node/Q1/0") == LATER
    place.query("ALTER TABLE other RENAME TO parts")
    assert await apply(applier, part(7, 1, name="bolt"), key="node/Q1/0") == APPLIED


async def test_a_table_that_somebody_locks_is_tried_later(place: Place) -> None:
    sink = place.applier(statement_timeout_s=0.3)
    assert await apply(sink, part(7, 1, name="bolt")) == APPLIED
    if place.server is None:
        connection = sqlite3.connect(place.address.removeprefix("sqlite:"), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        assert await apply(sink, part(7, 2, name="nut"), key="node/Q2/0") == LATER
        connection.close()
    else:
        import asyncpg

        holder = await asyncpg.connect(place.address, password=place.server.password)
        await holder.execute("BEGIN; LOCK TABLE parts")
        assert await apply(sink, part(7, 2, name="nut"), key="node/Q2/0") == LATER
        await holder.close()
    assert await apply(sink, part(7, 2, name="nut"), key="node/Q2/0") == APPLIED
    await sink.stop()


async def test_a_message_that_is_too_large_is_parked_unread(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtp_edge.applications.applier.SIZE_BYTES_MAX", 10)
    answer = await apply(applier, part(7, 1, name="bolt"))
    assert isinstance(answer, Quarantine)
    assert answer.reason.endswith("bytes; 10 are taken")


async def test_old_keys_are_forgotten_and_young_ones_kept(applier: Applier, place: Place) -> None:
    await apply(applier, part(7, 1, name="bolt"), key="node/Q1/0")
    place.query("UPDATE smtpmesh_applied SET applied_at = '2020-01-01 00:00:00'")
    await apply(applier, part(8, 1, name="nut"), key="node/Q2/0")
    await applier._database.forget(30)
    assert place.query("SELECT key FROM smtpmesh_applied") == [("node/Q2/0/apply@b.replication",)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"database": "mysql://x:secret@y/z"},
            "mysql://...@y/z' is neither postgresql://user@host/name nor sqlite:/path",
        ),
        ({"database": "sqlite:relative.db"}, "neither"),
        ({"database": "postgresql://x:secret@y/z"}, "database holds a password"),
        ({"statement_timeout_s": 0}, "statement_timeout_s is a number"),
        ({"remember_days": 0}, "remember_days is 1 at least"),
        ({"tables": {}}, "tables names a table at least"),
        ({"tables": {"main.parts": TABLES["parts"]}}, "SQLite has no schemas"),
        ({"secret_file": "/dev/null"}, "the secret in /dev/null has 0 bytes"),
    ],
)
def test_a_setting_that_means_nothing_is_named(settings: dict[str, object], reason: str) -> None:
    given: dict[str, object] = {"database": "sqlite:/nowhere/x.db", "tables": TABLES}
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        Applier(**(given | settings))  # type: ignore[arg-type]


def test_without_asyncpg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtp_edge.applications.database_postgresql.asyncpg", None)
    with pytest.raises(ValueError, match=r"pip install 'smtpmesh\[postgres\]'"):
        Applier("postgresql://x@127.0.0.1/y", TABLES)
