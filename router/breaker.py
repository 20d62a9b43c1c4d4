"""The breaker of one edge: when it may be used, and with how many transactions at once. Pure.

    state       means                          leaves by
    UNKNOWN     nothing measured yet           first success: UP; failures as from UP
    UP          used up to its window          `suspect_after` failures in a row, or peers' reports: SUSPECT
    SUSPECT     one transaction at a time      success: UP; `down_after` failures in a row: DOWN
    DOWN        not used                       after 1, 2, 4 .. 60 s, or when the peer's session is back: HALF_OPEN
    HALF_OPEN   one transaction or probe       `trial_successes`: UP with a ramp; a failure: DOWN, twice as long
    DRAINING    takes nothing new              the operator

A refused connection is DOWN at once. A flapping edge is never excluded, only kept to one transaction until its penalty
has faded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from router.decision import EdgeState, OutcomeKind
from router.settings import RouterSettings

SESSION_FAULTS = frozenset(
    {
        OutcomeKind.HOP_TEMPFAIL,
        OutcomeKind.TLS_FAILED,
        OutcomeKind.TIMEOUT,
        OutcomeKind.DISCONNECTED,
        OutcomeKind.IN_DOUBT,
    }
)
USABLE = frozenset({EdgeState.UNKNOWN, EdgeState.UP, EdgeState.SUSPECT, EdgeState.HALF_OPEN})


@dataclass(slots=True)
class Breaker:
    """State of one edge. Methods return the reason of a change, or None if the state stays."""

    settings: RouterSettings
    rng: random.Random
    state: EdgeState = EdgeState.UNKNOWN
    since: float = 0.0
    failures: int = 0
    successes: int = 0
    retry_at: float | None = None
    pause_s: float = 0.0
    ramp: float = 1.0
    ramp_at: float = 0.0
    penalty: float = 0.0
    penalty_at: float = 0.0
    suppressed: bool = False

    def record(self, kind: OutcomeKind, reason: str, now: float) -> str | None:
        """Take the end of an attempt or probe."""
        if kind is OutcomeKind.CANCELLED or self.state is EdgeState.DRAINING:
            return None
        if kind in (OutcomeKind.ACCEPTED, OutcomeKind.MESSAGE_REFUSED):
            return self._succeed(now)
        return self._fail(kind, reason, now)

    def suspect(self, reason: str, now: float) -> str | None:
        """Others report it down: be careful."""
        if self.state not in (EdgeState.UP, EdgeState.UNKNOWN):
            return None
        self.failures = max(self.failures, self.settings.suspect_after)
        return self._enter(EdgeState.SUSPECT, reason, now)

    def lose(self, reason: str, now: float) -> str | None:
        """The session with the peer is lost: down at once."""
        return None if self.state is EdgeState.DOWN else self._go_down(reason, now)

    def regain(self, reason: str, now: float) -> str | None:
        """The session with the peer is there: try."""
        if self.state is not EdgeState.DOWN:
            return None
        self.pause_s = 0.0
        return self._try(reason, now)

    def on_timer(self, now: float) -> str | None:
        """DOWN long enough: try."""
        if self.state is EdgeState.DOWN and self.retry_at is not None and now >= self.retry_at:
            return self._try(f"down for {now - self.since:.1f} s, trying again", now)
        return None

    def slots(self, window: int, now: float) -> int:
        """Transactions that may be in flight."""
        match self.state:
            case EdgeState.DOWN | EdgeState.DRAINING:
                return 0
            case EdgeState.SUSPECT | EdgeState.HALF_OPEN:
                return 1
            case _:
                return 1 if self._is_suppressed(now) else window

    def ramp_share(self) -> float:
        """Share of the capacity that is trusted, 0..1."""
        return self.ramp

    # -- changes -------------------------------------------------------------------------------------------------------

    def _succeed(self, now: float) -> str | None:
        self.failures = 0
        if self.ramp < 1.0 and now - self.ramp_at >= 1.0:
            self.ramp, self.ramp_at = min(1.0, self.ramp * 2), now
        match self.state:
            case EdgeState.UNKNOWN:
                return self._enter(EdgeState.UP, "first success", now)
            case EdgeState.SUSPECT:
                return self._enter(EdgeState.UP, "it answers again", now)
            case EdgeState.HALF_OPEN:
                self.successes += 1
                if self.successes >= self.settings.trial_successes:
                    self.ramp, self.ramp_at, self.pause_s = self.settings.ramp_first, now, 0.0
                    return self._enter(EdgeState.UP, f"{self.successes} successes on trial", now)
            case EdgeState.DOWN:  # an attempt from before ended well
                return self._try("an attempt succeeded", now)
            case _:
                pass
        return None

    def _fail(self, kind: OutcomeKind, reason: str, now: float) -> str | None:
        if self.state is EdgeState.DOWN:
            return None
        self.failures += 1
        if self.state is EdgeState.HALF_OPEN or kind is OutcomeKind.CONNECT_FAILED:
            return self._go_down(reason or kind.value, now)
        if self.failures >= self.settings.down_after:
            return self._go_down(f"{self.failures} failures in a row, the last: {reason or kind.value}", now)
        if self.failures >= self.settings.suspect_after and self.state is not EdgeState.SUSPECT:
            return self._enter(EdgeState.SUSPECT, f"{self.failures} failures in a row: {reason or kind.value}", now)
        return None

    def _go_down(self, reason: str, now: float) -> str:
        settings = self.settings
        if self.state is not EdgeState.HALF_OPEN:
            self.penalty = self._penalty(now) + settings.flap_penalty
            self.penalty_at = now
        self.pause_s = min(settings.retry_max_s, max(settings.retry_first_s, self.pause_s * 2))
        self.retry_at = now + self.pause_s * (1 + settings.retry_jitter * (self.rng.random() * 2 - 1))
        return self._enter(EdgeState.DOWN, reason, now)

    def _try(self, reason: str, now: float) -> str:
        self.successes = 0
        return self._enter(EdgeState.HALF_OPEN, reason, now)

    def _enter(self, state: EdgeState, reason: str, now: float) -> str:
        self.state, self.since = state, now
        if state is not EdgeState.DOWN:
            self.retry_at = None
        return reason

    def _penalty(self, now: float) -> float:
        return self.penalty * float(0.5 ** (max(0.0, now - self.penalty_at) / self.settings.flap_half_life_s))

    def _is_suppressed(self, now: float) -> bool:
        penalty = self._penalty(now)
        if self.suppressed:
            self.suppressed = penalty >= self.settings.flap_reuse
        else:
            self.suppressed = penalty > self.settings.flap_suppress
        return self.suppressed
