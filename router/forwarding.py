"""The forwarding rule (4-routing.md section 5): one next hop with a free slot, or hold. Pure, and cheap per message.

    1  a transfer in doubt goes back to the hop that may have it
    -  a class that the operator pinned to a hop: that one, or hold
    2  what is furthest behind its share, with a free slot: an exit of the class, or a peer that the joint plan names
           among exits in stride order: fewest sent for their weight first
           a peer only with a positive gain, without the sideways term
    3  peers with a free slot and a positive gain, the largest first
           gain = reliability x (backlog here - backlog there + beta x (rank here - rank there) - sideways)
    4  an exit whose trial has not succeeded once: a probe risks less than a message, so it comes this late
    5  if every relay that is nearer is behind it: the nearest that it has not seen, whatever the gain. Waiting would
           not help: a backlog of one message makes no gradient, and it may go nowhere else
    6  if nothing else can ever take it: one step back, to the relay that first sent it here
    7  hold

A peer's rank is its distance to the exits without this node, so no peer is chosen that would have to send the mail
back. `sideways` = beta + a share of the backlog for a peer that is no nearer than we are: a hop is a durable write, and
a small difference is not worth it. (The design's rule has no such term; without it relays with equal exits exchange
mail whenever their slots are full.) A relay that drains gives its mail to any peer that reaches an exit, the largest
gain first, be it negative; what is not due yet it gives to peers only, if need be back to the one that sent it here.

Ties go to the lowest hop id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.backlog import Backlogs
from router.decision import EdgeState, Hop, Pin, Query
from router.edge import Edge
from router.planning import ClassPlan
from router.policy import DestinationClass
from router.settings import RouterSettings
from router.terms import Refusal

IN_DOUBT = "in doubt: the same hop first"
PLANNED, PLANNED_PEER = "planned share", "planned share of a relay"
LARGEST_GAIN, TRIAL, DETOUR, STEP_BACK = "largest gain", "trial", "detour", "step back"
NO_SLOT, BACKING_OFF, NO_PATH = "hold: no slot", "hold: backing off", "hold: no path"
EVERY_WAY_BACK, NO_GAIN, TOO_MANY_HOPS = "hold: every way leads back", "hold: no gain", "hold: too many transfers"
PINNED, PIN_NO_SLOT, PIN_BACKING_OFF = "pinned", "hold: pinned, no slot", "hold: pinned, backing off"
PIN_DOWN, PIN_NOT_DUE = "hold: pinned, its hop takes nothing", "hold: pinned to an exit, not due"
TRUSTED = frozenset({EdgeState.UP, EdgeState.UNKNOWN})
PANIC_SHARE = 0.5
"""If more than this share of a class' exits is not trusted, suspicion and penalties are ignored (Envoy's idea)."""


@dataclass(frozen=True, slots=True)
class ClassView:
    """A class under one topology: built when ranks change, read for every message."""

    wanted: DestinationClass
    exits: tuple[Edge, ...]
    """Own exits of the class, by hop id."""
    peers: tuple[tuple[Edge, float], ...]
    """Neighbours that take mail and reach an exit without us, with their rank; by hop id."""
    here: float | None
    """Own rank; None = no exit can be reached."""
    there: dict[str, float]
    """Ranks of all neighbours in `peers`, by node id."""
    refused: Mapping[Hop, Refusal] = field(default_factory=dict)
    """Own exits and neighbours that the class' policy leaves out."""
    blocked: str = ""
    """The hold's reason when there is no way but those that the policy leaves out."""
    pin: Pin | None = None
    """It may be over by the time of a decision."""

    @property
    def pinned(self) -> Edge | None:
        """The edge of the pin, if it serves the class."""
        if self.pin is None:
            return None
        edges = (*self.exits, *(edge for edge, _ in self.peers))
        return next((edge for edge in edges if edge.hop == self.pin.hop), None)


