"""What is not due leaves a relay that drains: passes over the deferred mail, class by class, in the order of its times.

    pass ──> claim_early, as far as there is room ──> dispatcher (peers only) ──> taken, or back to disk as it was
      ^                                                                                     │
      └──────────── pause: 2 s, doubling to 15 s while nothing leaves ──────────────────────┘

Due mail needs nothing from here: the dispatcher claims it as ever, and the engine gives it to exits and peers. Classes
that no peer takes now are left alone: their mail stays on disk, and nothing is written for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import structlog

from router.decision import Query
from router.engine import RoutingEngine
from router.forwarding import NO_SLOT
from smtp_edge.queue.entry import Claim, EarlyMark, utc_now
from smtp_edge.queue.store import MessageStore, StoreError

log = structlog.get_logger()

BATCH_MAX = 200
ROOM_S = 0.1
"""Between two looks for room in memory."""
PAUSE_FIRST_S, PAUSE_MAX_S = 2.0, 15.0


def may_leave(engine: RoutingEngine, class_id: str, now: float) -> bool:
    """Some peer would take mail of the class before it is due, now or when a slot is free."""
    hop, rule = engine.pick(Query(class_id, peers_only=True), now)
    return hop is not None or rule == NO_SLOT


class EarlyTaker(Protocol):
    """The part of the dispatcher that this speaks to."""

    def submit_early(self, claims: list[Claim]) -> None:
        """Take over claims of what is not due, for peers only."""
        ...

    def early_room(self) -> int:
        """How many more of them may come."""
        ...

    def return_early(self) -> None:
        """No longer draining."""
        ...


class HandOver:
    """See the module. `run` is its loop; `may_leave`: some peer would take mail of the class now."""

    def __init__(
        self,
        store: MessageStore,
        dispatcher: EarlyTaker,
        *,
        may_leave: Callable[[str], bool],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store, self._dispatcher, self._may_leave, self._clock = store, dispatcher, may_leave, clock
        self._wanted = asyncio.Event()

    def begin(self) -> None:
        """The relay drains."""
        self._wanted.set()

    def end(self) -> None:
        """It does no longer: what is not under way goes back to disk."""
        self._wanted.clear()
        self._dispatcher.return_early()

    async def run(self) -> None:
        """Passes while it is wanted; ends by cancellation."""
        pause_s, before = PAUSE_FIRST_S, 0
        while True:
            await self._wanted.wait()
            try:
                left = await self._pass()
            except StoreError as error:
                log.error("drain.claim_failed", reason=str(error))
                left = before
            pause_s = PAUSE_FIRST_S if left != before else min(PAUSE_MAX_S, 2 * pause_s)
            before = left
            await asyncio.sleep(pause_s)

    async def _pass(self) -> int:
        """Offer everything once; what was deferred when it began."""
        classes = [item for item in (await self._store.summary()).classes if item.deferred]
        for item in classes:
            if self._may_leave(item.class_id):
                await self._offer(item.class_id)
        return sum(item.deferred for item in classes)

    async def _offer(self, class_id: str) -> None:
        mark: EarlyMark | None = None
        while self._wanted.is_set():
            room = self._dispatcher.early_room()
            if room <= 0:
                await asyncio.sleep(ROOM_S)
                continue
            claims = await self._store.claim_early(class_id, min(BATCH_MAX, room), self._clock(), after=mark)
            if not claims:
                return
            mark = EarlyMark.of(claims[-1])
            self._dispatcher.submit_early(claims)
