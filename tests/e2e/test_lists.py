"""Mailing lists in a real node: the story of tests/e2e/list_scenario.py, and 10,000 members through kill -9."""

from __future__ import annotations

import re
import smtplib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.applications.lists.store import Store
from smtp_edge.demo.cluster import Cluster
from tests.e2e import list_scenario as story
from tests.e2e import mailman
from tests.e2e.keeper import Keeper, Kept
from tests.e2e.list_scenario import ANN, BOB, EVE, FIELDS, LIST, OWNER, Copy
from tests.e2e.scene import FULL, admin_calls, wait_until
from tests.e2e.test_drain import smtpmesh

SETTINGS = """\
[[sink]]
name = "lists"
use = "lists"
rule = "rcpt to=*@lists.test"
[sink.with.lists."talk@lists.test"]
owners = ["owner@people.test"]
[queue]
retry_first_s = 1
"""
FAILING = """\
[[sink]]
name = "talk"
use = "tests.e2e.mesh_sinks:Fails"
rule = "rcpt to=*@lists.test"
with = {{ folder = "{folder}" }}
[queue]
retry_first_s = 300
"""
QUIET_S = 0.3
"""Nothing waits in the queue and nothing has come for so long: that was all."""


class Node:
    """A relay with the list, and a server that has everybody's mailbox."""

    def __init__(self, cluster: Cluster, keeper: Keeper) -> None:
        self.cluster, self.keeper, self.calls = cluster, keeper, admin_calls(cluster)
        self._seen = 0

    def send(self, sender: str, to: str, subject: str, **fields: str) -> None:
        names = {"From": sender or "robot@people.test", "To": to, "Subject": subject}
        names["Message-ID"] = f"<{time.time_ns()}@people.test>"
        header = names | {name.replace("_", "-"): value for name, value in fields.items()}
        text = "".join(f"{name}: {value}\r\n" for name, value in header.items()) + "\r\nhello\r\n"
        with smtplib.SMTP(*self.cluster.relays["relay A"].smtp, timeout=20) as client:
            client.sendmail(sender, [to], text.encode())

    def take(self) -> list[Kept]:
        wait_until(self._quiet, 30, "an end of the mail")
        new = self.keeper.messages[self._seen :]
        self._seen += len(new)
        return new

    def _quiet(self) -> bool:
        before = len(self.keeper.messages)
        if self.calls.waiting("relay A") != 0:
            return False
        time.sleep(QUIET_S)
        return len(self.keeper.messages) == before and self.calls.waiting("relay A") == 0

    def approve(self, notices: list[Kept]) -> None:
        self._decide(notices, 0)

    def refuse(self, notices: list[Kept]) -> None:
        self._decide(notices, 1)

    def _decide(self, notices: list[Kept], which: int) -> None:
        (notice,) = [kept for kept in notices if OWNER in kept.recipients]
        addresses = re.findall(rb"talk-confirm\+[a-z0-9]+@lists\.test", notice.data)
        self.send(OWNER, addresses[which].decode(), "yes")


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    with (
        Keeper() as keeper,
        Cluster(folder / "c", relays=("A",), hosts=(), external={"k": keeper.port}, settings=SETTINGS) as cluster,
    ):
        cluster.start()
        yield Node(cluster, keeper)


def test_the_story_of_a_list(node: Node) -> None:
    seen = story.tell(node)

    def to(who: str, subject: str) -> Copy:
        return Copy(who, "the list's own for this member", FIELDS, subject)

    assert seen == {
        f"{ANN} joins": True,
        f"{BOB} joins": True,
        "a member posts": [to(ANN, "hello"), to(BOB, "hello")],
        "a stranger posts": [],
        "the owner hears of it": True,
        "the owner lets it through": [to(ANN, "may I"), to(BOB, "may I")],
        "the owner refuses": [],
        "a robot asks": [],
        "nobody asks": [],
        "a person asks": [[EVE]],
        "a post comes back": [],
        "one has left": [ANN],
    }


@pytest.mark.skipif(not mailman.COMMAND.exists(), reason="needs Mailman 3 (deploy/run.py test installs it)")
def test_mailman_tells_the_same_story(node: Node, folder: Path) -> None:
    """Side by side. Mailman answers robots, and those who have no address to be answered at; RFC 3834 forbids it.

    And it takes a post back that it has sent itself: 3.3.10 compares all of the field List-Post with a bare address.
    """
    with Keeper() as keeper, mailman.Mailman(folder / "mailman", keeper) as other:
        theirs, ours = story.tell(other), story.tell(node)
    for step in ours:
        print(f"{step}\n  ours    {ours[step]}\n  Mailman {theirs[step]}")
    stricter = ("a robot asks", "nobody asks", "a post comes back")
    assert [ours.pop(step) for step in stricter] == [[], [], []]
    for step in stricter:
        del theirs[step]
    assert theirs == ours


