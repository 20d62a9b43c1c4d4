"""The routing engine: measurements and gossip in, decisions with reasons out. Pure: `now` and `rng` are arguments.

The forwarding rule (4-routing.md section 5), asked only when a slot may be free, so that nothing is bound early:

    1  a transfer in doubt goes back to the hop that may have it
    2  exits of the class with a free slot, in stride order: fewest sent for their effective capacity first
    3  peers with a free slot and a positive gain, the largest first
           gain = reliability x (backlog here - backlog there + beta x (rank here - rank there) - sideways)
    4  if nothing else can ever take it: one step back, to the relay that first sent it here
    5  hold

A peer's rank is its distance to the exits without this node, so no peer is chosen that would have to send the mail
back. `sideways` = beta + a quarter of the backlog for a peer that is no nearer than we are: a hop is a durable write,
and a small difference is not worth it. (The design's rule has no such term; without it relays with equal exits
exchange mail whenever their slots are full.)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossip.linkstate import ClassLoad, LinkState, LinkStatus, Load, Snapshot
from router.decision import (
    Candidate,
    Changes,
    Decision,
    EdgeState,
    ExitHop,
    Explanation,
    Hop,
    HopKind,
    Outcome,
    Query,
    RouteRow,
    Transition,
    Verdict,
)
from router.edge import STATUS, Edge, build_edge
from router.flow import compute_bound, compute_ranks, find_paths
from router.policy import DestinationClass, RouteTable
from router.settings import RouterSettings
from router.topology import Topology, build_topology

DIRECT_WINDOW_MAX = 20
DIRECT_EDGES_MAX = 10_000
"""Edges to domains' own exchangers; past it the idle ones are forgotten."""
MAJORITY = 0.5
SIDEWAYS_SHARE = 0.25
"""A peer that is no nearer must be emptier by this share as well: noise in a deep backlog is no gradient."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A neighbour's backlog of one class."""

    count: int
    at: float
    source: str


@dataclass(frozen=True, slots=True)
class Ranks:
    """Distances of one class under one topology."""

    here: float | None
    there: dict[str, float]
    """Node id -> distance without this node."""


