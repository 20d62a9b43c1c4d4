"""One own edge: its breaker, its estimators, its transactions in flight. Owned and measured by this node alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from gossip.linkstate import LinkState, LinkStatus
from router.breaker import USABLE, Breaker
from router.decision import EdgeState, Hop, HopKind, Outcome, OutcomeKind
from router.estimate import Availability, Capacity, Latency, Reliability, Window
from router.settings import RouterSettings

STATUS = {
    EdgeState.UNKNOWN: LinkStatus.UNKNOWN,
    EdgeState.UP: LinkStatus.UP,
    EdgeState.SUSPECT: LinkStatus.SUSPECT,
    EdgeState.HALF_OPEN: LinkStatus.HALF_OPEN,
    EdgeState.DOWN: LinkStatus.DOWN,
    EdgeState.DRAINING: LinkStatus.DRAINING,
}
SENT_DECAY_S = 4.5
"""Stride counts fade with this time constant: 0.8 per second."""


@dataclass(slots=True, eq=False)
class Edge:
    """See the module."""

    hop: Hop
    label: str
    cost: int
    breaker: Breaker
    window: Window
    availability: Availability = field(default_factory=Availability)
    reliability: Reliability = field(default_factory=Reliability)
    capacity: Capacity = field(default_factory=Capacity)
    latency: Latency = field(default_factory=Latency)
    inflight: int = 0
    sent: float = 0.0
    sent_at: float = 0.0
    used_at: float = 0.0
    """When it was last tried or probed."""
    probing: bool = False

    @property
    def usable(self) -> bool:
        """Its state permits mail at all."""
        return self.breaker.state in USABLE

    @property
    def exit(self) -> bool:
        """Mail leaves the mesh through it."""
        return self.hop.kind is not HopKind.PEER

    def free_slots(self, now: float) -> int:
        """Transactions that may begin now."""
        return self.breaker.slots(self.window.size, now) - self.inflight

    def effective_capacity(self, now: float) -> float:
        """Messages per second worth planning with: capacity x reliability x ramp."""
        return self.capacity.at(now) * self.reliability.value * self.breaker.ramp_share()

    def weight(self, now: float) -> float:
        """Expected attempts for one delivery over it, in quarter steps, plus the operator's cost: for the rank."""
        attempts = 1 / max(0.05, self.availability.at(now) * self.reliability.value)
        return max(1.0, round(attempts * 4) / 4) + self.cost

    def begin(self, now: float) -> None:
        """A transaction starts."""
        self.inflight += 1
        self.sent = self.faded_sent(now) + 1
        self.sent_at = self.used_at = now

    def faded_sent(self, now: float) -> float:
        """Messages sent lately, fading."""
        return self.sent * math.exp(-max(0.0, now - self.sent_at) / SENT_DECAY_S)

    def record(self, outcome: Outcome, now: float) -> str | None:
        """Take an outcome into all estimators; the reason of a state change, if any."""
        if outcome.probe:
            self.probing = False
        else:
            self.inflight = max(0, self.inflight - 1)
        self.used_at = now
        before = self.breaker.state
        reason = self.breaker.record(outcome.kind, outcome.reason, now)
        self._estimate(outcome, now)
        if self.breaker.state is not before:
            self.availability.observe(self.breaker.state is not EdgeState.DOWN, now)
        return reason

    def _estimate(self, outcome: Outcome, now: float) -> None:
        match outcome.kind:
            case OutcomeKind.CANCELLED | OutcomeKind.CONNECT_FAILED:
                return
            case OutcomeKind.ACCEPTED | OutcomeKind.MESSAGE_REFUSED:
                self.reliability.observe(True, now)
                if not outcome.probe and outcome.kind is OutcomeKind.ACCEPTED:
                    self.capacity.observe_accepted(now)
                    self.latency.observe(outcome.latency_s, now)
                    self.window.observe(outcome.latency_s, self.latency.minimum)
            case _:
                self.reliability.observe(False, now)
                self.window.shrink()

    def link_state(self, classes: tuple[str, ...], now: float) -> LinkState:
        """As it goes into an advertisement."""
        return LinkState(
            hop=self.hop.id,
            status=STATUS[self.breaker.state],
            availability_permille=round(1000 * self.availability.at(now)),
            reliability_permille=round(1000 * self.reliability.value),
            capacity_mmps=round(1000 * self.effective_capacity(now)) if self.usable else 0,
            latency_us=round(1e6 * (self.latency.peak or 0.0)),
            samples=self.reliability.samples,
            cost=self.cost,
            classes=classes,
        )


def build_edge(
    hop: Hop, label: str, *, cost: int, window_max: int, settings: RouterSettings, rng: random.Random, now: float
) -> Edge:
    """A new edge of which nothing is known."""
    window = Window(
        size=min(settings.window_first, window_max),
        size_max=window_max,
        queued_low=settings.queued_low,
        queued_high=settings.queued_high,
        latency_floor_s=settings.latency_floor_s,
    )
    edge = Edge(hop, label, cost, Breaker(settings, rng, since=now), window)
    edge.availability.since = edge.reliability.since = edge.capacity.bin_began = edge.used_at = now
    return edge
