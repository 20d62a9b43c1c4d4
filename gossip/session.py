"""One session: what waits for the peer, what it is known to have, and how long it has been silent. Pure.

What waits is the newest version for each key, so its bound is the number of keys; it leaves in the order withdraw,
degrade, recover, refresh. A storm of good news therefore never delays a withdrawal by more than the frame in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.budget import Budget
from gossip.detector import Silence
from gossip.frames import Hello, Record
from gossip.linkstate import Key, Urgency

PUSH_MAX = 64
"""Advertisements in one frame."""
FLUSH_MAX = 256
"""Advertisements of one turn; the rest waits for the next one."""
BUSY = 16
"""Advertisements of one turn after which the next one may wait for company."""
SENT_KEPT = 8
"""Hellos of which the time is kept, for the round trip."""


@dataclass(slots=True)
class Session:
    """See the module."""

    silence: Silence
    since: float
    budget: Budget
    checks: Budget
    eager: bool = True
    """Bodies go to this peer; else announcements."""
    blocked: bool = False
    """The peer reads too slowly: what is new waits here."""
    urgent: dict[Key, Record] = field(default_factory=dict)
    """Withdrawals and degradations that wait."""
    waiting: dict[Key, Record] = field(default_factory=dict)
    """All else that waits."""
    announcing: dict[int, None] = field(default_factory=dict)
    flushed_at: float = float("-inf")
    busy: bool = False
    known: dict[Key, int] = field(default_factory=dict)
    """Marks of what the peer has, as it showed or was sent of late."""
    known_before: dict[Key, int] = field(default_factory=dict)
    continues: bool = False
    """It follows a two-way session that broke a moment ago, and is taken for two-way until it proves to be silent."""
    hello: Hello | None = None
    """The last one heard."""
    hello_at: float = 0.0
    hellos_sent: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)
    """When the last few hellos were sent, for the round trip."""
    round_trip_s: float | None = None
    heard_back: int = 0
    heard_back_at: float = 0.0
    """When the peer last showed that it hears us."""
    unwanted_since: float | None = None
    mismatches: int = 0
    repair_after: float = float("-inf")
    repair_pause_s: float = 0.0
    fetching: bool = False
    fetched_at: float = 0.0
    """When its last chunk came, or was asked for first."""
    refusals: int = 0
    pruned_at: float = float("-inf")

    def has(self, key: Key, mark: int) -> bool:
        """The peer has exactly this content already."""
        return self.known.get(key) == mark or self.known_before.get(key) == mark

    def next_hello(self, root: int, records: int, now: float, *, lag_ms: int, wanted: bool) -> Hello:
        """The next hello to this peer: what was heard of it, and what is held here."""
        self.hellos_sent += 1
        self.sent_at[self.hellos_sent] = now
        if len(self.sent_at) > SENT_KEPT:
            del self.sent_at[next(iter(self.sent_at))]
        heard, held_ms = 0, 0
        if self.hello is not None:
            heard, held_ms = self.hello.sequence, int(1000 * (now - self.hello_at))
        return Hello(self.hellos_sent, heard, root, lag_ms, wanted, records, held_ms=held_ms)

    def hear_hello(self, hello: Hello, now: float) -> bool:
        """The peer's next hello; True if it is the first one that shows that the peer hears us."""
        self.silence.hear(now)
        now_two_way = hello.heard > 0 and (self.hello is None or self.hello.heard == 0)
        self.hello, self.hello_at = hello, now
        sent_at = self.sent_at.get(hello.heard)
        if hello.heard > self.heard_back:
            self.heard_back, self.heard_back_at = hello.heard, now
            if sent_at is not None:
                trip_s = max(0.0, now - sent_at - hello.held_ms / 1000)
                before = self.round_trip_s
                self.round_trip_s = trip_s if before is None else before + (trip_s - before) / 8
        return now_two_way

    def two_way(self) -> bool:
        """The peer hears us, too."""
        return self.continues or (self.hello is not None and self.hello.heard > 0)

    def age_known(self) -> None:
        """Forget what was known longer than one hello ago."""
        self.known_before, self.known = self.known, {}

    def queue(self, record: Record) -> None:
        """Send a body at the next turn, instead of any older version of its key."""
        self.unqueue(record.key)
        (self.urgent if record.urgency <= Urgency.DEGRADE else self.waiting)[record.key] = record

    def unqueue(self, key: Key) -> None:
        """The peer has it now."""
        self.urgent.pop(key, None)
        self.waiting.pop(key, None)

    def queued(self) -> int:
        """Records that wait."""
        return len(self.urgent) + len(self.waiting)

    def due(self, batch_s: float, busy_s: float) -> float:
        """When the next turn is; infinity if nothing waits."""
        if self.blocked:
            return float("inf")
        if self.urgent:
            return self.flushed_at + batch_s
        if self.waiting or self.announcing:
            return self.flushed_at + (busy_s if self.busy else batch_s)
        return float("inf")

    def take(self, now: float) -> tuple[list[Record], list[int]]:
        """One turn: bodies, most urgent first, and announcements."""
        taken: list[Record] = []
        for waiting in (self.urgent, self.waiting):
            first = sorted(waiting.values(), key=lambda record: record.urgency)[: FLUSH_MAX - len(taken)]
            for record in first:
                del waiting[record.key]
                self.known[record.key] = record.mark
            taken += first
        ids = list(self.announcing)[: 2 * FLUSH_MAX]
        for item in ids:
            del self.announcing[item]
        self.busy = len(taken) + len(ids) > BUSY
        self.flushed_at = now
        return taken, ids
