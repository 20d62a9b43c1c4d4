"""When the next version of one's own record may go out. Pure.

At once after quiet; then after a hold that doubles while changes go on (SPF back-off, RFC 8405, turned on origination).
Bad news may pass the hold, so that a trembling score cannot delay it: what is worse once in a while, what is gone a few
times in a row, and neither takes the other's turn. A link that comes and goes is damped (`gossip.damping`), not held.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.linkstate import Urgency

WITHDRAWALS_AT_ONCE = 4.0
"""Withdrawals that may pass the hold in a row; each comes back after `bypass_s`."""


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
    withdrawals: float = WITHDRAWALS_AT_ONCE
    """That may pass it, as of `withdrawn_at`."""
    withdrawn_at: float = 0.0

    def due(self, urgency: Urgency) -> float:
        """The earliest time for a version of this urgency, monotonic seconds."""
        held = self.issued_at + self.hold_s
        if urgency is Urgency.WITHDRAW:
            return min(held, self.withdrawn_at + max(0.0, 1 - self.withdrawals) * self.bypass_s)
        if urgency is Urgency.DEGRADE:
            return min(held, self.degraded_at + self.bypass_s)
        return held

    def record_issue(self, urgency: Urgency, now: float) -> None:
        """A version went out."""
        if now < self.issued_at + self.hold_s:
            self._note_bypass(urgency, now)
        quiet = now - self.issued_at > self.quiet_s
        self.hold_s = self.first_s if quiet or self.hold_s == 0.0 else min(self.max_s, self.hold_s * 2)
        self.issued_at = now

    def _note_bypass(self, urgency: Urgency, now: float) -> None:
        if urgency is Urgency.WITHDRAW:
            back = (now - self.withdrawn_at) / self.bypass_s
            self.withdrawals, self.withdrawn_at = min(WITHDRAWALS_AT_ONCE, self.withdrawals + back) - 1, now
        elif urgency is Urgency.DEGRADE:
            self.degraded_at = now
