"""A scriptable SMTP and LMTP server that remembers, and lies where it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

HANG = "hang"
DROP = "drop"
"""Close the connection instead of answering."""
RESET = "reset"
"""The same without a farewell: RST instead of FIN."""
FLOOD = "flood"
"""Replies without end."""
ENDLESS = "endless"
"""A line without end."""
SLOW = "slow"
"""The usual reply, a byte at a time."""
GARBAGE = "\x00\x16\x03\x01 \x1b[31mno\x07reply"

KEYWORDS = ("PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8", "DSN")
FLOOD_BYTES = 2_000_000


@dataclass
class Script:
    """What the server says at each step; the words above are no replies."""

    greeting: str = "220 sink.test ESMTP"
    ehlo: str = ""
    """Instead of the keywords."""
    helo: str = "250 sink.test"
    keywords: tuple[str, ...] = KEYWORDS
    keywords_tls: tuple[str, ...] | None = None
    """Under TLS; None = the same without STARTTLS."""
    mail: str = "250 2.1.0 Ok"
    rcpt: Callable[[str], str] = lambda line: "250 2.1.5 Ok"
    data: str = "354 go ahead"
    body: str = ""
    """While the mail data arrives: DROP or RESET after its first line."""
    final: str = "250 2.0.0 Ok: queued as X1"
    finals: Callable[[str], str] | None = None
    """LMTP: the reply for each recipient that was accepted."""
    rset: str = "250 2.0.0 Ok"
    quit: str = "221 2.0.0 Bye"
    auth: str = "235 2.7.0 welcome"
    starttls: str = "220 2.0.0 go ahead"
    context: ssl.SSLContext | None = None
    drop_after_messages: int = 10**9


@dataclass
class Seen:
    """What arrived."""

    connections: int = 0
    commands: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    """BDAT commands."""
    snis: list[str | None] = field(default_factory=list)
    accepted: list[tuple[str, ...]] = field(default_factory=list)
    """Recipients of each message that the server took over."""

    def said(self, verb: str) -> list[str]:
        return [command for command in self.commands if command.upper().startswith(verb)]


class _Dropped(Exception):
    pass


class SmtpServer:
    """One connection handler for all scripts."""

    def __init__(self, script: Script) -> None:
        self.script, self.seen = script, Seen()
        self.port = 0
        if script.context is not None:
            script.context.sni_callback = lambda _socket, name, _context: self.seen.snis.append(name)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections += 1
        try:
            await _Dialogue(self, reader, writer).run()
        except (_Dropped, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


class _Dialogue:
    def __init__(self, server: SmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.script, self.seen = server, server.script, server.seen
        self.reader, self.writer = reader, writer
        self.accepted: list[str] = []
        self.parts: list[bytes] = []
        self.messages, self.tls = 0, False

    async def say(self, text: str, usual: str = "250 2.0.0 Ok") -> None:
        writer = self.writer
        match text:
            case "drop":
                raise _Dropped
            case "reset":
                writer.transport.abort()
                raise _Dropped
            case "hang":
                await asyncio.Event().wait()
            case "slow":
                for byte in usual.encode() + b"\r\n":
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)
            case "flood":
                for _ in range(FLOOD_BYTES // 20_000):
                    writer.write(b"250-more and more and\r\n" * 1000)
                    await writer.drain()
            case "endless":
                for _ in range(FLOOD_BYTES // 20_000):
                    writer.write(b"2" * 20_000)
                    await writer.drain()
            case _:
                writer.write(text.encode("utf-8", "surrogateescape") + b"\r\n")
        await writer.drain()

    async def run(self) -> None:
        await self.say(self.script.greeting, "220 sink.test ESMTP")
        while line := (await self.reader.readline()).decode("utf-8", "surrogateescape").rstrip("\r\n"):
            self.seen.commands.append(line)
            if not await self.obey(line):
                return

    async def obey(self, line: str) -> bool:
        script = self.script
        match line.split(" ")[0].split(":")[0].upper():
            case "EHLO" | "LHLO":
                await self.say(script.ehlo or self.hello(), self.hello())
            case "HELO":
                await self.say(script.helo)
            case "MAIL":
                self.accepted.clear()
                self.parts.clear()
                await self.say(script.mail)
            case "RCPT":
                reply = script.rcpt(line)
                if reply.startswith("2") or reply == SLOW:
                    self.accepted.append(line.partition("<")[2].partition(">")[0])
                await self.say(reply)
            case "DATA" if self.accepted or script.data != "354 go ahead":
                await self.say(script.data, "354 go ahead")
                if script.data.startswith("354") or script.data == SLOW:
                    await self.take(await self.read_body())
            case "DATA":
                await self.say("503 5.5.1 no recipients")
            case "BDAT":
                await self.take_chunk(line)
            case "RSET":
                await self.say(script.rset)
            case "STARTTLS":
                await self.say(script.starttls)
                if script.context is not None and script.starttls.startswith("220"):
                    await self.writer.start_tls(script.context)
                    self.tls = True
            case "AUTH":
                await self.say(script.auth)
            case "QUIT":
                await self.say(script.quit)
                return False
            case _:
                await self.say("250 2.0.0 Ok")
        return True

    def hello(self) -> str:
        script = self.script
        words = script.keywords
        if self.tls:
            plain = tuple(word for word in words if word != "STARTTLS")
            words = script.keywords_tls if script.keywords_tls is not None else plain
        return "\r\n".join(f"250-{word}" for word in ("sink.test", *words)) + "\r\n250 HELP"

    async def read_body(self) -> bytes:
        lines: list[bytes] = []
        while (line := await self.reader.readuntil(b"\n")) != b".\r\n":
            lines.append(line)
            if self.script.body:
                await self.say(self.script.body)
        return b"".join(lines)

    async def take_chunk(self, line: str) -> None:
        self.seen.chunks.append(line)
        words = line.split(" ")
        self.parts.append(await self.reader.readexactly(int(words[1])))
        if words[-1].upper() == "LAST":
            await self.take(b"".join(self.parts))
        else:
            await self.say(self.script.data if not self.script.data.startswith("354") else "250 2.0.0 chunk")

    async def take(self, body: bytes) -> None:
        """The message is complete."""
        script = self.script
        self.seen.bodies.append(body)
        if script.finals:
            finals = [script.finals(recipient) for recipient in self.accepted]
            taken = [who for who, reply in zip(self.accepted, finals, strict=True) if reply.startswith("2")]
        else:
            finals = [script.final]
            taken = [] if finals[0][0] in "45" else self.accepted
        if taken:
            self.seen.accepted.append(tuple(taken))
        for reply in finals:
            await self.say(reply)
        self.messages += 1
        if self.messages >= script.drop_after_messages:
            raise _Dropped


@asynccontextmanager
async def smtp_server(
    script: Script | None = None,
    *,
    implicit: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    path: Path | None = None,
) -> AsyncIterator[SmtpServer]:
    """A server on a free loopback port, or a Unix socket."""
    handler = SmtpServer(script or Script())
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(handler.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if path is not None:
        server = await asyncio.start_unix_server(connected, path, limit=2**24)
    else:
        server = await asyncio.start_server(connected, host, port, limit=2**24, ssl=implicit)
        handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def smtp_servers(*scripts: Script) -> AsyncIterator[list[SmtpServer]]:
    """Servers on one port of 127.0.0.1, 127.0.0.2 and so on, like the exchangers of a domain."""
    while True:
        async with AsyncExitStack() as stack:
            made: list[SmtpServer] = []
            try:
                for number, script in enumerate(scripts, start=1):
                    port = made[0].port if made else 0
                    made.append(
                        await stack.enter_async_context(smtp_server(script, host=f"127.0.0.{number}", port=port))
                    )
            except OSError:  # somebody else has that port on one of the addresses
                continue
            yield made
            return
