"""Transactions under way: a delivery and a hop go to the client, and what it answers comes back. A slot is taken from
the moment at which a hop is chosen until the answer, and whoever watches learns of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import structlog

from router.decision import Hop, HopKind, OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.dispatch.delivering import deliver
from smtp_edge.dispatch.lines import Waiting
from smtp_edge.envelope import Transfer
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.queue.store import MessageStore
from smtp_edge.sinks.chain import SinkChain

log = structlog.get_logger()

MAY_HAVE_IT = frozenset({OutcomeKind.ACCEPTED, OutcomeKind.IN_DOUBT, OutcomeKind.CANCELLED})
"""Ends after which the hop may have the message; the settlement says more."""


class Attempter(Protocol):
    """The outbound client."""

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        """Try once; the world's faults come back as values."""
        ...


class AttemptObserver(Protocol):
    """Who learns from attempts (the routing engine, through the node)."""

    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None:
        """A transaction starts and takes a slot of the hop."""
        ...

    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None:
        """It ended; the slot is free."""
        ...

    def arrived(self, class_id: str) -> None:
        """A client (not a peer) submitted a message of a class."""
        ...

    def backlog_changed(self, class_id: str) -> None:
        """The number of stored messages of a class changed."""
        ...


class Attempts:
    """`inflight`: hop id -> transactions under way there."""

    def __init__(
        self,
        store: MessageStore,
        client: Attempter,
        observer: AttemptObserver,
        node_id: str,
        now: Callable[[], float],
        clock: Callable[[], datetime],
    ) -> None:
        self.inflight: dict[str, int] = {}
        self._store = store
        self._client = client
        self._observer = observer
        self._node_id = node_id
        self._now = now
        self._clock = clock

    def take_slot(self, waiting: Waiting, target: Target) -> None:
        """Before the task of the attempt runs: the next choice knows of it."""
        hop_id = target.hop.id
        self.inflight[hop_id] = self.inflight.get(hop_id, 0) + 1
        waiting.hop, waiting.hop_since = hop_id, self._now()
        self._observer.began(target.hop, waiting.claim.delivery.class_id, waiting.claim.entry.data.size_bytes)

    async def run(self, waiting: Waiting, target: Target, sinks: SinkChain) -> AttemptResult:
        """One transaction in a slot that was taken. Raises `MailDataLost`: nothing was sent that counts."""
        hop, delivery, began = target.hop, waiting.claim.delivery, self._now()
        if hop.kind is HopKind.PEER:
            self._store.note_offer(*waiting.key, hop.id)
        result = AttemptResult(OutcomeKind.CANCELLED, reason="abandoned")
        try:
            if target.sink:
                result = await deliver(sinks, target.sink, waiting.claim)
            else:
                result = await self._client.attempt(target, self._job(waiting, target))
        except MailDataLost as error:  # the next claim sets it aside if it is damaged
            log.error("queue.mail_data_lost", queue_id=delivery.queue_id, reason=str(error))
            raise
        finally:
            self.inflight[hop.id] -= 1
            waiting.hop = ""
            size_bytes = waiting.claim.entry.data.size_bytes
            self._observer.ended(hop, delivery.class_id, result, began, size_bytes, delivery.queue_id)
        if hop.kind is HopKind.PEER and result.kind not in MAY_HAVE_IT:
            self._store.withdraw_offer(*waiting.key)
        waiting.tries += 1
        self._log(waiting, hop, result, self._now() - began)
        return result

    def _job(self, waiting: Waiting, target: Target) -> Job:
        entry, delivery = waiting.claim.entry, waiting.claim.delivery
        transfer = self._transfer(waiting) if target.hop.kind is HopKind.PEER else None
        envelope = entry.envelope
        if envelope.recipients != delivery.recipients:
            envelope = replace(envelope, recipients=delivery.recipients)
        return Job(delivery.queue_id, envelope, entry.data, entry.received_field, transfer)

    def _transfer(self, waiting: Waiting) -> Transfer:
        entry, delivery, at = waiting.claim.entry, waiting.claim.delivery, self._clock()
        age_s = max(0, int((at - entry.received_at).total_seconds()))
        due_at = delivery.next_attempt_at
        due_s = math.ceil((due_at - at).total_seconds()) if due_at is not None and due_at > at else 0
        return Transfer(
            delivery.transfer_token,
            (*entry.trace, self._node_id),
            age_s,
            delivery.attempts,
            due_s,
            delivery.delay_notified,
        )

    def _log(self, waiting: Waiting, hop: Hop, result: AttemptResult, duration_s: float) -> None:
        delivery = waiting.claim.delivery
        log.info(
            "attempt",
            queue_id=delivery.queue_id,
            next_hop=hop.id,
            remote=result.remote,
            tls=result.tls,
            outcome=result.kind.value,
            reply=str(result.reply) if result.reply else result.reason,
            duration_s=round(duration_s, 4),
            recipients=len(delivery.recipients),
            refused=sum(reply is not None and not reply.positive for reply in result.replies),
            class_id=delivery.class_id,
        )
