"""What was accepted and what arrived, message by message."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


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
    arrived: dict[str, float] = field(default_factory=dict)
    """Message -> when its first copy came."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Message -> copies at smart hosts of whose acceptance no relay learnt: each is sent again, as SMTP has it."""
    delays_s: list[float] = field(default_factory=list)
    """From submission to the first arrival, in the order of arrivals."""
    transfers: int = 0
    """Between relays."""
    revisits: int = 0
    """Times that a message was at a relay again, other than by a step back."""
    steps_back: int = 0
    """Out of a dead end, to the relay that first sent the message there."""
    repeats: int = 0
    """Times that a message went from one relay to another for the second time: a cycle begun again."""
    longest: int = 0
    """Most transfers that one message made."""
    by_host: dict[str, list[float]] = field(default_factory=dict)
    """Host -> times of arrivals."""

    def transferred(self, trace: Sequence[str], to: str) -> None:
        """A relay took a message of another one, the last of the trace."""
        self.transfers += 1
        self.longest = max(self.longest, len(trace))
        if to not in trace:
            return
        sender = trace[-1]
        if trace[: trace.index(sender)][-1:] == (to,):
            self.steps_back += 1
        else:
            self.revisits += 1
        self.repeats += (sender, to) in pairwise(trace)

    def delivered(self, name: str, host: str, now: float) -> None:
        """A smart host took a message."""
        self.deliveries[name] = self.deliveries.get(name, 0) + 1
        self.by_host.setdefault(host, []).append(now)
        if self.deliveries[name] == 1:
            self.arrived[name] = now
            if name in self.accepted:
                self.delays_s.append(now - self.accepted[name])

    @property
    def doubled_inside(self) -> int:
        """Further copies at smart hosts that no lost answer explains: the mesh itself had the message twice."""
        return sum(max(0, copies - 1 - self.unanswered[name]) for name, copies in self.deliveries.items() if copies > 1)

    def delays(self, since: float, until: float, now: float) -> list[float]:
        """Of what was submitted in [since, until), by submission; what has not arrived yet is as late as it is old."""
        return [self.arrived.get(name, now) - at for name, at in self.accepted.items() if since <= at < until]

    def count(self, since: float, until: float) -> int:
        """Arrivals in [since, until)."""
        return sum(bisect_left(times, until) - bisect_left(times, since) for times in self.by_host.values())

    def count_of(self, host: str, since: float) -> int:
        """Arrivals at one host since then."""
        times = self.by_host.get(host, [])
        return len(times) - bisect_left(times, since)
