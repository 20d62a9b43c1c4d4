"""Flap damping at the origin: what goes down and up again and again is told as down until it is calm. Pure.

Figures of merit as in RFC 2439, but for the origin's own links only: a penalty for each recovery, decaying by half
every 100 s, so that a link is damped if and only if it goes on changing more than twice a minute. Bad news is never
damped. If damping would hide more than half of what is up, or the last of it, nothing is damped: a trembling path is
better than none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from gossip.linkstate import LinkState, LinkStatus
from gossip.scores import GOOD

PENALTY = 1000.0
HALF_LIFE_S = 100.0
SUPPRESS_AT = 3000.0
REUSE_AT = 1000.0
SUPPRESSED_MAX_S = 600.0
KEPT_AT = 100.0
"""Below this a penalty is forgotten."""


@dataclass(slots=True)
class Merit:
    """One link."""

    penalty: float = 0.0
    at: float = 0.0
    suppressed_at: float | None = None

    def decay(self, now: float) -> None:
        """Let the penalty fade, and the suppression end."""
        self.penalty *= 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_S)
        self.at = now
        if self.suppressed_at is not None and (self.penalty < REUSE_AT or now - self.suppressed_at >= SUPPRESSED_MAX_S):
            self.suppressed_at = None


@dataclass(slots=True)
class Damping:
    """All links of one origin, by name."""

    merits: dict[str, Merit] = field(default_factory=dict)

    def record_recovery(self, name: str, now: float) -> None:
        """A link went from down to up."""
        merit = self.merits.setdefault(name, Merit(at=now))
        merit.decay(now)
        merit.penalty += PENALTY
        if merit.penalty >= SUPPRESS_AT and merit.suppressed_at is None:
            merit.suppressed_at = now

    def hide_links(self, links: Sequence[LinkState], now: float) -> tuple[LinkState, ...]:
        """The own links as they are to be told: those that flap as down, but for the last way of a class."""
        up = {link.hop for link in links if link.status in GOOD}
        hidden = self.hidden(up, now)
        if not hidden:
            return tuple(links)
        served = {name for link in links if link.hop in up - hidden for name in link.classes}
        return tuple(
            replace(link, status=LinkStatus.DOWN) if link.hop in hidden and served.issuperset(link.classes) else link
            for link in links
        )

    def hidden(self, up: Collection[str], now: float) -> frozenset[str]:
        """Which of the links that are up are to be told as down."""
        for name in [name for name, merit in self.merits.items() if merit.penalty < KEPT_AT]:
            del self.merits[name]
        for merit in self.merits.values():
            merit.decay(now)
        hidden = frozenset(name for name in up if name in self.merits and self.merits[name].suppressed_at is not None)
        return frozenset() if 2 * len(hidden) > len(up) or len(hidden) == len(up) else hidden

    def next_change(self) -> float:
        """When a suppression may end at the latest look, monotonic seconds; infinity if nothing is suppressed."""
        times = [merit.at + 1.0 for merit in self.merits.values() if merit.suppressed_at is not None]
        return min(times, default=float("inf"))
