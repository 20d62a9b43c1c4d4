"""Clients that mean harm: each attack is what one connection does, again and again until the time is over.

    python -m tests.bench.lab.floods NAME --port 2525 --connections 500 --seconds 5

prints one line of JSON: connections made, and the codes that were heard. They call from 127.0.1.1 onwards, at most
`PER_ADDRESS` from each address, so that the bounds per client do not end an attack before it is one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

PER_ADDRESS = 50
DRIP_S = 0.2
CHUNK = b"x" * 65536
GIGABYTE = 1024**3
HEADER_BYTES = 4 * 1024 * 1024
FIELDS = b"X: 1\r\n" * 100_000
NEVER_S = 3600.0


@dataclass(slots=True)
class Link:
    """One connection and its replies."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: Counter[str] = field(default_factory=Counter)

    async def send(self, data: bytes) -> None:
        """Write; waits while the server does not read."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> str:
        """The code of a reply. ConnectionError at the end."""
        while True:
            line = await self.reader.readline()
            if not line:
                raise ConnectionResetError("the end")
            if line[3:4] != b"-":
                code = line[:3].decode("ascii", "replace")
                self.heard[code] += 1
                return code

    async def listen(self) -> None:
        """Until the server hangs up."""
        while True:
            await self.reply()

    async def hello(self) -> None:
        """Greeting and EHLO."""
        await self.reply()
        await self.send(b"EHLO flood.test\r\n")
        await self.reply()

    async def begin_data(self) -> None:
        """Everything before mail data."""
        await self.hello()
        await self.send(b"MAIL FROM:<>\r\nRCPT TO:<ann@here.test>\r\nDATA\r\n")
        for _ in range(3):
            await self.reply()


Attack = Callable[[Link], Awaitable[None]]


async def hold(link: Link) -> None:
    """Says EHLO and stays."""
    await link.hello()
    await link.listen()


async def drip_command(link: Link) -> None:
    """A command of one byte each `DRIP_S`."""
    await link.reply()
    await _drip(link, b"NOOP ")


async def drip_data(link: Link) -> None:
    """Mail data of one byte each `DRIP_S`."""
    await link.begin_data()
    await _drip(link, b"")


async def _drip(link: Link, first: bytes) -> None:
    listening = asyncio.create_task(link.listen())
    try:
        await link.send(first)
        while not listening.done():
            await link.send(b"x")
            await asyncio.wait([listening], timeout=DRIP_S)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def guess_recipients(link: Link) -> None:
    """Recipients that are refused."""
    await link.hello()
    await link.send(b"MAIL FROM:<>\r\n" + b"RCPT TO:<guess@far.test>\r\n" * 500)
    await link.listen()


async def heap_recipients(link: Link) -> None:
    """More recipients than a message may have, again and again."""
    await link.hello()
    while True:
        await link.send(b"MAIL FROM:<>\r\n" + b"RCPT TO:<ann@here.test>\r\n" * 2000 + b"RSET\r\n")
        for _ in range(2002):
            await link.reply()


async def talk_nonsense(link: Link) -> None:
    """Commands that nobody knows."""
    await link.hello()
    await link.send(b"FOO\r\n" * 500)
    await link.listen()


async def talk_for_ever(link: Link) -> None:
    """A command without end."""
    await link.hello()
    await _pour(link, GIGABYTE)


async def one_long_line(link: Link) -> None:
    """Mail data without a line end: a gigabyte, if nobody stops it; the client leaves before its end."""
    await link.begin_data()
    await _pour(link, GIGABYTE)


async def _pour(link: Link, size_bytes: int) -> None:
    for _ in range(size_bytes // len(CHUNK)):
        await link.send(CHUNK)


async def header_bomb(link: Link) -> None:
    """A field that is larger than a header may be."""
    await link.begin_data()
    await link.send(b"Subject: " + b"x" * HEADER_BYTES + b"\r\n\r\n.\r\n")
    await link.reply()


async def field_bomb(link: Link) -> None:
    """A hundred thousand fields."""
    await link.begin_data()
    await link.send(FIELDS + b"\r\n.\r\n")
    await link.reply()


async def deaf(link: Link) -> None:
    """Asks for answers without end, and never listens."""
    link.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await link.send(b"EHLO flood.test\r\n")
    await asyncio.sleep(DRIP_S)  # not out of turn
    await link.send(b"MAIL FROM:<>\r\n")
    while True:
        await link.send(b"RCPT TO:<ann@here.test>\r\n" * 1000)


async def half_handshake(link: Link) -> None:
    """The beginning of a TLS handshake, and no more."""
    await link.send(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03")
    while await link.reader.read(1000):
        pass


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        *(hold, drip_command, drip_data, guess_recipients, heap_recipients, talk_nonsense, talk_for_ever),
        *(one_long_line, header_bomb, field_bomb, deaf, half_handshake),
    )
}


@dataclass(slots=True)
class Report:
    """What came of an attack."""

    connections: int = 0
    heard: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    """Connections that the server ended, or refused."""


class Swarm:
    """Many connections at once, each begun anew when it is over."""

    def __init__(self, attack: Attack, port: int, seconds: float) -> None:
        self._attack, self._port = attack, port
        self._deadline = time.monotonic() + seconds
        self.report = Report()

    async def run(self, connections: int) -> None:
        """Until the time is over."""
        await asyncio.gather(*(self._again(number) for number in range(connections)))

    async def _again(self, number: int) -> None:
        address = f"127.0.{1 + number // PER_ADDRESS // 250}.{1 + number // PER_ADDRESS % 250}"
        while time.monotonic() < self._deadline:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._left()):
                    await self._once(address)

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    async def _once(self, address: str) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        except OSError:
            self.report.cut_off += 1
            await asyncio.sleep(DRIP_S)
            return
        link = Link(reader, writer, self.report.heard)
        self.report.connections += 1
        try:
            await self._attack(link)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.report.cut_off += 1
            with contextlib.suppress(OSError):  # a farewell that is there already
                await link.listen()
        finally:
            writer.transport.abort()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(ATTACKS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    swarm = Swarm(ATTACKS[arguments.name], arguments.port, arguments.seconds)
    asyncio.run(swarm.run(arguments.connections))
    report = swarm.report
    print(json.dumps({"connections": report.connections, "heard": report.heard, "cut_off": report.cut_off}))


if __name__ == "__main__":
    main()
