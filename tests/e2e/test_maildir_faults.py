"""A node that writes mailboxes is killed with -9 as mail comes in, its disk is full, and its mail store is away.

smtplib -> relay A: rcpt asks `maildir`, deliver writes ──> Maildir++
"""

from __future__ import annotations

import contextlib
import smtplib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, Relay
from tests.e2e.scene import FULL, admin_calls, wait_until
from tests.e2e.test_full_disk import fill, small_disk

KILLS = 10 if FULL else 3
MESSAGES_PER_KILL = 40
SETTINGS = """\
[[sink]]
name = "mailbox"
use = "maildir"
rule = "rcpt to=*@box.test"
with = {{ root = "{root}", create_folders = true }}
[[smart_host]]
name = "mailbox"
sink = "mailbox"
connections_max = 4
[[route]]
name = "box"
domains = ["box.test"]
via = ["mailbox"]
[queue]
retry_first_s = 1
retry_max_s = 2
"""
NAMES = ("ann@box.test", "bob+lists@box.test")


@contextlib.contextmanager
def one_store(folder: Path, root: Path) -> Iterator[Cluster]:
    for name in ("ann", "bob"):
        (root / "box.test" / name).mkdir(parents=True)
    settings = SETTINGS.format(root=root)
    with Cluster(folder / "c", relays=("A",), hosts=(), external={"dead": 1}, settings=settings) as cluster:
        cluster.start()
        yield cluster


def subjects(root: Path, folder: str) -> Counter[bytes]:
    """Of the mail that is visible; each is whole."""
    found: Counter[bytes] = Counter()
    for path in (root / "box.test" / folder).glob("new/*"):
        mail = path.read_bytes()
        assert mail.endswith(b"\r\nthe end\r\n"), path
        found[mail.partition(b"\r\nSubject: ")[2].partition(b"\r\n")[0]] += 1
    return found


def text(number: int) -> bytes:
    return b"Subject: %d\r\n\r\n" % number + b"x" * 70 + b"\r\nthe end\r\n"


def submit(relay: Relay, number: int) -> None:
    with smtplib.SMTP(*relay.smtp, timeout=20) as client:
        client.sendmail("sue@demo.test", NAMES, text(number))


def test_each_message_is_visible_once_however_often_the_node_is_killed(folder: Path) -> None:
    root = folder / "mail"
    with one_store(folder, root) as cluster:
        relay = cluster.relays["relay A"]
        accepted: set[bytes] = set()
        tried = 0

        def submit_some(reached: threading.Event) -> None:
            nonlocal tried
            for count in range(MESSAGES_PER_KILL):
                tried += 1
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    submit(relay, tried)
                    accepted.add(b"%d" % tried)
                if count == MESSAGES_PER_KILL // 2:
                    reached.set()

        for _ in range(KILLS):
            reached = threading.Event()
            thread = threading.Thread(target=submit_some, args=(reached,))
            thread.start()
            assert reached.wait(60)
            cluster.kill("relay A")
            thread.join(60)
            cluster.restart("relay A")
        calls = admin_calls(cluster)
        wait_until(lambda: calls.waiting("relay A") == 0, 60, "an empty queue")
        assert len(accepted) >= KILLS * MESSAGES_PER_KILL // 2
        for name in ("ann", "bob/.lists"):
            found = subjects(root, name)
            assert accepted <= set(found), "what was accepted is there"
            assert set(found.values()) == {1}, "once"


def test_a_full_disk_and_a_store_that_is_away_let_mail_wait(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    root = disk / "mail"
    with small_disk(disk), one_store(folder, root) as cluster:
        relay, calls = cluster.relays["relay A"], admin_calls(cluster)
        fill(disk / "ballast")
        submit(relay, 1)
        wait_until(lambda: b"452" in relay.server.log.read_bytes(), 20, "an attempt that failed")
        assert calls.waiting("relay A") > 0
        (disk / "ballast").unlink()
        wait_until(lambda: calls.waiting("relay A") == 0, 30, "an empty queue")

        root.rename(disk / "away")
        with smtplib.SMTP(*relay.smtp, timeout=20) as client:
            client.ehlo()
            client.mail("sue@demo.test")
            assert client.rcpt("ann@box.test")[0] == 451, "nobody is unknown because the store is away"
        (disk / "away").rename(root)
        submit(relay, 2)
        for name in ("ann", "bob/.lists"):
            wait_until(lambda name=name: len(subjects(root, name)) == 2, 30, "both messages")
        wait_until(lambda: calls.waiting("relay A") == 0, 30, "an empty queue")
        for name in ("ann", "bob/.lists"):
            assert subjects(root, name) == {b"1": 1, b"2": 1}
