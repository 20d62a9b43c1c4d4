"""What would happen: the forwarding rule as a fluid, on a copy of the live view with changes made to it. Pure.

    demand ──> own exits, in proportion to their capacities ──> full? ──> peers with room, in proportion to it ──> exits

That is what `router.forwarding` does with single messages: exits first, by shares; peers only when those are full. A
joint optimum would move more mail between relays than the rule does.

What a relay measured at an exit is its part of what that exit gives to all. When others are gone it gets theirs, so an
exit's capacity is the sum over all relays, before any change. Peer links carry what they must: their limits are seldom
known (a link is measured by what it was given).

What it takes is what it was seen to take (`LinkState.sustained_mmps`), not the optimism that has the forwarding rule
try more: the capacities that relays tell of an exit which they fill together add up to more than it has. An exit that
nobody has seen at its limit may carry more than is told here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from router.decision import Hop, HopKind
from router.flow import compute_joint_bound
from router.topology import Arc

UNLIMITED_MMPS = 10**9
ROUNDS_MAX = 50
TRIFLE_MPS = 0.001


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Changes to the view."""

    relays_down: frozenset[str] = frozenset()
    """Node ids."""
    exits_down: frozenset[Hop] = frozenset()
    factors: Mapping[Hop, float] = field(default_factory=dict)
    """Exit -> what becomes of its capacity."""


@dataclass(frozen=True, slots=True)
class ExitForecast:
    """One exit of the class."""

    hop: Hop
    delivered_mps: float
    capacity_mps: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where the mail of a class would go."""

    offered_mps: float
    delivered_mps: float
    bound_mps: float
    """What the relays with demand could deliver at most (maximum flow)."""
    exits: tuple[ExitForecast, ...]
    transfers: tuple[tuple[str, str, float], ...]
    """(from, to, messages a second) between relays, node ids."""
    stranded: tuple[str, ...]
    """Relays with demand that reach no exit, node ids."""

    @property
    def waiting_mps(self) -> float:
        """What would pile up."""
        return max(0.0, self.offered_mps - self.delivered_mps)

    def share(self, hop: Hop) -> float:
        """Of what is delivered, 0..1."""
        found = sum(item.delivered_mps for item in self.exits if item.hop == hop)
        return found / self.delivered_mps if self.delivered_mps else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A class now, and after the changes."""

    class_id: str
    now: Forecast
    then: Forecast


def forecast(
    arcs: Sequence[Arc],
    demand_mps: Mapping[str, float],
    hypothesis: Hypothesis,
    *,
    no_transit: frozenset[str] = frozenset(),
) -> Forecast:
    """The forecast for one class. `arcs`: of that class, as of now; `demand_mps`: what clients submit, by node id."""
    room = exit_capacities(arcs)
    for hop, factor in hypothesis.factors.items():
        if hop in room:
            room[hop] *= factor
    left = [arc for arc in arcs if _stands(arc, hypothesis)]
    alive = {relay: mps for relay, mps in sorted(demand_mps.items()) if relay not in hypothesis.relays_down}
    capacities = {hop: mps for hop, mps in room.items() if any(arc.hop == hop for arc in left)}
    fluid = _Fluid(left, alive, dict(capacities), no_transit)
    fluid.settle()
    reaching = {arc.origin for arc in left if arc.hop.kind is not HopKind.PEER}
    through = reaching - no_transit
    near = {arc.origin for arc in left if arc.hop.kind is HopKind.PEER and arc.hop.name in through}
    return Forecast(
        offered_mps=sum(alive.values()),
        delivered_mps=sum(fluid.delivered.values()),
        bound_mps=_bound(left, alive, capacities, no_transit),
        exits=tuple(ExitForecast(hop, fluid.delivered.get(hop, 0.0), mps) for hop, mps in sorted(capacities.items())),
        transfers=tuple((u, v, mps) for (u, v), mps in sorted(fluid.moved.items()) if mps >= TRIFLE_MPS),
        stranded=tuple(relay for relay, mps in alive.items() if mps and relay not in reaching | near),
    )


