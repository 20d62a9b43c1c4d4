"""When the next version of one's own record may go out. Pure.

At once after quiet; then after a hold that doubles while changes go on (SPF back-off, RFC 8405, turned on origination).
Bad news may pass the hold once in a while, so that a trembling score cannot delay a withdrawal.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.linkstate import Urgency


@dataclass(slots=True)
class Hold:
    """One kind of own record."""

    first_s: float
    max_s: float
    quiet_s: float
    bypass_s: float
    hold_s: float = 0.0
    issued_at: float = float("-inf")
    bypassed_at: float = float("-inf")

    def due(self, urgency: Urgency) -> float:
        """The earliest time for a version of this urgency, monotonic seconds."""
        held = self.issued_at + self.hold_s
        if urgency <= Urgency.DEGRADE:
            return min(held, self.bypassed_at + self.bypass_s)
        return held

    def record_issue(self, urgency: Urgency, now: float) -> None:
        """A version went out."""
        if now < self.issued_at + self.hold_s and urgency <= Urgency.DEGRADE:
            self.bypassed_at = now
        quiet = now - self.issued_at > self.quiet_s
        self.hold_s = self.first_s if quiet or self.hold_s == 0.0 else min(self.max_s, self.hold_s * 2)
        self.issued_at = now
