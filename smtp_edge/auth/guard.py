"""Who guesses passwords is not listened to for a while. Pure; `now` in seconds.

    failures of one client    (an address, an IPv6 /64) beyond `per_client` an hour: nobody is checked from there
    failures for one user     beyond `per_user` an hour: that user is checked only from where he has been of late

So a stranger can neither try a million passwords nor lock somebody out: where the user logged in before, he still does.
A refusal is 454 and says "come later"; whether the password would have been right is not told and not looked at.
"""

from __future__ import annotations

HOUR_S = 3600.0
REMEMBERED_S = 30 * 86400.0
"""A user's places are known for so long."""
PLACES_MAX = 50_000
NAMES_MAX = 50_000


class Failures:
    """Failures by name; each is forgotten within an hour, evenly."""

    def __init__(self, count_max: int) -> None:
        self.count_max = count_max
        self._levels: dict[str, tuple[float, float]] = {}

    def count(self, name: str, now: float) -> float:
        """Failures that still count."""
        level, at = self._levels.get(name, (0.0, now))
        return max(0.0, level - (now - at) * self.count_max / HOUR_S)

    def add(self, name: str, now: float) -> None:
        """One more."""
        level = self.count(name, now) + 1
        self._levels.pop(name, None)
        if len(self._levels) >= NAMES_MAX:
            del self._levels[next(iter(self._levels))]
        self._levels[name] = min(level, self.count_max + 1.0), now

    def too_many(self, name: str, now: float) -> bool:
        """One more would be beyond the bound."""
        return bool(self.count_max) and self.count(name, now) > self.count_max - 1


class Guard:
    """See the module. `client` is the name that its addresses count for."""

    def __init__(self, *, per_client: int, per_user: int) -> None:
        self.bounds = per_client, per_user
        self._clients, self._users = Failures(per_client), Failures(per_user)
        self._places: dict[tuple[str, str], float] = {}

    def may_try(self, user: str, client: str, now: float) -> bool:
        """Whether a password is to be looked at."""
        if self._clients.too_many(client, now):
            return False
        return self._is_known(user, client, now) or not self._users.too_many(user, now)

    def note_failure(self, user: str, client: str, now: float) -> None:
        """Wrong. Where the user is known it is his own slip, and does not count against him elsewhere."""
        self._clients.add(client, now)
        if not self._is_known(user, client, now):
            self._users.add(user, now)

    def note_success(self, user: str, client: str, now: float) -> None:
        """Right."""
        self._places.pop((user, client), None)
        if len(self._places) >= PLACES_MAX:
            del self._places[next(iter(self._places))]
        self._places[user, client] = now

    def _is_known(self, user: str, client: str, now: float) -> bool:
        at = self._places.get((user, client))
        return at is not None and now - at < REMEMBERED_S
