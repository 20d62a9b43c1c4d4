"""Entries for tests of the queue."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from smtp_edge.envelope import Envelope, MailData, Recipient
from smtp_edge.queue.entry import (
    Claim,
    Decision,
    Delivery,
    DeliveryState,
    Entry,
    HistoryNote,
    NewEntry,
    Settlement,
)
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.store import MessageStore

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HEADER = b"Subject: hello\r\nFrom: a@sender.example\r\n\r\n"
IDS = QueueIds("test-node")
_SECONDS = itertools.count()


def build_new(
    *class_ids: str,
    addresses: tuple[str, ...] = ("rcpt@example.org",),
    data: MailData | None = None,
    received_at: datetime = AT,
    queue_id: str = "",
) -> NewEntry:
    """An entry with one delivery for each class (default: one of class `default`), each with all addresses."""
    queue_id = queue_id or IDS.new(AT)
    recipients = tuple(Recipient(address) for address in addresses)
    entry = Entry(
        queue_id=queue_id,
        received_at=received_at,
        expires_at=received_at + timedelta(days=5),
        envelope=Envelope("a@sender.example", recipients, smtputf8=True, envid="abc+2B", ret="HDRS"),
        data=data or MailData(len(HEADER) + 6, HEADER + b"body\r\n", header=HEADER),
        trace=("node-x", "node-y"),
        origin=f"node-x/{queue_id}",
        received_field=b"Received: from \xfcber by here\r\n",
        client="192.0.2.1 mail.sender.example",
    )
    deliveries = tuple(
        Delivery(queue_id, copy, class_id, recipients, transfer_token=f"node-x/{queue_id}/{copy}")
        for copy, class_id in enumerate(class_ids or ("default",))
    )
    return NewEntry(entry, deliveries)


def build_end(claim: Claim, state: DeliveryState = DeliveryState.RELAYED, **fields: object) -> Settlement:
    """A settlement of a claim."""
    return Settlement(claim.delivery.queue_id, claim.delivery.copy, claim.token, state, **fields)  # type: ignore[arg-type]


def build_deferral(claim: Claim, minutes: float, **fields: object) -> Settlement:
    """A settlement that defers a claim until some minutes after AT."""
    next_at = AT + timedelta(minutes=minutes)
    return build_end(claim, DeliveryState.DEFERRED, next_attempt_at=next_at, hop="host:a", reply="451 later", **fields)


def build_note(event: str, minutes: float = 0) -> HistoryNote:
    """A line of history."""
    return HistoryNote(AT + timedelta(minutes=minutes), event, "host:a", "250 ok", "detail")


async def hold(store: MessageStore, queue_id: str) -> int:
    """Hold what waits of a message, as an operator does; how many deliveries."""
    return await _order(store, queue_id, (DeliveryState.QUEUED, DeliveryState.DEFERRED), DeliveryState.HELD)


async def release(store: MessageStore, queue_id: str) -> int:
    """Release what is held of a message; how many deliveries."""
    return await _order(store, queue_id, (DeliveryState.HELD,), DeliveryState.QUEUED)


async def _order(store: MessageStore, queue_id: str, before: tuple[DeliveryState, ...], after: DeliveryState) -> int:
    page = await store.find(Selection(queue_ids=(queue_id,), states=before), 100)
    note = HistoryNote(AT, {"held": "held", "queued": "released"}[after.value], detail="by sue")
    decided = [
        Decision(claim.delivery.state, build_end(claim, after, attempted=False, notes=(note,))) for claim in page.found
    ]
    return sum(await store.change(decided))
