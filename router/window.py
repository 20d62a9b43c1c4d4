"""How many transactions may be in flight on an edge: TCP Vegas' idea (Brakmo & Peterson 1995), pure.

What is in flight beyond what the unloaded latency explains is queued at the next hop: `q = W (1 - minimum / latency)`.
A little queue keeps the next hop busy, more only makes mail wait where it can no longer choose another way.

A window that our own mail does not fill says nothing about the next hop and does not grow (RFC 7661).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """Grows fast until the next hop queues for the first time, then by one for each window of answers."""

    size: int
    size_max: int
    queued_low: float
    queued_high: float
    latency_floor_s: float
    starting: bool = True
    answered: int = 0
    latency_sum_s: float = 0.0
    filled: bool = False
    """Every slot was taken at some time since the last adjustment."""

    @property
    def settled(self) -> bool:
        """It found the next hop's limit, or its own."""
        return not self.starting or self.size >= self.size_max

    def note_filled(self) -> None:
        """Every slot is taken."""
        self.filled = True

    def observe(self, latency_s: float, minimum_s: float | None) -> None:
        """A transaction ended well; adjusts once for each window of answers."""
        self.answered += 1
        self.latency_sum_s += latency_s
        if self.answered < self.size:
            return
        latency_s, filled = self.latency_sum_s / self.answered, self.filled
        self._begin_round()
        queued = self._queued(latency_s, max(minimum_s or 0.0, self.latency_floor_s))
        if queued > self.queued_high:
            self.starting = False
            self.size = max(1, self.size - 1)
        elif queued >= self.queued_low:
            self.starting = False
        elif filled:
            self.size = min(self.size_max, self.size * 2 if self.starting else self.size + 1)

    def shrink(self) -> None:
        """The hop gave a 421, a timeout or a lost connection."""
        self.starting = False
        self.size = max(1, self.size - 1)
        self._begin_round()

    def reopen(self, size: int) -> None:
        """The edge was down: what was learnt of it is old; start again from a small window."""
        self.size, self.starting = min(size, self.size_max), True
        self._begin_round()

    def _queued(self, latency_s: float, floor_s: float) -> float:
        if not math.isfinite(latency_s) or latency_s <= floor_s:
            return 0.0
        return self.size * (1 - floor_s / latency_s)

    def _begin_round(self) -> None:
        self.answered, self.latency_sum_s, self.filled = 0, 0.0, False
