"""Silence of one session: when it is long enough to call the link down. Pure.

Phi-accrual on the intervals between frames (Hayashibara et al. 2004), kept between two plain bounds. A node that was
itself paused accuses nobody: its own late timer proves nothing about others (Lifeguard, section IV).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from gossip.settings import GossipSettings

INTERVALS_KEPT = 64
DEVIATION_MIN_S = 0.1


@dataclass(slots=True)
class Silence:
    """Frames heard on one session."""

    settings: GossipSettings
    heard_at: float
    intervals: deque[float] = field(default_factory=lambda: deque(maxlen=INTERVALS_KEPT))

    def hear(self, now: float) -> None:
        """A frame arrived."""
        self.intervals.append(now - self.heard_at)
        self.heard_at = now

    def excuse(self, now: float) -> None:
        """The silence so far was our own fault."""
        self.heard_at = max(self.heard_at, now)

    def limit_s(self) -> float:
        """Silence at which the session counts as lost."""
        settings = self.settings
        mean = max(settings.hello_s, sum(self.intervals) / len(self.intervals)) if self.intervals else settings.hello_s
        variance = sum((value - mean) ** 2 for value in self.intervals) / max(1, len(self.intervals))
        deviation = max(DEVIATION_MIN_S, math.sqrt(variance))
        reach = mean + deviation * math.sqrt(2 * settings.phi * math.log(10))
        return min(settings.silence_max_s, max(settings.silence_min_s, reach))

    def lost(self, now: float) -> bool:
        """True if it has been silent for too long."""
        return now - self.heard_at > self.limit_s()
