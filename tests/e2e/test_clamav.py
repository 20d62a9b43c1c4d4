"""The virus scanner against the real clamd: found on the way in, once in a mesh, and three ways of clamd to fail.

smtplib -> relay A (sink clamav) ──> relay B ──> smart host S;  clamd knows one signature of its own, and no others
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import smtplib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, Relay
from tests.conftest import find_command
from tests.e2e.keeper import Keeper
from tests.e2e.scene import admin_calls, wait_members, wait_until
from tests.e2e.test_drain import smtpmesh

pytestmark = pytest.mark.peer("clamd")

MALWARE = b"smtpmesh-test-malware-3141592653589793"
SIGNATURE = "Smtpmesh.Test:0:*:" + MALWARE.hex()
CLAMD = """\
LocalSocket {folder}/clamd.sock
DatabaseDirectory {folder}/db
LogFile {folder}/clamd.log
Foreground yes
StreamMaxLength 1M
User {user}
"""
SINK = """
[[sink]]
use = "clamav"
timeout = "3s"
on_failure = "{policy}"
with = {{ address = "unix:{socket}", infected = "{infected}" }}
"""


class Clamd:
    """A private one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "clamd.sock"
        (folder / "db").mkdir(parents=True)
        (folder / "db" / "test.ndb").write_text(SIGNATURE + "\n")
        user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        (folder / "clamd.conf").write_text(CLAMD.format(folder=folder, user=user))
        self.start()

    def start(self) -> None:
        command = find_command("clamd")
        assert command is not None
        self.process = subprocess.Popen(
            [command, "-c", str(self.folder / "clamd.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        wait_until(self._answers, 30, f"clamd; see {self.folder}/clamd.log")

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(self.socket))
                asked.sendall(b"zPING\0")
                return asked.recv(10) == b"PONG\0"
        except OSError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def clamd(folder: Path) -> Iterator[Clamd]:
    running = Clamd(folder)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGCONT)
        running.kill()


@contextlib.contextmanager
def mesh(
    folder: Path, address: Path, *, policy: str = "tempfail", infected: str = "reject", relays: str = "A"
) -> Iterator[tuple[Cluster, Keeper]]:
    """The last relay alone reaches the keeper."""
    settings = SINK.format(socket=address, policy=policy, infected=infected)
    with Keeper() as keeper, contextlib.ExitStack() as stack:
        cluster = Cluster(folder, relays=tuple(relays), hosts=(), external={"k": keeper.port}, settings=settings)
        stack.enter_context(cluster)
        for relay in list(cluster.relays.values())[:-1]:
            text = relay.config.read_text()
            relay.config.write_text(text.replace(f"port = {keeper.port}", "port = 1"))
        cluster.start()
        if len(relays) > 1:
            wait_members(cluster, admin_calls(cluster))
        yield cluster, keeper


def send(relay: Relay, text: bytes, *names: str) -> tuple[int, str]:
    """The reply to the final dot."""
    with smtplib.SMTP(*relay.smtp, timeout=30) as client:
        client.ehlo()
        client.mail("sender@demo.test")
        for name in names or ("ann",):
            assert client.rcpt(f"{name}@demo.test")[0] == 250
        code, reply = client.data(b"Subject: x\r\nX-Virus-Status: Clean (says who?)\r\n\r\n" + text + b"\r\n")
        return code, reply.decode()


def labels(keeper: Keeper) -> list[list[bytes]]:
    """Of every message that arrived."""
    return [
        [line for line in kept.data.partition(b"\r\n\r\n")[0].split(b"\r\n") if line.startswith(b"X-Virus")]
        for kept in keeper.messages
    ]


def test_malware_is_refused_and_the_rest_is_labelled(folder: Path) -> None:
    with clamd(folder / "clamd") as scanner, mesh(folder / "c", scanner.socket) as (cluster, keeper):
        relay = cluster.relays["relay A"]
        refused = (550, "5.7.1 the message contains malware")
        assert send(relay, b"harmless")[0] == 250
        assert send(relay, MALWARE) == refused
        assert send(relay, MALWARE, "ann", "bob") == refused
        wait_until(lambda: len(keeper.messages) == 1, 20, "the clean message")
        assert send(relay, b"y" * 78 + (b"\r\n" + b"y" * 78) * 20_000)[0] == 250
        wait_until(lambda: len(keeper.messages) == 2, 20, "the large message")
        assert labels(keeper) == [
            [b"X-Virus-Status: Clean"],
            [b"X-Virus-Status: Not scanned; larger than clamd's StreamMaxLength"],
        ]


def test_malware_in_quarantine_waits_until_an_operator_releases_it(folder: Path) -> None:
    with (
        clamd(folder / "clamd") as scanner,
        mesh(folder / "c", scanner.socket, infected="quarantine") as (
            cluster,
            keeper,
        ),
    ):
        relay = cluster.relays["relay A"]
        assert send(relay, MALWARE)[0] == 250
        (held,) = json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)["deliveries"]
        assert "malware: Smtpmesh.Test.UNOFFICIAL" in json.dumps(held)
        assert smtpmesh(relay, "queue", "release", held["queue_id"]).returncode == 0
        wait_until(lambda: len(keeper.messages) == 1, 20, "the message that was released")


def test_a_message_is_scanned_once_on_its_way_through_a_mesh(folder: Path) -> None:
    with clamd(folder / "clamd") as scanner, mesh(folder / "c", scanner.socket, relays="AB") as (cluster, keeper):
        relay = cluster.relays["relay A"]
        assert send(relay, MALWARE)[0] == 550
        assert send(relay, b"harmless")[0] == 250
        wait_until(lambda: len(keeper.messages) == 1, 20, "the clean message")
        assert labels(keeper) == [[b"X-Virus-Status: Clean"]]
        assert keeper.messages[0].data.count(b"Received: ") == 2


def lie(listening: socket.socket) -> None:
    """Garbage to whoever asks."""
    with contextlib.suppress(OSError):
        while True:
            asked, _ = listening.accept()
            with asked:
                asked.recv(10)
                asked.sendall(b"\xff\0OK\xff" * 2000)


@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
def test_a_clamd_that_is_down_stopped_or_mad_means_what_the_binding_says(folder: Path, policy: str) -> None:
    with clamd(folder / "clamd") as scanner, mesh(folder / "c", scanner.socket, policy=policy) as (cluster, keeper):
        relay = cluster.relays["relay A"]
        scanner.process.send_signal(signal.SIGSTOP)
        replies = [send(relay, b"while it is stopped")]
        scanner.process.send_signal(signal.SIGCONT)
        scanner.kill()
        replies.append(send(relay, b"while it is down"))
        scanner.socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as liar:
            liar.bind(str(scanner.socket))
            liar.listen()
            threading.Thread(target=lie, args=(liar,), daemon=True).start()
            replies.append(send(relay, b"while it is mad"))
            liar.shutdown(socket.SHUT_RDWR)
        scanner.socket.unlink(missing_ok=True)
        scanner.start()
        assert send(relay, b"when it is well")[0] == 250
        if policy == "tempfail":
            assert replies == [(451, "4.3.0 local error in processing")] * 3
        else:
            assert [code for code, _ in replies] == [250] * 3
        wait_until(lambda: len(keeper.messages) >= (4 if policy == "accept" else 1), 20, "what may go on")
        held = json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)["deliveries"]
        assert len(held) == (3 if policy == "quarantine" else 0)
        well = [kept for kept in keeper.messages if b"when it is well" in kept.data]
        assert len(well) == 1
        assert sum(map(len, labels(keeper))) == 1, "nothing is said of what was not scanned"
