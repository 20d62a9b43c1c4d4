"""The acceptor: from a complete transaction to a stored entry. Here responsibility passes.

`accept` answers 250 only after the message is in other hands than its client's: after `MessageStore.put` has returned,
which it does only when the entry is on stable storage, or after the next hop has taken it (cut-through). Until then
the client owns the message and every answer is 4yz or 5yz; from then on this node does, or the next hop.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypedDict

import structlog

from router.policy import DestinationClass, RouteTable
from smtp_edge.counters import Counters
from smtp_edge.dispatch.attempts import AttemptObserver
from smtp_edge.dispatch.dispatcher import Dispatcher
from smtp_edge.envelope import NOT_FORWARDED, Client, ReceivedMessage, Recipient, Transfer
from smtp_edge.originator import group
from smtp_edge.queue.entry import Claim, Delivery, DeliveryState, Entry, NewEntry, Stored, utc_now
from smtp_edge.queue.spool import Spool, SpoolWriter
from smtp_edge.queue.store import MessageStore, StoreDoubt, StoreError, StoreFull
from smtp_edge.reply import LOCAL_ERROR, NO_SPACE, Reply
from smtp_edge.settings import QueueSettings
from smtp_edge.sinks.api import Mail
from smtp_edge.sorting import EXPANSION, REFUSED, Groups, Sorter, routed_bytes, split_token
from smtp_edge.trace import build_received

log = structlog.get_logger()

BACKLOGS_TOLD_MAX = 9
"""Classes named on an acknowledgement: that of the message and the eight largest others (4-routing, section 11)."""
DRAINED = Reply(451, "this relay is being drained", "4.3.2")
LARGEST_KEPT_S = 0.2
OWN_CLASSES = frozenset({EXPANSION, REFUSED})
"""Work of this node, not of a next hop."""
AGE_MAX_S = 60 * 86400
"""A peer's XAGE beyond this is nonsense of a lying clock; such mail would be born expired."""


