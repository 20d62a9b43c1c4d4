"""One message never becomes two: every odd end of mail data, through a relay, into Postfix, to a server that counts.

raw client -> relay A (`bare_newlines` refuse and normalise, by DATA and by BDAT) -> Postfix -> a server that
writes down what arrives

Each message holds a second one behind something that some server takes for the end of mail data, or once took
(CVE-2023-51764 to 51766 and their kin). Postfix is there twice: as it comes, and with all its own guards down. The long
form (SMTPMESH_E2E_FULL=1) has more line ends, and cuts each message into two segments at every byte of the odd place.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, find_port
from smtp_edge.demo.smart_host import ID_HEADER
from tests.e2e.postfix import Postfix, missing
from tests.e2e.scene import FULL, records, wait_until

REPAIRING = """\
[[listener]]
name = "repairing"
listen = "127.0.0.1:{port}"
allow_networks = ["127.0.0.0/8"]
bare_newlines = "normalise"
"""
GUARDS_DOWN = """\
smtpd_forbid_bare_newline = no
smtpd_forbid_unauth_pipelining = no
smtpd_data_restrictions =
"""
LINE_ENDS = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\0\n"]
MORE_LINE_ENDS = [b"\n\r", b"\r\0\n", b"\n\n", b"\r\n\0", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8"]
"""LF CR, and what Unicode and Python call line ends."""
DOTS = [b".", b".."]
END = b"\r\n.\r\n"
TIMEOUT_S = 600.0 if FULL else 60.0
BETWEEN_SEGMENTS_S = 0.002
"""In the long form: enough for the first segment to be read alone, mostly."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A message with another one inside. `cut`: where a segment ends, 0 = nowhere."""

    number: int
    odd: bytes
    verb: bytes
    cut: int = 0

    @property
    def head(self) -> bytes:
        """Up to the odd place."""
        return f"{ID_HEADER}: honest-{self.number}\r\nSubject: x\r\n\r\nhello".encode()

    @property
    def data(self) -> bytes:
        """All of it, with a CRLF at its end."""
        return (
            self.head
            + self.odd
            + (
                b"MAIL FROM:<evil@smuggled.test>\r\nRCPT TO:<victim@smuggled.test>\r\nDATA\r\n"
                + f"{ID_HEADER}: smuggled-{self.number}\r\n\r\nevil\r\n".encode()
            )
        )


def odd_ends() -> list[bytes]:
    """What may stand around a dot, or two."""
    line_ends = LINE_ENDS + (MORE_LINE_ENDS if FULL else [])
    return [before + dots + after for before, dots, after in itertools.product(line_ends, DOTS, line_ends)]


def build_attempts(verb: bytes) -> Iterator[Attempt]:
    """By DATA the real end of mail data is none of the odd ones; by BDAT it is one of them."""
    numbers = itertools.count(0 if verb == b"DATA" else 100_000)
    for odd in odd_ends():
        if verb == b"BDAT" or END not in odd:
            for cut in range(len(odd) + 1 if FULL else 1):
                yield Attempt(next(numbers), odd, verb, cut)


class Smuggler:
    """A client that says what it wants. Keeps one session as long as it lasts."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._reply()
        assert self._say(b"EHLO smuggler.test\r\n").startswith(b"250")

    def send(self, attempt: Attempt) -> bool:
        """True if the message is accepted. Exactly one answer is heard, and then none but to QUIT."""
        for line in (b"MAIL FROM:<> BODY=8BITMIME", b"RCPT TO:<reader@example.test>"):
            assert self._say(line + b"\r\n").startswith(b"250")
        place = len(attempt.head)
        if attempt.verb == b"DATA":
            assert self._say(b"DATA\r\n").startswith(b"354")
            data = attempt.data + b".\r\n"
        else:
            command = f"BDAT {len(attempt.data)} LAST\r\n".encode()
            data, place = command + attempt.data, place + len(command)
        cut = place + attempt.cut
        self._socket.sendall(data[:cut])
        time.sleep(BETWEEN_SEGMENTS_S if attempt.cut else 0)
        self._socket.sendall(data[cut:])
        answer = self._reply()
        assert self._say(b"NOOP\r\n").startswith(b"250"), attempt
        return answer.startswith(b"250")

    def close(self) -> None:
        """Nothing more was said."""
        self._socket.sendall(b"QUIT\r\n")
        assert self._lines.read() == b"221 2.0.0 Bye\r\n"
        self._socket.close()

    def _say(self, data: bytes) -> bytes:
        self._socket.sendall(data)
        return self._reply()

    def _reply(self) -> bytes:
        line = bytes(self._lines.readline())
        while line[3:4] == b"-":
            line = self._lines.readline()
        return line


@pytest.mark.peer("postfix")
@pytest.mark.skipif(bool(missing()), reason=missing() or "postfix")
def test_the_same_message_becomes_two_without_us(folder: Path) -> None:
    """The control: this Postfix can be fooled, and the server behind it tells."""
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Cluster(folder / "s", relays=(), hosts=(HostPlan("S"),)))
        sink.start()
        server = sink.hosts["smart host S"]
        postfix = Postfix(folder / "exit", hostname="exit.test", relay_port=server.port, more=GUARDS_DOWN)
        stack.enter_context(postfix)
        client = Smuggler(postfix.port)
        assert client.send(Attempt(1, b"\n.\r\n", b"DATA"))
        with pytest.raises(AssertionError):  # answers too many
            client.close()
        wait_until(lambda: len(records(server.ledger)) >= 2, TIMEOUT_S, "both messages")
        assert {record["id"] for record in records(server.ledger)} == {"honest-1", "smuggled-1"}


@pytest.mark.peer("postfix")
@pytest.mark.skipif(bool(missing()), reason=missing() or "postfix")
@pytest.mark.parametrize("guards", ["as it comes", "guards down"])
def test_no_message_becomes_two_in_a_postfix_behind_us(folder: Path, guards: str) -> None:
    exit_port, repairing_port = find_port(set()), find_port(set())
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Cluster(folder / "s", relays=(), hosts=(HostPlan("S"),)))
        sink.start()
        server = sink.hosts["smart host S"]
        more = GUARDS_DOWN if guards == "guards down" else ""
        stack.enter_context(
            Postfix(folder / "exit", hostname="exit.test", port=exit_port, relay_port=server.port, more=more)
        )
        settings = REPAIRING.format(port=repairing_port)
        cluster = Cluster(folder / "c", relays=("A",), hosts=(), external={"postfix": exit_port}, settings=settings)
        stack.enter_context(cluster).start()

        accepted: list[str] = []
        refused = 0
        for port, verb in itertools.product((cluster.relays["relay A"].smtp[1], repairing_port), (b"DATA", b"BDAT")):
            client = Smuggler(port)
            for attempt in build_attempts(verb):
                if client.send(attempt):
                    accepted.append(f"honest-{attempt.number}")
                else:
                    refused += 1
                    assert port != repairing_port
            client.close()
        wait_until(lambda: len(records(server.ledger)) >= len(accepted), TIMEOUT_S, f"{len(accepted)} messages")

        arrived = Counter(record["id"] for record in records(server.ledger))
        assert arrived == Counter(accepted)
        assert refused
        assert {recipient for record in records(server.ledger) for recipient in record["recipients"]} == {
            "reader@example.test"
        }
