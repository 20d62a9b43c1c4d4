"""Estimators of one edge from what was measured on it. Pure; `now` never runs backwards.

availability   share of time that the edge takes a session; time-weighted average, slow: for rank and reports
reliability    share of attempts that end well, the hop's own faults only; Beta distribution with forgetting
capacity       messages per second; proven by seconds in which the edge, not our mail, was the limit
latency        MAIL to final reply; smallest of the last minutes, a mean, and a peak-sensitive average
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

AVAILABILITY_TAU_S = 600.0
HALF_LIFE_S = 300.0
"""Evidence for the reliability halves in this time."""
EVIDENCE_MAX = 200.0
"""Attempts that the reliability remembers at most, so that a change shows within as many."""
PRIOR_SUCCESSES, PRIOR_FAILURES = 1.8, 0.2
BIN_S = 1.0
BINS_KEPT = 30
FULL_SHARE_MIN = 0.9
"""A bin is proof of the capacity if all slots were taken for this share of it."""
PROOF_QUANTILE = 0.9
BEST_KEPT_S = 60.0
PROOF_KEPT_S = 300.0
UNPROVEN_GROWTH = 2.0
"""Unproven capacity is this multiple of the best recent second: it doubles while demand fills it, like slow start."""
CAPACITY_PRIOR_MPS = 10.0
"""Unproven capacity is never less: one message an hour says nothing of what an edge could take."""
LATENCY_MEAN_TAU_S = 5.0
EASE_EXPONENT = 0.25
"""How strongly queueing at a hop moves mail to others. In simulation (three relays, three hosts) the full ratio swings,
none of it doubles the delay at low load."""
LATENCY_PEAK_TAU_S = 10.0
LATENCY_MIN_KEPT_S = 60.0
LATENCY_MIN_RISE = 1.5
"""The smallest latency rises by no more than this factor a minute: a queue that stands for minutes is still a queue."""


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
    """Beta(successes, failures) whose evidence fades toward the prior."""

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
        """Mean, 0..1, as of the last attempt."""
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
    """Accepted messages in bins of a second, and for how much of the bin every slot was taken."""

    bin_began: float = 0.0
    accepted: int = 0
    full: bool = False
    full_since: float = 0.0
    full_s: float = 0.0
    """Time in this bin, up to `full_since`, during which all slots were taken."""
    proofs: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=BINS_KEPT))
    """(when, rate) of bins in which the edge was the limit."""
    best: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=int(BEST_KEPT_S / BIN_S)))
    """(when, rate) of all recent bins with mail."""
    known_mps: float = CAPACITY_PRIOR_MPS
    known: bool = False
    known_until: float = -math.inf
    """Instant up to which `known_mps` and `known` hold: they change only when a bin ends or evidence grows old."""

    def observe_accepted(self, now: float) -> None:
        """A message was accepted."""
        self._roll(now)
        self.accepted += 1

    def observe_full(self, full: bool, now: float) -> None:
        """From now on all slots are taken, or not."""
        self._roll(now)
        if self.full:
            self.full_s += max(0.0, now - self.full_since)
        self.full, self.full_since = full, now

    def proven(self, now: float) -> bool:
        """True if the edge was seen at its limit in the last minutes."""
        self._learn(now)
        return self.known

    def at(self, now: float) -> float:
        """Messages per second."""
        self._learn(now)
        return self.known_mps

    def sustained(self, now: float) -> float:
        """What was seen, messages per second: the mean of the bins in which it was full, else the best bin; or 0."""
        if self.proven(now):
            return sum(rate for _, rate in self.proofs) / len(self.proofs)
        return self._best(now)

    def _best(self, now: float) -> float:
        return max((rate for when, rate in self.best if now - when <= BEST_KEPT_S), default=0.0)

    def _learn(self, now: float) -> None:
        if now < self.known_until:
            return
        self._roll(now)
        self.known_until = now + BIN_S
        self.known = bool(self.proofs) and now - self.proofs[-1][0] <= PROOF_KEPT_S
        best = self._best(now)
        if self.known:
            rates = sorted(rate for _, rate in self.proofs)
            self.known_mps = max(rates[min(len(rates) - 1, int(len(rates) * PROOF_QUANTILE))], best)
        else:
            self.known_mps = max(UNPROVEN_GROWTH * best, CAPACITY_PRIOR_MPS)

    def _roll(self, now: float) -> None:
        """End the bin if it is old enough. A long one was idle, unless its slots were taken all the time."""
        length_s = now - self.bin_began
        if length_s < BIN_S:
            return
        full_s = self.full_s + (max(0.0, now - self.full_since) if self.full else 0.0)
        proof = full_s >= FULL_SHARE_MIN * length_s
        if self.accepted:
            rate = self.accepted / (length_s if proof or length_s < 2 * BIN_S else BIN_S)
            self.best.append((now, rate))
            if proof:
                self.proofs.append((now, rate))
        if self.accepted or not proof:  # a slow edge's bin goes on until something was accepted
            self.bin_began, self.accepted, self.full_s, self.full_since = now, 0, 0.0, now
        self.known_until = -math.inf


@dataclass(slots=True)
class Latency:
    """Seconds from MAIL to the final reply."""

    minimum: float | None = None
    minimum_at: float = 0.0
    lately: float = math.inf
    """Smallest since `minimum_at`: what the minimum rises to."""
    mean: float | None = None
    peak: float | None = None
    seen_at: float = 0.0

    def observe(self, latency_s: float, now: float) -> None:
        """One measurement."""
        self._note_minimum(latency_s, now)
        age_s = max(0.0, now - self.seen_at)
        if self.mean is None or self.peak is None:
            self.mean = self.peak = latency_s
        else:
            self.mean += (latency_s - self.mean) * _weight(age_s, LATENCY_MEAN_TAU_S)
            fading = self.peak + (latency_s - self.peak) * _weight(age_s, LATENCY_PEAK_TAU_S)
            self.peak = max(latency_s, fading)
        self.seen_at = now

    def ease(self, floor_s: float) -> float:
        """1 = nothing queues at the next hop; less, gently, as messages take longer than they need."""
        if self.mean is None or self.minimum is None:
            return 1.0
        return float(min(1.0, max(self.minimum, floor_s) / max(self.mean, floor_s)) ** EASE_EXPONENT)

    def _note_minimum(self, latency_s: float, now: float) -> None:
        if self.minimum is None or latency_s <= self.minimum:
            self.minimum, self.minimum_at, self.lately = latency_s, now, math.inf
            return
        self.lately = min(self.lately, latency_s)
        if now - self.minimum_at >= LATENCY_MIN_KEPT_S:
            self.minimum = min(self.lately, max(self.minimum, 0.001) * LATENCY_MIN_RISE)
            self.minimum_at, self.lately = now, math.inf


def _weight(age_s: float, tau_s: float) -> float:
    """Weight of a new value after a pause; at least a little, or simultaneous ends would all go unnoticed."""
    return max(0.05, 1 - math.exp(-age_s / tau_s))