class ForwardingRule:
    """The rule of one node. `node_count` is that of the database: it bounds the transfers of a message."""

    def __init__(self, node_id: str, settings: RouterSettings, backlogs: Backlogs) -> None:
        self._node_id, self._settings, self._backlogs = node_id, settings, backlogs
        self.node_count = 1
        self.draining = False

    @property
    def hops_max(self) -> int:
        """Transfers that one message may make; a walk with all its steps back needs 2 (N - 1)."""
        return min(self._settings.hops_max, 2 * max(2, self.node_count))

    def choose(
        self, query: Query, view: ClassView, preferred: Edge | None, now: float, plan: ClassPlan | None = None
    ) -> tuple[Edge | None, str]:
        """The next hop and the rule that decided, or None and why the message waits."""
        if preferred is not None and preferred.free_slots(now, repeat=True) > 0:
            return preferred, IN_DOUBT
        if view.pin is not None and now < view.pin.until:
            return self._choose_pinned(query, view, now)
        found = None if query.peers_only else self._choose_exit(query, view, now)
        if plan is not None and plan.peers:
            peer = self._choose_planned(query, view, plan, now, found is not None)
            if peer is not None:
                return peer, PLANNED_PEER
        if found is not None:
            return found, PLANNED
        found = self._choose_peer(query, view, now)
        if found is not None:
            return found, LARGEST_GAIN
        found = None if query.peers_only else self._choose_trial(query, view, now)
        if found is not None:
            return found, TRIAL
        found = self._choose_detour(query, view, now)
        if found is not None:
            return found, DETOUR
        found = self._step_back(query, view, now)
        if found is not None:
            return found, STEP_BACK
        return None, self._explain_hold(query, view, now)

    def gain(self, edge: Edge, there: float, class_id: str, view: ClassView, now: float) -> float:
        """Gain of a peer with rank `there`."""
        here = view.here if view.here is not None else there + 1
        sideways = self._sideways(self._backlogs.here(class_id), there >= here)
        return edge.reliability.value * (self._pull(edge, there, class_id, view, now) - sideways)

    def _pull(self, edge: Edge, there: float, class_id: str, view: ClassView, now: float) -> float:
        """Gradient of the backlogs and bias towards the exit, in messages."""
        here = view.here if view.here is not None else there + 1
        gradient = self._backlogs.here(class_id) - self._backlogs.there(edge.hop.name, class_id, now).count
        return gradient + self._settings.beta_messages * (here - there)

    def sideways(self, class_id: str, there: float, view: ClassView) -> float:
        """What a peer of rank `there` must be emptier by, in messages."""
        return self._sideways(self._backlogs.here(class_id), view.here is not None and there >= view.here)

    def exit_gain(self, edge: Edge, class_id: str, view: ClassView) -> float:
        """Gain of an exit, where backlog and rank are 0."""
        return edge.reliability.value * (
            self._backlogs.here(class_id) + self._settings.beta_messages * (view.here or 0.0)
        )

    @property
    def beta(self) -> float:
        """Messages of backlog that one unit of rank is worth."""
        return self._settings.beta_messages

    def in_panic(self, view: ClassView) -> bool:
        """Most exits of the class are in trouble: use what is left without caution. A drain is no trouble."""
        states = [edge.breaker.state for edge in view.exits if edge.breaker.state is not EdgeState.DRAINING]
        return sum(state in TRUSTED for state in states) < len(states) * (1 - PANIC_SHARE)

    # -- exits ---------------------------------------------------------------------------------------------------------

    def _choose_exit(self, query: Query, view: ClassView, now: float) -> Edge | None:
        best: Edge | None = None
        best_stride, avoid = math.inf, query.avoid
        for edge in view.exits:
            stride = edge.offer(now)
            if stride < best_stride and not (avoid and edge.hop in avoid):
                best, best_stride = edge, stride
        if best is None and self.in_panic(view):
            return self._choose_in_panic(query, view, now)
        return best

    def _choose_in_panic(self, query: Query, view: ClassView, now: float) -> Edge | None:
        for edge in view.exits:
            if edge.free_slots(now, panic=True) > 0 and edge.hop not in query.avoid and not edge.awaits_probe:
                return edge
        return None

    def _choose_trial(self, query: Query, view: ClassView, now: float) -> Edge | None:
        for edge in view.exits:
            if edge.awaits_probe and edge.free_slots(now) > 0 and edge.hop not in query.avoid:
                return edge
        return None

    def _choose_pinned(self, query: Query, view: ClassView, now: float) -> tuple[Edge | None, str]:
        """Also a pin leads no message back to where it was."""
        edge = view.pinned
        if edge is None or not edge.open:
            return None, PIN_DOWN
        if not edge.exit and (edge.hop.name in query.trace or len(query.trace) >= self.hops_max):
            return None, PIN_DOWN
        if edge.exit and query.peers_only:
            return None, PIN_NOT_DUE
        if edge.hop in query.avoid:
            return None, PIN_BACKING_OFF
        return (edge, PINNED) if edge.free_slots(now) > 0 else (None, PIN_NO_SLOT)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def _choose_planned(
        self, query: Query, view: ClassView, plan: ClassPlan, now: float, exit_free: bool
    ) -> Edge | None:
        """The peer that is furthest behind its planned share, unless the exits are further behind theirs."""
        if len(query.trace) >= self.hops_max:
            return None
        best: Edge | None = None
        best_stride = plan.stride_of_exits() if exit_free else math.inf
        for edge, there in view.peers:
            name = edge.hop.name
            stride = plan.stride_of(name)
            if stride >= best_stride or name in query.trace or edge.free_slots(now) <= 0 or edge.hop in query.avoid:
                continue
            if not edge.awaits_probe and self._pull(edge, there, query.class_id, view, now) > 0:
                best, best_stride = edge, stride
        return best

    # -- peers ---------------------------------------------------------------------------------------------------------

    def _choose_peer(self, query: Query, view: ClassView, now: float) -> Edge | None:
        if len(query.trace) >= self.hops_max:
            return None
        best: Edge | None = None
        best_gain = -math.inf if self.draining else 0.0
        for edge, there in view.peers:
            if edge.hop.name in query.trace or edge.free_slots(now) <= 0 or edge.hop in query.avoid:
                continue
            if edge.awaits_probe:
                continue
            gain = self.gain(edge, there, query.class_id, view, now)
            if gain > best_gain:
                best, best_gain = edge, gain
        return best

    def _sideways(self, waiting: int, no_nearer: bool) -> float:
        if not no_nearer or self.draining:
            return 0.0
        return self._settings.beta_messages + self._settings.sideways_share * waiting

    # -- detours, steps back and holds ---------------------------------------------------------------------------------

    def _needs_detour(self, query: Query, view: ClassView) -> bool:
        """No exit will take it, and no relay nearer than this one that the message has not seen."""
        if not query.trace or (not query.peers_only and any(edge.usable for edge in view.exits)):
            return False
        nearer = (edge for edge, there in view.peers if view.here is None or there < view.here)
        return not any(edge.usable and edge.hop.name not in query.trace for edge in nearer)

    def _choose_detour(self, query: Query, view: ClassView, now: float) -> Edge | None:
        if len(query.trace) >= self.hops_max or not self._needs_detour(query, view):
            return None
        best: Edge | None = None
        nearest = math.inf
        for edge, there in view.peers:
            if edge.hop.name in query.trace or edge.free_slots(now) <= 0 or edge.hop in query.avoid:
                continue
            if there < nearest and not edge.awaits_probe:
                best, nearest = edge, there
        return best

    def _step_back(self, query: Query, view: ClassView, now: float) -> Edge | None:
        """Only if no exit and no peer outside the trace could take it, now or later; only to one that has a way on."""
        if not query.trace or len(query.trace) >= self.hops_max:
            return None
        if not query.peers_only and any(edge.usable for edge in view.exits):
            return None
        if any(edge.usable and edge.hop.name not in query.trace for edge, _ in view.peers):
            return None
        visits = query.trace.index(self._node_id) if self._node_id in query.trace else len(query.trace)
        if visits == 0:
            return None  # it began here: nowhere to step back to
        first_sender = query.trace[visits - 1]
        for edge, _ in view.peers:
            if edge.hop.name == first_sender and edge.free_slots(now) > 0 and edge.hop not in query.avoid:
                return edge
        return None

    def _explain_hold(self, query: Query, view: ClassView, now: float) -> str:
        exits = [edge for edge in view.exits if edge.usable and not query.peers_only]
        if any(edge.hop not in query.avoid for edge in exits):
            return NO_SLOT
        if exits:
            return BACKING_OFF
        peers = [(edge, there) for edge, there in view.peers if edge.usable]
        if not peers:
            return view.blocked or NO_PATH
        fresh = [(edge, there) for edge, there in peers if edge.hop.name not in query.trace]
        if not fresh:
            return EVERY_WAY_BACK
        if len(query.trace) >= self.hops_max:
            return TOO_MANY_HOPS
        open_ = [(edge, there) for edge, there in fresh if edge.hop not in query.avoid]
        if not open_:
            return BACKING_OFF
        if self.draining or self._needs_detour(query, view):
            return NO_SLOT
        return (
            NO_SLOT if any(self.gain(edge, there, query.class_id, view, now) > 0 for edge, there in open_) else NO_GAIN
        )


def build_view(
    wanted: DestinationClass,
    exits: Iterable[Edge],
    peers: Iterable[Edge],
    *,
    here: float | None,
    there: dict[str, float],
    refused: Mapping[Hop, Refusal] | None = None,
    blocked: str = "",
    pin: Pin | None = None,
) -> ClassView:
    """Sort and pair what belongs to a class; `there` has only relays that take mail."""
    reaching = [(edge, there[edge.hop.name]) for edge in sorted(peers, key=_by_id) if edge.hop.name in there]
    return ClassView(
        wanted, tuple(sorted(exits, key=_by_id)), tuple(reaching), here, there, refused or {}, blocked, pin
    )


def _by_id(edge: Edge) -> str:
    return edge.hop.id
