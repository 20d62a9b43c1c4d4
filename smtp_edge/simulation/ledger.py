"""What was accepted and what arrived, message by message."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from smtp_edge.client.attempt import Job


@dataclass
class Ledger:
    """Times are the mesh's virtual seconds."""

    offered: int = 0
    refused: int = 0
    """Offered to a dead relay, or answered 4yz or 5yz: the client still owns them."""
    attempts: int = 0
    accepted: dict[str, float] = field(default_factory=dict)
    """Message -> when its submission began."""
    deliveries: dict[str, int] = field(default_factory=dict)
    """Message -> copies at smart hosts."""
    delays_s: list[float] = field(default_factory=list)
    """From submission to the first arrival, in the order of arrivals."""
    transfers: int = 0
    """Between relays."""
    revisits: int = 0
    """Times that a message was at a relay again, other than by a step back."""
    steps_back: int = 0
    """Out of a dead end, to the relay that first sent the message there."""
    by_host: dict[str, list[float]] = field(default_factory=dict)
    """Host -> times of arrivals."""

    def delivered(self, name: str, host: str, job: Job, now: float) -> None:
        """A smart host took a message."""
        self.deliveries[name] = self.deliveries.get(name, 0) + 1
        self.by_host.setdefault(host, []).append(now)
        if self.deliveries[name] == 1 and name in self.accepted:
            self.delays_s.append(now - self.accepted[name])

    def count(self, since: float, until: float) -> int:
        """Arrivals in [since, until)."""
        return sum(bisect_left(times, until) - bisect_left(times, since) for times in self.by_host.values())

    def count_of(self, host: str, since: float) -> int:
        """Arrivals at one host since then."""
        times = self.by_host.get(host, [])
        return len(times) - bisect_left(times, since)
