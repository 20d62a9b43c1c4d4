"""What is around the process that dies: a client with its letters, a smart host that remembers, and the judge.

letter     what the smart host does with it
inline     takes it
spooled    takes it; too large for a database row
refused    says 550, so that the sender gets a report
later      says 451 once, then takes it
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.life import INLINE_BYTES_MAX
from tests.faults.nursery import Nursery

DOMAIN = "out.test"
WAIT_S = 20.0
TRIES_MAX = 20
AGAIN_S = 0.1
"""A client that was answered 4yz comes again after this."""
_NAME = re.compile(rb"^X-Letter: (\S+)\r?$", re.MULTILINE)
_PATH = re.compile(r"<([^>]*)>")


@dataclass(frozen=True, slots=True)
class Letter:
    """One message; its name is also the local part of its recipient."""

    name: str
    size_bytes: int = 200

    @property
    def content(self) -> bytes:
        """Mail data, not dot-stuffed; there are no dots."""
        head = f"X-Letter: {self.name}\r\nSubject: test\r\n\r\n".encode()
        lines = max(1, (self.size_bytes - len(head)) // 64)
        return head + (self.name.encode().ljust(62, b"x") + b"\r\n") * lines


LETTERS = (Letter("inline"), Letter("spooled", 3 * INLINE_BYTES_MAX), Letter("refused"), Letter("later"))


@dataclass(slots=True)
class SmartHost:
    """Remembers every message that it took; survives whoever sends."""

    port: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    """Letter's name -> copies that were answered 250, or were whole when the sender was gone; `report` of one: so."""
    damaged: list[str] = field(default_factory=list)
    _greylisted: set[str] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """On a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Take nothing any more."""
        assert self._server is not None
        self._server.close()

    async def wait_for(self, name: str) -> None:
        """Until a copy of the letter, or a report of it, is here."""
        while not self.taken[name]:
            self._news.clear()
            await self._news.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 out.test ESMTP\r\n")
        reply = b""
        while line := (await reader.readline()).decode():
            match line[:4].upper():
                case "EHLO":
                    writer.write(b"250-out.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 DSN\r\n")
                case "RCPT":
                    reply = self._judge(_PATH.findall(line)[0].partition("@")[0])
                    writer.write(reply)
                case "DATA" if reply.startswith(b"2"):
                    writer.write(b"354 go ahead\r\n")
                    self._take(await reader.readuntil(b"\r\n.\r\n"))
                    writer.write(b"250 2.0.0 taken\r\n")
                case "DATA":
                    writer.write(b"503 5.5.1 no recipients\r\n")
                case "QUIT":
                    writer.write(b"221 2.0.0 bye\r\n")
                    return
                case _:
                    writer.write(b"250 2.0.0 ok\r\n")
            await writer.drain()

    def _judge(self, name: str) -> bytes:
        if name == "refused":
            return b"550 5.1.1 nobody here\r\n"
        if name == "later" and name not in self._greylisted:
            self._greylisted.add(name)
            return b"451 4.7.1 come again\r\n"
        return b"250 2.1.5 ok\r\n"

    def _take(self, data: bytes) -> None:
        name = _NAME.findall(data)[0].decode()
        self.taken[name] += 1
        letter = next(letter for letter in LETTERS if letter.name == name)
        if name != "refused" and not data.endswith(letter.content + b".\r\n"):
            self.damaged.append(name)
        self._news.set()


class Process:
    """A life, perhaps traced."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pid, self._reader, self._writer = pid, reader, writer
        self._tracer: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._listening: asyncio.Task[None] | None = None
        self.port = self.mesh_port = 0

    @classmethod
    async def start(
        cls,
        nursery: Nursery,
        directory: Path,
        host: SmartHost | int,
        *,
        names: str,
        tracer: Sequence[str] = (),
        errors: Path,
        mesh: Mapping[str, object] | None = None,
        cut_through: bool = False,
    ) -> Process:
        """Returns when it serves, or is dead. `tracer`: takes `-p PID`. `host`: or the port of a peer."""
        reader, writer = await asyncio.open_unix_connection(str(nursery.address))
        port = host if isinstance(host, int) else host.port
        words = {
            "directory": str(directory),
            "host": port,
            "names": names,
            "errors": str(errors),
            "mesh": mesh,
            "cut_through": cut_through,
        }
        writer.write(f"{json.dumps(words)}\n".encode())
        life = cls(int((await reader.readline()).split()[1]), reader, writer)
        if tracer:
            await life._attach(tracer)
        life._listening = asyncio.get_running_loop().create_task(life._listen())
        word, *ports = (await life.ask("begin")).split(" ")
        if word == "port":
            life.port, life.mesh_port = (int(port or "0") for port in (*ports, "")[:2])
        return life

    async def _attach(self, tracer: Sequence[str]) -> None:
        self._tracer = await asyncio.create_subprocess_exec(*tracer, "-p", str(self._pid))
        status = Path(f"/proc/{self._pid}/status")
        async with asyncio.timeout(WAIT_S):
            while "TracerPid:\t0\n" in status.read_text():  # noqa: ASYNC110, ASYNC240  (the kernel tells nobody)
                await asyncio.sleep(0.002)

    async def _listen(self) -> None:
        while not self._ended.done():
            word, _, rest = (await self._reader.readline()).decode().strip().partition(" ")
            if word == "exit":
                self._ended.set_result(int(rest))
                self._lines.put_nowait("")
            else:
                self._lines.put_nowait(f"{word} {rest}".strip())

    async def ask(self, command: str, timeout_s: float = WAIT_S) -> str:
        """Its answer; empty if it is dead, or is killed because it gave none."""
        if not self.alive:
            return ""
        self._writer.write(f"{command}\n".encode())
        try:
            async with asyncio.timeout(timeout_s):
                return await self._lines.get()
        except TimeoutError:
            self.kill()
            return ""

    async def wait(self) -> int:
        """Its exit code, when its tracer has written all."""
        async with asyncio.timeout(WAIT_S):
            code = await asyncio.shield(self._ended)
            if self._tracer is not None:
                await self._tracer.wait()
            assert self._listening is not None
            await asyncio.shield(self._listening)
        self._writer.close()
        return code

    @property
    def alive(self) -> bool:
        """It has not ended yet."""
        return not self._ended.done()

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.alive:
            os.kill(self._pid, signal.SIGKILL)


async def submit(port: int, letter: Letter) -> str:
    """The reply to the final dot, or an earlier refusal; empty if the relay was gone before it gave one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    try:
        reply = await _read_reply(reader)
        for command in ("EHLO c.test", f"MAIL FROM:<sue@{DOMAIN}>", f"RCPT TO:<{letter.name}@{DOMAIN}>", "DATA"):
            writer.write(f"{command}\r\n".encode())
            reply = await _read_reply(reader)
            if reply[:1] not in "23":
                return reply
        writer.write(letter.content + b".\r\n")
        return await _read_reply(reader)
    except OSError:
        return ""
    finally:
        writer.close()


async def _read_reply(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(WAIT_S):
        while line := (await reader.readline()).decode():
            if line[3:4] == " ":
                return line.strip()
    raise ConnectionResetError("the relay is gone")
