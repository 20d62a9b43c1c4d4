"""Values of the durable queue.

An entry is one accepted message. It holds one or more deliveries: the recipients that share a destination class and so
travel together. A delivery is the unit of claiming, attempting and settling.

    state       who acts next                                   leaves by
    QUEUED      the dispatcher, now                             claim
    CLAIMED     an attempt of this incarnation                  settle (or the incarnation ends: QUEUED again)
    DEFERRED    the dispatcher, at `next_attempt_at`            claim
    HELD        the operator                                    release
    RELAYED     nobody: a next hop answered 2yz                 pruned with its history
    FAILED      nobody: a permanent refusal, reported by a DSN  pruned with its history
    EXPIRED     nobody: lifetime over, reported by a DSN        pruned with its history

A settlement names the claim's token; one that is no longer current changes nothing, so a late finisher is harmless.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from smtp_edge.envelope import Envelope, MailData, Recipient, own_sender
from smtp_edge.reply import Reply


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class DeliveryState(enum.StrEnum):
    """State of a delivery; see the table above."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    DEFERRED = "deferred"
    HELD = "held"
    RELAYED = "relayed"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Nothing will happen to it any more."""
        return self in (DeliveryState.RELAYED, DeliveryState.FAILED, DeliveryState.EXPIRED)


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted message. Immutable: what changes is in its deliveries."""

    queue_id: str
    """Unique on this node, sortable by time, 12 to 20 characters of [0-9A-Za-z]."""
    received_at: datetime
    """Aware UTC, of the first relay that accepted it (age travels between peers)."""
    expires_at: datetime
    envelope: Envelope
    data: MailData
    trace: tuple[str, ...] = ()
    """Node ids visited before this one, oldest first."""
    origin: str = ""
    """`ORIGIN_NODE_ID/QUEUE_ID` where the mesh first accepted it; names the message across hops."""
    received_field: bytes = b""
    """This relay's own trace field(s), CRLF-terminated, prepended when the message is sent on."""
    client: str = ""
    """For people and history: address, HELO name and user of the submitter."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The recipients of an entry that share a class."""

    queue_id: str
    copy: int
    """Number of the delivery within its entry, from 0."""
    class_id: str
    recipients: tuple[Recipient, ...]
    state: DeliveryState = DeliveryState.QUEUED
    attempts: int = 0
    next_attempt_at: datetime | None = None
    last_hop: str = ""
    last_reply: str = ""
    in_doubt_hop: str = ""
    """Hop id that may already have the message (connection lost after the final dot)."""
    delay_notified: bool = False
    transfer_token: str = ""
    """Token between peers; stays the same across hops for an unchanged recipient set."""

    def but(self, **changes: object) -> Delivery:
        """A copy with changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


def as_sent(entry: Entry, delivery: Delivery) -> Entry:
    """The entry as this delivery has it: under VERP the reverse-path is that of its one recipient."""
    if not entry.envelope.verp:
        return entry
    envelope = entry.envelope
    sender = own_sender(envelope.sender, delivery.recipients[0].address, envelope.verp_key)
    return replace(entry, envelope=replace(envelope, sender=sender, verp=False, verp_key=""))


Key = tuple[str, int]
"""Queue id and copy of a delivery."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery in the hands of this incarnation."""

    entry: Entry
    delivery: Delivery
    token: int
    """Fencing token; raised by each claim."""


FRESH_TOKEN = 1
"""Fencing token of a delivery that is born claimed."""


@dataclass(frozen=True, slots=True, order=True)
class EarlyMark:
    """How far somebody came who goes through the deferred deliveries of a class in the order of their times."""

    due_at: datetime
    queue_id: str
    copy: int

    @classmethod
    def of(cls, claim: Claim) -> EarlyMark:
        """The place of a delivery that is deferred."""
        assert claim.delivery.next_attempt_at is not None
        return cls(claim.delivery.next_attempt_at, claim.delivery.queue_id, claim.delivery.copy)


