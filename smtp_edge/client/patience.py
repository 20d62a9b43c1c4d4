"""How long a session may take to come about: as long as a few usual ones, so that a dead host is soon known as dead.

A host that is new here gets the configured time. One that took too long gets twice as much the next time, up to that.
Pure: seconds in, seconds out.
"""

from __future__ import annotations

ALLOWED_MIN_S = 1.0
USUAL_FACTOR = 4.0
USUAL_WEIGHT = 0.2
"""Of a faster session than usual; a slower one counts at once."""
ENDPOINTS_MAX = 10_000
"""Remembered; past it the memory starts again: strangers' exchangers cannot grow it."""

Endpoint = tuple[str, int]


class Patience:
    """See the module. `allowed_max_s` is the configured limit."""

    def __init__(self, allowed_max_s: float) -> None:
        self._allowed_max_s = allowed_max_s
        self._usual_s: dict[Endpoint, float] = {}

    def allow(self, endpoint: Endpoint) -> float:
        """Seconds for each step of a session's begin."""
        usual_s = self._usual_s.get(endpoint)
        if usual_s is None:
            return self._allowed_max_s
        return min(self._allowed_max_s, max(ALLOWED_MIN_S, USUAL_FACTOR * usual_s))

    def note_session(self, endpoint: Endpoint, took_s: float) -> None:
        """A session came about."""
        usual_s = self._usual_s.get(endpoint, took_s)
        if len(self._usual_s) >= ENDPOINTS_MAX:
            self._usual_s.clear()
        self._usual_s[endpoint] = max(took_s, usual_s + USUAL_WEIGHT * (took_s - usual_s))

    def note_timeout(self, endpoint: Endpoint) -> None:
        """None came about in the time that was allowed."""
        if endpoint in self._usual_s:
            self._usual_s[endpoint] = min(self._allowed_max_s, 2 * self.allow(endpoint)) / USUAL_FACTOR
