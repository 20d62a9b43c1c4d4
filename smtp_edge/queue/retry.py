"""When to try again (RFC 5321 section 4.5.4.1). Pure.

The pause grows by a factor with each attempt up to a ceiling. Jitter only shortens it, by up to a quarter: mail that
was deferred together does not come back together, and nothing waits longer than the operator said.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from smtp_edge.settings import QueueSettings

JITTER = 0.25


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The `retry_*`, `lifetime_s` and `delay_notice_s` of [queue]."""

    first_s: float
    factor: float
    max_s: float
    lifetime_s: float
    delay_notice_s: float
    """Age at which the sender is told of a delay; 0 = never."""

    @classmethod
    def from_settings(cls, settings: QueueSettings) -> RetryPolicy:
        """The policy of a configuration."""
        return cls(
            first_s=settings.retry_first_s,
            factor=settings.retry_factor,
            max_s=settings.retry_max_s,
            lifetime_s=settings.lifetime_s,
            delay_notice_s=settings.delay_notice_s,
        )

    def pause_s(self, attempts: int) -> float:
        """The longest pause after so many attempts (at least 1)."""
        exponent = max(0, attempts - 1)
        if self.factor > 1 and exponent * math.log(self.factor) > math.log(max(1.0, self.max_s / self.first_s)):
            return self.max_s  # also keeps a delivery with thousands of attempts from overflowing a float
        return min(self.max_s, self.first_s * self.factor**exponent)

    def next_attempt_at(self, attempts: int, at: datetime, rng: random.Random) -> datetime:
        """When to try again after the `attempts`-th attempt ended at `at`."""
        return at + timedelta(seconds=self.pause_s(attempts) * (1 - JITTER * rng.random()))
