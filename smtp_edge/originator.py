"""Messages that begin here: what sinks send, and what recipients were expanded to, as entries for the queue.

    recipients of a message ──expand sinks──> other recipients, perhaps under another reverse-path, perhaps edited
    (alias, list)                             ONE settlement ends the old delivery and stores the new entries

Recipients that an `expand` binding may replace are stored as one delivery of the class `expand:`; nothing else about
them is decided before the 250.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

from smtp_edge.envelope import HEADER_KEPT_MAX, BodyType, Envelope, MailData, Recipient
from smtp_edge.queue.entry import Delivery, Entry, NewEntry
from smtp_edge.queue.spool import Spool
from smtp_edge.sinks.api import Mail
from smtp_edge.sinks.chain import SinkChain
from smtp_edge.sinks.message import read
from smtp_edge.sinks.rules import Facts
from smtp_edge.sorting import EXPANSION, Groups, Sorter, routed_bytes, split_token
from smtp_edge.stuffing import DotStuffing

RECIPIENTS_MAX = 1000
"""Of one delivery: a class with more of them has several, which travel side by side."""


def group(sorter: Sorter, chain: SinkChain, envelope: Envelope, data: MailData) -> Groups:
    """Recipients of a client's message by class; those that a sink may expand are a class of their own."""
    size_bytes = routed_bytes(data.size_bytes, from_peer=False)
    facts = Facts(None, envelope.sender, envelope.recipients, data.size_bytes, lambda name: read(data, name))
    claimed = chain.claimed("expand", facts)
    if not claimed:
        return sorter.group(envelope.recipients, size_bytes)
    groups = sorter.group([item for item in envelope.recipients if item not in claimed], size_bytes)
    groups[EXPANSION] = (None, tuple(item for item in envelope.recipients if item in claimed))
    return groups


@dataclass(slots=True)
class Originator:
    """Makes entries of what begins on this node."""

    node_id: str
    new_queue_id: Callable[[datetime], str]
    sorter: Callable[[], Sorter]
    spool: Spool
    lifetime: timedelta
    inline_bytes_max: int

    async def make(self, mail: Mail, chain: SinkChain, at: datetime, client: str) -> NewEntry:
        """The entry of a sink's message. `client`: who sends it, for people. StoreError."""
        body_type = BodyType.SEVEN_BIT if mail.content.isascii() else BodyType.EIGHT_BIT_MIME
        addresses = (mail.sender, *(item.address for item in mail.recipients))
        envelope = Envelope(
            mail.sender,
            mail.recipients,
            body_type,
            smtputf8=not all(map(str.isascii, addresses)),
            verp=mail.verp and bool(mail.sender),
            verp_key=mail.verp_key,
        )
        data = await self._keep(mail.content)
        entry = self._entry(envelope, data, at, at, client)
        return NewEntry(entry, tuple(self._deliveries(entry, group(self.sorter(), chain, envelope, data))))

    def follow(self, entry: Entry, envelope: Envelope, data: MailData, at: datetime) -> NewEntry:
        """An entry for other recipients of a message that is here already; it keeps its age and trace field."""
        new = self._entry(envelope, data, at, entry.received_at, f"expansion of {entry.queue_id}")
        new = replace(new, expires_at=entry.expires_at, received_field=entry.received_field)
        size_bytes = routed_bytes(data.size_bytes, from_peer=False)
        return NewEntry(new, tuple(self._deliveries(new, self.sorter().group(envelope.recipients, size_bytes))))

    async def _keep(self, content: bytes) -> MailData:
        stuffed = DotStuffing().feed(content)
        end = stuffed.find(b"\r\n\r\n")
        header = stuffed[: end + 4 if end >= 0 else len(stuffed)][:HEADER_KEPT_MAX]
        if len(stuffed) <= self.inline_bytes_max:
            return MailData(len(stuffed), inline=stuffed, header=header)
        writer = self.spool.begin()
        try:
            writer.write(stuffed)
        except BaseException:
            await writer.abort()
            raise
        return await writer.commit(header)

    def _entry(self, envelope: Envelope, data: MailData, at: datetime, received_at: datetime, client: str) -> Entry:
        queue_id = self.new_queue_id(at)
        origin = f"{self.node_id}/{queue_id}"
        return Entry(queue_id, received_at, received_at + self.lifetime, envelope, data, origin=origin, client=client)

    @staticmethod
    def _deliveries(entry: Entry, groups: Groups) -> Iterator[Delivery]:
        most = 1 if entry.envelope.verp else RECIPIENTS_MAX
        parts = [
            (class_id, part) for class_id, (_, recipients) in groups.items() for part in _batched(recipients, most)
        ]
        base = f"{entry.origin}/0"
        for copy, (class_id, part) in enumerate(parts):
            token = base if len(parts) == 1 else split_token(base, part)
            yield Delivery(entry.queue_id, copy, class_id, part, transfer_token=token)


def _batched(recipients: Sequence[Recipient], most: int) -> Iterator[tuple[Recipient, ...]]:
    left = iter(recipients)
    while part := tuple(islice(left, most)):
        yield part
