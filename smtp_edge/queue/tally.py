"""Running totals of the store, kept in memory so that asking costs nothing.

The acknowledgement path asks for backlogs on every message and the router several times a second; SQL would scan.
Changes are applied when their commit has succeeded, on the event loop's thread, so no lock is needed. A test compares
with SQL.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from smtp_edge.queue.entry import ClassBacklog, DeliveryState, QueueSummary
from smtp_edge.queue.rows import CORRUPT, from_us

SECOND_US = 1_000_000
BACKLOG_STATES = frozenset({DeliveryState.QUEUED.value, DeliveryState.CLAIMED.value, DeliveryState.DEFERRED.value})
"""Undelivered mail that moves by itself; held mail waits for a person."""
MOVING_STATES = frozenset({DeliveryState.QUEUED.value, DeliveryState.CLAIMED.value})
"""Mail that would go now if it could. Deferred mail waits for its time: it must not pull routes, nor make a relay with
many greylisted messages look full."""


@dataclass(frozen=True, slots=True)
class Change:
    """`count` deliveries of a class went from one state to another; empty = did not or does not exist."""

    class_id: str
    received_us: int
    before: str
    after: str
    count: int = 1


@dataclass(slots=True)
class Changes:
    """What a commit changed."""

    deliveries: list[Change] = field(default_factory=list)
    entries: int = 0
    """Entries that are not finished, more (or fewer)."""
    finished: int = 0
    """Entries that are, and are remembered."""
    bytes_stored: int = 0
    unlinked: list[str] = field(default_factory=list)
    """Spool files that no entry names any more; removed after the commit."""

    def add(self, class_id: str, received_us: int, before: str, after: str) -> None:
        """Note one delivery."""
        self.deliveries.append(Change(class_id, received_us, before, after))


class Ages:
    """The oldest of many times, to the second: a count for each second, and a heap of seconds with lazy removal.

    Bounded by the distinct seconds in which waiting mail was received, not by the number of messages.
    """

    __slots__ = ("_counts", "_heap")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._heap: list[int] = []

    def add(self, second: int, count: int) -> None:
        """Count more (or, negative, fewer) of a second."""
        if second not in self._counts:
            self._counts[second] = 0
            heapq.heappush(self._heap, second)
        self._counts[second] += count

    def oldest(self) -> int | None:
        """The smallest second with a count; None if there is none."""
        while self._heap and self._counts[self._heap[0]] <= 0:
            del self._counts[heapq.heappop(self._heap)]
        return self._heap[0] if self._heap else None


class Tally:
    """Totals by class and state."""

    def __init__(self) -> None:
        self.entries = 0
        """Entries that are not finished."""
        self.finished = 0
        """Entries that are, and are remembered."""
        self._early: list[Changes] | None = []
        self._bytes_stored = 0
        self._states: Counter[str] = Counter()
        self._backlog: Counter[str] = Counter()
        self._deferred: Counter[str] = Counter()
        self._moving: dict[str, int] = {}
        self.moving: Mapping[str, int] = MappingProxyType(self._moving)
        """Deliveries in `MOVING_STATES` by class, as of any moment: a view, so that asking copies nothing."""
        self._ages: dict[str, Ages] = {}

    def begin(self, base: Changes) -> None:
        """What there was before the first commit has been counted; what was changed meanwhile is added."""
        early, self._early = self._early or [], None
        self.apply([base, *early])

    def apply(self, changes: Iterable[Changes]) -> None:
        """Take in what commits changed. Before `begin` it is put by."""
        if self._early is not None:
            self._early += changes
            return
        touched: set[str] = set()
        for change in changes:
            self.entries += change.entries
            self.finished += change.finished
            self._bytes_stored += change.bytes_stored
            for delivery in change.deliveries:
                self._count(delivery, delivery.before, -delivery.count)
                self._count(delivery, delivery.after, delivery.count)
                touched.add(delivery.class_id)
        for class_id in touched:
            self._forget_empty(class_id)

    def note_passing(self, class_id: str, count: int) -> None:
        """More (or fewer) messages that are attempted without being here: what waits, for whoever routes by it."""
        left = self._moving.get(class_id, 0) + count
        if left:
            self._moving[class_id] = left
        else:
            del self._moving[class_id]

    @property
    def queued(self) -> int:
        """Deliveries that could be claimed, whatever the time; before they are counted, it is as if there were one."""
        return self._states[DeliveryState.QUEUED.value] if self._early is None else 1

    def backlogs(self) -> dict[str, int]:
        """Undelivered deliveries by class, held ones not counted."""
        return dict(self._backlog)

    def summary(self) -> QueueSummary:
        """Totals; the oldest time is rounded down to the second."""
        return QueueSummary(
            classes=tuple(self._class_backlog(class_id) for class_id in sorted(self._backlog)),
            held=self._states[DeliveryState.HELD.value],
            relayed=self._states[DeliveryState.RELAYED.value],
            failed=self._states[DeliveryState.FAILED.value],
            expired=self._states[DeliveryState.EXPIRED.value],
            corrupt=self._states[CORRUPT],
            bytes_stored=self._bytes_stored,
        )

    def _class_backlog(self, class_id: str) -> ClassBacklog:
        oldest = self._ages[class_id].oldest()
        oldest_at = None if oldest is None else from_us(oldest * SECOND_US)
        return ClassBacklog(class_id, self._backlog[class_id], self._deferred[class_id], oldest_at)

    def _count(self, change: Change, state: str, count: int) -> None:
        if not state:
            return
        self._states[state] += count
        if state not in BACKLOG_STATES:
            return
        class_id = change.class_id
        self._backlog[class_id] += count
        if state in MOVING_STATES:
            self._moving[class_id] = self._moving.get(class_id, 0) + count
            if not self._moving[class_id]:
                del self._moving[class_id]
        if state == DeliveryState.DEFERRED.value:
            self._deferred[class_id] += count
        self._ages.setdefault(class_id, Ages()).add(change.received_us // SECOND_US, count)

    def _forget_empty(self, class_id: str) -> None:
        """Classes without backlog vanish: every domain of direct delivery is a class, and they would pile up."""
        if self._backlog[class_id] <= 0:
            del self._backlog[class_id]
            self._ages.pop(class_id, None)
            self._deferred.pop(class_id, None)
