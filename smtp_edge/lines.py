"""What waits in memory, class by class; and why, for people. Pure.

waiting    stands in the line of its class, or in that of the class's early ones
resting    only its own history holds it (it backs off from hops, or is in doubt): it stands before nobody
attempted  a transaction with a next hop is under way
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from smtp_edge.queue.entry import Claim, HistoryNote

Key = tuple[str, int]
"""Queue id and copy of a delivery."""
Line = tuple[str, bool]
"""A class, and whether its deliveries are early: these must not stand before those that an exit would take."""


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
    held_because: str = ""


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
