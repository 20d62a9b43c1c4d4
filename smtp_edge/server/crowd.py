"""How many connections a client has and how fast it comes: counts and rates of one listener. Pure; `now` in seconds.

A client is an address, or a network whose addresses count as one (an IPv6 customer has a /64 of them). A rate of N a
minute is a bucket of N tokens that fills again in a minute: a burst of N is fine, more of it is not.
"""

from __future__ import annotations

import enum
from collections import Counter

from smtp_edge.networks import ClientKeys, Networks
from smtp_edge.reply import Reply
from smtp_edge.settings_inbound import LimitsSettings

MINUTE_S = 60.0
BUCKETS_MAX = 50_000
"""Clients remembered; those that came longest ago are forgotten first, which only ever favours them."""
LISTENER_FULL = Reply(421, "too many connections", "4.3.2")
CLIENT_FULL = Reply(421, "too many connections from your network", "4.7.0")


class Event(enum.Enum):
    """What is counted by the minute, with the answer to who does it too often."""

    CONNECTION = Reply(421, "too many connections from your network, come later", "4.7.0")
    HANDSHAKE = Reply(454, "too many TLS handshakes from your network, come later", "4.7.0")
    MESSAGE = Reply(450, "too many messages from your network, come later", "4.7.1")
    RECIPIENT = Reply(450, "too many recipients from your network, come later", "4.7.1")


class Buckets:
    """Token buckets by name, all of one size."""

    def __init__(self, size: int, period_s: float) -> None:
        self.size, self._period_s = size, period_s
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float) -> bool:
        """Take a token. False if there is none; without a size there always is."""
        if not self.size:
            return True
        level = self.level(name, now)
        if level < 1:
            return False
        self._levels.pop(name, None)  # to the end: the front is who came longest ago
        if len(self._levels) >= BUCKETS_MAX:
            del self._levels[next(iter(self._levels))]
        self._levels[name] = level - 1, now
        return True

    def level(self, name: str, now: float) -> float:
        """Tokens there now."""
        level, at = self._levels.get(name, (float(self.size), now))
        return min(self.size, level + (now - at) * self.size / self._period_s)


class Crowd:
    """The clients of one listener."""

    def __init__(self, limits: LimitsSettings, *, connections_max: int, connections_per_client_max: int) -> None:
        self._counts: Counter[str] = Counter()
        self._open = 0
        self._buckets: dict[Event, Buckets] = {}
        self._prefixes = (0, 0)
        self.configure(limits, connections_max=connections_max, connections_per_client_max=connections_per_client_max)

    def configure(self, limits: LimitsSettings, *, connections_max: int, connections_per_client_max: int) -> None:
        """Go by other limits from now on. Who is there stays counted; rates are forgotten where theirs has changed."""
        self._connections_max, self._per_client_max = connections_max, connections_per_client_max
        self._exempt = Networks(limits.exempt_networks)
        self._keys = ClientKeys(limits.client_prefix_v4, limits.client_prefix_v6)
        sizes = {
            Event.CONNECTION: limits.connections_per_minute,
            Event.HANDSHAKE: limits.handshakes_per_minute,
            Event.MESSAGE: limits.messages_per_minute,
            Event.RECIPIENT: limits.recipients_per_minute,
        }
        prefixes = limits.client_prefix_v4, limits.client_prefix_v6
        kept = self._buckets if prefixes == self._prefixes else {}
        self._prefixes = prefixes
        self._buckets = {
            event: kept[event] if event in kept and kept[event].size == size else Buckets(size, MINUTE_S)
            for event, size in sizes.items()
        }

    @property
    def open_count(self) -> int:
        """Connections that are there."""
        return self._open

    def enter(self, address: str, now: float) -> tuple[str, Reply | None]:
        """A connection is there: the name to `leave` under, and the refusal, if it is one too many."""
        key = self._keys.key(address)
        self._open += 1
        self._counts[key] += 1
        if self._open > self._connections_max:
            return key, LISTENER_FULL
        if self._counts[key] > self._per_client_max and not self._exempt.hold(address):
            return key, CLIENT_FULL
        return key, self.note(Event.CONNECTION, address, now)

    def leave(self, key: str) -> None:
        """A connection is gone."""
        self._open -= 1
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def note(self, event: Event, address: str, now: float) -> Reply | None:
        """Something happened; the refusal if it happens too often."""
        buckets = self._buckets[event]
        if not buckets.size or self._exempt.hold(address) or buckets.take(self._keys.key(address), now):
            return None
        return event.value