class QueueAcceptor:
    """Stores what listeners receive and hands it to the dispatcher."""

    def __init__(
        self,
        store: MessageStore,
        spool: Spool,
        table: RouteTable,
        dispatcher: Dispatcher,
        observer: AttemptObserver,
        *,
        node_id: str,
        hostname: str,
        settings: QueueSettings,
        counters: Counters,
        backlogs: Callable[[], Mapping[str, int]],
        new_queue_id: Callable[[datetime], str],
        refuse: Callable[[int], Reply | None],
        now: Callable[[], float],
        clock: Callable[[], datetime] = utc_now,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_late`: mail was stored by routes that were exchanged while the disk was busy with it."""
        self._store = store
        self._spool = spool
        self._dispatcher = dispatcher
        self._observer = observer
        self._node_id = node_id
        self._counters = counters
        self._backlogs = backlogs
        self._new_queue_id = new_queue_id
        self._refuse = refuse
        self._now = now
        self._clock = clock
        self._on_late = on_late
        self.draining = False
        """Peers' mail is refused; they hear of it by gossip, and this is for those that have not yet."""
        self._largest: list[str] = []
        self._largest_at = float("-inf")
        self.configure(table, hostname=hostname, settings=settings)

    def configure(self, table: RouteTable, *, hostname: str, settings: QueueSettings) -> None:
        """Go by these from the next recipient on."""
        self.sorter, self._hostname, self._settings = Sorter(table, hostname), hostname, settings

    def admit(self, size_bytes: int) -> Reply | None:
        """At MAIL: refuse early what could not be stored."""
        return self._refuse(size_bytes)

    def for_peers(self) -> PeerAcceptor:
        """As the peers' door needs it."""
        return PeerAcceptor(self)

    def check_recipient(self, client: Client, recipient: Recipient, size_bytes: int = 0) -> Reply | None:
        """Refuse what no route would ever take; from a peer only for now, because its configuration may be newer.

        `size_bytes`: as MAIL declared it.
        """
        if not client.peer_id and self._may_expand(recipient):
            return None
        found = self.sorter.classify(recipient, routed_bytes(size_bytes, bool(client.peer_id)))
        if found is None:
            if client.peer_id:
                return Reply(451, "no route to this destination here", "4.4.4")
            return Reply(550, "no route to this destination", "5.4.4")
        return self._refuse_size(client, size_bytes, [found]) if found.too_large else None

    def class_of(self, recipient: Recipient) -> str:
        """The class of a report: one to a list is for the list to read."""
        return EXPANSION if self._may_expand(recipient) else self.sorter.class_of(recipient.domain)

    def _may_expand(self, recipient: Recipient) -> bool:
        return any(binding.rule.may_take(recipient) for binding in self._dispatcher.sinks.of("expand"))

    def spool(self) -> SpoolWriter:
        """Where a large body goes while it arrives."""
        return self._spool.begin()

    async def accept(self, message: ReceivedMessage) -> Reply:
        """Store a message; the reply to its final dot."""
        sorter, groups = self.sorter, self._group(message)
        refusal = self._check_size(message, groups)
        if refusal is not None:
            await self._spool.discard(message.data)
            return refusal
        at_once = self._may_be_claimed(message, groups)
        new = self._build(message, groups, claimed=at_once)
        try:
            closed = self._close_to_peers(message)
            if closed is not None and not await self._is_repeat(new, message.transfer):
                await self._spool.discard(message.data)
                return closed
            passage = self._store.begin(new) if at_once and self._may_pass(new, message) else None
            if passage is not None:
                self._take_over(new, passage.claims, submitted=True)
                relayed = await passage.answer
                self._counters.accepted += 1
                self._counters.passed += relayed
                return self._reply(message, new, "queued as", new.entry.queue_id)
            stored = await self._put(new, message.transfer, claim=at_once)
        except StoreFull as error:
            log.error("queue.full", reason=str(error))
            await self._spool.discard(message.data)
            return NO_SPACE
        except StoreError as error:
            log.error("queue.put_failed", reason=str(error))
            if not isinstance(error, StoreDoubt):  # else the disk may have the entry: it must not lose its file
                await self._spool.discard(message.data)
            return LOCAL_ERROR
        finally:
            if self.sorter is not sorter:
                self._on_late()
        if stored.duplicate_of:
            await self._spool.discard(message.data)
            self._counters.duplicates_dropped += 1
            log.info("transfer.repeated", queue_id=stored.duplicate_of, peer=message.client.peer_id)
            return self._reply(message, new, "already have it as", stored.duplicate_of)
        self._counters.accepted += 1
        self._take_over(new, stored.claims, submitted=message.transfer is None)
        return self._reply(message, new, "queued as", new.entry.queue_id)

    def _may_be_claimed(self, message: ReceivedMessage, groups: Groups) -> bool:
        """It may be attempted as soon as it is stored, or before."""
        if message.held or (message.transfer is not None and message.transfer.due_s):
            return False
        return self._dispatcher.has_room((*groups, REFUSED) if message.refused else groups)

    @staticmethod
    def _may_pass(new: NewEntry, message: ReceivedMessage) -> bool:
        """A client's message for a next hop. A peer's is remembered by its token."""
        return message.transfer is None and new.deliveries[0].class_id not in OWN_CLASSES

    async def originate(self, mail: Mail, client: str) -> str:
        """Store a message that begins here; its queue id. StoreError: nothing was stored."""
        dispatcher = self._dispatcher
        assert dispatcher.originator is not None
        new = await dispatcher.originator.make(mail, dispatcher.sinks, self._clock(), client)
        try:
            at_once = dispatcher.has_room([delivery.class_id for delivery in new.deliveries])
            stored = await self._put(new, None, claim=at_once)
        except StoreError as error:
            if not isinstance(error, StoreDoubt):
                await self._spool.discard(new.entry.data)
            raise
        self._counters.accepted += 1
        self._take_over(new, stored.claims, submitted=True)
        return new.entry.queue_id

    def _close_to_peers(self, message: ReceivedMessage) -> Reply | None:
        if not message.client.peer_id:
            return None
        return DRAINED if self.draining else self._refuse(message.data.size_bytes)

    async def _is_repeat(self, new: NewEntry, transfer: Transfer | None) -> bool:
        """A peer asks after what it may have sent already: the answer keeps it from sending that elsewhere."""
        return transfer is not None and bool(await self._store.find_accepted(new, self._token(transfer)))

    def _token(self, transfer: Transfer | None) -> str:
        return accept_token(transfer, self._node_id) if transfer else ""

    async def _put(self, new: NewEntry, transfer: Transfer | None, *, claim: bool) -> Stored:
        return await self._store.put(new, accept_token=self._token(transfer), claim=claim)

    def _take_over(self, new: NewEntry, claims: Sequence[Claim], *, submitted: bool) -> None:
        for delivery in new.deliveries:
            self._observer.backlog_changed(delivery.class_id)
            if submitted:
                self._observer.arrived(delivery.class_id)
        if claims:
            self._dispatcher.submit(claims)
        else:
            self._dispatcher.note_unclaimed()

    def _check_size(self, message: ReceivedMessage, groups: Groups) -> Reply | None:
        """A message that is too large for some of its recipients goes to the others, and those are reported."""
        large = [wanted for wanted, _ in groups.values() if wanted is not None and wanted.too_large]
        if not large or (len(large) < len(groups) and not message.client.peer_id):
            return None
        return self._refuse_size(message.client, message.data.size_bytes, large)

    def _refuse_size(self, client: Client, size_bytes: int, classes: Sequence[DestinationClass]) -> Reply:
        log.warning(
            "message.too_large",
            client=client.address,
            peer=client.peer_id,
            size_bytes=size_bytes,
            classes=[wanted.class_id for wanted in classes],
            size_bytes_max=max(wanted.policy.above_bytes for wanted in classes),
        )
        if client.peer_id:  # its limits may be other ones: it keeps the mail
            return Reply(451, "no exit here takes a message of this size", "4.3.4")
        return Reply(552, "message is larger than any exit to this destination takes", "5.3.4")

    def _build(self, message: ReceivedMessage, groups: Groups, *, claimed: bool) -> NewEntry:
        """`claimed`: its deliveries are, from their first instant."""
        at = self._clock()
        queue_id = self._new_queue_id(at)
        transfer, client = message.transfer, message.client
        origin = transfer.token.rpartition("/")[0] if transfer else f"{self._node_id}/{queue_id}"
        age = timedelta(seconds=min(transfer.age_s, AGE_MAX_S)) if transfer else timedelta()
        entry = Entry(
            queue_id=queue_id,
            received_at=at - age,
            expires_at=at - age + timedelta(seconds=self._settings.lifetime_s),
            envelope=message.envelope,
            data=message.data,
            trace=transfer.trace if transfer else (),
            origin=origin,
            received_field=build_received(
                client,
                hostname=self._hostname,
                queue_id=queue_id,
                at=at,
                recipients=message.envelope.recipients,
                tls=client.tls,
            ),
            client=" ".join(filter(None, _describe(client))),
        )
        base = transfer.token if transfer else f"{origin}/0"
        fresh = DeliveryState.CLAIMED if claimed else DeliveryState.QUEUED
        state = _state_of(transfer, fresh, at, entry.expires_at)
        parts = _parts(groups)
        if message.held:
            parts = _part_held(groups, dict(message.held))
        deliveries = tuple(
            Delivery(
                queue_id,
                copy,
                class_id,
                recipients,
                transfer_token=base if len(parts) == 1 else split_token(base, recipients),
                **(_State(state=DeliveryState.HELD, last_reply=reason) if reason else state),
            )
            for copy, (class_id, recipients, reason) in enumerate(parts)
        )
        for reply in dict.fromkeys(reply for _, reply in message.refused):
            members = tuple(item for item, said in message.refused if said == reply)
            token = split_token(base, members)
            told = f"{reply.status} {reply.text}"
            deliveries += (
                Delivery(queue_id, len(deliveries), REFUSED, members, fresh, last_reply=told, transfer_token=token),
            )
        return NewEntry(entry, deliveries)

    def _group(self, message: ReceivedMessage) -> Groups:
        if message.refused:
            gone = {item for item, _ in message.refused}
            left = tuple(item for item in message.envelope.recipients if item not in gone)
            message = replace(message, envelope=replace(message.envelope, recipients=left), refused=())
        if self._dispatcher.sinks.of("expand") and not message.client.peer_id:
            return group(self.sorter, self._dispatcher.sinks, message.envelope, message.data)
        size_bytes = routed_bytes(message.data.size_bytes, bool(message.client.peer_id))
        return self.sorter.group(message.envelope.recipients, size_bytes)

    def _reply(self, message: ReceivedMessage, new: NewEntry, words: str, queue_id: str) -> Reply:
        text = f"Ok: {words} {queue_id}"
        if message.client.peer_id:
            text += "; backlog " + self._told_backlogs(new)
        return Reply(250, text, "2.0.0")

    def _told_backlogs(self, new: NewEntry) -> str:
        backlogs = self._backlogs()
        own = [delivery.class_id for delivery in new.deliveries]
        others = [name for name in self._largest_backlogs(backlogs) if name not in own]
        named = [*own, *others][:BACKLOGS_TOLD_MAX]
        return " ".join(f"{name}={backlogs.get(name, 0)}" for name in named)

    def _largest_backlogs(self, backlogs: Mapping[str, int]) -> list[str]:
        """Classes with the most mail, as of a moment ago: there may be thousands, and every peer's message asks."""
        now = self._now()
        if now - self._largest_at >= LARGEST_KEPT_S:
            order = heapq.nsmallest(BACKLOGS_TOLD_MAX, backlogs, key=lambda name: (-backlogs[name], name))
            self._largest, self._largest_at = order, now
        return self._largest


class PeerAcceptor:
    """For peers everything is the same, but that they are refused after the final dot instead of at MAIL.

    A peer that lost our answer asks again. A relay that has no room, or drains, must still tell it that it has the
    message; who else comes is refused then, and has heard by gossip that it would be.
    """

    def __init__(self, acceptor: QueueAcceptor) -> None:
        self.check_recipient = acceptor.check_recipient
        self.spool = acceptor.spool
        self.accept = acceptor.accept

    def admit(self, size_bytes: int) -> Reply | None:
        """Whatever comes."""
        return None


Part = tuple[str, tuple[Recipient, ...], str]
"""Class id, recipients, and why they are held; empty = they are not."""


def _parts(groups: Groups) -> list[Part]:
    return [(class_id, recipients, "") for class_id, (_, recipients) in groups.items()]


def _part_held(groups: Groups, held: Mapping[Recipient, str]) -> list[Part]:
    """What waits for an operator is a delivery of its own, for each class and reason."""
    found: dict[tuple[str, str], list[Recipient]] = {}
    for class_id, (_, recipients) in groups.items():
        for recipient in recipients:
            found.setdefault((class_id, held.get(recipient, "")), []).append(recipient)
    return [(class_id, tuple(recipients), reason) for (class_id, reason), recipients in found.items()]


class _State(TypedDict, total=False):
    """What a delivery brings along from the relay that had it before, or from quarantine."""

    state: DeliveryState
    last_reply: str
    attempts: int
    next_attempt_at: datetime
    delay_notified: bool


def _describe(client: Client) -> tuple[str, ...]:
    forwarded = str(client.forwarded) if client.forwarded is not NOT_FORWARDED else ""
    return client.address, client.helo, client.user or client.peer_id, forwarded


def _state_of(transfer: Transfer | None, fresh: DeliveryState, at: datetime, expires_at: datetime) -> _State:
    if transfer is None:
        return _State(state=fresh)
    found = _State(state=fresh, attempts=transfer.attempts, delay_notified=transfer.delay_notified)
    if transfer.due_s:
        found["state"] = DeliveryState.DEFERRED
        found["next_attempt_at"] = min(expires_at, at + timedelta(seconds=transfer.due_s))
    return found


def accept_token(transfer: Transfer, node_id: str) -> str:
    """Under which token a transfer is remembered.

    A message that comes back to a relay it has visited (a step back out of a dead end) is not a repeat of the first
    visit: the length of its trace tells the visits apart, and a repeat of either has the same length again.
    """
    visits = transfer.trace.count(node_id)
    return f"{transfer.token}@{len(transfer.trace)}" if visits else transfer.token
