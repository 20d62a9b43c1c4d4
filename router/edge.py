"""One own edge: its breaker, its estimators, its transactions in flight. Owned and measured by this node alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from math import exp

from gossip.linkstate import LinkState, LinkStatus
from router.breaker import USABLE, Breaker
from router.decision import EdgeState, Hop, HopKind, Outcome, OutcomeKind
from router.estimate import Availability, Capacity, Latency, Reliability
from router.settings import RouterSettings
from router.terms import NO_TERMS, Terms
from router.window import Window

STATUS = {
    EdgeState.UNKNOWN: LinkStatus.UNKNOWN,
    EdgeState.UP: LinkStatus.UP,
    EdgeState.SUSPECT: LinkStatus.SUSPECT,
    EdgeState.HALF_OPEN: LinkStatus.DOWN,
    EdgeState.DOWN: LinkStatus.DOWN,
    EdgeState.DRAINING: LinkStatus.DRAINING,
}
"""As others are told. A trial is no news until it is over: if every trial of a dead hop were, the news that it is back
would find the advertisements held (`gossip.holds`)."""
UP = EdgeState.UP
SENT_DECAY_S = 4.5
"""Stride counts fade with this time constant: 0.8 per second."""
WEIGHT_STEP = 0.25
"""Levels of the rank's weight, in expected attempts."""
WEIGHT_HYSTERESIS = 0.1
"""The weight leaves its level this far beyond the middle to the next one."""
WEIGHT_KEPT_S = 0.25
HEADROOM_FULL = 1000
ADVERTISE_RATIO = 1.3
"""Change of the capacity that is worth an advertisement."""
PATIENCE_MAX = 64.0
ATTEMPTS_MAX = 20.0
"""Expected attempts beyond which it makes no difference."""


