"""A driver for `expand` sinks without a node: asks them as one would, and puts what comes out into mailboxes in memory.

world = World(tmp_path, Aliases(path))
await world.send(mail, sender="sue@example.net", to="team@example.org")
assert world.arrived("ann@example.org") == [...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.envelope import Envelope, MailData, Recipient, own_sender
from smtp_edge.sinks.api import Expansion, Mail, Message, Reject, Sink, TempFail
from smtp_edge.sinks.fields import split_header
from smtp_edge.sinks.message import Content, Headers
from smtp_edge.sinks.testing import CLIENT
from smtp_edge.stuffing import DotStuffing

STEPS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message in a mailbox."""

    sender: str
    recipient: Recipient
    content: bytes

    @property
    def headers(self) -> Headers:
        return Headers(split_header(self.content).fields)

    @property
    def body(self) -> bytes:
        return self.content.partition(b"\r\n\r\n")[2]


@dataclass(slots=True)
class Services:
    """What a node offers."""

    data_dir: Path
    node_id: str = "node"
    hostname: str = "relay.test"
    sent: list[Mail] = field(default_factory=list)

    async def submit(self, mail: Mail) -> str:
        self.sent.append(mail)
        return "queued"

    async def flush(self, domains: Sequence[str]) -> int:
        return 0


async def make_message(content: bytes, sender: str, recipient: Recipient, key: str = "") -> Message:
    """As a node shows it."""
    stuffed = DotStuffing().feed(content)
    end = stuffed.find(b"\r\n\r\n") + 4
    header = stuffed[:end] if end > 3 else stuffed
    data = await Content.load(MailData(len(stuffed), inline=stuffed, header=header))
    return Message(CLIENT, Envelope(sender, (recipient,)), data, data.header.fields, key=key)


async def read(message: Message) -> bytes:
    return b"".join([chunk async for chunk in message.content()])


@dataclass(slots=True)
class World:
    """The driver. Whoever no sink expands has a mailbox."""

    sinks: Sequence[Sink]
    arrivals: list[Arrival] = field(default_factory=list)
    asked: int = 0
    sent: int = 0

    async def send(self, content: bytes, sender: str, to: str | Recipient) -> str:
        """The refusal at RCPT, or nothing: then all has been delivered that came of it."""
        recipient = to if isinstance(to, Recipient) else Recipient(to)
        self.sent += 1
        for sink in self.sinks:
            verdict = await sink.rcpt(CLIENT, Envelope(sender, (recipient,)), recipient)
            if isinstance(verdict, Reject | TempFail):
                return str(verdict.reply)
        waiting: list[tuple[bytes, str, Recipient, tuple[str, ...]]] = [(content, sender, recipient, ())]
        done = set[tuple[str, str, bytes]]()
        for _ in range(STEPS_MAX):
            if not waiting:
                return ""
            text, author, addressee, way = waiting.pop(0)
            name = addressee.address.lower()
            found = None if name in way else await self.step(text, author, addressee)
            if found is not None:
                waiting += [(*item, (*way, name) if item[1] == author else ()) for item in found]
            elif (author, name, text) not in done:  # as a node does: nobody gets the same twice
                done.add((author, name, text))
                self.arrivals.append(Arrival(author, addressee, text))
        raise AssertionError("it does not end")

    async def step(
        self, content: bytes, sender: str, recipient: Recipient
    ) -> list[tuple[bytes, str, Recipient]] | None:
        """One expansion; None: it is nobody's."""
        for sink in self.sinks:
            message = await make_message(content, sender, recipient, f"node/{self.sent}")
            self.asked += 1
            expansion = await sink.expand(message)
            if expansion is not None:
                return await spread(message, expansion)
        return None

    def arrived(self, address: str) -> list[Arrival]:
        """In one mailbox, in order."""
        return [arrival for arrival in self.arrivals if arrival.recipient.address == address]

    def take(self) -> list[Arrival]:
        """All so far; the mailboxes are empty then."""
        taken, self.arrivals = self.arrivals, []
        return taken


async def spread(message: Message, expansion: Expansion) -> list[tuple[bytes, str, Recipient]]:
    """What a node would queue."""
    content = await read(message)
    sender = message.envelope.sender if expansion.sender is None else expansion.sender
    mails = [Mail(sender, expansion.recipients, content, expansion.verp, expansion.verp_key), *expansion.also]
    return [
        (
            mail.content,
            own_sender(mail.sender, recipient.address, mail.verp_key) if mail.verp else mail.sender,
            recipient,
        )
        for mail in mails
        for recipient in mail.recipients
    ]
