"""A scriptable SMTP server that remembers, and lies where it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HANG = "hang"
DROP = "drop"
"""Close the connection instead of answering."""

KEYWORDS = ("PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8", "DSN")


@dataclass
class Script:
    """What the server says at each step; HANG and DROP are no replies."""

    greeting: str = "220 sink.test ESMTP"
    keywords: tuple[str, ...] = KEYWORDS
    mail: str = "250 2.1.0 Ok"
    rcpt: Callable[[str], str] = lambda line: "250 2.1.5 Ok"
    data: str = "354 go ahead"
    final: str = "250 2.0.0 Ok: queued as X1"
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
    groups: list[bytes] = field(default_factory=list)
    """Raw chunks, to see what was pipelined."""

    def said(self, verb: str) -> list[str]:
        return [command for command in self.commands if command.upper().startswith(verb)]


class _Dropped(Exception):
    pass


class SmtpServer:
    """One connection handler for all scripts."""

    def __init__(self, script: Script) -> None:
        self.script, self.seen = script, Seen()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections += 1
        try:
            await self._dialogue(reader, writer)
        except (_Dropped, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, text: str) -> None:
        if text == DROP:
            raise _Dropped
        if text == HANG:
            await asyncio.Event().wait()
        writer.write(text.encode() + b"\r\n")
        await writer.drain()

    async def _dialogue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script, accepted, messages = self.script, 0, 0
        await self._say(writer, script.greeting)
        while line := (await reader.readline()).decode("utf-8", "surrogateescape").rstrip("\r\n"):
            self.seen.commands.append(line)
            verb = line.split(" ")[0].split(":")[0].upper()
            match verb:
                case "EHLO":
                    await self._say(
                        writer, "\r\n".join(f"250-{word}" for word in ("sink.test", *script.keywords)) + "\r\n250 HELP"
                    )
                case "MAIL":
                    accepted = 0
                    await self._say(writer, script.mail)
                case "RCPT":
                    reply = script.rcpt(line)
                    accepted += reply.startswith("2")
                    await self._say(writer, reply)
                case "DATA" if accepted or script.data != "354 go ahead":
                    await self._say(writer, script.data)
                    if script.data.startswith("354"):
                        self.seen.bodies.append(await _read_body(reader))
                        await self._say(writer, script.final)
                        messages += 1
                        if messages >= script.drop_after_messages:
                            raise _Dropped
                case "DATA":
                    await self._say(writer, "503 5.5.1 no recipients")
                case "STARTTLS":
                    await self._say(writer, script.starttls)
                    if script.context is not None:
                        await writer.start_tls(script.context)
                case "AUTH":
                    await self._say(writer, script.auth)
                case "QUIT":
                    await self._say(writer, "221 2.0.0 Bye")
                    return
                case _:
                    await self._say(writer, "250 2.0.0 Ok")


async def _read_body(reader: asyncio.StreamReader) -> bytes:
    lines: list[bytes] = []
    while (line := await reader.readuntil(b"\n")) != b".\r\n":
        lines.append(line)
    return b"".join(lines)


@asynccontextmanager
async def smtp_server(
    script: Script | None = None, *, implicit: ssl.SSLContext | None = None
) -> AsyncIterator[SmtpServer]:
    """A server on a free loopback port."""
    handler = SmtpServer(script or Script())
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(handler.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**24, ssl=implicit)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
