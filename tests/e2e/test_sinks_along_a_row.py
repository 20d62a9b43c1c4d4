"""Sinks on every relay of a row, A -> B -> C, where A has no way to C and C alone has an exit: a message is scanned,
marked and expanded once, by A, however often A and B are killed on its way.

client -> A ──mesh── B ──mesh── C -> keeper        each in a network namespace with cables to its neighbours alone

`tests/e2e/mesh_sinks.py` has the sinks that count; the `lists` sink that comes along is bound everywhere as well.
"""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.applications.lists.store import Store
from smtp_edge.demo.cluster import SMART_HOST, Cluster, Relay
from tests.bench.lab.namespaces import Row, call_inside, unavailable
from tests.e2e.keeper import Keeper, Kept
from tests.e2e.scene import admin_calls, wait_until
from tests.e2e.test_sinks_in_mesh import MEMBERS, SINKS, Scene, expanded, kill_at_the_question, kill_at_the_scan

pytestmark = pytest.mark.peer("ip")
MORE_SINKS = """\
[[sink]]
use = "tests.e2e.mesh_sinks:Marks"
with = {{ folder = "{folder}" }}
[[sink]]
use = "lists"
rule = "rcpt to=*@lists.test"
[sink.with.lists."talk@lists.test"]
owners = ["owner@people.test"]
posts = "anyone"
"""
ROW = ("relay A", "relay B", "relay C")
A = "relay-a.demo.test"
VISITED = re.compile(rb"\r\n\tby (relay-[abc])\.demo\.test \(smtpmesh\)")


class Way(Scene):
    """The row. What the sinks noted says who was asked, and the Received fields say where the message was."""

    row: Row

    def client(self) -> smtplib.SMTP:
        address = self.row.host("A"), self.cluster.relays["relay A"].ports["smtp"]
        client = smtplib.SMTP()
        client.sock = call_inside(self.row.space("A"), lambda: socket.create_connection(address, 20))
        assert client.getreply()[0] == 220
        return client

    def hold(self, name: str, held: bool) -> None:
        process = self.cluster.relays[name].server.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP if held else signal.SIGCONT)

    def waits_at(self, name: str) -> bool:
        return bool(self.calls.waiting(name))

    def kill_and_restart(self, name: str) -> None:
        self.cluster.kill(name)
        self.cluster.restart(name)

    def check(self, subject: str) -> None:
        super().check(subject)
        for message in self.keeper.named(f"Subject: {subject}\r\n".encode()):
            assert visited(message) == [b"relay-c", b"relay-b", b"relay-a"]
            assert message.data.count(b"X-Marked: by relay-a.demo.test\r\n") == message.data.count(b"X-Marked") == 1
        assert set(self.noted("mark", subject)) == {"relay-a.demo.test"}


def visited(message: Kept) -> list[bytes]:
    """Relays, the last one first."""
    return VISITED.findall(message.data.partition(b"\r\n\r\n")[0])


def settle_in(cluster: Cluster, relay: Relay, row: Row, keeper: Keeper) -> None:
    """In its namespace, with addresses of there; an exit has C alone."""
    text = relay.config.read_text().replace("127.0.0.0/8", "10.99.1.0/24")
    for other in cluster.relays.values():
        for port in other.ports.values():
            text = text.replace(f'"127.0.0.1:{port}"', f'"{row.host(other.letter)}:{port}"')
    if relay.letter != "C":
        exit_ = SMART_HOST.format(name="keeper", port=keeper.port)
        assert exit_ in text
        text = text.replace(exit_, '[[smart_host]]\nname = "keeper"\nelsewhere = true\n')
    relay.config.write_text(text)
    relay.server.command = [*row.inside(relay.letter), *relay.server.command]


@pytest.fixture
def way(folder: Path) -> Iterator[Way]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    notes = folder / "notes"
    notes.mkdir()
    settings = (SINKS + MORE_SINKS).format(folder=notes)
    with Row("ABC") as row, call_inside(row.space("C"), Keeper) as keeper:
        cluster = Cluster(folder / "m", relays=(), hosts=(), external={"keeper": keeper.port}, settings=settings)
        with cluster:
            for letter in "ABC":
                settle_in(cluster, cluster.add_relay(letter), row, keeper)
            cluster.start()
            way = Way(cluster, keeper, admin_calls(cluster), notes)
            way.row = row
            # B has a session with both ends, and these have one with B alone
            wait_until(lambda: [way.calls.members(name) for name in ROW] == [2, 3, 2], 20, "the row")
            yield way


def test_a_message_is_scanned_marked_and_expanded_once_where_it_came_in(way: Way) -> None:
    way.submit("plain")
    way.check("plain")
    assert way.noted("scan", "plain") == way.noted("mark", "plain") == way.noted("expand", "plain") == [A]


def test_a_list_that_all_three_know_posts_once(way: Way) -> None:
    relay = way.cluster.relays["relay A"]
    store = Store(relay.data_dir / "sinks" / "lists")
    store.add_members("talk@lists.test", sorted(MEMBERS), time.time())
    store.close()
    with way.client() as client:
        client.sendmail("sue@demo.test", ["talk@lists.test"], "Subject: post\r\n\r\nhello\r\n")
    wait_until(lambda: set(way.reached("post")) == MEMBERS, 60, "the post at all members")
    wait_until(lambda: not any(way.waits_at(name) for name in ROW), 30, "empty queues")
    assert way.reached("post") == Counter(MEMBERS)
    for message in way.keeper.named(b"Subject: post\r\n"):
        assert visited(message) == [b"relay-c", b"relay-b", b"relay-a"]
        assert message.sender.startswith("talk-bounces+")
        for name in (b"List-Id", b"List-Post", b"X-Loop", b"X-Scanned", b"X-Marked"):
            assert message.data.count(b"\r\n" + name + b": ") == 1
    assert way.noted("scan", "post") == way.noted("mark", "post") == [A]


def test_the_same_when_the_first_or_the_second_is_killed_between_any_two_steps(way: Way) -> None:
    kill_at_the_scan(way)
    kill_at_the_question(way)
    assert len(way.noted("scan", "expanding")) == len(way.noted("mark", "expanding")) == 1

    # A has expanded it, and B takes nothing
    way.hold("relay B", True)
    way.submit("expanded")
    wait_until(lambda: expanded(way), 20, "the expansion")
    way.cluster.kill("relay A")
    way.hold("relay B", False)
    way.restart_a()
    way.check("expanded")
    assert len(way.noted("expand", "expanded")) == 1

    # B has it, and C takes nothing: first A dies, then B
    way.hold("relay C", True)
    way.submit("between")
    wait_until(lambda: way.waits_at("relay B") and not way.waits_at("relay A"), 30, "it is at B")
    way.kill_and_restart("relay A")
    assert way.waits_at("relay B")
    way.kill_and_restart("relay B")
    way.hold("relay C", False)
    way.check("between")

    # it has arrived
    way.submit("gone")
    wait_until(lambda: set(way.reached("gone")) == MEMBERS, 30, "all members")
    way.kill_and_restart("relay A")
    way.kill_and_restart("relay B")
    way.check("gone")
    assert all(len(way.noted(what, "gone")) == 1 for what in ("scan", "mark", "expand"))
