"""How long a client lets us wait, and how slowly its mail data comes. Pure; `now` in seconds.

A listener looks at all its sessions again and again instead of arming a timer for each command: a look costs less than
a timer, and a session that is fast costs nothing. While we are the ones who work (storing, verifying), no time runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from smtp_edge.reply import Reply

IDLE = Reply(421, "idle for too long", "4.4.2")
DATA_TIMEOUT = Reply(421, "timeout in mail data", "4.4.2")
DATA_SLOW = Reply(421, "mail data comes too slowly", "4.4.2")
SESSION_OVER = Reply(421, "the session has lasted for long, connect again", "4.4.2")


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """Seconds, and bytes a second; 0 = no limit (not for `idle_s`)."""

    idle_s: float
    session_s: float = 0
    bytes_per_s: int = 0
    window_s: float = 60

    @property
    def look_every_s(self) -> float:
        """How often to look, so that no limit is overrun by more than a tenth."""
        shortest = min(self.idle_s, self.window_s if self.bytes_per_s else self.idle_s)
        return min(1.0, max(0.01, shortest / 10))


class Pace:
    """One session's. `received_count` is to be raised with every segment."""

    __slots__ = (
        "_began",
        "_data",
        "_limits",
        "_seen",
        "_silent_since",
        "_window_count",
        "_window_since",
        "between_transactions",
        "received_count",
    )

    def __init__(self, limits: PaceLimits, now: float) -> None:
        self._limits, self._began = limits, now
        self.received_count = 0
        """Bytes since the beginning."""
        self.between_transactions = True
        self._data = False
        self._silent_since: float | None = None
        self._seen = self._window_count = 0
        self._window_since = now

    def await_client(self, now: float, *, data: bool = False) -> None:
        """It is the client's turn."""
        self._silent_since, self._seen = now, self.received_count
        if data and not self._data:
            self._window_since, self._window_count = now, self.received_count
        self._data = data

    def work(self) -> None:
        """It is our turn."""
        self._silent_since = None

    def overdue(self, now: float) -> Reply | None:
        """The farewell, if the client has been too slow."""
        if self._silent_since is None:
            return None
        if self._data and self.received_count != self._seen:  # a command has to be whole in time, mail data to come
            self._silent_since, self._seen = now, self.received_count
        if now - self._silent_since >= self._limits.idle_s:
            return DATA_TIMEOUT if self._data else IDLE
        return self._check_rate(now) if self._data else self._check_session(now)

    def _check_session(self, now: float) -> Reply | None:
        """A transaction that has begun gets as much time again."""
        allowed_s = self._limits.session_s * (1 if self.between_transactions else 2)
        return SESSION_OVER if allowed_s and now - self._began >= allowed_s else None

    def _check_rate(self, now: float) -> Reply | None:
        elapsed_s = now - self._window_since
        if not self._limits.bytes_per_s or elapsed_s < self._limits.window_s:
            return None
        received = self.received_count - self._window_count
        self._window_since, self._window_count = now, self.received_count
        return DATA_SLOW if received < self._limits.bytes_per_s * elapsed_s else None
