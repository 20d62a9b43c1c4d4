"""Replication from table to table: triggers note each change, messages carry them, the applier applies each once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from smtp_edge.applications import replicate
from smtp_edge.applications.applier import APPLIED, REPEATED, Applier
from smtp_edge.applications.replicate import Replicate
from smtp_edge.queue.errors import StoreError
from smtp_edge.sinks.api import Mail
from tests.unit.smtp_edge.applications.deliveries import build_delivery
from tests.unit.smtp_edge.applications.places import TABLES, Place

TO, SENDER = "apply@b.replication", "admin@a.replication"
READ = "SELECT id, name, price, good, more FROM parts ORDER BY id"


class Node:
    """What a sink sees of its node: it keeps what is submitted, and fails as it is told."""

    node_id, hostname, data_dir = "node", "relay.test", Path("/nowhere")

    def __init__(self) -> None:
        self.sent: list[Mail] = []
        self.failures = 0

    async def submit(self, mail: Mail) -> str:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        self.sent.append(mail)
        return f"Q{len(self.sent)}"

    async def flush(self, domains: Sequence[str]) -> int:
        return 0


def sender_of(place: Place, **settings: object) -> Replicate:
    given = {"database": place.address, "password_file": place.password_file, "tables": TABLES}
    more = {"to": TO, "sender": SENDER, "poll_s": 0.01}
    sink = Replicate(**(given | more | settings))  # type: ignore[arg-type]
    sink.node = Node()
    return sink


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (another task makes it true)
            await asyncio.sleep(0.01)


async def send_all(sink: Replicate, place: Place) -> list[Mail]:
    """Run it until everything is marked as sent."""
    await sink.start()
    await until(
        lambda: sink._installed and not place.query("SELECT 1 FROM smtpmesh_outbox WHERE sent_at IS NULL LIMIT 1")
    )
    node = sink.node
    assert isinstance(node, Node)
    return node.sent


def change(place: Place, seed: int, count: int) -> None:
    """Inserts, updates, moves of keys and deletes by chance, all in one place."""
    rng = random.Random(seed)
    true = "true" if place.server is not None else "1"
    for number in range(count):
        key = rng.randrange(12)
        made = [
            f"DELETE FROM parts WHERE id = {key}",
            f"UPDATE parts SET id = {key + 100} WHERE id = {key} AND NOT EXISTS "
            f"(SELECT 1 FROM parts WHERE id = {key + 100})",
            f"INSERT INTO parts (id, name, price, good) VALUES ({key}, 'n{number}', {rng.random()!r}, {true}) "
            f"ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price",
        ]
        place.query(made[min(rng.randrange(5), 2)])


async def test_a_table_comes_out_equal_whatever_order_and_repeats_its_messages_have(
    place: Place, other_place: Place
) -> None:
    sink = sender_of(place, batch_max=3)
    await sink._database.install(list(sink._tables.values()))
    change(place, 7, 60)
    place.query("""INSERT INTO parts (id, name, more) VALUES (50, 'o''clock', '{"a": [1, "x"]}')""")
    sent = await send_all(sink, place)
    await sink.stop()
    assert len(sent) > 10
    assert {mail.sender for mail in sent} == {SENDER}
    assert {recipient.address for mail in sent for recipient in mail.recipients} == {TO}
    applier = other_place.applier()
    order = [*range(len(sent)), *range(len(sent))]
    random.Random(8).shuffle(order)
    answers = []
    for number in order:
        delivery = await build_delivery(sent[number].content, TO, key=f"node/Q{number}/0")
        answers += await applier.deliver(delivery)
    await applier.stop()
    assert answers.count(APPLIED) == answers.count(REPEATED) == len(sent)
    assert place.query(READ)
    assert other_place.query(READ) == place.query(READ)


async def test_what_was_made_while_it_slept_goes_out_and_is_marked_with_its_message(place: Place) -> None:
    sink = sender_of(place)
    await send_all(sink, place)
    place.query("INSERT INTO kinds VALUES ('steel')")
    node = sink.node
    assert isinstance(node, Node)
    await until(lambda: place.query("SELECT 1 FROM smtpmesh_outbox WHERE queue_id = 'Q1'"))
    await sink.stop()
    assert len(node.sent) == 1
    assert b"\r\nSubject: changes 1 to 1\r\n" in node.sent[0].content
    assert b"\r\nAuto-Submitted: auto-generated\r\n" in node.sent[0].content


async def test_what_the_queue_does_not_take_is_sent_later_and_nothing_is_marked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicate, "RETRY_S", 0.01)
    sink = sender_of(place)
    await sink._database.install(list(sink._tables.values()))
    place.query("INSERT INTO kinds VALUES ('steel')")
    node = sink.node
    assert isinstance(node, Node)
    node.failures = 3
    assert len(await send_all(sink, place)) == 1
    await sink.stop()


async def test_a_change_that_was_sent_but_not_marked_is_sent_again_and_applied_once(
    place: Place, other_place: Place
) -> None:
    sink = sender_of(place)
    await sink._database.install(list(sink._tables.values()))
    place.query("INSERT INTO kinds VALUES ('steel')")
    sent = await send_all(sink, place)
    place.query("UPDATE smtpmesh_outbox SET sent_at = NULL")  # as a crash before the mark leaves it
    await until(lambda: len(sent) == 2)
    await sink.stop()
    applier = other_place.applier()
    for number, mail in enumerate(sent):
        assert await applier.deliver(await build_delivery(mail.content, TO, key=f"node/Q{number}/0")) == [APPLIED]
    await applier.stop()
    assert other_place.query("SELECT sum(changes), sum(stale) FROM smtpmesh_applied") == [("1", "1")]


async def test_a_database_that_is_not_there_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "RETRY_S", 0.01)
    missing = Place(f"sqlite:{tmp_path / 'later.db'}", "")
    sink = sender_of(missing)
    await sink.start()
    await asyncio.sleep(0.05)
    assert sink._task is not None
    assert not sink._task.done()
    await sink.stop()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"to": "nobody"}, "to = 'nobody' is no address"),
        ({"sender": "a b@c"}, "sender = 'a b@c' is no address"),
        ({"batch_max": 0}, "batch_max is 1 to 1000"),
        ({"poll_s": 0}, "poll_s is a number"),
        ({"secret_file": "/dev/null"}, "the secret in /dev/null has 0 bytes"),
    ],
)
def test_a_setting_that_means_nothing_is_named(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sender_of(Place("sqlite:/nowhere/x.db", ""), **settings)


def test_applier_and_sender_are_made_by_their_names() -> None:
    from smtp_edge.settings import SinkSettings
    from smtp_edge.sinks.bindings import load_bindings

    common = {"database": "sqlite:/nowhere/x.db", "tables": TABLES}
    sections = [
        SinkSettings.model_validate({"use": "applier", "with": common}),
        SinkSettings.model_validate({"use": "replicate", "with": common | {"to": TO, "sender": SENDER}}),
    ]
    assert [type(binding.sink) for binding in load_bindings(sections)] == [Applier, Replicate]