class Action(enum.StrEnum):
    """What became of a recipient, in the words of RFC 3464 section 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """What became of one recipient in a settlement."""

    recipient: Recipient
    action: Action
    reply: Reply | None = None
    remote: str = ""
    """`host[address]:port` that gave the reply; empty if it is our own."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a claim: exactly one of relayed, failed, deferred, expired, released."""

    queue_id: str
    copy: int
    token: int
    state: DeliveryState
    """RELAYED, FAILED, EXPIRED, DEFERRED, QUEUED (given back untouched: deferred, if its time is to come) or HELD."""
    recipients: tuple[Recipient, ...] | None = None
    """Recipients that remain when the delivery goes on (some were delivered or failed); None = unchanged."""
    next_attempt_at: datetime | None = None
    hop: str = ""
    reply: str = ""
    attempted: bool = True
    """Counts as an attempt (waiting for an unreachable destination does not)."""
    in_doubt_hop: str = ""
    delay_notified: bool = False
    notes: tuple[HistoryNote, ...] = ()
    """Written to the message's history in the same commit."""
    reports: tuple[NewEntry, ...] = ()
    """DSNs that take over responsibility; committed with the settlement, or neither is."""
    class_id: str = ""
    """Another class than it had; empty: the same."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An operator's end of what was found in some state: applied only if state and token are still as found."""

    before: DeliveryState
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Group:
    """A part of a delivery's recipients under its class."""

    class_id: str
    recipients: tuple[Recipient, ...]
    transfer_token: str


@dataclass(frozen=True, slots=True)
class Regrouping:
    """A delivery gets another class, or is parted, because the routes are other ones. It ends a claim, if it names one.

    Nothing is done if the delivery has other recipients by now, or is in other hands.
    """

    queue_id: str
    copy: int
    token: int
    """Of the claim; 0 = it waits unclaimed."""
    recipients: tuple[Recipient, ...]
    """That it had when this was planned."""
    groups: tuple[Group, ...]
    """All of them again, in at least one part."""
    notes: tuple[HistoryNote, ...] = ()
    """Written to the message's history in the same commit, before that of the change."""


@dataclass(frozen=True, slots=True)
class HistoryNote:
    """One line of a message's history."""

    at: datetime
    event: str
    """`received`, `claimed`, `attempt`, `relayed`, `deferred`, `failed`, `expired`, `bounced`, `held`, `released`,
    `retried`, `expanded`, `removed`, `moved`, `rerouted`, `duplicate`, `dropped` (failed, the reverse-path is null)."""
    hop: str = ""
    reply: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry with its deliveries, to be committed together."""

    entry: Entry
    deliveries: tuple[Delivery, ...]


def claim_fresh(new: NewEntry) -> tuple[Claim, ...]:
    """The claims of an entry that was never unclaimed."""
    entry, claims = new.entry, []
    for delivery in new.deliveries:
        born = delivery if delivery.state is DeliveryState.CLAIMED else delivery.but(state=DeliveryState.CLAIMED)
        claims.append(Claim(as_sent(entry, born) if entry.envelope.verp else entry, born, FRESH_TOKEN))
    return tuple(claims)


@dataclass(frozen=True, slots=True)
class Stored:
    """Answer to a put. `duplicate_of` names the entry that already holds this transfer token; nothing was stored."""

    claims: tuple[Claim, ...] = ()
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class ClassBacklog:
    """Undelivered mail of one class in the store."""

    class_id: str
    count: int
    deferred: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class QueueSummary:
    """Totals by class, and of what was finished within the history's retention."""

    classes: tuple[ClassBacklog, ...] = ()
    held: int = 0
    relayed: int = 0
    failed: int = 0
    expired: int = 0
    corrupt: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True, slots=True)
class MessageHistory:
    """One message and all that happened to it on this node."""

    entry: Entry
    deliveries: tuple[Delivery, ...]
    notes: tuple[HistoryNote, ...]