def exit_capacities(arcs: Iterable[Arc]) -> dict[Hop, float]:
    """Exit -> messages a second that all relays together saw it take; of one not used yet, what is hoped for."""
    found: dict[Hop, float] = {}
    for arc in arcs:
        if arc.hop.kind is not HopKind.PEER:
            found[arc.hop] = found.get(arc.hop, 0.0) + (arc.sustained_mmps or arc.capacity_mmps) / 1000
    return found


def _stands(arc: Arc, hypothesis: Hypothesis) -> bool:
    if arc.origin in hypothesis.relays_down or arc.hop in hypothesis.exits_down:
        return False
    return arc.hop.kind is not HopKind.PEER or arc.hop.name not in hypothesis.relays_down


def _bound(
    arcs: Sequence[Arc], demand: Mapping[str, float], capacities: Mapping[Hop, float], no_transit: frozenset[str]
) -> float:
    """With the exits' limits where they belong: at the exits."""
    open_arcs = [
        Arc(arc.origin, arc.hop, arc.weight, UNLIMITED_MMPS, arc.classes)
        for arc in arcs
        if arc.hop.kind is not HopKind.PEER or arc.hop.name not in no_transit
    ]
    limits = {hop.id: round(1000 * mps) for hop, mps in capacities.items()}
    return compute_joint_bound(open_arcs, [relay for relay, mps in demand.items() if mps], limits) / 1000


class _Fluid:
    """Mail as a fluid: poured into own exits, and over the brim to peers."""

    def __init__(
        self, arcs: Sequence[Arc], demand: Mapping[str, float], room: dict[Hop, float], no_transit: frozenset[str]
    ) -> None:
        self._waiting, self._room = dict(demand), room
        self._exits: dict[str, list[Arc]] = {}
        self._peers: dict[str, list[str]] = {}
        for arc in arcs:
            if arc.hop.kind is not HopKind.PEER:
                self._exits.setdefault(arc.origin, []).append(arc)
            elif arc.hop.name not in no_transit:
                self._peers.setdefault(arc.origin, []).append(arc.hop.name)
        self.delivered: dict[Hop, float] = {}
        self.moved: dict[tuple[str, str], float] = {}

    def settle(self) -> None:
        for _ in range(ROUNDS_MAX):
            while self._pour():
                pass
            if not self._spill():
                return

    def _pour(self) -> bool:
        """Every relay gives what waits to its exits with room, in proportion to their capacities there."""
        wanted: dict[tuple[str, Hop], float] = {}
        for relay, mps in self._waiting.items():
            exits = [arc for arc in self._exits.get(relay, ()) if self._room.get(arc.hop, 0.0) >= TRIFLE_MPS]
            total = sum(max(1, arc.capacity_mmps) for arc in exits)
            if mps >= TRIFLE_MPS:
                wanted |= {(relay, arc.hop): mps * max(1, arc.capacity_mmps) / total for arc in exits}
        asked: dict[Hop, float] = {}
        for (_, hop), mps in wanted.items():
            asked[hop] = asked.get(hop, 0.0) + mps
        fits = {hop: min(1.0, self._room[hop] / mps) for hop, mps in asked.items()}
        for (relay, hop), mps in wanted.items():
            given = mps * fits[hop]
            self._waiting[relay] -= given
            self.delivered[hop] = self.delivered.get(hop, 0.0) + given
        for hop, mps in asked.items():
            self._room[hop] = max(0.0, self._room[hop] - mps * fits[hop])
        return bool(wanted)

    def _spill(self) -> bool:
        """What own exits do not take goes to peers, in proportion to the room of theirs."""
        moves: list[tuple[str, str, float]] = []
        for relay, mps in self._waiting.items():
            rooms = {peer: self._room_of(peer) for peer in self._peers.get(relay, ())}
            total = sum(rooms.values())
            if mps >= TRIFLE_MPS and total >= TRIFLE_MPS:
                moves += [(relay, peer, min(mps, total) * room / total) for peer, room in rooms.items() if room]
        for relay, peer, mps in moves:
            self._waiting[relay] -= mps
            self._waiting[peer] = self._waiting.get(peer, 0.0) + mps
            self.moved[relay, peer] = self.moved.get((relay, peer), 0.0) + mps
        return bool(moves)

    def _room_of(self, relay: str) -> float:
        return sum(self._room.get(arc.hop, 0.0) for arc in self._exits.get(relay, ()))
