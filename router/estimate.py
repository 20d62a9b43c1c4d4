"""Estimators of one edge from what was measured on it: availability, reliability, capacity, latency, window. Pure.

availability   share of time that the edge takes a session; time-weighted average, slow
reliability    share of attempts that end in a final 2yz, the hop's own faults only; Beta with forgetting
capacity       messages per second; what went through while the edge, not our mail, was the limit
latency        MAIL to final reply; smallest of the last minute, and a peak-sensitive average
window         transactions in flight; grows while the next hop does not queue (TCP Vegas)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

AVAILABILITY_TAU_S = 600.0
HALF_LIFE_S = 300.0
EVIDENCE_MAX = 200.0
PRIOR_SUCCESSES, PRIOR_FAILURES = 1.8, 0.2
BIN_S = 1.0
BINS_KEPT = 30
BEST_KEPT_S = 60.0
PROOF_KEPT_S = 300.0
UNPROVEN_GROWTH = 2.0
CAPACITY_PRIOR_MPS = 10.0
LATENCY_TAU_S = 10.0
LATENCY_MIN_KEPT_S = 60.0


@dataclass(slots=True)
class Availability:
    """Starts as available: nothing is known against it."""

    value: float = 1.0
    up: bool = True
    since: float = 0.0

    def observe(self, up: bool, now: float) -> None:
        """The edge is up or down from now on."""
        self.value = self.at(now)
        self.up, self.since = up, now

    def at(self, now: float) -> float:
        """0..1 at an instant."""
        weight = math.exp(-max(0.0, now - self.since) / AVAILABILITY_TAU_S)
        return self.value * weight + (1.0 if self.up else 0.0) * (1 - weight)


@dataclass(slots=True)
class Reliability:
    """Beta(successes, failures) whose evidence fades."""

    successes: float = PRIOR_SUCCESSES
    failures: float = PRIOR_FAILURES
    since: float = 0.0

    def observe(self, success: bool, now: float) -> None:
        """One attempt that got a session."""
        self._fade(now)
        if success:
            self.successes += 1
        else:
            self.failures += 1
        total = self.successes + self.failures
        if total > EVIDENCE_MAX:
            self.successes *= EVIDENCE_MAX / total
            self.failures *= EVIDENCE_MAX / total

    @property
    def value(self) -> float:
        """Mean, 0..1."""
        return self.successes / (self.successes + self.failures)

    @property
    def samples(self) -> int:
        """Attempts behind the value, faded; 0 = nothing but the prior."""
        return max(0, round(self.successes + self.failures - PRIOR_SUCCESSES - PRIOR_FAILURES))

    def _fade(self, now: float) -> None:
        keep = 0.5 ** (max(0.0, now - self.since) / HALF_LIFE_S)
        self.successes = PRIOR_SUCCESSES + (self.successes - PRIOR_SUCCESSES) * keep
        self.failures = PRIOR_FAILURES + (self.failures - PRIOR_FAILURES) * keep
        self.since = now


@dataclass(slots=True)
class Capacity:
    """Accepted messages in bins of a second. A bin counts as proof if mail had to wait for the edge during it."""

    bin_began: float = 0.0
    accepted: int = 0
    limited: bool = False
    proofs: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=BINS_KEPT))
    """(when, rate) of bins in which the edge was the limit."""
    best: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=int(BEST_KEPT_S)))
    """(when, rate) of all recent bins."""

    def observe_accepted(self, now: float) -> None:
        """A message was accepted."""
        self._roll(now)
        self.accepted += 1

    def observe_limit(self, now: float) -> None:
        """Mail waits because the edge has no free slot."""
        self._roll(now)
        self.limited = True

    def proven(self, now: float) -> bool:
        """True if the edge was seen at its limit in the last minutes."""
        self._roll(now)
        return bool(self.proofs) and now - self.proofs[-1][0] <= PROOF_KEPT_S

    def at(self, now: float) -> float:
        """Messages per second. Unproven: twice the best recent rate, so that demand may find the limit."""
        if self.proven(now):
            rates = sorted(rate for _, rate in self.proofs)
            proven = rates[min(len(rates) - 1, int(len(rates) * 0.9))]
            return max(proven, self._best(now))
        best = self._best(now)
        return UNPROVEN_GROWTH * best if best else CAPACITY_PRIOR_MPS

    def _best(self, now: float) -> float:
        return max((rate for when, rate in self.best if now - when <= BEST_KEPT_S), default=0.0)

    def _roll(self, now: float) -> None:
        length = now - self.bin_began
        if length < BIN_S:
            return
        if self.accepted or self.limited:
            rate = self.accepted / min(length, 2 * BIN_S) if length < 2 * BIN_S else float(self.accepted)
            ended = min(now, self.bin_began + 2 * BIN_S)
            self.best.append((ended, rate))
            if self.limited and self.accepted:
                self.proofs.append((ended, rate))
        self.bin_began, self.accepted, self.limited = now, 0, False


@dataclass(slots=True)
class Latency:
    """Seconds from MAIL to the final reply."""

    minimum: float | None = None
    minimum_at: float = 0.0
    peak: float | None = None
    peak_at: float = 0.0

    def observe(self, latency_s: float, now: float) -> None:
        """One measurement."""
        if self.minimum is None or latency_s <= self.minimum or now - self.minimum_at > LATENCY_MIN_KEPT_S:
            self.minimum, self.minimum_at = latency_s, now
        if self.peak is None or latency_s >= self.peak:
            self.peak = latency_s
        else:
            weight = math.exp(-max(0.0, now - self.peak_at) / LATENCY_TAU_S)
            self.peak = self.peak * weight + latency_s * (1 - weight)
        self.peak_at = now


@dataclass(slots=True)
class Window:
    """How many transactions may be in flight. Grows fast until the next hop queues for the first time."""

    size: int
    size_max: int
    queued_low: float
    queued_high: float
    latency_floor_s: float
    starting: bool = True
    answered: int = 0

    def observe(self, latency_s: float, minimum_s: float | None) -> None:
        """A transaction ended well; adjusts once per window of answers."""
        self.answered += 1
        if self.answered < self.size:
            return
        self.answered = 0
        floor = max(minimum_s or 0.0, self.latency_floor_s)
        queued = self.size * (1 - floor / latency_s) if latency_s > floor else 0.0
        if queued > self.queued_high:
            self.starting = False
            self.size = max(1, self.size - 1)
        elif queued < self.queued_low:
            self.size = min(self.size_max, self.size * 2 if self.starting else self.size + 1)
        else:
            self.starting = False

    def shrink(self) -> None:
        """The hop gave a 421, a timeout or a lost connection."""
        self.starting = False
        self.size = max(1, self.size - 1)
        self.answered = 0
