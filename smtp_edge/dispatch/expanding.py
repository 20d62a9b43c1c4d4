"""Expansion after the 250 (`expand`): recipients become other recipients, in one settlement, or stay as they are.

    what the sinks say of a recipient       becomes
    nothing                                 the recipient itself
    an alias (no sender, no edit)           its targets, looked up again; all of a message in one new entry
    a list (a sender or an edit)            an entry of its own
    mail beside it (`also`)                 entries of their own

A name on the way that comes again stands for itself: `ann: ann, archive` keeps a copy, a circle ends. If nothing was
expanded the delivery gets the classes of its recipients, as if nobody had been asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from smtp_edge.dsn import Reporter, build_dsn, wants_report
from smtp_edge.envelope import Client, Envelope, MailData, Recipient
from smtp_edge.originator import Originator
from smtp_edge.queue.entry import (
    Action,
    Claim,
    DeliveryState,
    HistoryNote,
    NewEntry,
    RecipientResult,
    Regrouping,
    Settlement,
)
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Expansion, Mail, Message
from smtp_edge.sinks.chain import Binding, SinkChain, SinkFailure
from smtp_edge.sinks.fields import Field
from smtp_edge.sinks.message import Content, Headers, rewrite
from smtp_edge.sinks.rules import Facts

RECIPIENTS_MAX = 1_000_000
"""That one message may come to."""
YIELD_EVERY = 200
"""Members of a list looked up in a row, before others have their turn."""
FAILURES_MAX = 10
"""Attempts that end in a sink's failure, before a person has to look at it."""


@dataclass(slots=True)
class Part:
    """Recipients that get the same message under the same reverse-path."""

    sender: str | None
    verp: bool
    verp_key: str
    fields: tuple[Field, ...]
    recipients: dict[str, Recipient] = field(default_factory=dict)

    def add(self, recipient: Recipient) -> None:
        """Once."""
        self.recipients.setdefault(recipient.address, recipient)


@dataclass(slots=True)
class Expanded:
    """What the sinks made of a delivery."""

    parts: list[Part]
    """The first one is for those under the old reverse-path."""
    also: list[tuple[str, Mail]] = field(default_factory=list)
    """Binding and message."""
    by: dict[Recipient, Binding] = field(default_factory=dict)
    """Recipients that are replaced, and by whom."""
    relisted: list[Recipient] = field(default_factory=list)
    """Those that reached a list or a command: whoever sent it may want to know."""


class Expander:
    """Asks the sinks about one delivery."""

    def __init__(self, chain: SinkChain, claim: Claim, content: Content) -> None:
        self._chain, self._claim, self._content = chain, claim, content
        self.found = Expanded([Part(None, False, "", content.header.fields)])

    async def run(self) -> Expanded:
        """All recipients. SinkFailure."""
        for recipient in self._claim.delivery.recipients:
            await self._resolve(recipient, self.found.parts[0], (), top=recipient)
        return self.found

    async def _resolve(self, recipient: Recipient, part: Part, way: tuple[str, ...], *, top: Recipient | None) -> None:
        name = recipient.address.lower()
        answer = None if name in way else await self._ask(recipient, part)
        if answer is None:
            part.add(recipient)
        else:
            binding, expansion, seen = answer
            if top is not None:
                self.found.by[top] = binding
            await self._follow(binding, expansion, seen, part, (*way, name), top)
        if sum(len(part.recipients) for part in self.found.parts) > RECIPIENTS_MAX:
            raise SinkFailure(f"the message has more than {RECIPIENTS_MAX} recipients now")

    async def _follow(
        self,
        binding: Binding,
        expansion: Expansion,
        seen: Message,
        part: Part,
        way: tuple[str, ...],
        top: Recipient | None,
    ) -> None:
        self.found.also += [(binding.name, mail) for mail in expansion.also]
        if expansion.sender is not None or seen.edited:
            sender = part.sender if expansion.sender is None else expansion.sender
            verp = expansion.verp and bool(expansion.sender)
            part = Part(sender, verp, expansion.verp_key, seen.fields)
            self.found.parts.append(part)
        if top is not None and (expansion.sender is not None or not expansion.recipients):
            self.found.relisted.append(top)
        for number, recipient in enumerate(expansion.recipients):
            if number % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            await self._resolve(recipient, part, way, top=None)

    async def _ask(self, recipient: Recipient, part: Part) -> tuple[Binding, Expansion, Message] | None:
        """The first answer, and the message with the edits of who gave it."""
        entry = self._claim.entry
        sender = entry.envelope.sender if part.sender is None else part.sender
        envelope = replace(entry.envelope, sender=sender, recipients=(recipient,))
        headers = Headers(part.fields)
        facts = Facts(None, sender, (recipient,), entry.data.size_bytes, headers.all)
        for binding, _ in self._chain.matching("expand", lambda: facts):
            client = Client((entry.client.split() or [""])[0])
            seen = Message(client, envelope, self._content, part.fields, key=entry.origin)
            answer = await binding.ask("expand", binding.sink.expand(seen), Expansion)
            if answer is not None:
                return binding, answer, seen
        return None


