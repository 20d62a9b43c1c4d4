"""Silence of one session: when it is long enough to doubt the peer; and how far our own clock can be trusted. Pure.

Phi-accrual on the intervals between frames (Hayashibara et al. 2004), kept between two plain bounds. A node that is
itself late gives others more time, and a node that was paused accuses nobody: its own late timer proves nothing about
others (Lifeguard, Dadgar et al. 2018, section IV).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from gossip.settings import GossipSettings

INTERVALS_KEPT = 64
DEVIATION_MIN_S = 0.1
LAG_KEPT_S = 10.0
"""Own lateness is remembered for this long."""
PATIENCE_MAX = 3.0
PEER_LAG_MAX_S = 5.0


@dataclass(slots=True)
class Silence:
    """Frames heard on one session."""

    settings: GossipSettings
    heard_at: float
    intervals: deque[float] = field(default_factory=deque)
    limit_s: float = 0.0
    """Silence at which the peer is doubted, before patience."""
    _total: float = 0.0
    _squares: float = 0.0

    def __post_init__(self) -> None:
        self.limit_s = self._reckon()

    def hear(self, now: float) -> None:
        """A hello arrived."""
        interval = now - self.heard_at
        self.heard_at = now
        self.intervals.append(interval)
        self._total += interval
        self._squares += interval * interval
        if len(self.intervals) > INTERVALS_KEPT:
            gone = self.intervals.popleft()
            self._total -= gone
            self._squares -= gone * gone
        self.limit_s = self._reckon()

    def touch(self, now: float) -> None:
        """Something else than a hello arrived: it lives."""
        self.heard_at = max(self.heard_at, now)

    def excuse(self, now: float) -> None:
        """The silence so far was our own fault."""
        self.heard_at = max(self.heard_at, now)

    def _reckon(self) -> float:
        settings, count = self.settings, len(self.intervals)
        mean = max(settings.hello_s, self._total / count) if count else settings.hello_s
        variance = max(0.0, self._squares / count - (self._total / count) ** 2) if count else 0.0
        deviation = max(DEVIATION_MIN_S, math.sqrt(variance))
        reach = mean + deviation * math.sqrt(2 * settings.phi * math.log(10))
        return min(settings.silence_max_s, max(settings.silence_min_s, reach))


@dataclass(slots=True)
class Patience:
    """This node's own health, from how late its timer was."""

    lag_s: float = 0.0
    at: float = float("-inf")

    def record_lag(self, lag_s: float, now: float) -> None:
        """The own timer came so late."""
        if lag_s > self.lag_s or now - self.at > LAG_KEPT_S:
            self.lag_s, self.at = lag_s, now

    def factor(self, now: float) -> float:
        """How many times longer than usual others may be silent: 1 .. `PATIENCE_MAX`."""
        if self.lag_s < 0.1 or now - self.at > LAG_KEPT_S:
            return 1.0
        return min(PATIENCE_MAX, 1.0 + self.lag_s)