@dataclass(slots=True, eq=False)
class Edge:
    """See the module."""

    hop: Hop
    label: str
    cost: int
    settings: RouterSettings
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
    inflight_bytes: int = 0
    """Mail data of the transactions in flight."""
    progress_at: float = 0.0
    """When something came back last, or transactions began to be in flight."""
    headroom_permille: int = HEADROOM_FULL
    """Of a peer, as it tells: the part of the window that may be used."""
    stalled: bool = False
    """Nothing comes back from what is in flight."""
    patience: float = 1.0
    """Factor on the time until that is said: doubles with each probe that found the hop well."""
    probing: bool = False
    terms: Terms = NO_TERMS
    reserve: float = 0.0
    """Share of the capacity that planning leaves alone."""
    planned: float = 0.0
    """`plan_weight`, which holds until `planned_until`."""
    planned_until: float = -math.inf
    weight_level: float = 1.0
    advertised_mps: float = 0.0
    began_at: float = -math.inf
    """What began before says nothing of it: another machine had its name then."""

    @property
    def usable(self) -> bool:
        """Its state permits mail at all."""
        return self.breaker.state in USABLE

    @property
    def exit(self) -> bool:
        """Mail leaves the mesh through it."""
        return self.hop.kind is not HopKind.PEER

    @property
    def awaits_probe(self) -> bool:
        """Nothing has succeeded since it was down, and a probe will find out at no message's risk.

        A domain's exchangers are not probed, so there the message itself is the trial.
        """
        breaker = self.breaker
        return breaker.state is EdgeState.HALF_OPEN and breaker.on_first_trial and self.hop.kind is not HopKind.MX

    @property
    def open(self) -> bool:
        """It counts as a way to somewhere."""
        return self.usable and not self.awaits_probe

    def free_slots(self, now: float, *, panic: bool = False, repeat: bool = False) -> int:
        """Transactions that may begin now. The one slot of a trial may be taken by a probe.

        `repeat`: of what the hop may have already, so that its headroom does not matter.
        """
        breaker = self.breaker
        size = self.window.size if self.headroom_permille >= HEADROOM_FULL or repeat else self._shrunk()
        if breaker.state is EdgeState.UP and not breaker.penalty:  # nearly always: asked for every edge and message
            return size - self.inflight
        trial = self.probing and breaker.state is EdgeState.HALF_OPEN
        return min(size, breaker.slots(size, now, panic=panic)) - self.inflight - trial

    def _shrunk(self) -> int:
        """What a peer without much room gets at once; at headroom 0 nothing."""
        return math.ceil(self.window.size * self.headroom_permille / HEADROOM_FULL)

    def effective_capacity(self, now: float) -> float:
        """Messages per second worth planning with: capacity x reliability x ramp, without what is reserved."""
        return self.capacity.at(now) * self.reliability.value * self.breaker.ramp * (1 - self.reserve)

    def plan_weight(self, now: float) -> float:
        """What its share of a class is proportional to: the effective capacity, less while messages queue there.

        As long as no capacity is proven the shares confirm themselves; the latency is what tells a loaded hop from an
        idle one. It is asked for every message, so it is worked out when something ended here or `WEIGHT_KEPT_S` later.
        """
        if now >= self.planned_until:
            weight = self.effective_capacity(now) * self.latency.ease(self.settings.latency_floor_s)
            self.planned, self.planned_until = max(0.001, weight), now + WEIGHT_KEPT_S
        return self.planned

    def stride(self, now: float) -> float:
        """The exit with the smallest takes the next message: sent lately for its weight, plus cost in seconds."""
        weight = self.planned if now < self.planned_until else self.plan_weight(now)
        return (self.sent * math.exp((self.sent_at - now) / SENT_DECAY_S) + 1) / weight + self.cost

    def offer(self, now: float) -> float:
        """Its stride if it may take a message now, else infinite. Asked for every exit of every message."""
        breaker = self.breaker
        if breaker.state is UP and not breaker.penalty and self.headroom_permille >= HEADROOM_FULL:  # nearly always
            if self.inflight >= self.window.size:
                return math.inf
        elif self.awaits_probe or self.free_slots(now) <= 0:
            return math.inf
        weight = self.planned if now < self.planned_until else self.plan_weight(now)
        return (self.sent * exp((self.sent_at - now) / SENT_DECAY_S) + 1) / weight + self.cost

    def weight(self, now: float) -> float:
        """Expected attempts for one delivery over it, in steps with hysteresis, plus the operator's cost: for ranks."""
        chance = self.availability.at(now) * self.reliability.value
        attempts = min(ATTEMPTS_MAX, 1 / max(1 / ATTEMPTS_MAX, chance))
        if abs(attempts - self.weight_level) > WEIGHT_STEP / 2 + WEIGHT_HYSTERESIS:
            self.weight_level = max(1.0, round(attempts / WEIGHT_STEP) * WEIGHT_STEP)
        return self.weight_level + self.cost

    def stall_at(self) -> float | None:
        """When what is in flight has stalled, unless something comes back before.

        None without transactions, and for domains' exchangers: those are strangers, and only mail is a reason to ask.
        """
        if not self.inflight or self.stalled or self.hop.kind is HopKind.MX or not self.usable:
            return None
        settings = self.settings
        usual_s = max(settings.stall_min_s, settings.stall_latencies * (self.latency.peak or 0.0))
        return self.progress_at + self.patience * usual_s + self.inflight_bytes / settings.stall_bytes_per_s

    def note_stall(self, now: float) -> str | None:
        """Nothing came back for long: the reason of a state change, if any."""
        self.stalled = True
        self.window.reopen(self.settings.window_first)
        text = f"nothing came back for {now - self.progress_at:.1f} s from {self.inflight} in flight"
        return self.breaker.suspect(text, now)

    def begin(self, now: float, size_bytes: int = 0) -> None:
        """A transaction starts."""
        if not self.inflight:
            self.progress_at = now
        self.inflight += 1
        self.inflight_bytes += size_bytes
        self.sent = self.faded_sent(now) + 1
        self.sent_at = self.used_at = now
        self._note_full(now)

    def faded_sent(self, now: float) -> float:
        """Messages sent lately, fading."""
        return self.sent * math.exp(-max(0.0, now - self.sent_at) / SENT_DECAY_S)

    def configure(self, *, cost: int, window_max: int, terms: Terms, reserve: float) -> None:
        """The operator says otherwise; what was measured stands."""
        self.cost, self.terms, self.reserve = cost, terms, reserve
        self.window.size_max = window_max
        self.window.size = min(self.window.size, window_max)
        self.planned_until = -math.inf

    def record(self, outcome: Outcome, now: float) -> str | None:
        """Take an outcome into all estimators; the reason of a state change, if any."""
        if outcome.probe:
            self.probing = False
        else:
            self.inflight = max(0, self.inflight - 1)
            self.inflight_bytes = max(0, self.inflight_bytes - outcome.size_bytes) if self.inflight else 0
        self._note_progress(outcome, now)
        self.used_at, self.planned_until = now, -math.inf
        if not self.breaker.failures:
            self.breaker.usual_loss = 1 - self.reliability.value
        reason = self.breaker.record(outcome.kind, outcome.reason, now, began=outcome.began, message=outcome.message)
        self._estimate(outcome, now)
        self._note_full(now)
        return reason

    def note_state(self, now: float) -> None:
        """The breaker changed its state."""
        state, self.planned_until = self.breaker.state, -math.inf
        if state is not EdgeState.DRAINING:  # the operator's wish says nothing of the hop
            self.availability.observe(state in (EdgeState.UNKNOWN, EdgeState.UP, EdgeState.SUSPECT), now)
        if state is EdgeState.HALF_OPEN:
            self.window.reopen(self.settings.window_first)
        if state in (EdgeState.HALF_OPEN, EdgeState.SUSPECT):
            self.used_at = now - self.settings.trial_interval_s  # a probe is due at once
        self._note_full(now)

    def _note_progress(self, outcome: Outcome, now: float) -> None:
        """A probe that found the hop well gives what is in flight more time; an answer to mail is what was missing."""
        if outcome.probe and self.stalled and outcome.kind is OutcomeKind.ACCEPTED:
            self.patience = min(PATIENCE_MAX, 2 * self.patience)
        elif not outcome.probe and outcome.kind is not OutcomeKind.CANCELLED:
            self.patience = 1.0
        self.progress_at, self.stalled = now, False

    def _note_full(self, now: float) -> None:
        """All slots taken is proof of the capacity only where the window, not the breaker, is the limit."""
        full = self.inflight >= self.window.size
        if full:
            self.window.note_filled()
        self.capacity.observe_full(full and self.window.settled and self.breaker.state is EdgeState.UP, now)

    def _estimate(self, outcome: Outcome, now: float) -> None:
        match outcome.kind:
            case OutcomeKind.CANCELLED | OutcomeKind.CONNECT_FAILED:
                return
            case OutcomeKind.MESSAGE_REFUSED:
                self.reliability.observe(True, now)
            case OutcomeKind.ACCEPTED:
                self.reliability.observe(True, now)
                if not outcome.probe:
                    self.capacity.observe_accepted(now)
                    self.latency.observe(outcome.latency_s, now)
                    self.window.observe(outcome.latency_s, self.latency.minimum)
            case _:
                self.reliability.observe(False, now)
                if outcome.began >= self.breaker.trial_at:
                    self.window.shrink()

    def link_state(self, classes: tuple[str, ...], now: float) -> LinkState:
        """As it goes into an advertisement. A domain's exchangers have this node's tags, and those are told already."""
        terms = NO_TERMS if self.hop.kind is HopKind.MX else self.terms
        status = STATUS[self.breaker.state]
        useless = status is LinkStatus.DOWN or not self.usable
        return LinkState(
            hop=self.hop.id,
            status=status,
            availability_permille=round(1000 * self.availability.at(now)),
            reliability_permille=round(1000 * self.reliability.value),
            capacity_mmps=0 if useless else round(1000 * self.effective_capacity(now)),
            latency_us=round(1e6 * (self.latency.peak or 0.0)),
            samples=self.reliability.samples,
            cost=self.cost,
            classes=classes,
            tags=terms.tags,
            tls=terms.tls,
            size_bytes_max=terms.size_bytes_max,
            sustained_mmps=0 if useless else round(1000 * self.capacity.sustained(now)),
        )

    def advert_key(self, now: float) -> tuple[object, ...]:
        """Differs when an advertisement is due: levels, so that every small change is not news."""
        level = self.settings.advertise_level
        capacity = self.effective_capacity(now)
        if max(capacity, self.advertised_mps) > ADVERTISE_RATIO * min(capacity, self.advertised_mps):
            self.advertised_mps = capacity
        return (
            self.hop.id,
            STATUS[self.breaker.state],
            round(self.availability.at(now) / level),
            round(self.reliability.value / level),
            self.advertised_mps,
        )


def build_edge(
    hop: Hop,
    label: str,
    *,
    cost: int = 0,
    window_max: int,
    settings: RouterSettings,
    rng: random.Random,
    now: float,
    terms: Terms = NO_TERMS,
) -> Edge:
    """A new edge of which nothing is known."""
    window = Window(
        size=min(settings.window_first, window_max),
        size_max=window_max,
        queued_low=settings.queued_low,
        queued_high=settings.queued_high,
        latency_floor_s=settings.latency_floor_s,
    )
    pause_max_s = settings.retry_smart_host_max_s if hop.kind is HopKind.SMART_HOST else settings.retry_max_s
    breaker = Breaker(settings, rng, since=now, pause_max_s=pause_max_s)
    edge = Edge(hop, label, cost, settings, breaker, window, terms=terms)
    edge.availability.since = edge.reliability.since = edge.capacity.bin_began = edge.used_at = now
    return edge