class RoutingEngine:
    """See the module. Not for several threads."""

    def __init__(
        self,
        *,
        node_id: str,
        node_name: str,
        table: RouteTable,
        exits: Sequence[ExitHop],
        settings: RouterSettings,
        rng: random.Random,
        now: float,
    ) -> None:
        self._node_id, self._node_name = node_id, node_name
        self._table, self._settings, self._rng = table, settings, rng
        self._edges: dict[Hop, Edge] = {}
        self._classes: dict[str, DestinationClass] = {}
        self._backlogs: dict[str, int] = {}
        self._oldest: dict[str, float] = {}
        self._heard: dict[tuple[str, str], Heard] = {}
        self._snapshot = Snapshot("")
        self._seen: tuple[object, ...] = ()
        """What the topology was built from: backlogs change often, links seldom."""
        self._topology: Topology | None = None
        self._ranks: dict[str, Ranks] = {}
        self._reported_down: dict[Hop, bool] = {}
        """Exits that most other relays report down: news once, not at every snapshot."""
        self._advertised: tuple[tuple[object, ...], ...] = ()
        self.draining = False
        for exit_hop in exits:
            self._add_edge(exit_hop.hop, exit_hop.label, exit_hop.cost, exit_hop.window_max, now)
        for rule in table.rules:
            if not rule.direct:
                self._classes[rule.name] = DestinationClass(
                    rule.name, tuple(sorted(f"{HopKind.SMART_HOST.value}:{name}" for name in rule.via))
                )

    # -- news ----------------------------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot, now: float) -> Changes:
        """The database changed: new peers become edges, their backlogs and reports are taken in."""
        self._snapshot = snapshot
        transitions: list[Transition] = []
        members = {node.node_id for node in snapshot.nodes if node.node_id != self._node_id}
        for node in snapshot.nodes:
            if node.node_id == self._node_id:
                continue
            hop = Hop(HopKind.PEER, node.node_id)
            edge = self._edges.get(hop)
            if edge is None:
                self._add_edge(hop, node.info.name, 0, self._settings.window_max, now)
            else:
                edge.label = node.info.name
            for load in node.load.classes:
                self._hear(node.node_id, load.class_id, load.backlog_count, now - node.age_s, "gossip")
        for hop in [hop for hop in self._edges if hop.kind is HopKind.PEER and hop.name not in members]:
            if not self._edges[hop].inflight:
                del self._edges[hop]
        for edge in self._edges.values():
            if edge.exit:
                self._hear_reports(edge, transitions, now)
        seen = tuple((node.node_id, node.info, node.links) for node in snapshot.nodes)
        if seen != self._seen:
            self._seen = seen
            self._forget_topology()
        return Changes(transitions=tuple(transitions), routes_changed=True, links_changed=bool(transitions))

    def peer_session(self, node_id: str, up: bool, now: float) -> Changes:
        """The gossip session with a peer is there or lost: the fast path of failure detection."""
        edge = self._edges.get(Hop(HopKind.PEER, node_id))
        if edge is None:
            return Changes()
        before = edge.breaker.state
        reason = (
            edge.breaker.regain("gossip session is up", now) if up else edge.breaker.lose("gossip session lost", now)
        )
        return self._changes_of(edge, before, reason, now)

    def set_backlog(self, class_id: str, count: int, oldest_s: float = 0) -> None:
        """Own stored messages of a class."""
        self._backlogs[class_id] = count
        self._oldest[class_id] = oldest_s
        if not count and class_id not in self._classes:
            self._backlogs.pop(class_id)
            self._oldest.pop(class_id)

    def hear_backlog(self, node_id: str, backlogs: Mapping[str, int], now: float) -> None:
        """What a peer said of its own backlog on an acknowledgement."""
        for class_id, count in backlogs.items():
            self._hear(node_id, class_id, count, now, "acknowledgement")

    def ensure_class(self, class_id: str) -> None:
        """Know a class by its id; a class of direct delivery gets its edge when it is first decided."""
        if class_id not in self._classes and class_id.startswith(f"{HopKind.MX.value}:"):
            self._classes[class_id] = DestinationClass(class_id, (class_id,))

    # -- deciding ------------------------------------------------------------------------------------------------------

    def decide(self, query: Query, now: float, *, explain: bool = True) -> Decision:
        """Where a message goes now, or hold. With `explain`, every own edge is a candidate with its verdict."""
        wanted = self._class(query.class_id, now)
        ranks = self._ranks_of(wanted, now)
        chosen, rule = self._choose(query, wanted, ranks, now)
        candidates: tuple[Candidate, ...] = ()
        if explain:
            candidates = self._explain_candidates(query, wanted, ranks, chosen, rule, now)
        return Decision(query.class_id, chosen, rule, candidates, self._snapshot.root, now)

    def begin(self, hop: Hop, class_id: str, now: float) -> None:
        """A transaction starts on a hop: it takes a slot."""
        edge = self._edges.get(hop) or self._add_edge(hop, hop.id, 0, DIRECT_WINDOW_MAX, now)
        edge.begin(now)

    def record(self, outcome: Outcome, class_id: str, now: float) -> Changes:
        """An attempt or a probe ended."""
        edge = self._edges.get(outcome.hop)
        if edge is None:
            return Changes()
        before = edge.breaker.state
        first_trial = before is EdgeState.HALF_OPEN and edge.breaker.successes == 0
        reason = edge.record(outcome, now)
        changes = self._changes_of(edge, before, reason, now)
        if first_trial and edge.breaker.state is EdgeState.HALF_OPEN and edge.breaker.successes:
            return Changes(changes.transitions, (edge.hop,), changes.routes_changed, changes.links_changed)
        return changes

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_timer(self, now: float) -> float | None:
        """When `on_timer` has something to do at the latest; None = nothing foreseen."""
        times = [edge.breaker.retry_at for edge in self._edges.values() if edge.breaker.retry_at is not None]
        times += [
            edge.used_at + self._settings.trial_interval_s for edge in self._edges.values() if self._on_trial(edge)
        ]
        return min(times, default=None)

    def on_timer(self, now: float) -> Changes:
        """Edges that were down long enough are tried; advertisements that drifted are due."""
        transitions: list[Transition] = []
        for edge in self._edges.values():
            before = edge.breaker.state
            self._note(edge, before, edge.breaker.on_timer(now), transitions, now)
        key = tuple(self._advert_key(edge, now) for edge in self._edges.values())
        drifted = key != self._advertised
        if drifted or transitions:
            self._advertised = key
            self._forget_topology()
        return Changes(
            transitions=tuple(transitions), routes_changed=bool(transitions), links_changed=drifted or bool(transitions)
        )

    def probes_due(self, now: float) -> tuple[Hop, ...]:
        """Hops to probe now; each is marked as being probed until its outcome is recorded."""
        due = [edge for edge in self._edges.values() if self._probe_due(edge, now)]
        for edge in due:
            edge.probing, edge.used_at = True, now
        return tuple(edge.hop for edge in due)

    # -- showing -------------------------------------------------------------------------------------------------------

    def links(self, now: float) -> tuple[LinkState, ...]:
        """Own edges for an advertisement, sorted by hop id."""
        edges = sorted(self._edges.values(), key=lambda edge: edge.hop.id)
        return tuple(edge.link_state(self._classes_of(edge.hop), now) for edge in edges)

    def load(self, now: float) -> Load:
        """Own backlogs for an advertisement."""
        return Load(
            classes=tuple(
                ClassLoad(class_id, count, int(self._oldest.get(class_id, 0)))
                for class_id, count in sorted(self._backlogs.items())
                if count
            )
        )

    def rows(self, now: float) -> tuple[RouteRow, ...]:
        """The routing table: for each class the decision that a fresh message would get."""
        return tuple(
            RouteRow(class_id, wanted.exits, self.decide(Query(class_id), now), self._backlogs.get(class_id, 0))
            for class_id, wanted in sorted(self._classes.items())
        )

    def explain(self, query: Query, now: float) -> Explanation:
        """The decision with bound, bottleneck and alternatives. Walks the graph: not for every message."""
        wanted = self._class(query.class_id, now)
        topology = self._current_topology(now)
        arcs = topology.of_class(wanted)
        bound = compute_bound(arcs, self._node_id)
        names = {**topology.names, self._node_id: self._node_name}
        return Explanation(
            decision=self.decide(query, now),
            bound_mps=bound.flow_mmps / 1000,
            bottleneck=tuple(f"{names.get(u, u)} -> {names.get(v, v)}" for u, v in bound.cut),
            paths=tuple(
                " -> ".join(names.get(step, step) for step in path) for path in find_paths(arcs, self._node_id)
            ),
        )

    # -- the rule ------------------------------------------------------------------------------------------------------

    def _choose(self, query: Query, wanted: DestinationClass, ranks: Ranks, now: float) -> tuple[Hop | None, str]:
        if query.prefer is not None:
            edge = self._edges.get(query.prefer)
            if edge is not None and edge.usable and edge.free_slots(now) > 0:
                return query.prefer, "in doubt: the same hop first"
        exits = [edge for edge in self._exits(wanted) if self._permitted(edge, query, now)]
        if exits:
            return min(exits, key=lambda edge: (self._stride(edge, now), edge.hop.id)).hop, "planned share"
        for edge in self._exits(wanted):
            if edge.usable and edge.hop not in query.avoid:
                edge.capacity.observe_limit(now)
        peers = [
            (gain, edge)
            for edge in self._peers()
            if self._permitted(edge, query, now)
            and edge.hop.name not in query.trace
            and (gain := self._gain(edge, query.class_id, ranks, now)) > 0
        ]
        if peers:
            return max(peers, key=lambda pair: (pair[0], pair[1].hop.id))[1].hop, "largest gain"
        back = self._step_back(query, wanted, ranks, now)
        if back is not None:
            return back, "step back"
        return None, self._hold_reason(query, wanted, ranks)

    def _permitted(self, edge: Edge, query: Query, now: float) -> bool:
        return edge.usable and edge.hop not in query.avoid and edge.free_slots(now) > 0

    def _stride(self, edge: Edge, now: float) -> float:
        return (edge.faded_sent(now) + 1) / max(0.001, edge.effective_capacity(now)) + edge.cost

    def _gain(self, edge: Edge, class_id: str, ranks: Ranks, now: float) -> float:
        """Gain of a peer; minus infinity if it reaches no exit without us, or passes nothing on."""
        there = ranks.there.get(edge.hop.name)
        if there is None:
            return float("-inf")
        here = ranks.here if ranks.here is not None else there + 1
        beta = self._settings.beta_messages
        backlog_here = self._backlogs.get(class_id, 0)
        backlog_there = self._backlog_there(edge.hop.name, class_id)[0]
        sideways = beta + SIDEWAYS_SHARE * backlog_here if there >= here else 0.0
        gradient = backlog_here - backlog_there
        return edge.reliability.value * (gradient + beta * (here - there) - sideways)

    def _step_back(self, query: Query, wanted: DestinationClass, ranks: Ranks, now: float) -> Hop | None:
        """Only if no exit and no peer outside the trace could take it, now or later."""
        if not query.trace or any(edge.usable for edge in self._exits(wanted)):
            return None
        fresh = [edge for edge in self._peers() if edge.usable and edge.hop.name not in query.trace]
        if any(edge.hop.name in ranks.there for edge in fresh):
            return None
        visits = query.trace.index(self._node_id) if self._node_id in query.trace else len(query.trace)
        if visits == 0:
            return None  # it began here: nowhere to step back to
        edge = self._edges.get(Hop(HopKind.PEER, query.trace[visits - 1]))
        if edge is None or not self._permitted(edge, query, now) or edge.hop.name not in ranks.there:
            return None
        return edge.hop

    def _hold_reason(self, query: Query, wanted: DestinationClass, ranks: Ranks) -> str:
        exits = [edge for edge in self._exits(wanted) if edge.usable]
        if any(edge.hop not in query.avoid for edge in exits):
            return "hold: no slot"
        if exits:
            return "hold: backing off"
        peers = [edge for edge in self._peers() if edge.hop.name in ranks.there]
        if not any(edge.usable for edge in peers):
            return "hold: no path"
        if all(edge.hop.name in query.trace for edge in peers):
            return "hold: every way leads back"
        return "hold: no gain"

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _explain_candidates(
        self, query: Query, wanted: DestinationClass, ranks: Ranks, chosen: Hop | None, rule: str, now: float
    ) -> tuple[Candidate, ...]:
        serving = {edge.hop for edge in self._exits(wanted)}
        total = sum(edge.effective_capacity(now) for edge in self._exits(wanted) if edge.usable)
        found = [
            self._candidate(edge, query, ranks, chosen, rule, now, edge.hop in serving, total)
            for edge in self._edges.values()
            if edge.hop.kind is not HopKind.MX or edge.hop in serving
        ]
        return tuple(sorted(found, key=_order))

    def _candidate(
        self,
        edge: Edge,
        query: Query,
        ranks: Ranks,
        chosen: Hop | None,
        rule: str,
        now: float,
        serves: bool,
        total: float,
    ) -> Candidate:
        peer = edge.hop.kind is HopKind.PEER
        count, source, heard_at = self._backlog_there(edge.hop.name, query.class_id) if peer else (0, "exit", None)
        gain = self._gain(edge, query.class_id, ranks, now) if peer else self._exit_gain(edge, query.class_id, ranks)
        verdict, reason = self._judge(edge, query, ranks, gain, chosen, rule, now, serves)
        planned = serves and edge.usable and total > 0
        return Candidate(
            hop=edge.hop,
            label=edge.label,
            verdict=verdict,
            gain=gain if gain > float("-inf") else 0.0,
            backlog_here=self._backlogs.get(query.class_id, 0),
            backlog_there=count,
            backlog_age_s=now - heard_at if heard_at is not None else None,
            backlog_source=source,
            rank_here=ranks.here,
            rank_there=ranks.there.get(edge.hop.name) if peer else 0.0,
            availability=edge.availability.at(now),
            reliability=edge.reliability.value,
            capacity_mps=edge.capacity.at(now),
            capacity_proven=edge.capacity.proven(now),
            latency_s=edge.latency.peak,
            window=edge.breaker.slots(edge.window.size, now),
            inflight=edge.inflight,
            state=edge.breaker.state,
            share=edge.effective_capacity(now) / total if planned else 0.0,
            cost=edge.cost,
            reason=reason,
        )

    def _judge(
        self,
        edge: Edge,
        query: Query,
        ranks: Ranks,
        gain: float,
        chosen: Hop | None,
        rule: str,
        now: float,
        serves: bool,
    ) -> tuple[Verdict, str]:
        """Why this edge won or lost: the first of the rules that excludes it."""
        peer = edge.hop.kind is HopKind.PEER
        if edge.hop == chosen:
            return Verdict.CHOSEN, rule
        if not peer and not serves:
            return Verdict.POLICY, f"the route {query.class_id} does not use it"
        if edge.breaker.state is EdgeState.DRAINING:
            return Verdict.DRAINING, "it is being drained"
        if not edge.usable:
            return Verdict.EDGE_DOWN, f"down since {now - edge.breaker.since:.1f} s"
        if peer and edge.hop.name in query.trace:
            return Verdict.IN_TRACE, "the message was there already"
        if peer and self._no_transit(edge.hop.name):
            return Verdict.NO_TRANSIT, "it takes no mail from others to pass on"
        if peer and edge.hop.name not in ranks.there:
            return Verdict.NO_PATH, "it reaches no exit of the class without this node"
        if edge.hop in query.avoid:
            return Verdict.BACKING_OFF, "this message failed there a moment ago"
        if edge.free_slots(now) <= 0:
            return Verdict.NO_SLOT, f"all {edge.inflight} transactions that its window allows are in flight"
        if peer and gain <= 0:
            return Verdict.NO_GAIN, f"gain {gain:.1f}: its backlog is no smaller, or it is no nearer to an exit"
        return Verdict.OUTRANKED, "an exit comes first" if peer else "another exit is further behind its share"

    def _exit_gain(self, edge: Edge, class_id: str, ranks: Ranks) -> float:
        bias = self._settings.beta_messages * (ranks.here or 0.0)
        return edge.reliability.value * (self._backlogs.get(class_id, 0) + bias)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _class(self, class_id: str, now: float) -> DestinationClass:
        """The class; a direct one gets its edge here, if this node delivers to exchangers at all."""
        self.ensure_class(class_id)
        wanted = self._classes.get(class_id) or DestinationClass(class_id, ())
        hop = Hop.parse(class_id) if class_id.startswith(f"{HopKind.MX.value}:") else None
        if hop is not None and hop not in self._edges and any(rule.direct for rule in self._table.rules):
            if len(self._edges) >= DIRECT_EDGES_MAX:
                self._forget_idle_direct()
            self._add_edge(hop, hop.name, 0, DIRECT_WINDOW_MAX, now)
        return wanted

    def _exits(self, wanted: DestinationClass) -> list[Edge]:
        return [self._edges[hop] for hop in map(Hop.parse, wanted.exits) if hop in self._edges]

    def _peers(self) -> list[Edge]:
        return [edge for edge in self._edges.values() if edge.hop.kind is HopKind.PEER]

    def _classes_of(self, hop: Hop) -> tuple[str, ...]:
        if hop.kind is HopKind.PEER:
            return ()
        if hop.kind is HopKind.MX:
            return (hop.id,)
        return tuple(sorted(rule.name for rule in self._table.rules if hop.name in rule.via and not rule.direct))

    def _add_edge(self, hop: Hop, label: str, cost: int, window_max: int, now: float) -> Edge:
        edge = build_edge(hop, label, cost=cost, window_max=window_max, settings=self._settings, rng=self._rng, now=now)
        self._edges[hop] = edge
        self._forget_topology()
        return edge

    def _forget_idle_direct(self) -> None:
        idle = [hop for hop, edge in self._edges.items() if hop.kind is HopKind.MX and not edge.inflight]
        for hop in idle:
            del self._edges[hop]
            self._classes.pop(hop.id, None)

    def _hear(self, node_id: str, class_id: str, count: int, at: float, source: str) -> None:
        known = self._heard.get((node_id, class_id))
        if known is None or at >= known.at:
            self._heard[(node_id, class_id)] = Heard(count, at, source)

    def _backlog_there(self, node_id: str, class_id: str) -> tuple[int, str, float | None]:
        heard = self._heard.get((node_id, class_id))
        return (heard.count, heard.source, heard.at) if heard is not None else (0, "unknown", None)

    def _ranks_of(self, wanted: DestinationClass, now: float) -> Ranks:
        ranks = self._ranks.get(wanted.class_id)
        if ranks is None:
            topology = self._current_topology(now)
            arcs = topology.of_class(wanted)
            here = compute_ranks(arcs, no_transit=topology.no_transit).get(self._node_id)
            there = compute_ranks(arcs, without=self._node_id, no_transit=topology.no_transit)
            there = {node: rank for node, rank in there.items() if node not in topology.no_transit}
            ranks = self._ranks[wanted.class_id] = Ranks(here, there)
        return ranks

    def _current_topology(self, now: float) -> Topology:
        if self._topology is None:
            self._topology = build_topology(self._node_id, self._snapshot, self._edges.values(), now)
        return self._topology

    def _forget_topology(self) -> None:
        self._topology = None
        self._ranks.clear()

    def _no_transit(self, node_id: str) -> bool:
        return any(
            node.node_id == node_id and (node.info.no_transit or node.info.draining) for node in self._snapshot.nodes
        )

    def _hear_reports(self, edge: Edge, transitions: list[Transition], now: float) -> None:
        """What other relays say of an exit makes us look for ourselves; it never decides for us."""
        before, reason = edge.breaker.state, None
        fresh = [
            link.status
            for node in self._snapshot.nodes
            if node.node_id != self._node_id and node.age_s <= self._settings.report_fresh_s
            for link in node.links
            if link.hop == edge.hop.id and link.status is not LinkStatus.UNKNOWN
        ]
        down = sum(status in (LinkStatus.DOWN, LinkStatus.HALF_OPEN) for status in fresh) > len(fresh) * MAJORITY
        news = down and not self._reported_down.get(edge.hop, False)
        self._reported_down[edge.hop] = down
        if news:
            reason = edge.breaker.suspect("most other relays report it down", now)
        elif LinkStatus.UP in fresh and now - edge.breaker.since > self._settings.report_fresh_s:
            reason = edge.breaker.regain("another relay reports it up", now)
        self._note(edge, before, reason, transitions, now)

    def _on_trial(self, edge: Edge) -> bool:
        return edge.breaker.state in (EdgeState.HALF_OPEN, EdgeState.SUSPECT) and not edge.probing

    def _probe_due(self, edge: Edge, now: float) -> bool:
        if edge.probing or edge.inflight or not edge.usable or edge.hop.kind is HopKind.MX:
            return False
        idle_s = now - edge.used_at
        if edge.breaker.state in (EdgeState.HALF_OPEN, EdgeState.SUSPECT):
            return idle_s >= self._settings.trial_interval_s
        return edge.exit and idle_s >= self._settings.probe_interval_s

    def _changes_of(self, edge: Edge, before: EdgeState, reason: str | None, now: float) -> Changes:
        transitions: list[Transition] = []
        self._note(edge, before, reason, transitions, now)
        recovered = edge.breaker.state is EdgeState.UP and before in (EdgeState.HALF_OPEN, EdgeState.DOWN)
        return Changes(
            transitions=tuple(transitions),
            opened=(edge.hop,) if recovered else (),
            routes_changed=bool(transitions),
            links_changed=bool(transitions),
        )

    def _note(
        self, edge: Edge, before: EdgeState, reason: str | None, transitions: list[Transition], now: float
    ) -> None:
        after = edge.breaker.state
        if reason is None or after is before:
            return
        edge.availability.observe(after is not EdgeState.DOWN, now)
        if after is EdgeState.HALF_OPEN:
            edge.used_at = now - self._settings.trial_interval_s  # a probe is due at once
        transitions.append(Transition(edge.hop, before, after, reason))
        self._forget_topology()

    def _advert_key(self, edge: Edge, now: float) -> tuple[object, ...]:
        level = self._settings.advertise_level
        return (
            edge.hop.id,
            STATUS[edge.breaker.state],
            round(edge.availability.at(now) / level),
            round(edge.reliability.value / level),
            round(edge.effective_capacity(now)).bit_length(),
        )


def _order(candidate: Candidate) -> tuple[object, ...]:
    """Chosen first, then what was allowed, then the rest; exits before peers, larger shares first."""
    rank = {Verdict.CHOSEN: 0, Verdict.OUTRANKED: 1, Verdict.NO_SLOT: 2, Verdict.NO_GAIN: 3}
    return (
        rank.get(candidate.verdict, 4),
        candidate.hop.kind is HopKind.PEER,
        -candidate.share,
        -candidate.gain,
        candidate.hop.id,
    )
