"""`MessageStore`: what the queue asks of a database. Every backend passes
`tests/unit/smtp_edge/queue/store_contract.py`.

The instant at which responsibility passes: `put` returns only after the entry is on stable storage. Before it returns,
the client has no 250 and still owns the message; after it, this node does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from smtp_edge.envelope import MailData
from smtp_edge.queue.cutthrough import Passage
from smtp_edge.queue.entry import (
    Claim,
    Decision,
    Delivery,
    DeliveryState,
    EarlyMark,
    HistoryNote,
    Key,
    MessageHistory,
    NewEntry,
    QueueSummary,
    Regrouping,
    Settlement,
    Stored,
)
from smtp_edge.queue.errors import StoreDoubt, StoreError, StoreFull
from smtp_edge.queue.faults import Trouble
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.shape import Shape, ShapeBy
from smtp_edge.queue.shares import Shares
from smtp_edge.queue.survey import FIRST, Damaged, Page, Place


class MessageStore(Protocol):
    """A durable queue. All methods are safe to call concurrently from one event loop."""

    async def open(self) -> None:
        """Open or create it and void the claims of earlier incarnations. StoreError if another process holds it."""
        ...

    async def put(self, new: NewEntry, *, accept_token: str = "", claim: bool = True) -> Stored:
        """Commit an entry. `accept_token` is the transfer token under which a peer sent it: a repeat stores nothing.

        A repeat has the same token and the same recipients; the token with other recipients is another transfer.

        With `claim` the deliveries are born claimed and come back as claims, so fresh mail is never read back.
        """
        ...

    def begin(self, new: NewEntry) -> Passage | None:
        """Take an entry of one delivery into memory, claimed, to be attempted while its client waits; None = `put` it.

        The passage tells when it is in other hands. Settle its claim as that of any other delivery.
        """
        ...

    async def claim(self, limit: int, now_at: datetime, *, shares: Shares | None = None) -> list[Claim]:
        """Claim up to `limit` deliveries that are queued, or deferred and due: those that could go longest, first.

        With `shares` no class gets more than its room.
        """
        ...

    async def claim_these(self, keys: Sequence[Key], now_at: datetime) -> list[Claim]:
        """Claim these deliveries (queue id, copy), as far as they are queued or deferred, due or not.

        As with `claim_early` they keep their time.
        """
        ...

    async def claim_early(
        self, class_id: str, limit: int, now_at: datetime, *, after: EarlyMark | None = None
    ) -> list[Claim]:
        """Claim deferred deliveries of a class that are not due, soonest first, beginning after a mark.

        They keep their time: given back untouched, or voided with their incarnation, they are deferred as before.
        """
        ...

    async def find_accepted(self, new: NewEntry, accept_token: str) -> str:
        """Queue id under which `put` with this token would find the entry stored already; empty if it would store."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Commit the ends of claims; those whose token is not current are ignored."""
        ...

    def note_offer(self, queue_id: str, copy: int, hop: str) -> None:
        """A claimed delivery is about to be offered to a peer: if this process dies now, that peer may have it."""
        ...

    def withdraw_offer(self, queue_id: str, copy: int) -> None:
        """It was not taken there."""
        ...

    async def page(self, after: Key, limit: int) -> list[Claim]:
        """Deliveries that wait unclaimed (token 0, without mail data), in the order of queue id and copy, behind one.

        To look at them all: each page begins behind the last of the one before, until there is none.
        """
        ...

    async def regroup(self, items: Sequence[Regrouping]) -> int:
        """Give deliveries other classes, or part them. What waited for its time is due now. How many were changed."""
        ...

    async def next_due_at(self) -> datetime | None:
        """When the next deferred delivery becomes due; None if none waits."""
        ...

    async def wake(self, class_ids: Sequence[str], now_at: datetime) -> int:
        """Make deferred deliveries of these classes due now (a next hop came back). Returns how many."""
        ...

    async def data(self, queue_id: str) -> MailData:
        """Mail data of a stored entry."""
        ...

    async def find(self, selection: Selection, limit: int, *, after: Place = FIRST, with_data: bool = False) -> Page:
        """A page of what an operator means, in the order of ids, with current tokens, without claiming.

        Mail data is left out (empty, with its true size) unless asked for.
        """
        ...

    async def change(self, decided: Sequence[Decision]) -> list[bool]:
        """Commit what an operator decided; False for each delivery that is no longer as it was found."""
        ...

    async def damaged(self, limit: int) -> tuple[Damaged, ...]:
        """Deliveries that were set aside because they cannot be read, oldest first."""
        ...

    async def revive(self, queue_ids: Sequence[str], note: HistoryNote) -> int:
        """Queue damaged deliveries of these messages again; returns how many."""
        ...

    async def bury(self, queue_ids: Sequence[str], note: HistoryNote) -> int:
        """Give damaged deliveries of these messages up; returns how many."""
        ...

    async def shape(self, by: ShapeBy, states: Sequence[DeliveryState], at: datetime) -> Shape:
        """How many deliveries wait, by name and age. Without states: all not final."""
        ...

    async def list(self, *, states: Sequence[DeliveryState] = (), class_id: str = "", limit: int = 100) -> list[Claim]:
        """Deliveries for people, oldest first, without claiming (token 0)."""
        ...

    async def history(self, queue_id: str) -> MessageHistory | None:
        """Everything known of a message, by the queue id here or by its origin; None if unknown or pruned."""
        ...

    async def summary(self) -> QueueSummary:
        """Totals. Cheap: asked several times a second."""
        ...

    def backlog_counts(self) -> dict[str, int]:
        """Undelivered deliveries by class, held ones not counted; synchronous."""
        ...

    def moving(self) -> Mapping[str, int]:
        """Deliveries by class that would go now if they could; a view that changes with the store: asked often."""
        ...

    @property
    def queued_count(self) -> int:
        """Deliveries that wait on disk and could go now; from memory."""
        ...

    @property
    def entries_count(self) -> int:
        """Undelivered messages; from memory."""
        ...

    @property
    def trouble(self) -> Trouble | None:
        """Why nothing new can be stored now; None if it can."""
        ...

    async def prune(self, now_at: datetime) -> int:
        """Forget finished messages and transfer tokens past their retention; returns rows removed."""
        ...

    async def close(self) -> None:
        """Finish the current commit and close. Claims stay as they are and are voided at the next open."""
        ...


__all__ = ["Delivery", "MessageStore", "StoreDoubt", "StoreError", "StoreFull"]