def test_whoever_writes_to_a_list_that_is_none_is_told_at_once(node: Node) -> None:
    with smtplib.SMTP(*node.cluster.relays["relay A"].smtp, timeout=20) as client:
        client.ehlo()
        client.mail(EVE)
        assert client.rcpt("walk@lists.test") == (550, b"5.1.1 there is no such list")
        assert client.rcpt("talk-nonsense@lists.test")[0] == 550
        assert client.rcpt(LIST)[0] == 250


def test_why_and_explain_tell_of_mail_whose_list_is_down(folder: Path) -> None:
    settings = FAILING.format(folder=folder)
    gate = folder / "expand.gate"
    gate.touch()
    with (
        Keeper() as keeper,
        Cluster(folder / "c", relays=("A",), hosts=(), external={"k": keeper.port}, settings=settings) as cluster,
    ):
        cluster.start()
        relay, calls = cluster.relays["relay A"], admin_calls(cluster)
        with smtplib.SMTP(*relay.smtp, timeout=20) as client:
            client.sendmail(ANN, [LIST], "Subject: x\r\n\r\nhello\r\n")
        wait_until(lambda: calls.call("relay A", "GetQueue", limit=1, states=["deferred"]).deliveries, 20, "a failure")
        (delivery,) = calls.call("relay A", "GetQueue", limit=1).deliveries
        why = smtpmesh(relay, "why", delivery.queue_id).stdout
        assert "sink talk is to say who gets it (a list, an alias); it was asked once: sink talk failed: OSError" in why
        assert "it is asked again in " in why
        explained = smtpmesh(relay, "explain", LIST).stdout
        assert f"mail to {LIST} is for sink talk first, which says who gets it" in explained
        gate.unlink()
        assert smtpmesh(relay, "queue", "retry", delivery.queue_id).returncode == 0
        wait_until(lambda: [kept.recipients for kept in keeper.messages] == [[ANN]], 20, "the copy")


def test_a_post_that_its_client_sends_again_is_posted_once_also_after_a_kill(node: Node) -> None:
    store = Store(node.cluster.relays["relay A"].data_dir / "sinks" / "lists")
    store.add_members(LIST, [ANN, BOB], time.time())
    store.close()
    for number in range(3):
        if number == 2:
            node.cluster.kill("relay A")
            node.cluster.restart("relay A")
        node.send(ANN, LIST, "once", Message_ID="<once@people.test>")
        assert len(received_of(node.take(), "once")) == (0 if number else 2)
    node.send(ANN, LIST, "other", Message_ID="<other@people.test>")
    assert len(received_of(node.take(), "other")) == 2


def received_of(mails: list[Kept], subject: str) -> list[str]:
    return [who for kept in mails if f"Subject: {subject}\r\n".encode() in kept.data for who in kept.recipients]


def test_all_members_get_one_copy_each_through_kills_of_the_relay(node: Node) -> None:
    relay, count = node.cluster.relays["relay A"], 10_000 if FULL else 1_500
    database = relay.data_dir / "sinks" / "lists"
    node.cluster.kill("relay A")
    members = [f"m{number}@people.test" for number in range(count)]
    store = Store(database)
    store.add_members(LIST, [*members, ANN], time.time())
    store.close()
    node.cluster.restart("relay A")
    with smtplib.SMTP(*relay.smtp, timeout=20) as client:
        header = f"From: {ANN}\r\nMessage-ID: <to-all@people.test>\r\nSubject: to all\r\n"
        client.sendmail(ANN, [LIST], f"{header}\r\nhello\r\n")
    for share in (0.0, 0.2, 0.6):  # while it is expanded, and while its copies go out
        wait_until(lambda share=share: len(node.keeper.messages) >= share * count, 120, "copies")
        node.cluster.kill("relay A")
        node.cluster.restart("relay A")
    wait_until(lambda: len(received(node)) == count + 1, 240, "all copies")
    node.take()
    copies = received(node)
    assert set(copies) == {*members, ANN}
    doubled = sum(number - 1 for number in copies.values())
    assert doubled <= 3 * 60, f"{doubled} copies more than in flight at three kills"
    with sqlite3.connect(relay.data_dir / "queue" / "queue.db") as connection:
        (entries,) = connection.execute("SELECT count(*) FROM entry WHERE document LIKE '%\"verp\":true%'").fetchone()
    assert entries == 1, "the list was expanded once"


def received(node: Node) -> Counter[str]:
    return Counter(address for message in list(node.keeper.messages) for address in message.recipients)
