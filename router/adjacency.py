"""All own edges: which exist, what happens to them, which are due for a probe, what is told of them. Pure.

Configured exits are there for ever, peers come and go with the link-state database, edges to domains' own exchangers
appear when a class needs them. Every change of a breaker's state passes `_note`, so that no one misses it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeRecord, Snapshot
from router.decision import Changes, EdgeState, ExitHop, Hop, HopKind, Outcome, Transition
from router.edge import Edge, build_edge
from router.policy import RouteTable
from router.settings import RouterSettings
from router.terms import KEEPS_ANY_FLOOR, NO_TERMS, Terms

DIRECT_WINDOW_MAX = 20
DIRECT_EDGES_MAX = 10_000
"""Edges to domains' own exchangers; past it the idle ones are forgotten."""
DIRECT_ADVERTISED_MAX = 200
"""Of them the last used are advertised."""
DRIFT_S = 0.5
REPORTED_DOWN = frozenset({LinkStatus.DOWN, LinkStatus.HALF_OPEN})
ON_TRIAL = frozenset({EdgeState.HALF_OPEN, EdgeState.SUSPECT})


@dataclass(frozen=True, slots=True)
class Reported:
    """What other relays say of an exit."""

    down: bool
    """Most of them."""
    up: frozenset[NodeId]
    """Who. Those that said so before we found it down may not have noticed yet."""


UNHEARD = Reported(down=False, up=frozenset())


