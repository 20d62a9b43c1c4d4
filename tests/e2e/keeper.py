"""A server at the end of the way that keeps whole messages with their envelopes, octet by octet, in memory.

It shares no code with the relay that it judges. Each session has a thread; it pipelines, takes 8-bit mail, DSN
parameters and addresses in UTF-8, and refuses nothing.
"""

from __future__ import annotations

import re
import socketserver
import threading
from dataclasses import dataclass
from types import TracebackType

RECEIVED = re.compile(rb"Received: from [^;]*;\r\n\t[^\r\n]*\r\n")
KEYWORDS = ("PIPELINING", "SIZE 200000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as it came."""

    mail: str
    """The MAIL command."""
    rcpts: tuple[str, ...]
    """The RCPT commands."""
    data: bytes
    """Without doubled dots."""

    @property
    def sender(self) -> str:
        """The reverse-path."""
        return _path(self.mail)

    @property
    def recipients(self) -> list[str]:
        """The forward-paths."""
        return [_path(line) for line in self.rcpts]

    def below(self, hops: int) -> bytes:
        """The message as it was before so many of our relays had it: without their Received fields.

        These end with the line of the date. What follows may begin with a blank, and is no part of them all the same.
        """
        rest = self.data
        for _ in range(hops):
            field = RECEIVED.match(rest)
            assert field is not None, rest[:300]
            rest = rest[field.end() :]
        return rest

    @property
    def body(self) -> bytes:
        """What follows the header."""
        return self.data.partition(b"\r\n\r\n")[2]


class Keeper:
    """The server, on a free port of 127.0.0.1."""

    def __init__(self, *keywords: str) -> None:
        """`keywords`: further ones in the answer to EHLO."""
        self.keywords = (*KEYWORDS, *keywords)
        self.messages: list[Kept] = []
        keeper = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _serve(keeper, self)

        self._server = _Server(("127.0.0.1", 0), Session)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def named(self, word: bytes) -> list[Kept]:
        """Messages in whose header or body a word occurs."""
        return [message for message in list(self.messages) if word in message.data]

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 50


def _path(line: str) -> str:
    return line.partition("<")[2].rpartition(">")[0]


def _serve(keeper: Keeper, session: socketserver.StreamRequestHandler) -> None:
    def say(text: str) -> None:
        session.wfile.write(text.encode() + b"\r\n")

    mail, rcpts = "", list[str]()
    say("220 keeper.test ESMTP")
    while line := session.rfile.readline(10_000).decode("utf-8", "surrogateescape").rstrip("\r\n"):
        verb = line.split(" ")[0].split(":")[0].upper()
        if verb == "EHLO":
            words = ("keeper.test", *keeper.keywords)
            say("\r\n".join(f"250{' ' if word is words[-1] else '-'}{word}" for word in words))
        elif verb == "MAIL":
            mail, rcpts = line, []
            say("250 2.1.0 Ok")
        elif verb == "RCPT":
            rcpts.append(line)
            say("250 2.1.5 Ok")
        elif verb == "DATA":
            say("354 go on")
            keeper.messages.append(Kept(mail, tuple(rcpts), _read_data(session)))
            say("250 2.0.0 kept")
        elif verb == "QUIT":
            say("221 2.0.0 Bye")
            return
        else:
            say("250 2.0.0 Ok")


def _read_data(session: socketserver.StreamRequestHandler) -> bytes:
    lines = []
    while (line := session.rfile.readline()) != b".\r\n":
        assert line, "the client left in its mail data"
        lines.append(line[1:] if line.startswith(b".") else line)
    return b"".join(lines)
