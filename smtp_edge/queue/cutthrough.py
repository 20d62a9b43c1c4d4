"""Cut-through: mail that a next hop takes while its client still waits for the reply is never written to disk.

    begin ─> passing ──relayed in time───────> its client hears 250: the next hop has it
                │                               the history is written later, many messages in one commit
                ├──time is up, or it is not relayed, or regrouped, or the store closes
                v
             storing ──committed────────────> its client hears 250: this store has it, as after `put`
                └──the disk refuses─────────> nothing of it is here. If the next hop takes all of it yet, its client
                                              hears 250, else 4yz: it is answered when that is known

What it saves is a commit for each message, and the space; what it costs is that a client waits for a slow next hop
`PASS_S` longer than for the disk (and in proportion for large mail, which the disk takes longer for, too). A class
whose mail is not gone by then is stored at once for a while: its next message, then two, four, at most
`PAUSE_COUNT_MAX`, before it is tried again.

A kill while a message is passing leaves it with its client, who has no answer, and perhaps with the next hop: a second
copy is possible then, as it is after every answer that a client does not get (RFC 1047). A peer that takes a passing
message stores it, so that a repeat is recognised there: mail from peers never passes.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from smtp_edge.queue.entry import Claim, DeliveryState, NewEntry, Settlement, claim_fresh
from smtp_edge.queue.errors import StoreError

log = structlog.get_logger()

PASS_S, PASS_BYTES_PER_S, PASS_MAX_S = 0.05, 2 * 1024 * 1024, 1.0
"""So long a client may wait for the next hop instead of the disk: at least, more for large mail, and at most."""
PASS_BYTES_MAX = 1024 * 1024
"""Mail up to this size passes from memory; larger mail is written to its file as it arrives, and passes from there."""
LARGE_BYTES = 64 * 1024
"""A body that is let go as soon as the next hop has it; a smaller one goes with its history."""
PAUSE_COUNT_MAX = 64
PAUSED_CLASSES_MAX = 10_000
HISTORY_S = 0.5
"""The history of what has passed is written this late, at most."""
HISTORY_COUNT_MAX = 256
"""Messages in one such commit."""
UNWRITTEN_COUNT_MAX = 4096
"""A disk that does not keep up with the history ends the passing."""


class Stage(enum.Enum):
    """Where a message is; see the module."""

    PASSING = enum.auto()
    STORING = enum.auto()
    STORED = enum.auto()
    REFUSED = enum.auto()
    OVER = enum.auto()


@dataclass(slots=True, eq=False)
class Passage:
    """One message, claimed, in memory only."""

    new: NewEntry
    claims: tuple[Claim, ...]
    answer: asyncio.Future[bool]
    """Done once it is in other hands than its client's: True = a next hop's, False = the store's.

    StoreError: in nobody's."""
    stage: Stage = Stage.PASSING
    kept: asyncio.Future[None] | None = None
    """While it is being stored: done once it is, or is refused."""
    error: StoreError | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """What is remembered of a message that has passed."""

    new: NewEntry
    settlement: Settlement
    at: datetime


@dataclass(slots=True)
class _Pause:
    """Messages of a class that are stored at once before the next one is tried."""

    size: int = 1
    left: int = 1


@dataclass(slots=True)
class _Pauses:
    """Of all classes that were too slow."""

    of: dict[str, _Pause] = field(default_factory=dict)

    def begin(self, class_id: str) -> None:
        pause = self.of.get(class_id)
        if pause is None:
            if len(self.of) >= PAUSED_CLASSES_MAX:
                self.of.clear()
            self.of[class_id] = _Pause()
        else:
            pause.size = pause.left = min(PAUSE_COUNT_MAX, pause.size * 2)

    def take(self, class_id: str) -> bool:
        """True for a message of a class that pauses."""
        pause = self.of.get(class_id)
        if pause is None or pause.left == 0:
            return False
        pause.left -= 1
        return True


