"""When the next version of one's own record may go out. Pure.

At once after quiet; then after a hold that doubles while changes go on (SPF back-off, RFC 8405, turned on origination).
News may pass the hold, so that a trembling score cannot delay them: what is worse once in a while, what is gone or back
a few times in a row, and none takes the turn of another. A link that comes and goes is damped (`gossip.damping`), not
held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.linkstate import Urgency

PASSES_IN_A_ROW = 4.0
"""Withdrawals that may pass the hold in a row, and as many returns; each pass comes back after `bypass_s`."""


@dataclass(slots=True)
class Passes:
    """A bucket of rights to pass the hold."""

    left: float = PASSES_IN_A_ROW
    """As of `at`."""
    at: float = 0.0

    def due(self, pass_s: float) -> float:
        """When there is a whole one."""
        return self.at + max(0.0, 1 - self.left) * pass_s

    def use(self, pass_s: float, now: float) -> None:
        """Take one."""
        self.left, self.at = min(PASSES_IN_A_ROW, self.left + (now - self.at) / pass_s) - 1, now


@dataclass(slots=True)
class Hold:
    """One kind of own record."""

    first_s: float
    max_s: float
    quiet_s: float
    bypass_s: float
    hold_s: float = 0.0
    issued_at: float = float("-inf")
    degraded_at: float = float("-inf")
    """When worse news passed the hold last."""
    withdrawals: Passes = field(default_factory=Passes)
    returns: Passes = field(default_factory=Passes)

    def due(self, urgency: Urgency, *, returned: bool = False) -> float:
        """The earliest time for a version of this urgency, monotonic seconds. `returned`: a link is back."""
        held = self.issued_at + self.hold_s
        if returned:
            held = min(held, self.returns.due(self.bypass_s))
        if urgency is Urgency.WITHDRAW:
            return min(held, self.withdrawals.due(self.bypass_s))
        if urgency is Urgency.DEGRADE:
            return min(held, self.degraded_at + self.bypass_s)
        return held

    def record_issue(self, urgency: Urgency, now: float, *, returned: bool = False) -> None:
        """A version went out."""
        if now < self.issued_at + self.hold_s:
            self._note_bypass(urgency, now, returned=returned)
        quiet = now - self.issued_at > self.quiet_s
        self.hold_s = self.first_s if quiet or self.hold_s == 0.0 else min(self.max_s, self.hold_s * 2)
        self.issued_at = now

    def _note_bypass(self, urgency: Urgency, now: float, *, returned: bool) -> None:
        if urgency is Urgency.WITHDRAW and now >= self.withdrawals.due(self.bypass_s):
            self.withdrawals.use(self.bypass_s, now)
        elif urgency is Urgency.DEGRADE and now >= self.degraded_at + self.bypass_s:
            self.degraded_at = now
        elif returned:
            self.returns.use(self.bypass_s, now)
