"""The kit to test a sink with: one message through the real order, rules, time limits and failure policies.

    async def test_mail_without_a_subject_is_refused() -> None:
        outcome = await ask(Greeting(), b"From: a@example.net\\r\\n\\r\\nhello\\r\\n")
        assert outcome.reply == "550 5.6.0 a subject is required here"

    async def test_the_mailbox_is_full() -> None:
        assert await deliver(Mailbox(), b"Subject: x\\r\\n\\r\\n") == ("452 4.2.2 mailbox full",)

    async def test_an_alias() -> None:
        assert (await expand(Aliases(), MAIL, "all@example.org")).recipients == ("ann@example.org",)

No listener, no queue: what is asked are the sinks, as a session or the queue would ask them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from smtp_edge.envelope import Client, Envelope, MailData, ReceivedMessage, Recipient
from smtp_edge.queue.spool import Spool
from smtp_edge.reply import Goodbye, Reply
from smtp_edge.sinks.answers import spread
from smtp_edge.sinks.api import BEFORE_250, Delivery, Expansion, Mail, Quarantine, Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.message import Content, Message
from smtp_edge.sinks.rules import parse_rule
from smtp_edge.sinks.screen import Screen
from smtp_edge.stuffing import DotStuffing, Unstuff

CLIENT = Client("192.0.2.1", helo="client.example.net", protocol="ESMTP", listener="test")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the message."""

    reply: str
    """The refusal, or what a sink made of the final dot; empty = the node would store the message and say 250."""
    content: bytes = b""
    """As it would be stored."""
    recipients: tuple[str, ...] = ()
    """Of those whose mail goes on or is held."""
    held: tuple[tuple[str, str], ...] = ()
    """(recipient, reason) of those in quarantine."""
    sender: str = ""
    """Reverse-path, as it would be stored."""
    refused: tuple[tuple[str, str], ...] = ()
    """(recipient, reply) of those of whom an authenticated sender gets a report."""
    body_type: str = "7BIT"
    """As it would be declared; it came as 7BIT."""


async def ask(
    sinks: Sink | Sequence[Binding],
    message: bytes,
    *,
    sender: str = "sender@example.net",
    recipients: Sequence[str] = ("recipient@example.org",),
    client: Client = CLIENT,
    rule: str = "",
) -> Outcome:
    """One message, lines ended by CRLF. `rule` is for a single sink. RuleError, SinkError."""
    chain = SinkChain(sinks if not isinstance(sinks, Sink) else [_bind(sinks, rule)])
    await chain.start()
    screen = Screen(chain)
    try:
        with tempfile.TemporaryDirectory() as folder:
            envelope = Envelope(sender, tuple(map(Recipient, recipients)))
            return await _ask(screen, message, envelope, client, Path(folder))
    except Goodbye as goodbye:
        return Outcome(str(goodbye.reply))
    finally:
        await screen.close(client)
        await chain.stop()


@dataclass(frozen=True, slots=True)
class Expanded:
    """What became of one recipient."""

    recipients: tuple[str, ...]
    sender: str | None
    """Reverse-path; None = as it was."""
    content: bytes
    """As the recipients get it, without trace fields."""
    also: tuple[Mail, ...]


async def deliver(
    sink: Sink,
    message: bytes,
    *,
    sender: str = "sender@example.net",
    recipients: Sequence[str] = ("recipient@example.org",),
    key: str = "node/message",
    attempts: int = 0,
    limit_s: float = 30.0,
) -> tuple[str, ...]:
    """What a sink that is started says of each recipient: a reply, or `held: REASON`. SinkFailure, ValueError."""
    envelope = Envelope(sender, tuple(map(Recipient, recipients)))
    content = await Content.load(_store(message))
    delivery = Delivery("Q1", key, envelope, datetime.now(UTC), attempts, "192.0.2.1 client", content, b"")
    binding = Binding(type(sink).__name__, sink, timeout_s=limit_s)
    answer = await binding.ask("deliver", sink.deliver(delivery), (Reply, Sequence))
    said = spread(envelope.recipients, answer).values()
    return tuple(f"held: {one.reason}" if isinstance(one, Quarantine) else str(one) for one in said)


async def expand(
    sink: Sink,
    message: bytes,
    recipient: str,
    *,
    sender: str = "sender@example.net",
    key: str = "node/message",
    limit_s: float = 30.0,
) -> Expanded | None:
    """What a sink that is started makes of one recipient; None: it is not its. SinkFailure."""
    content = await Content.load(_store(message))
    envelope = Envelope(sender, (Recipient(recipient),))
    seen = Message(CLIENT, envelope, content, content.header.fields, key=key)
    binding = Binding(type(sink).__name__, sink, timeout_s=limit_s)
    answer = await binding.ask("expand", sink.expand(seen), Expansion)
    if answer is None:
        return None
    whole = b"".join([chunk async for chunk in seen.content()])
    return Expanded(tuple(item.address for item in answer.recipients), answer.sender, whole, answer.also)


def _store(message: bytes) -> MailData:
    """As it would be kept."""
    stuffed = DotStuffing().feed(message)
    header = stuffed[: stuffed.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in stuffed else stuffed
    return MailData(len(stuffed), inline=stuffed, header=header)


def _bind(sink: Sink, rule: str) -> Binding:
    bare = Binding(type(sink).__name__, sink)
    return replace(bare, rule=parse_rule(rule, events=[event for event in BEFORE_250 if bare.handles(event)]))


async def _ask(screen: Screen, message: bytes, envelope: Envelope, client: Client, folder: Path) -> Outcome:
    bare = replace(envelope, recipients=())
    refusal = await screen.connect(client) or await screen.helo(client) or await screen.mail(client, bare)
    if refusal is not None:
        return Outcome(str(refusal))
    left: list[Recipient] = []
    last: Reply | None = None
    for recipient in envelope.recipients:
        so_far = Envelope(envelope.sender, (*left, recipient))
        last = await screen.rcpt(client, recipient, lambda so_far=so_far: so_far)  # type: ignore[misc]
        left += [recipient] if last is None else []
    if not left:
        return Outcome(str(last))
    whole = ReceivedMessage(client, Envelope(envelope.sender, tuple(left)), _store(message))
    result = await screen.data(whole, Spool(folder).begin)
    if isinstance(result, Reply):
        return Outcome(str(result))
    unstuff = Unstuff()
    stored = result.data.inline if result.data.path is None else result.data.path.read_bytes()
    return Outcome(
        "",
        unstuff.feed(stored or b"") + unstuff.finish(),
        tuple(recipient.address for recipient in result.envelope.recipients),
        tuple((recipient.address, reason) for recipient, reason in result.held),
        result.envelope.sender,
        tuple((recipient.address, str(reply)) for recipient, reply in result.refused),
        result.envelope.body_type,
    )