class Adjacency:
    """See the module. Methods that return `Changes` tell what the shell has to act on."""

    def __init__(
        self,
        table: RouteTable,
        exits: Sequence[ExitHop],
        settings: RouterSettings,
        rng: random.Random,
        now: float,
        *,
        tags: Sequence[str] = (),
    ) -> None:
        """`tags`: of this node."""
        self._settings, self._rng = settings, rng
        self._edges: dict[Hop, Edge] = {}
        self._reported: dict[Hop, Reported] = {}
        """Of exits, as last heard: a report is news once, not at every snapshot."""
        self._advertised: tuple[tuple[object, ...], ...] = ()
        self._drift_at = -math.inf
        self.reconfigure(table, exits, now, tags=tags)

    def reconfigure(
        self,
        table: RouteTable,
        exits: Sequence[ExitHop],
        now: float,
        *,
        tags: Sequence[str] = (),
        anew: Collection[Hop] = (),
    ) -> tuple[Hop, ...]:
        """Go by another configuration: the exits that are new in it. Those that stay keep what was measured.

        `anew`: those that are other machines now. Edges to domains' own exchangers go if no route delivers there.
        """
        self._table, self._direct_terms = table, Terms(tuple(sorted(tags)), KEEPS_ANY_FLOOR)
        direct, wanted = any(rule.direct for rule in table.rules), {exit_hop.hop for exit_hop in exits}
        for hop, edge in list(self._edges.items()):
            if hop.kind is HopKind.MX:
                edge.terms = self._direct_terms
            leaves = not direct if hop.kind is HopKind.MX else hop not in wanted or hop in anew
            if leaves and hop.kind is not HopKind.PEER:
                del self._edges[hop]
                self._reported.pop(hop, None)
        return tuple(exit_hop.hop for exit_hop in exits if self._configure(exit_hop, now, begins=exit_hop.hop in anew))

    def _configure(self, exit_hop: ExitHop, now: float, *, begins: bool) -> bool:
        """True if the exit is new."""
        edge = self._edges.get(exit_hop.hop)
        new = edge is None
        if edge is None:
            edge = self.add(exit_hop.hop, exit_hop.label, now, window_max=exit_hop.window_max)
            edge.began_at = now if begins else edge.began_at
        edge.configure(
            cost=exit_hop.cost, window_max=exit_hop.window_max, terms=exit_hop.terms, reserve=exit_hop.reserve
        )
        return new

    # -- which exist ---------------------------------------------------------------------------------------------------

    def all(self) -> Iterable[Edge]:
        """In no particular order."""
        return self._edges.values()

    def get(self, hop: Hop) -> Edge | None:
        """The edge to a hop, if there is one."""
        return self._edges.get(hop)

    def peer(self, node_id: str) -> Edge | None:
        """The edge to a relay, if there is one."""
        return self._edges.get(Hop(HopKind.PEER, node_id))

    def add(
        self,
        hop: Hop,
        label: str,
        now: float,
        *,
        window_max: int = DIRECT_WINDOW_MAX,
        terms: Terms = NO_TERMS,
    ) -> Edge:
        """A new edge of which nothing is known."""
        edge = self._edges[hop] = build_edge(
            hop, label, window_max=window_max, settings=self._settings, rng=self._rng, now=now, terms=terms
        )
        return edge

    def add_direct(self, domain: str, now: float) -> tuple[Edge, tuple[Hop, ...]]:
        """An edge to a domain's own exchangers, and the edges that were forgotten to make room for it."""
        forgotten: list[Hop] = []
        if len(self._edges) >= DIRECT_EDGES_MAX:
            forgotten = [hop for hop, edge in self._edges.items() if hop.kind is HopKind.MX and not edge.inflight]
            for hop in forgotten:
                del self._edges[hop]
        return self.add(Hop(HopKind.MX, domain), domain, now, terms=self._direct_terms), tuple(forgotten)

    def meet(self, self_id: NodeId, snapshot: Snapshot, now: float) -> bool:
        """Every other relay of the database is a neighbour; True if some came or left."""
        before = set(self._edges)
        members = {node.node_id for node in snapshot.nodes}
        for hop, edge in list(self._edges.items()):
            if hop.kind is HopKind.PEER and hop.name not in members and not edge.inflight:
                del self._edges[hop]
        for node in snapshot.nodes:
            if node.node_id == self_id:
                continue
            edge = self.peer(node.node_id) or self.add(
                Hop(HopKind.PEER, node.node_id), node.info.name, now, window_max=self._settings.window_max
            )
            edge.label, edge.headroom_permille = node.info.name, node.load.headroom_permille
        return set(self._edges) != before

    # -- what happens to them ------------------------------------------------------------------------------------------

    def record(self, outcome: Outcome, now: float) -> Changes:
        """An attempt or a probe ended. Nothing for an edge that is gone."""
        edge = self._edges.get(outcome.hop)
        if edge is None or outcome.began < edge.began_at:
            return Changes()
        before, was_first_trial = edge.breaker.state, edge.breaker.on_first_trial
        reason = edge.record(outcome, now)
        transitions = self._note(edge, before, reason, now)
        passed = was_first_trial and edge.breaker.state is EdgeState.HALF_OPEN and edge.breaker.successes > 0
        recovered = bool(transitions) and before in (EdgeState.HALF_OPEN, EdgeState.DOWN) and edge.usable
        return _changes(transitions, opened=(edge.hop,) if passed or recovered else ())

    def note_session(self, node_id: str, up: bool, now: float) -> Changes:
        """The gossip session with a peer is there or lost."""
        edge = self.peer(node_id)
        if edge is None:
            return Changes()
        before = edge.breaker.state
        if up:
            edge.breaker.pause_s = 0.0
            reason = edge.breaker.regain("gossip session is up", now)
        else:
            reason = edge.breaker.lose("gossip session lost", now)
        return _changes(self._note(edge, before, reason, now))

    def drain(self, hop: Hop, reason: str, now: float) -> Changes:
        """The operator wants nothing new on it; what is in flight ends by itself."""
        edge = self._edges.get(hop)
        if edge is None:
            return Changes()
        before = edge.breaker.state
        return _changes(self._note(edge, before, edge.breaker.drain(reason, now), now))

    def undrain(self, hop: Hop, reason: str, now: float) -> Changes:
        """It may be used again, after a trial."""
        edge = self._edges.get(hop)
        if edge is None:
            return Changes()
        before = edge.breaker.state
        return _changes(self._note(edge, before, edge.breaker.undrain(reason, now), now))

    def hear_reports(self, others: Sequence[NodeRecord], now: float) -> tuple[Transition, ...]:
        """What other relays say of our exits makes us look for ourselves; it never decides for us."""
        exits = {edge.hop.id: edge for edge in self._edges.values() if edge.exit}
        reports: dict[str, dict[NodeId, LinkStatus]] = {}
        for node in others:
            if node.age_s <= self._settings.report_fresh_s:
                for link in node.links:
                    if link.hop in exits and link.status is not LinkStatus.UNKNOWN:
                        reports.setdefault(link.hop, {})[node.node_id] = link.status
        before, self._reported = self._reported, {}
        transitions: list[Transition] = []
        for hop, heard in reports.items():
            edge, told = exits[hop], self._count(heard)
            self._reported[edge.hop] = told
            state = edge.breaker.state
            reason = _believe(edge, before.get(edge.hop, UNHEARD), told, now)
            transitions += self._note(edge, state, reason, now)
        return tuple(transitions)

    def on_timer(self, now: float) -> tuple[tuple[Transition, ...], bool]:
        """Edges that were down long enough are tried. Also: whether advertisements drifted since they were last due."""
        transitions: list[Transition] = []
        for edge in self._edges.values():
            before, stall_at = edge.breaker.state, edge.stall_at()
            stalls = stall_at is not None and now >= stall_at
            transitions += self._note(edge, before, edge.note_stall(now) if stalls else edge.breaker.on_timer(now), now)
        return tuple(transitions), self._drifted(now)

    def _drifted(self, now: float) -> bool:
        """Levels drift slowly, and there may be a thousand edges: they are looked at now and then."""
        if now - self._drift_at < DRIFT_S:
            return False
        self._drift_at = now
        key = tuple(edge.advert_key(now) for edge in self._edges.values())
        drifted, self._advertised = key != self._advertised, key
        return drifted

    # -- when ----------------------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """The earliest end of a pause, of patience, or of the time between two trial probes."""
        pauses = [edge.breaker.retry_at for edge in self._edges.values() if edge.breaker.retry_at is not None]
        trials = [
            edge.used_at + self._settings.trial_interval_s
            for edge in self._edges.values()
            if edge.breaker.state in ON_TRIAL and not edge.probing and (edge.stalled or not edge.inflight)
        ]
        stalls = [at for at in (edge.stall_at() for edge in self._edges.values()) if at is not None]
        return min([*pauses, *trials, *stalls], default=None)

    def take_probes(self, now: float) -> tuple[Hop, ...]:
        """Hops to probe now; each is marked as being probed until its outcome is recorded."""
        due = [edge for edge in self._edges.values() if self._probe_due(edge, now)]
        for edge in due:
            edge.probing, edge.used_at = True, now
        return tuple(sorted(edge.hop for edge in due))

    # -- what is told of them ------------------------------------------------------------------------------------------

    def links(self, now: float) -> tuple[LinkState, ...]:
        """For an advertisement, sorted by hop id."""
        direct = [edge for edge in self._edges.values() if edge.hop.kind is HopKind.MX]
        direct.sort(key=lambda edge: (-edge.used_at, edge.hop.id))
        edges = [edge for edge in self._edges.values() if edge.hop.kind is not HopKind.MX]
        edges += direct[:DIRECT_ADVERTISED_MAX]
        edges.sort(key=lambda edge: edge.hop.id)
        return tuple(edge.link_state(self._classes_of(edge), now) for edge in edges)

    # -- private -------------------------------------------------------------------------------------------------------

    def _count(self, heard: Mapping[NodeId, LinkStatus]) -> Reported:
        down = sum(status in REPORTED_DOWN for status in heard.values()) > len(heard) * self._settings.report_majority
        return Reported(down, frozenset(node for node, status in heard.items() if status is LinkStatus.UP))

    def _note(self, edge: Edge, before: EdgeState, reason: str | None, now: float) -> list[Transition]:
        after = edge.breaker.state
        if reason is None or after is before:
            return []
        edge.note_state(now)
        return [Transition(edge.hop, before, after, reason)]

    def _probe_due(self, edge: Edge, now: float) -> bool:
        """A domain's exchangers are strangers' machines: only mail is a reason to call there."""
        if edge.probing or (edge.inflight and not edge.stalled) or not edge.usable or edge.hop.kind is HopKind.MX:
            return False
        idle_s = now - edge.used_at
        if edge.breaker.state in ON_TRIAL or edge.breaker.state is EdgeState.UNKNOWN:
            return idle_s >= self._settings.trial_interval_s  # a new edge is looked at before mail has to find out
        return edge.exit and idle_s >= self._settings.probe_interval_s

    def _classes_of(self, edge: Edge) -> tuple[str, ...]:
        """Destinations that it serves as far as their policies allow; what is too large for it is said by its limit."""
        hop, terms = edge.hop, edge.terms
        match hop.kind:
            case HopKind.PEER:
                return ()
            case HopKind.MX:
                return (hop.id,)
            case HopKind.SMART_HOST:
                serving = (rule for rule in self._table.rules if hop.name in rule.via)
                return tuple(sorted(rule.name for rule in serving if rule.policy.refuse_exit(terms) is None))


def _believe(edge: Edge, before: Reported, told: Reported, now: float) -> str | None:
    """Only news count; why the edge changed its state."""
    if told.down and not before.down:
        return edge.breaker.suspect("most other relays report it down", now)
    if told.up - before.up:
        return edge.breaker.regain("another relay reports it up", now)
    return None


def _changes(transitions: Sequence[Transition], opened: tuple[Hop, ...] = ()) -> Changes:
    changed = bool(transitions)
    return Changes(tuple(transitions), opened, routes_changed=changed, links_changed=changed)
