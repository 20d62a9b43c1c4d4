"""Mail from disk while there is room for it: claimed when it is due, when it is known to be there, or now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime

import structlog

from smtp_edge.dispatch.places import Places
from smtp_edge.queue.entry import Claim
from smtp_edge.queue.store import MessageStore, StoreError

log = structlog.get_logger()

BATCH_MAX = 200
IDLE_S = 30.0
"""The disk is looked at this often even when nothing says that mail is there (a claim that was given back)."""
DRY_S = 1.0
"""What is due is of a class that has its share: looked at again after this."""
RETRY_S = 2.0
"""The store refuses (disk trouble): it is asked again after this."""


class Refill:
    """Run `run` in one task. `submit` takes over what was claimed."""

    def __init__(
        self,
        store: MessageStore,
        places: Places,
        submit: Callable[[Iterable[Claim]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._places = places
        self._submit = submit
        self._clock = clock
        self._unclaimed = True
        """Mail is on disk that nobody claims, as far as is known."""
        self._dry = False
        """Nothing could be claimed the last time."""
        self._wanted = asyncio.Event()
        self._wanted.set()

    def note_unclaimed(self) -> None:
        """Mail was stored without being claimed, or became due."""
        self._unclaimed = True
        self._wanted.set()

    def note_room(self, class_id: str) -> None:
        """A delivery of a class left. Not for every single place that becomes free is the disk asked."""
        if self._unclaimed and self._places.shares().room(class_id) >= self._batch_min:
            self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._wait()
                self._wanted.clear()
                await self._claim_while_room()
            except StoreError as error:
                log.error("queue.claim_failed", reason=str(error))
                self._unclaimed = True
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def _claim_while_room(self) -> None:
        """Until nothing more is there, or what is there is of classes that have their share."""
        self._dry = True
        while (room := self._places.free) > 0:
            claims = await self._store.claim(min(BATCH_MAX, room), self._clock(), shares=self._places.shares())
            if not claims:
                break
            self._dry = False
            self._submit(claims)
        self._unclaimed = bool(self._store.queued_count)

    async def _wait(self) -> None:
        due_at = await self._store.next_due_at()
        delay_s = None if due_at is None else max(0.0, (due_at - self._clock()).total_seconds())
        if delay_s is not None and self._dry:
            delay_s = max(delay_s, DRY_S)
        limit_s = IDLE_S if delay_s is None else min(delay_s, IDLE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._wanted.wait()

    @property
    def _batch_min(self) -> int:
        return max(1, min(BATCH_MAX // 2, self._places.limit // 16))
