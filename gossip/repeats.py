"""The same refusal again and again is one log line a minute. Pure."""

from __future__ import annotations

from collections.abc import Hashable

PERIOD_S = 60.0
KEYS_MAX = 1000
"""When more different things repeat, the oldest is forgotten and may be said again."""


class Repeats:
    """What was said when."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._said_at: dict[Hashable, float] = {}

    def is_new(self, key: Hashable, now: float) -> bool:
        """True the first time, and again once the period is over."""
        said_at = self._said_at.get(key)
        if said_at is not None and now - said_at < self._period_s:
            return False
        self._said_at.pop(key, None)
        self._said_at[key] = now
        if len(self._said_at) > KEYS_MAX:
            del self._said_at[next(iter(self._said_at))]
        return True
