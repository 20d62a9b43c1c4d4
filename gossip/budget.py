"""How much work one peer may cause, and for how long it is shut out when it forges. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """A token bucket. `rate` tokens per second, at most `burst` of them."""

    rate: float
    burst: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Budget:
        """One that was not used for long."""
        return cls(rate, burst, burst, now)

    def take(self, now: float) -> bool:
        """True if one more is allowed."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class Quarantine:
    """A peer that was shut out: each time twice as long."""

    first_s: float
    max_s: float
    length_s: float = 0.0
    until: float = float("-inf")

    def begin(self, now: float) -> float:
        """Shut it out; for how long, seconds."""
        self.length_s = min(self.max_s, self.length_s * 2) if self.length_s else self.first_s
        self.until = now + self.length_s
        return self.length_s
