"""Sinks on every node of a mesh: a message is scanned, expanded and marked once, where it came in, however that node is
killed in between.

client -> A ──mesh──> B or C -> keeper        the same sinks are bound on A, B and C

The way over two relays, A -> B -> C, is `test_sinks_along_a_row.py`.
"""

from __future__ import annotations

import os
import signal
import smtplib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster
from smtp_edge.demo.watch import AdminCalls
from tests.e2e.keeper import Keeper
from tests.e2e.scene import admin_calls, wait_members, wait_until

SINKS = """\
[[sink]]
use = "tests.e2e.mesh_sinks:Scans"
with = {{ folder = "{folder}" }}
[[sink]]
use = "tests.e2e.mesh_sinks:Expands"
rule = "rcpt to=*@demo.test"
with = {{ folder = "{folder}" }}
"""
MEMBERS = {f"member{number}@members.test" for number in range(3)}


class Scene:
    def __init__(self, cluster: Cluster, keeper: Keeper, calls: AdminCalls, notes: Path) -> None:
        self.cluster, self.keeper, self.calls, self.notes = cluster, keeper, calls, notes

    def client(self) -> smtplib.SMTP:
        """Of A, greeted."""
        return smtplib.SMTP(*self.cluster.relays["relay A"].smtp, timeout=20)

    def submit(self, subject: str) -> None:
        with self.client() as client:
            client.sendmail("sue@demo.test", ["all@demo.test"], f"Subject: {subject}\r\n\r\nhello\r\n")

    def gate(self, what: str) -> Path:
        path = self.notes / f"{what}.gate"
        path.touch()
        return path

    def noted(self, what: str, subject: str) -> list[str]:
        """The nodes that asked."""
        path = self.notes / f"{what}.notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[0] for line in lines if line.endswith(f" {subject}")]

    def reached(self, subject: str) -> Counter[str]:
        kept = self.keeper.named(f"Subject: {subject}\r\n".encode())
        return Counter(address for message in kept for address in message.recipients)

    def restart_a(self) -> None:
        self.cluster.restart("relay A")

    def hold_others(self, held: bool) -> None:
        for name in ("relay B", "relay C"):
            process = self.cluster.relays[name].server.process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP if held else signal.SIGCONT)

    def check(self, subject: str) -> None:
        """All members have it once, marked once, by A."""
        wait_until(lambda: set(self.reached(subject)) == MEMBERS, 60, f"{subject} at all members")
        wait_until(lambda: all(self.calls.waiting(name) == 0 for name in self.cluster.relays), 30, "empty queues")
        assert set(self.reached(subject).values()) == {1}
        for message in self.keeper.named(f"Subject: {subject}\r\n".encode()):
            assert message.sender == "all-bounces@demo.test"
            assert message.data.count(b"X-Scanned: by relay-a.demo.test\r\n") == 1
            assert message.data.count(b"X-Expanded: by relay-a.demo.test\r\n") == 1
            assert message.data.count(b"X-Scanned") == message.data.count(b"X-Expanded") == 1
        assert set(self.noted("scan", subject) + self.noted("expand", subject)) == {"relay-a.demo.test"}


@pytest.fixture
def scene(folder: Path) -> Iterator[Scene]:
    notes = folder / "notes"
    notes.mkdir()
    with (
        Keeper() as keeper,
        Cluster(
            folder / "mesh", hosts=(), external={"keeper": keeper.port}, settings=SINKS.format(folder=notes)
        ) as cluster,
    ):
        config = cluster.relays["relay A"].config
        config.write_text(config.read_text().replace(f"port = {keeper.port}", "port = 1"))
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        yield Scene(cluster, keeper, calls, notes)


def test_a_message_is_scanned_expanded_and_marked_once_on_its_way_through_the_mesh(scene: Scene) -> None:
    scene.submit("plain")
    scene.check("plain")
    assert scene.noted("scan", "plain") == scene.noted("expand", "plain") == ["relay-a.demo.test"]


def test_the_same_when_the_first_relay_is_killed_between_any_two_steps(scene: Scene) -> None:
    kill_at_the_scan(scene)
    kill_at_the_question(scene)
    assert len(scene.noted("scan", "expanding")) == 1

    # when it was expanded, and nobody has taken it yet
    scene.hold_others(True)
    scene.submit("expanded")
    wait_until(lambda: expanded(scene), 20, "the expansion")
    scene.cluster.kill("relay A")
    scene.hold_others(False)
    scene.restart_a()
    scene.check("expanded")
    assert len(scene.noted("expand", "expanded")) == 1, "what is committed is not asked for again"

    # when it was handed over
    scene.submit("gone")
    wait_until(lambda: set(scene.reached("gone")) == MEMBERS, 30, "all members")
    scene.cluster.kill("relay A")
    scene.restart_a()
    scene.check("gone")


def kill_at_the_scan(scene: Scene) -> None:
    """Before the 250: the client still has the message, and comes again."""
    gate = scene.gate("scan")
    kill_while_scanning(scene)
    gate.unlink()
    scene.restart_a()
    assert not scene.reached("scanning")
    scene.submit("scanning")
    scene.check("scanning")


def kill_at_the_question(scene: Scene) -> None:
    """After the 250, while A is asked for the expansion."""
    gate = scene.gate("expand")
    scene.submit("expanding")
    wait_until(lambda: scene.noted("expand", "expanding"), 20, "the question")
    scene.cluster.kill("relay A")
    gate.unlink()
    scene.restart_a()
    scene.check("expanding")


def kill_while_scanning(scene: Scene) -> None:
    """Kill A before it answers: the client still has the message."""
    with scene.client() as client:
        client.ehlo()
        client.mail("sue@demo.test")
        client.rcpt("all@demo.test")
        client.putcmd("DATA")
        client.getreply()
        client.send(b"Subject: scanning\r\n\r\nhello\r\n.\r\n")
        wait_until(lambda: scene.noted("scan", "scanning"), 20, "the scan")
        scene.cluster.kill("relay A")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.getreply()
        client.close()


def expanded(scene: Scene) -> bool:
    """The queue of A has the members' delivery and no other."""
    answer = scene.calls.call("relay A", "GetQueue", limit=1)
    return answer is not None and [item.class_id for item in answer.classes if item.count] == ["default"]
