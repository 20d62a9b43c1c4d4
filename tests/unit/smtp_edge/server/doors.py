"""A listener with an acceptor that remembers, and a raw client that sees every reply."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from gossip.identity import Authority, Identity, write_new
from smtp_edge.envelope import Client, ReceivedMessage, Recipient
from smtp_edge.queue.spool import Spool, SpoolWriter
from smtp_edge.reply import Reply
from smtp_edge.server.listener import Listener, MeshListener, Surroundings
from smtp_edge.server.pressure import Memory
from smtp_edge.settings import SinkSettings
from smtp_edge.settings_inbound import ListenerSettings
from smtp_edge.sinks.api import Mail
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import SinkChain

HOSTNAME = "relay.test"
INLINE_BYTES_MAX = 10_000


class Node:
    """What a sink asks of its node; remembers it."""

    node_id, hostname = "ab" * 16, HOSTNAME

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory
        self.flushed: list[tuple[str, ...]] = []
        self.waiting = 0
        """Deliveries for each flush."""

    async def submit(self, mail: Mail) -> str:
        raise NotImplementedError

    async def flush(self, domains: Sequence[str]) -> int:
        self.flushed.append(tuple(domains))
        return self.waiting


def chain_of(directory: Path, *sections: Mapping[str, Any]) -> SinkChain:
    """Sinks as [[sink]] has them, in a node of their own."""
    bindings = load_bindings([SinkSettings.model_validate(section) for section in sections])
    node = Node(directory)
    for binding in bindings:
        binding.sink.node = node
    return SinkChain(bindings)


class Remembering:
    """Accepts everything, or answers as told."""

    def __init__(self, directory: Path) -> None:
        self.messages: list[ReceivedMessage] = []
        self.answer: Callable[[ReceivedMessage], Reply] = lambda message: Reply(250, "Ok: queued as Q1", "2.0.0")
        self.admission: Reply | None = None
        self.declared: list[int] = []
        """Sizes at RCPT."""
        self._spool = Spool(directory)

    def admit(self, size_bytes: int) -> Reply | None:
        return self.admission

    def check_recipient(self, client: Client, recipient: Recipient, size_bytes: int = 0) -> Reply | None:
        self.declared.append(size_bytes)
        return Reply(550, "no route to this destination", "5.4.4") if recipient.domain == "nowhere.test" else None

    async def accept(self, message: ReceivedMessage) -> Reply:
        reply = self.answer(message)
        if reply.positive:
            self.messages.append(message)
        return reply

    def spool(self) -> SpoolWriter:
        return self._spool.begin()

    def bodies(self) -> list[bytes]:
        """Mail data of every message, from memory or from its file."""
        return [m.data.path.read_bytes() if m.data.path else (m.data.inline or b"") for m in self.messages]


class RawClient:
    """Sends bytes as given, reads replies as they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> str:
        """One reply; its lines joined by LF, empty at the end of the connection."""
        lines: list[str] = []
        async with asyncio.timeout(5):
            while True:
                line = (await self.reader.readline()).decode().rstrip("\r\n")
                lines.append(line)
                if line[3:4] != "-":
                    return "\n".join(lines)

    async def say(self, line: str) -> str:
        """A command and its reply."""
        self.write(line.encode() + b"\r\n")
        return await self.reply()

    async def replies(self, count: int) -> list[str]:
        return [await self.reply() for _ in range(count)]

    async def send(self, data: bytes) -> str:
        """DATA, the mail data given without its final dot, and the reply to it."""
        assert (await self.say("DATA")).startswith("354")
        self.write(data + b".\r\n")
        return await self.reply()

    async def hello(self) -> RawClient:
        await self.reply()
        await self.say("EHLO client.test")
        return self

    async def secure(self, context: ssl.SSLContext) -> None:
        """STARTTLS."""
        assert (await self.say("STARTTLS")).startswith("220")
        await self.writer.start_tls(context, server_hostname="relay.test")

    def close(self) -> None:
        self.writer.close()


class Door:
    """A running listener."""

    def __init__(self, acceptor: Remembering, address: str, listener: Listener | MeshListener) -> None:
        self.acceptor, self.listener = acceptor, listener
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self._clients: list[RawClient] = []

    async def dial(self, context: ssl.SSLContext | None = None) -> RawClient:
        client = RawClient(*await asyncio.open_connection(self.host, self.port, ssl=context))
        self._clients.append(client)
        return client

    async def client(self) -> RawClient:
        """Connected and greeted."""
        return await (await self.dial()).hello()

    def hang_up(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def open_door(
    directory: Path, surroundings: Surroundings | None = None, **settings: object
) -> AsyncIterator[Door]:
    """A client listener; `settings` are those of [[listener]]."""
    acceptor = Remembering(directory)
    section = ListenerSettings.model_validate({"listen": "127.0.0.1:0", "allow_networks": ["127.0.0.0/8"], **settings})
    listener = Listener(section, acceptor, surroundings or Surroundings(HOSTNAME, INLINE_BYTES_MAX))
    door = Door(acceptor, await listener.start(), listener)
    try:
        yield door
    finally:
        door.hang_up()
        await listener.stop(1.0)


def build_identity(authority: Authority, name: str) -> Identity:
    certificate, key = authority.issue(name, at=datetime.now(UTC))
    return Identity(authority.certificate_pem, certificate, key)


@asynccontextmanager
async def open_mesh_door(directory: Path, identity: Identity, sinks: SinkChain | None = None) -> AsyncIterator[Door]:
    """The peers' listener."""
    acceptor = Remembering(directory)
    listener = MeshListener(
        "127.0.0.1:0",
        identity,
        acceptor,
        hostname=HOSTNAME,
        inline_bytes_max=INLINE_BYTES_MAX,
        size_bytes_max=1_000_000,
        memory=Memory(64 * 1024 * 1024),
        sinks=sinks,
    )
    door = Door(acceptor, await listener.start(), listener)
    try:
        yield door
    finally:
        door.hang_up()
        await listener.stop(1.0)


def write_certificate(directory: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A server certificate, its key, and a client context that trusts it."""
    authority = Authority.create("test", at=datetime.now(UTC))
    certificate, key = authority.issue("relay.test", hosts=["relay.test"], at=datetime.now(UTC))
    assert x509.load_pem_x509_certificate(certificate)
    paths = directory / "server.crt", directory / "server.key"
    write_new(paths[0], certificate, mode=0o644)
    write_new(paths[1], key, mode=0o600)
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    return *paths, context
