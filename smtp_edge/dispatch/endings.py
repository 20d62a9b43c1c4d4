"""Ends of claims on disk: what an attempt or a pause made of a delivery is committed, also when the disk refuses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog

from smtp_edge.counters import Counters
from smtp_edge.dispatch.attempts import AttemptObserver
from smtp_edge.dispatch.lines import Waiting
from smtp_edge.dispatch.places import Places
from smtp_edge.dispatch.refill import Refill
from smtp_edge.dispatch.settlement import UNTOLD, Reporting, plan_parking
from smtp_edge.dispatch.tasks import Tasks
from smtp_edge.queue.entry import DeliveryState, Regrouping, Settlement
from smtp_edge.queue.store import MessageStore, StoreError
from smtp_edge.sinks.api import DeliveryOutcome
from smtp_edge.sinks.reports import Reports

log = structlog.get_logger()

RETRY_S = 2.0
"""When the store refuses a settlement (disk trouble) the end of the attempt is kept in memory and offered again."""


class Endings:
    """`reporting` and `park_retry_s` may be changed at any time; they hold from the next end on."""

    def __init__(
        self,
        store: MessageStore,
        places: Places,
        refill: Refill,
        tasks: Tasks,
        observer: AttemptObserver,
        counters: Counters,
        clock: Callable[[], datetime],
        reporting: Reporting,
        park_retry_s: float,
    ) -> None:
        self.reporting, self.park_retry_s = reporting, park_retry_s
        self.on_late: Callable[[], None] = lambda: None
        """A report was stored by a `reporting` of before."""
        self.reports: Reports | None = None
        self._store = store
        self._places = places
        self._refill = refill
        self._tasks = tasks
        self._observer = observer
        self._counters = counters
        self._clock = clock
        self._woken_at: dict[str, float] = {}
        """Class id -> monotonic seconds."""

    async def settle(self, waiting: Waiting, settlement: Settlement) -> None:
        """Commit the end of a claim. A disk that refuses is asked again: the attempt must not be repeated."""
        reporting = self.reporting
        while True:
            try:
                await self._store.settle([settlement])
                break
            except StoreError as error:
                log.error("queue.settle_failed", queue_id=settlement.queue_id, reason=str(error))
                if self._tasks.stopping:
                    return
                await asyncio.sleep(RETRY_S)
        self._places.leave(waiting)
        if not settlement.in_doubt_hop and settlement.state is not DeliveryState.QUEUED:
            self._places.forget_doubts([waiting.key])
        self._count(settlement.state)
        if self.reports is not None and self.reports.wanted("outcome"):
            self.reports.tell(_outcome(waiting, settlement))
        if settlement.state.final and UNTOLD in [note.event for note in settlement.notes]:
            log.warning("dsn.nobody_told", queue_id=settlement.queue_id, reply=settlement.reply)
        class_id = waiting.claim.delivery.class_id
        self._observer.backlog_changed(class_id)
        if settlement.reports and reporting is not self.reporting:
            self.on_late()
        if settlement.reports or settlement.next_attempt_at is not None:
            self._refill.note_unclaimed()
        else:
            self._refill.note_room(class_id)

    async def regroup(self, waiting: Waiting, regrouping: Regrouping) -> None:
        """Give its recipients other classes, which ends the claim."""
        while True:
            try:
                await self._store.regroup([regrouping])
                break
            except StoreError as error:
                log.error("queue.settle_failed", queue_id=regrouping.queue_id, reason=str(error))
                if self._tasks.stopping:
                    return
                await asyncio.sleep(RETRY_S)
        self._places.leave(waiting)
        for class_id in (waiting.claim.delivery.class_id, *(part.class_id for part in regrouping.groups)):
            self._observer.backlog_changed(class_id)
        self._refill.note_unclaimed()

    def note_wake(self, class_ids: Iterable[str], now: float) -> None:
        """Deferred mail of these classes is due from now on, also what is on its way to the disk."""
        self._woken_at.update(dict.fromkeys(class_ids, now))

    async def park(
        self, waiting: Waiting, reason: str, asked_at: float, for_good: str = "", retry_s: float | None = None
    ) -> None:
        """It finds no hop: it waits on disk, or bounces with the status `for_good`. One not due goes back as it was.

        `asked_at`: when it was given up. If its class was woken since, the waking has not met it on disk: it is due.
        """
        if waiting.early:
            await self.give_back(waiting)
            return
        at = self._clock()
        pause = timedelta(seconds=retry_s if retry_s is not None else self.park_retry_s)
        if self._woken_at.get(waiting.claim.delivery.class_id, -math.inf) >= asked_at:
            pause = timedelta()
        settlement = plan_parking(
            waiting.claim,
            reason or "no next hop",
            for_good=for_good,
            notes=waiting.notes,
            next_attempt_at=at + pause,
            reporting=self.reporting,
            at=at,
        )
        await self.settle(waiting, settlement)

    async def give_back(self, waiting: Waiting) -> None:
        """Not due, and no peer took it: back to disk as it was."""
        token = waiting.claim.token
        await self.settle(waiting, Settlement(*waiting.key, token, DeliveryState.QUEUED, notes=tuple(waiting.notes)))

    def _count(self, state: DeliveryState) -> None:
        match state:
            case DeliveryState.RELAYED:
                self._counters.relayed += 1
            case DeliveryState.DEFERRED:
                self._counters.deferred += 1
            case DeliveryState.FAILED | DeliveryState.EXPIRED:
                self._counters.failed += 1
            case _:
                pass


def _outcome(waiting: Waiting, settlement: Settlement) -> DeliveryOutcome:
    entry, delivery = waiting.claim.entry, waiting.claim.delivery
    return DeliveryOutcome(
        settlement.queue_id,
        entry.origin,
        entry.envelope.sender,
        settlement.hop,
        settlement.state.value,
        settlement.reply,
        delivery.recipients if settlement.recipients is None else settlement.recipients,
    )
