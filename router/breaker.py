"""The breaker of one edge: when it may be used, and with how many transactions at once. Pure.

    state       means                          leaves by
    UNKNOWN     nothing measured yet           first success: UP; failures as from UP
    UP          used up to its window          as many failures in a row as are suspicious, or peers' reports: SUSPECT
    SUSPECT     one transaction at a time      success: UP; more failures in a row: DOWN
    DOWN        not used                       after a pause that doubles, or others say that it is back: HALF_OPEN
    HALF_OPEN   one transaction or probe       `trial_successes`: UP with a ramp; a failure: DOWN, twice as long
    DRAINING    takes nothing new              the operator

A refused connection is DOWN at once. A flapping edge is never excluded, only kept to one transaction until its penalty
has faded. How many failures in a row mean something depends on how many are usual: a way that loses every sixth
connection would be suspected every few seconds, and closed every few minutes. A failure of an attempt that began before
the trial did says nothing about the trial (an attempt may hang for minutes); a success always counts.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from router.decision import EdgeState, OutcomeKind
from router.settings import RouterSettings

USABLE = frozenset({EdgeState.UNKNOWN, EdgeState.UP, EdgeState.SUSPECT, EdgeState.HALF_OPEN})
ONE_MESSAGE = frozenset({EdgeState.UNKNOWN, EdgeState.UP, EdgeState.SUSPECT})
ITS_OWN_FAULT = frozenset(
    {OutcomeKind.HOP_TEMPFAIL, OutcomeKind.DISCONNECTED, OutcomeKind.IN_DOUBT, OutcomeKind.TIMEOUT}
)
"""What a message can do to a hop that is well otherwise."""

SUSPECT_CHANCE, DOWN_CHANCE = 1e-3, 1e-5
"""Of so many failures in a row by chance. With a loss of 0.1, as of a hop that nobody knows, it is 3 and 5 of them."""
PATIENCE_MAX = 3
"""Times the failures in a row of the settings, at most."""
LOSS_MAX = 0.9
TRIFLE = 1.0
"""A penalty below this is forgotten."""


@dataclass(slots=True)
class Breaker:
    """State of one edge. Methods return the reason of a change, or None if the state stays."""

    settings: RouterSettings
    rng: random.Random
    state: EdgeState = EdgeState.UNKNOWN
    since: float = 0.0
    reason: str = ""
    """Why it is in this state, for people."""
    failures: int = 0
    usual_loss: float = 0.0
    """Share of the attempts that failed before the failures in a row began."""
    successes: int = 0
    retry_at: float | None = None
    """When DOWN ends; None in every other state."""
    pause_s: float = 0.0
    trial_at: float = -math.inf
    """When the last trial began."""
    ramp: float = 1.0
    ramp_at: float = 0.0
    pause_max_s: float = math.inf
    """Of this edge, where it is shorter than that of the settings."""
    penalty: float = 0.0
    penalty_at: float = 0.0
    suppressed: bool = False
    failed_message: str = ""
    """The message of the last failure that counted."""

    def record(
        self, kind: OutcomeKind, reason: str, now: float, *, began: float | None = None, message: str = ""
    ) -> str | None:
        """Take the end of an attempt or probe that began at `began` (None = now).

        A message that fails again right after itself says more of the message than of the hop: it counts once.
        """
        if kind is OutcomeKind.CANCELLED or self.state is EdgeState.DRAINING:
            return None
        if kind in (OutcomeKind.ACCEPTED, OutcomeKind.MESSAGE_REFUSED):
            return self._succeed(now)
        if self.state is EdgeState.DOWN or (began is not None and began < self.trial_at):
            return None
        if message and message == self.failed_message and self.state in ONE_MESSAGE and kind in ITS_OWN_FAULT:
            return None
        self.failed_message = message
        return self._fail(kind, reason or kind.value, now)

    def suspect(self, reason: str, now: float) -> str | None:
        """Others report it down: be careful."""
        if self.state not in (EdgeState.UP, EdgeState.UNKNOWN):
            return None
        self.failures = max(self.failures, self.settings.suspect_after)
        return self._enter(EdgeState.SUSPECT, reason, now)

    def lose(self, reason: str, now: float) -> str | None:
        """The session with the peer is lost: down at once."""
        return None if self.state in (EdgeState.DOWN, EdgeState.DRAINING) else self._go_down(reason, now)

    def regain(self, reason: str, now: float) -> str | None:
        """Others say that it is there: try, without waiting for the end of the pause."""
        return self._try(reason, now) if self.state is EdgeState.DOWN else None

    def drain(self, reason: str, now: float) -> str | None:
        """Give it nothing new."""
        return None if self.state is EdgeState.DRAINING else self._enter(EdgeState.DRAINING, reason, now)

    def undrain(self, reason: str, now: float) -> str | None:
        """It may be used again, after a trial."""
        return self._try(reason, now) if self.state is EdgeState.DRAINING else None

    def on_timer(self, now: float) -> str | None:
        """DOWN long enough: try."""
        if self.state is EdgeState.DOWN and self.retry_at is not None and now >= self.retry_at:
            return self._try(f"down for {now - self.since:.1f} s, trying again", now)
        return None

    def slots(self, window: int, now: float, *, panic: bool = False) -> int:
        """Transactions that may be in flight. In a panic (most hops of a class are not UP) caution is off."""
        match self.state:
            case EdgeState.UP | EdgeState.UNKNOWN:
                return 1 if self.penalty and not panic and self._is_suppressed(now) else window
            case EdgeState.SUSPECT:
                return window if panic else 1
            case EdgeState.HALF_OPEN:
                return 1
            case _:
                return 0

    @property
    def on_first_trial(self) -> bool:
        """Nothing has succeeded since it was down: a probe risks less than a message."""
        return self.state is EdgeState.HALF_OPEN and not self.successes

    # -- changes -------------------------------------------------------------------------------------------------------

    def _succeed(self, now: float) -> str | None:
        self.failures, self.failed_message = 0, ""
        match self.state:
            case EdgeState.UNKNOWN:
                return self._enter(EdgeState.UP, "first success", now)
            case EdgeState.SUSPECT:
                return self._enter(EdgeState.UP, "it answers again", now)
            case EdgeState.DOWN:
                return self._try("an attempt from before it went down succeeded", now)
            case EdgeState.HALF_OPEN:
                return self._advance_trial(now)
            case _:
                self._climb(now)
                return None

    def _advance_trial(self, now: float) -> str | None:
        self.successes += 1
        if self.successes < self.settings.trial_successes:
            return None
        self.ramp_at, self.pause_s = now, 0.0
        return self._enter(EdgeState.UP, f"{self.successes} successes on trial", now)

    def _climb(self, now: float) -> None:
        """Trust doubles for each second with a delivery."""
        if self.ramp < 1.0 and now - self.ramp_at >= 1.0:
            self.ramp, self.ramp_at = min(1.0, self.ramp * 2), now

    def _fail(self, kind: OutcomeKind, reason: str, now: float) -> str | None:
        self.failures += 1
        if self.state is EdgeState.HALF_OPEN or kind is OutcomeKind.CONNECT_FAILED:
            return self._go_down(reason, now)
        if self.failures >= self._unlikely(self.settings.down_after, DOWN_CHANCE):
            return self._go_down(f"{self.failures} failures in a row, the last: {reason}", now)
        suspicious = self.failures >= self._unlikely(self.settings.suspect_after, SUSPECT_CHANCE)
        if suspicious and self.state is not EdgeState.SUSPECT:
            return self._enter(EdgeState.SUSPECT, f"{self.failures} failures in a row, the last: {reason}", now)
        return None

    def _unlikely(self, least: int, chance: float) -> int:
        """Failures in a row that have no more than this chance at the usual loss."""
        if self.usual_loss <= 0.0:
            return least
        most = PATIENCE_MAX * least
        return min(most, max(least, math.ceil(math.log(chance) / math.log(min(self.usual_loss, LOSS_MAX)))))

    def _go_down(self, reason: str, now: float) -> str:
        """A trial that got no answer was a pause already: the next one is due so long after it began."""
        settings, since = self.settings, self.trial_at if self.on_first_trial else now
        if self.state is not EdgeState.HALF_OPEN:
            self.penalty = self._penalty(now) + settings.flap_penalty
            self.penalty_at = now
        longest_s = min(settings.retry_max_s, self.pause_max_s)
        self.pause_s = min(longest_s, max(settings.retry_first_s, self.pause_s * 2))
        self.ramp = settings.ramp_first
        self._enter(EdgeState.DOWN, reason, now)
        pause_s = self.pause_s * (1 + settings.retry_jitter * (self.rng.random() * 2 - 1))
        self.retry_at = max(now, since + pause_s)
        return reason

    def _try(self, reason: str, now: float) -> str:
        self.failures = self.successes = 0
        self.trial_at = now
        return self._enter(EdgeState.HALF_OPEN, reason, now)

    def _enter(self, state: EdgeState, reason: str, now: float) -> str:
        self.state, self.since, self.reason = state, now, reason
        self.retry_at = None
        return reason

    def _penalty(self, now: float) -> float:
        return self.penalty * float(0.5 ** (max(0.0, now - self.penalty_at) / self.settings.flap_half_life_s))

    def _is_suppressed(self, now: float) -> bool:
        settings, penalty = self.settings, self._penalty(now)
        if penalty < TRIFLE:
            self.penalty, self.suppressed = 0.0, False
            return False
        self.suppressed = penalty >= settings.flap_reuse if self.suppressed else penalty > settings.flap_suppress
        return self.suppressed