async def expand(
    claim: Claim, chain: SinkChain, originator: Originator, reporter: Reporter, at: datetime
) -> Settlement | Regrouping:
    """How the claim ends. SinkFailure, StoreError, MailDataLost: not yet."""
    content = await Content.load(claim.entry.data)
    expanded = await Expander(chain, claim, content).run()
    if not expanded.by:
        return originator.sorter().regroup(claim)
    entries = await _build(expanded, claim, content, chain, originator, at)
    told = [item for item in reached(expanded) if wants_report(item.recipient, item.action)]
    report = build_dsn(reporter, claim.entry, told, at=at) if told and claim.entry.envelope.sender else None
    return settle_expansion(expanded, claim, (*entries, report) if report is not None else entries, at)


async def _build(
    expanded: Expanded, claim: Claim, content: Content, chain: SinkChain, originator: Originator, at: datetime
) -> tuple[NewEntry, ...]:
    """The entries that take over. StoreError, MailDataLost."""
    entries = []
    for part in expanded.parts:
        if part.recipients:
            data = await _copy(content, part.fields, originator)
            envelope = _address(claim.entry.envelope, part)
            entries.append(originator.follow(claim.entry, envelope, data, at))
    for name, mail in expanded.also:
        if mail.recipients:
            entries.append(await originator.make(mail, chain, at, f"sink {name}"))
    return tuple(entries)


async def _copy(content: Content, fields: tuple[Field, ...], originator: Originator) -> MailData:
    """Inline mail data is shared, a file has one owner."""
    if content.data.path is None and fields is content.header.fields:
        return content.data
    return await rewrite(content, fields, originator.spool.begin)


def _address(envelope: Envelope, part: Part) -> Envelope:
    """Under another reverse-path the sender's wishes for reports are at their end (RFC 3461 section 5.2.7.3)."""
    recipients = tuple(part.recipients.values())
    smtputf8 = envelope.smtputf8 or not all(item.address.isascii() for item in recipients)
    if part.sender is None:
        return replace(envelope, recipients=recipients, smtputf8=smtputf8)
    return replace(
        envelope,
        sender=part.sender,
        recipients=recipients,
        smtputf8=smtputf8 or not part.sender.isascii(),
        envid="",
        ret="",
        verp=part.verp,
        verp_key=part.verp_key,
    )


def settle_expansion(expanded: Expanded, claim: Claim, entries: Sequence[NewEntry], at: datetime) -> Settlement:
    """The end of a delivery whose recipients were replaced."""
    count = sum(len(new.entry.envelope.recipients) for new in entries)
    names = ", ".join(dict.fromkeys(binding.name for binding in expanded.by.values()))
    ids = " ".join(new.entry.queue_id for new in entries)
    note = HistoryNote(at, "expanded", detail=f"by {names} to {count} recipients: {ids or 'nothing is sent on'}")
    delivery = claim.delivery
    return Settlement(
        delivery.queue_id,
        delivery.copy,
        claim.token,
        DeliveryState.RELAYED,
        reply=f"expanded to {count} recipients",
        attempted=False,
        delay_notified=delivery.delay_notified,
        notes=(note,),
        reports=tuple(entries),
    )


def reached(expanded: Expanded) -> list[RecipientResult]:
    """For the sender who asked: what a list has taken is delivered (RFC 3461 section 5.2.7.3)."""
    reply = Reply(250, "taken by a mailing list", "2.0.0")
    return [RecipientResult(recipient, Action.DELIVERED, reply) for recipient in expanded.relisted]


def postpone(claim: Claim, reason: str, policy: RetryPolicy, at: datetime, rng: random.Random) -> Settlement:
    """A sink failed: once more later, and after `FAILURES_MAX` times when a person says so."""
    delivery = claim.delivery
    attempts = delivery.attempts + 1
    held = attempts >= FAILURES_MAX
    return Settlement(
        delivery.queue_id,
        delivery.copy,
        claim.token,
        DeliveryState.HELD if held else DeliveryState.DEFERRED,
        next_attempt_at=None if held else policy.next_attempt_at(attempts, at, rng),
        reply=f"{reason}, in {attempts} attempts" if held else reason,
        delay_notified=delivery.delay_notified,
        notes=(HistoryNote(at, "held" if held else "attempt", detail=reason),),
    )
