"""A smart host for demos and tests: takes all mail at a limited rate and writes one line for each message.

    python -m smtp_edge.demo.smart_host --ledger FILE [--rate 40] [--port 0] [--ready-file FILE]

The line (JSON) is appended before the 250, in one write, so that whatever a client saw accepted is in the file even
after kill -9. The message is taken over at its final dot: if the client is gone by then it is kept all the same, as
real servers do; that is where duplicates at an exit come from (RFC 1047). It shares no code with the relay it judges.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.demo.pace import Pace

ID_HEADER = "X-Demo-Id"
SIZE_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 4096
RECIPIENTS_MAX = 1000
SESSIONS_MAX = 500
IDLE_S = 300.0
GREYLIST_S = 5.0
CHUNK_BYTES = 256 * 1024
KEYWORDS = ("PIPELINING", f"SIZE {SIZE_BYTES_MAX}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
ENDING = b"\r\n.\r\n"
_PATH = re.compile(r"<([^<>]*)>")


class Hangup(Exception):
    """The client closed the connection, fell silent, or does not speak SMTP."""


class Wire:
    """CRLF lines and mail data out of a stream, whatever way the client's writes were cut (PIPELINING)."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        """No further command is waiting: the moment to send the collected replies."""
        return b"\n" not in self._buffer

    async def line(self) -> bytes:
        """The next line without its end. Hangup at the end of the stream or above `LINE_BYTES_MAX`."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise Hangup("line too long")
            await self._fill()
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        return line

    async def data(self) -> bytes | None:
        """Mail data up to the final dot, dots unstuffed; None above `SIZE_BYTES_MAX` (read to its end all the same)."""
        text, seen, too_large = bytearray(b"\r\n"), 0, False
        while True:
            text += self._buffer
            self._buffer.clear()
            end = text.find(ENDING, max(0, seen - len(ENDING)))
            if end >= 0:
                break
            if len(text) > SIZE_BYTES_MAX:
                too_large, text = True, text[-len(ENDING) :]
            seen = len(text)
            await self._fill()
        self._buffer += text[end + len(ENDING) :]
        return None if too_large else bytes(text[: end + 2]).replace(b"\r\n..", b"\r\n.")[2:]

    async def _fill(self) -> None:
        chunk = await asyncio.wait_for(self._reader.read(CHUNK_BYTES), IDLE_S)
        if not chunk:
            raise Hangup("closed")
        self._buffer += chunk


@dataclass(slots=True)
class Transaction:
    """MAIL and RCPT so far."""

    sender: str | None = None
    recipients: list[str] = field(default_factory=list)


class SmartHost:
    """The server: sessions, the pace that they share, and the file that they write to."""

    def __init__(
        self,
        ledger: Path,
        *,
        rate_mps: float,
        workers: int,
        refuse: Sequence[str] = (),
        greylist: Sequence[str] = (),
        greylist_s: float = GREYLIST_S,
    ) -> None:
        self._file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._pace = Pace(rate_mps, workers) if rate_mps > 0 else None
        self._queue: deque[tuple[float, asyncio.Future[float]]] = deque()
        self._refuse, self._greylist = frozenset(refuse), frozenset(greylist)
        self._greylist_s = greylist_s
        self._first_seen: dict[tuple[str, str], float] = {}
        self._session_count = 0

    # -- the pace ------------------------------------------------------------------------------------------------------

    async def begin_turn(self) -> float:
        """Wait for a worker, first come first served; the monotonic instant at which its turn ends."""
        if self._pace is None:
            return 0.0
        now = time.monotonic()
        if not self._queue and (ends_at := self._pace.take(now)) is not None:
            return ends_at
        mine: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._queue.append((now, mine))
        try:
            return await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.end_turn(mine.result())
            raise

    def end_turn(self, ends_at: float) -> None:
        """Give the worker to whoever waits longest."""
        if self._pace is None:
            return
        self._pace.give_back(ends_at, time.monotonic())
        while self._queue and self._queue[0][1].done():
            self._queue.popleft()
        if self._queue and (taken := self._pace.take(self._queue[0][0])) is not None:
            self._queue.popleft()[1].set_result(taken)

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._session_count += 1
        try:
            if self._session_count > SESSIONS_MAX:
                writer.write(b"421 4.7.0 Too many sessions\r\n")
            else:
                await Session(self, reader, writer).run()
        except (Hangup, TimeoutError, ConnectionError):
            pass
        finally:
            self._session_count -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await writer.wait_closed()

    def refuses(self, recipient: str) -> bool:
        """True for a local part that was given by --refuse."""
        return recipient.rpartition("@")[0] in self._refuse

    def defers(self, sender: str, recipient: str) -> bool:
        """True for a local part that was given by --greylist, until it was first asked for long enough ago."""
        if recipient.rpartition("@")[0] not in self._greylist:
            return False
        now = time.monotonic()
        return now - self._first_seen.setdefault((sender, recipient), now) < self._greylist_s

    def record(self, transaction: Transaction, client: str, port: int, data: bytes) -> None:
        """Append the message's line; on return the kernel has it, so that our own death does not lose it."""
        line = json.dumps(build_record(transaction, client, port, data, time.time()), separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")


def build_record(transaction: Transaction, client: str, port: int, data: bytes, at: float) -> dict[str, object]:
    """What the file says of a message. `received` holds its Received fields, newest first, unfolded."""
    head, _, body = data.partition(b"\r\n\r\n")
    if data.startswith(b"\r\n"):
        head, body = b"", data[2:]
    fields = re.sub(rb"\r\n[ \t]+", b" ", head).decode("utf-8", "replace").split("\r\n")
    named: dict[str, list[str]] = {}
    for line in fields:
        name, colon, value = line.partition(":")
        if colon:
            named.setdefault(name.strip().lower(), []).append(value.strip())
    known = named.get(ID_HEADER.lower()) or named.get("message-id") or named.get("subject") or [""]
    return {
        "id": known[0],
        "at": round(at, 6),
        "size_bytes": len(data),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "client": client,
        "client_port": port,
        "sender": transaction.sender or "",
        "recipients": transaction.recipients,
        "subject": (named.get("subject") or [""])[0],
        "received": named.get("received", []),
    }


class Session:
    """One SMTP session (RFC 5321), with PIPELINING, SIZE, 8BITMIME and SMTPUTF8."""

    def __init__(self, host: SmartHost, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._wire = Wire(reader)
        self._writer = writer
        self._client = ""
        self._port = int(writer.get_extra_info("peername")[1])
        self._transaction = Transaction()

    async def run(self) -> None:
        """Until QUIT."""
        self._reply("220 smart-host.test ESMTP")
        while True:
            if self._wire.empty:
                await self._writer.drain()
            words = (await self._wire.line()).decode("utf-8", "replace").split(None, 1)
            verb, argument = (words[0].upper() if words else ""), (words[1] if len(words) > 1 else "")
            if verb == "QUIT":
                self._reply("221 2.0.0 Bye")
                await self._writer.drain()
                return
            if verb == "DATA":
                await self._data()
            else:
                self._reply(*self._answer(verb, argument))

    def _answer(self, verb: str, argument: str) -> tuple[str, ...]:
        match verb:
            case "EHLO":
                self._client, self._transaction = argument.strip(), Transaction()
                return ("smart-host.test", *KEYWORDS)
            case "HELO":
                self._client, self._transaction = argument.strip(), Transaction()
                return ("250 smart-host.test",)
            case "MAIL":
                return (self._mail(argument),)
            case "RCPT":
                return (self._rcpt(argument),)
            case "RSET":
                self._transaction = Transaction()
                return ("250 2.0.0 Ok",)
            case "NOOP":
                return ("250 2.0.0 Ok",)
            case "VRFY":
                return ("252 2.5.0 Send some mail",)
            case _:
                return ("502 5.5.1 Command not implemented",)

    def _mail(self, argument: str) -> str:
        path = _PATH.search(argument)
        if not argument.upper().startswith("FROM:") or path is None:
            return "501 5.5.4 Syntax: MAIL FROM:<address>"
        size = re.search(r"\bSIZE=(\d+)", argument[path.end() :], re.IGNORECASE)
        if size and int(size[1]) > SIZE_BYTES_MAX:
            return "552 5.3.4 Message too large"
        self._transaction = Transaction(path[1])
        return "250 2.1.0 Ok"

    def _rcpt(self, argument: str) -> str:
        path = _PATH.search(argument)
        if not argument.upper().startswith("TO:") or path is None:
            return "501 5.5.4 Syntax: RCPT TO:<address>"
        if self._transaction.sender is None:
            return "503 5.5.1 MAIL first"
        if self._host.refuses(path[1]):
            return "550 5.1.1 No such mailbox"
        if self._host.defers(self._transaction.sender, path[1]):
            return "451 4.7.1 Greylisted, come back later"
        if len(self._transaction.recipients) >= RECIPIENTS_MAX:
            return "452 4.5.3 Too many recipients"
        self._transaction.recipients.append(path[1])
        return "250 2.1.5 Ok"

    async def _data(self) -> None:
        transaction = self._transaction
        if not transaction.recipients:
            self._reply("503 5.5.1 RCPT first")
            return
        ends_at = await self._host.begin_turn()
        try:
            self._reply("354 Go on, end with a dot")
            await self._writer.drain()
            data = await self._wire.data()
            await asyncio.sleep(max(0.0, ends_at - time.monotonic()))
            self._transaction = Transaction()
            if data is None:
                self._reply("552 5.3.4 Message too large")
                return
            self._host.record(transaction, self._client, self._port, data)
            self._reply("250 2.0.0 Ok, written")
        finally:
            self._host.end_turn(ends_at)

    def _reply(self, *lines: str) -> None:
        """A reply line as it is, or an EHLO answer of several keywords."""
        if len(lines) > 1:
            lines = tuple(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines)
        self._writer.write("".join(f"{line}\r\n" for line in lines).encode())


async def run(arguments: argparse.Namespace) -> None:
    """Listen until SIGTERM or SIGINT."""
    host = SmartHost(
        arguments.ledger,
        rate_mps=arguments.rate,
        workers=arguments.workers,
        refuse=arguments.refuse,
        greylist=arguments.greylist,
    )
    server = await asyncio.start_server(host.serve, "127.0.0.1", arguments.port, backlog=SESSIONS_MAX)
    port = server.sockets[0].getsockname()[1]
    if arguments.ready_file:
        partial = arguments.ready_file.with_suffix(".partial")
        partial.write_text(f"{port}\n")
        partial.replace(arguments.ready_file)
    else:
        sys.stdout.write(f"listening on 127.0.0.1:{port}\n")
        sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="smart_host", description="An SMTP server of limited rate that keeps a ledger."
    )
    parser.add_argument("--ledger", type=Path, required=True, help="file to append one JSON line per message to")
    parser.add_argument("--rate", type=float, default=0.0, help="messages per second; 0 = as fast as it can")
    parser.add_argument("--workers", type=int, default=4, help="messages in work at once")
    parser.add_argument("--port", type=int, default=0, help="0 = any free one")
    parser.add_argument("--ready-file", type=Path, help="written with the port once the server listens")
    parser.add_argument("--refuse", action="append", default=[], help="local part to answer 550 (repeatable)")
    text = f"local part to answer 451 for {GREYLIST_S:.0f} s (repeatable)"
    parser.add_argument("--greylist", action="append", default=[], help=text)
    return parser.parse_args(words)


if __name__ == "__main__":
    asyncio.run(run(parse_arguments()))
