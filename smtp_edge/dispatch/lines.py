"""What waits in memory, class by class; and why, for people. Pure.

waiting    stands in the line of its class, or in that of the class's early ones
resting    only its own history holds it (it backs off from hops, or is in doubt): it stands before nobody
attempted  a transaction with a next hop is under way
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from smtp_edge.client.attempt import Target
from smtp_edge.queue.entry import Claim, HistoryNote, Key

Line = tuple[str, bool]
"""A class, and whether its deliveries are early: these must not stand before those that an exit would take."""
AVOID_FIRST_S = 1.0
AVOID_MAX_S = 60.0


@dataclass(slots=True, eq=False)
class Waiting:
    """A claimed delivery in memory."""

    claim: Claim
    since: float
    avoid: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Hop id -> (until, pause): monotonic seconds, and the pause that the next failure doubles."""
    notes: list[HistoryNote] = field(default_factory=list)
    tries: int = 0
    prefer_until: float = 0.0
    """While `now` is below it, only the hop that is in doubt may be tried."""
    early: bool = False
    """Its next attempt is not due: only a peer may take it."""
    only: str = ""
    """The operator moves it to this hop: no other is asked, and nobody is asked which."""
    hop: str = ""
    """Where it is being attempted; empty while it waits."""
    hop_since: float = 0.0

    @property
    def line(self) -> Line:
        """Where it waits."""
        return self.claim.delivery.class_id, self.early

    @property
    def key(self) -> Key:
        """Queue id and copy."""
        return self.claim.delivery.queue_id, self.claim.delivery.copy

    def hop_in_doubt(self, now: float) -> str:
        """The only hop that may be tried, while it is waited for; else empty."""
        return self.claim.delivery.in_doubt_hop if now < self.prefer_until else ""

    def held_alone(self, now: float) -> bool:
        """Only its own history holds it: it backs off from a hop, or waits for the one in doubt."""
        return now < self.prefer_until or any(now < until for until, _ in self.avoid.values())

    def back_off_from(self, hop: str, now: float) -> None:
        """It failed there for a reason that is the hop's: a pause that doubles, for this delivery alone."""
        _, pause_s = self.avoid.get(hop, (0.0, AVOID_FIRST_S / 2))
        pause_s = min(AVOID_MAX_S, pause_s * 2)
        self.avoid[hop] = (now + pause_s, pause_s)


@dataclass(slots=True, eq=False)
class ClassQueue:
    """Waiting deliveries of one class (or its early ones), oldest first."""

    progress_at: float
    """When an attempt was last started, or the class began to wait; monotonic seconds."""
    waiting: deque[Waiting] = field(default_factory=deque)
    resting: list[Waiting] = field(default_factory=list)
    """Deliveries that only their own history holds (backing off, or in doubt): they must not stand before others."""
    task: asyncio.Task[None] | None = None
    again: bool = False
    last: tuple[Waiting, Target] | None = None
    """The one with which the line became empty, and its hop: attempted by the task that served the line."""
    held_because: str = ""

    def heads(self, number: int) -> list[Waiting]:
        """The first few in line."""
        return [self.waiting[i] for i in range(min(number, len(self.waiting)))]

    def lay_to_rest(self, waiting: Waiting) -> None:
        """It stands before nobody until its pause is over."""
        self.waiting.remove(waiting)
        self.resting.append(waiting)

    def end_rest(self, now: float, *, everybody: bool) -> None:
        """Those whose pause is over wait again, before the others: they are the oldest."""
        resting, self.resting = self.resting, []
        for waiting in resting:
            if everybody or not waiting.held_alone(now):
                self.waiting.appendleft(waiting)
            else:
                self.resting.append(waiting)

    def forgive(self, hops: Collection[str]) -> None:
        """These hops are back: what failed there before says nothing of them now."""
        for waiting in (*self.waiting, *self.resting):
            for hop in hops:
                waiting.avoid.pop(hop, None)

    def take_since(self, limit: float) -> list[Waiting]:
        """Take out those that stand here since `limit` or longer; those that rest stay."""
        taken = [waiting for waiting in self.waiting if waiting.since <= limit]
        for waiting in taken:
            self.waiting.remove(waiting)
        return taken

    def take(self, unwanted: Callable[[Claim], bool]) -> list[Waiting]:
        """Take out what is unwanted, in line or resting."""
        taken = [waiting for waiting in (*self.waiting, *self.resting) if unwanted(waiting.claim)]
        for waiting in taken:
            (self.waiting if waiting in self.waiting else self.resting).remove(waiting)
        return taken


class Lines:
    """The line of each class, and of its early deliveries; one exists while somebody is in it or it is being served."""

    def __init__(self) -> None:
        self._queues: dict[Line, ClassQueue] = {}

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, line: Line) -> ClassQueue | None:
        """The line, if it exists."""
        return self._queues.get(line)

    def open(self, line: Line, now: float) -> ClassQueue:
        """The line, made if it does not exist."""
        queue = self._queues.get(line)
        if queue is None:
            queue = self._queues[line] = ClassQueue(now)
        return queue

    def close_if_empty(self, line: Line, queue: ClassQueue) -> None:
        """Nobody serves it any more: forget it, unless somebody is in it."""
        if not (queue.waiting or queue.resting) and self._queues.get(line) is queue:
            del self._queues[line]

    def all(self) -> list[tuple[Line, ClassQueue]]:
        """As they are now."""
        return list(self._queues.items())

    def deepest_first(self) -> list[tuple[Line, ClassQueue]]:
        """Those with most in line first, the early ones last."""
        return sorted(self._queues.items(), key=lambda pair: (pair[0][1], -len(pair[1].waiting)))

    def take(self, unwanted: Callable[[Claim], bool]) -> list[Waiting]:
        """Take out what is unwanted, wherever it waits."""
        taken: list[Waiting] = []
        for line, queue in self.all():
            found = queue.take(unwanted)
            if found and queue.task is None:
                self.close_if_empty(line, queue)
            taken += found
        return taken

    def take_early(self) -> list[Waiting]:
        """Take out every one that is not due."""
        taken: list[Waiting] = []
        for (_, early), queue in self.all():
            if early:
                taken += [*queue.waiting, *queue.resting]
                queue.waiting.clear()
                queue.resting.clear()
        return taken


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a delivery in memory is, and why it is not gone yet."""

    stage: str
    """`attempted`, `waiting`, `resting`."""
    reason: str
    for_s: float
    hop: str = ""
    """Where it is being attempted."""


def explain_standing(waiting: Waiting, queue: ClassQueue | None, now: float) -> Standing:
    """For people. `queue`: its line, if it has one."""
    if waiting.hop:
        return Standing("attempted", f"under way to {waiting.hop}", now - waiting.hop_since, waiting.hop)
    since_s = now - waiting.since
    if now < waiting.prefer_until:
        doubt = waiting.claim.delivery.in_doubt_hop
        left_s = waiting.prefer_until - now
        return Standing("resting", f"{doubt} may have it already and is asked first, for {left_s:.0f} s more", since_s)
    pauses = [f"{hop} for {until - now:.0f} s" for hop, (until, _) in waiting.avoid.items() if now < until]
    if queue is None or waiting in queue.resting:
        return Standing("resting", f"backs off from {', '.join(pauses)}" if pauses else "its turn comes", since_s)
    before = queue.waiting.index(waiting) if waiting in queue.waiting else 0
    behind = f", {before} before it" if before else ""
    return Standing("waiting", f"{queue.held_because or 'its turn comes'}{behind}", since_s)