class CutThrough:
    """See the module. `put` stores a passage's entry, claimed; `record` writes history; both raise StoreError."""

    def __init__(
        self,
        put: Callable[[NewEntry], Awaitable[object]],
        record: Callable[[Sequence[Passed]], Awaitable[object]],
        clock: Callable[[], datetime],
        count: Callable[[str, int], None],
    ) -> None:
        """`count` hears of each class how many more are passing."""
        self._put, self._record, self._clock, self._count = put, record, clock, count
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, Passage] = {}
        self._ends: list[tuple[float, int, Passage]] = []
        """A heap: those that are to be stored soonest, first. Most of them are over by then."""
        self._numbers = itertools.count()
        self._timer: asyncio.Handle | None = None
        self._looks_at = 0.0
        """When the timer looks at the first of them."""
        self._pauses = _Pauses()
        self._unwritten: list[Passed] = []
        self._being_written = 0
        self._history_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, new: NewEntry) -> Passage | None:
        """Take a message of one delivery; None if it is better stored at once."""
        if self._pauses.take(new.deliveries[0].class_id):
            return None
        if len(self._unwritten) + self._being_written >= UNWRITTEN_COUNT_MAX:
            return None
        ends_at = self._loop.time() + min(PASS_MAX_S, PASS_S + new.entry.data.size_bytes / PASS_BYTES_PER_S)
        passage = Passage(new, claim_fresh(new), self._loop.create_future())
        self._open[new.entry.queue_id] = passage
        self._count(new.deliveries[0].class_id, 1)
        heapq.heappush(self._ends, (ends_at, next(self._numbers), passage))
        if self._timer is None or ends_at < self._looks_at:
            self._arm()
        return passage

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """Take in the ends of what is passing; those that are the disk's are left."""
        return [settlement for settlement in settlements if not await self._settle(settlement)]

    async def store(self, queue_ids: Iterable[str]) -> None:
        """Have these on disk, as far as they are here. StoreError."""
        for queue_id in queue_ids:
            passage = self._store_if_passing(queue_id)
            if passage is not None:
                await _keep(passage)
                if passage.error is not None:
                    raise passage.error

    async def write_history(self) -> None:
        """Have the history of all that has passed on disk."""
        self._begin_writing()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Store what is passing, write what is to be remembered."""
        if self._timer is not None:
            self._timer.cancel()
        for passage in list(self._open.values()):
            self._store_if_passing(passage.new.entry.queue_id)
        await self.write_history()
        for passage in list(self._open.values()):
            assert passage.error is not None
            self._refuse(passage, passage.error)

    # -- private -------------------------------------------------------------------------------------------------------

    async def _settle(self, settlement: Settlement) -> bool:
        """True if that is all."""
        passage = self._open.get(settlement.queue_id)
        if passage is None:
            return False
        passes = settlement.state is DeliveryState.RELAYED and not settlement.reports
        if passage.stage is Stage.PASSING and not passes:
            self._begin_storing(passage)
        await _keep(passage)
        if passage.stage is Stage.STORED:
            return False
        if passes:
            self._relay(passage, settlement)
        else:
            assert passage.error is not None
            self._refuse(passage, passage.error)
        return True

    def _relay(self, passage: Passage, settlement: Settlement) -> None:
        passage.new, passage.claims = _without_large_body(passage.new), ()
        self._end(passage, Stage.OVER)
        self._pauses.of.pop(passage.new.deliveries[0].class_id, None)
        self._unwritten.append(Passed(passage.new, settlement, self._clock()))
        if len(self._unwritten) >= HISTORY_COUNT_MAX:
            self._begin_writing()
        elif self._history_timer is None:
            self._history_timer = self._loop.call_later(HISTORY_S, self._begin_writing)
        if not passage.answer.done():
            passage.answer.set_result(True)

    def _refuse(self, passage: Passage, error: StoreError) -> None:
        self._end(passage, Stage.OVER)
        if not passage.answer.done():
            passage.answer.set_exception(error)

    def _end(self, passage: Passage, stage: Stage) -> None:
        passage.stage = stage
        if self._open.pop(passage.new.entry.queue_id, None) is not None:
            self._count(passage.new.deliveries[0].class_id, -1)

    def _on_time(self) -> None:
        """Store those that have been passing too long, all in one commit."""
        now, late, ends = self._loop.time(), set[str](), self._ends
        while ends and (ends[0][0] <= now or ends[0][2].stage is not Stage.PASSING):
            passage = heapq.heappop(ends)[2]
            if passage.stage is Stage.PASSING:
                late.add(passage.new.deliveries[0].class_id)
                self._begin_storing(passage)
        for class_id in late:
            self._pauses.begin(class_id)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends:
            self._looks_at = self._ends[0][0]
            self._timer = self._loop.call_at(self._looks_at, self._on_time)

    def _store_if_passing(self, queue_id: str) -> Passage | None:
        passage = self._open.get(queue_id)
        if passage is not None and passage.stage is Stage.PASSING:
            self._begin_storing(passage)
        return passage

    def _begin_storing(self, passage: Passage) -> None:
        passage.stage, passage.kept = Stage.STORING, self._loop.create_future()
        self._spawn(self._store(passage))

    async def _store(self, passage: Passage) -> None:
        assert passage.kept is not None
        try:
            await self._put(passage.new)
        except StoreError as error:
            passage.stage, passage.error = Stage.REFUSED, error
        else:
            self._end(passage, Stage.STORED)
            if not passage.answer.done():
                passage.answer.set_result(False)
        passage.kept.set_result(None)

    def _begin_writing(self) -> None:
        if self._history_timer is not None:
            self._history_timer.cancel()
            self._history_timer = None
        passed, self._unwritten = self._unwritten, []
        if passed:
            self._being_written += len(passed)
            self._spawn(self._write(passed))

    async def _write(self, passed: Sequence[Passed]) -> None:
        try:
            await self._record(passed)
        except StoreError as error:  # the log has it, too
            log.error("queue.history_lost", messages=len(passed), reason=str(error))
        finally:
            self._being_written -= len(passed)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _without_large_body(new: NewEntry) -> NewEntry:
    """What is to be remembered of an entry: it stays for a while, in the heap of ends and in the history to come."""
    data = new.entry.data
    if data.inline is None or data.size_bytes < LARGE_BYTES:
        return new
    return replace(new, entry=replace(new.entry, data=replace(data, inline=b"")))


async def _keep(passage: Passage) -> None:
    """Wait until it is stored, or refused."""
    if passage.kept is not None:
        await asyncio.shield(passage.kept)
