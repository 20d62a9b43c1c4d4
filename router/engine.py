"""The routing engine: measurements and gossip in, decisions with reasons out. Pure: `now` and `rng` are arguments.

    router.adjacency     own edges: breakers, estimators, probes, advertisements
    router.backlog       what waits here and at the neighbours
    router.topology      own edges and the link-state database as arcs
    router.flow          ranks, bound, bottleneck, paths (networkx)
    router.problem       what is to be planned: links and demands of the database
    router.plan          the plan: a flow of least delay
    router.planning      keeps it current, off the message path
    router.forwarding    the rule, per message
    router.candidates    the rule explained
    router.whatif        the rule as a fluid, on a changed copy of the view

It is asked only when a slot may be free, so that nothing is bound early. Ranks are computed again only when membership,
policy, a state or a weight changed: never because of load or latency.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from gossip.linkstate import LinkState, Load, NodeId, Snapshot
from router.adjacency import Adjacency
from router.backlog import Backlogs
from router.candidates import Case, explain_candidates
from router.decision import (
    Changes,
    Decision,
    EdgeState,
    ExitHop,
    Explanation,
    Hop,
    HopKind,
    Outcome,
    Pin,
    Query,
    RouteRow,
)
from router.edge import HEADROOM_FULL, Edge
from router.flow import compute_bound, compute_ranks, find_paths, rank_beside
from router.forwarding import ClassView, ForwardingRule, build_view
from router.planning import Planning
from router.policy import DIRECT_PREFIX, DestinationClass, RouteRule, RouteTable
from router.settings import RouterSettings
from router.terms import Refusal
from router.topology import Arc, Digests, Topology, build_topology, rank_key
from router.whatif import Answer, Hypothesis, exit_capacities, forecast

CLASSES_MAX = 10_000
"""Classes remembered; past it direct ones without mail are forgotten."""


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
        tags: Sequence[str] = (),
    ) -> None:
        """`tags`: of this node."""
        self._node_id, self._node_name = NodeId(node_id), node_name
        self._digests = Digests()
        self.planning = Planning(node_id, self._digests)
        self._adjacency = Adjacency(table, exits, settings, rng, now, tags=tags)
        self._backlogs = Backlogs(settings.backlog_fresh_s)
        self.headroom_permille = HEADROOM_FULL
        """How much more this node can take, for its advertisement."""
        self._forwarding = ForwardingRule(node_id, settings, self._backlogs)
        self._snapshot = Snapshot("")
        self._rank_key: tuple[object, ...] = ()
        self._own_weights: tuple[object, ...] = ()
        self._topology: Topology | None = None
        self._views: dict[str, ClassView] = {}
        self._pins: dict[str, Pin] = {}
        self._take(table)

    def _take(self, table: RouteTable) -> None:
        self._table = table
        self._digests.compare_with(table.digest())
        self._delivers_direct = any(rule.direct for rule in table.rules)
        self._classes = {wanted.class_id: wanted for wanted in table.classes()}

    def reconfigure(
        self,
        rules: Sequence[RouteRule],
        exits: Sequence[ExitHop],
        now: float,
        *,
        tags: Sequence[str] = (),
        anew: Collection[Hop] = (),
    ) -> Changes:
        """Go by other routes, exits and tags from now on; `anew`: exits that are other machines than before.

        Mail that is stored under a class that is no more has no exit here: whoever stores it gives it another class.
        Pins and drains of what is no more are for whoever ordered them. Woken are the classes that have a new exit.
        """
        self._take(RouteTable(rules))
        added = self._adjacency.reconfigure(self._table, exits, now, tags=tags, anew=anew)
        self._rank_key = self._own_weights = ()
        self._forget_ranks()
        names = {hop.id for hop in added}
        woken = tuple(sorted(name for name, wanted in self._classes.items() if names.intersection(wanted.exits)))
        return Changes(woken=woken, routes_changed=True, links_changed=True)

    @property
    def draining(self) -> bool:
        """This node is leaving: its mail goes to peers as readily as to exits, and it tells that it has no headroom."""
        return self._forwarding.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._forwarding.draining = draining
        self._forget_ranks()

    @property
    def pins(self) -> Mapping[str, Pin]:
        """Class id -> pin; one may be over and not yet forgotten."""
        return self._pins

    # -- news ----------------------------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot, now: float) -> Changes:
        """The database changed: new peers become edges, their backlogs and reports are taken in."""
        left = {node.node_id for node in self._snapshot.nodes} - {node.node_id for node in snapshot.nodes}
        for node_id in left:
            self._backlogs.forget(node_id)
            self._digests.forget(node_id)
        self._snapshot, self._topology = snapshot, None
        self._forwarding.node_count = len(snapshot.nodes)
        others = [node for node in snapshot.nodes if node.node_id != self._node_id]
        met = self._adjacency.meet(self._node_id, snapshot, now)
        for node in others:
            self._backlogs.hear_gossip(node.node_id, node.load, now - node.load_age_s)
        transitions = self._adjacency.hear_reports(others, now)
        key = rank_key(snapshot, self._digests)
        if met or key != self._rank_key:
            self._rank_key = key
            self._forget_ranks()
        elif transitions:
            self._reweigh(now)
        return Changes(transitions, routes_changed=True, links_changed=met or bool(transitions))

    def peer_session(self, node_id: str, up: bool, now: float) -> Changes:
        """The gossip session with a peer is there or lost: the fast path of failure detection."""
        return self._after(self._adjacency.note_session(node_id, up, now), now)

    def set_backlog(self, class_id: str, count: int, oldest_s: float = 0) -> None:
        """Own stored messages of a class."""
        self._backlogs.set_own(class_id, count, oldest_s)

    def note_arrivals(self, counts: Mapping[str, int], now: float) -> None:
        """Messages that clients submitted since the last call, by class: the demand that is planned for."""
        self._backlogs.note_arrivals(
            {name: count for name, count in counts.items() if not name.startswith(DIRECT_PREFIX)}, now
        )

    def hear_backlog(self, node_id: str, backlogs: Mapping[str, int], now: float) -> None:
        """What a peer said of its own backlog on an acknowledgement."""
        self._backlogs.hear_acknowledgement(node_id, backlogs, now)

    def ensure_class(self, class_id: str) -> None:
        """Know a class by its id; a class of direct delivery gets its edge when it is first decided."""
        if class_id in self._classes or (found := self._table.find_class(class_id)) is None:
            return
        if len(self._classes) >= CLASSES_MAX:
            self._forget_idle_classes()
        self._classes[class_id] = found

    def is_too_large(self, class_id: str) -> bool:
        """No exit of its route takes mail of the class: it can never leave."""
        return self._class(class_id).too_large

    # -- orders --------------------------------------------------------------------------------------------------------

    def drain_hop(self, hop: Hop, reason: str, now: float) -> Changes:
        """The operator wants nothing new on an own hop."""
        return self._after(self._adjacency.drain(hop, reason, now), now)

    def undrain_hop(self, hop: Hop, reason: str, now: float) -> Changes:
        """It may be used again, after a trial."""
        return self._after(self._adjacency.undrain(hop, reason, now), now)

    def find_pin_fault(self, class_id: str, hop: Hop, now: float) -> str:
        """Why a class cannot be pinned to a hop; empty if it can."""
        self.ensure_class(class_id)
        if class_id not in self._classes:
            return f"there is no class {class_id!r} here; there are: {', '.join(sorted(self._classes)) or 'none'}"
        view = self.view(class_id, now)
        if (refusal := view.refused.get(hop)) is not None:
            return f"the route's policy keeps {class_id} from {hop.id}: {refusal}"
        exits = [edge.hop.id for edge in view.exits]
        if hop.kind is not HopKind.PEER and hop.id not in exits:
            return f"{hop.id} is no exit of the class {class_id} here; there are: {', '.join(exits) or 'none'}"
        return "" if self._adjacency.get(hop) is not None else f"there is no {hop.id} here"

    def pin(self, class_id: str, hop: Hop, until: float, now: float) -> Changes:
        """All mail of the class goes by this hop until then, and waits while it is down."""
        self.ensure_class(class_id)
        self._pins[class_id] = Pin(hop, until)
        self._forget_ranks()
        return Changes(routes_changed=True, woken=(class_id,))

    def unpin(self, class_id: str, now: float) -> Changes:
        """The rule decides again."""
        if self._pins.pop(class_id, None) is None:
            return Changes()
        self._forget_ranks()
        return Changes(routes_changed=True, woken=(class_id,))

    # -- deciding ------------------------------------------------------------------------------------------------------

    def pick(self, query: Query, now: float) -> tuple[Hop | None, str]:
        """Where a message goes now, or None to hold, and the rule that decided."""
        view = self._views.get(query.class_id) or self._build_view(query.class_id, now)
        edge, rule = self._choose(query, view, now)
        return (edge.hop if edge is not None else None), rule

    def _choose(self, query: Query, view: ClassView, now: float) -> tuple[Edge | None, str]:
        preferred = self._adjacency.get(query.prefer) if query.prefer is not None else None
        return self._forwarding.choose(query, view, preferred, now, self.planning.of_class(query.class_id))

    def view(self, class_id: str, now: float) -> ClassView:
        """What the rule reads for every message of a class: for other rules to compare with."""
        return self._views.get(class_id) or self._build_view(class_id, now)

    @property
    def backlogs(self) -> Backlogs:
        """What waits here and at the neighbours; for reading only."""
        return self._backlogs

    def decide(self, query: Query, now: float) -> Decision:
        """The same choice, with every own edge as a candidate and its verdict. Not for every message."""
        view = self.view(query.class_id, now)
        chosen, rule = self._choose(query, view, now)
        no_transit = self._current_topology(now).no_transit
        plan = self.planning.of_class(query.class_id)
        pin = view.pin if view.pin is not None and now < view.pin.until else None
        case = Case(query, view, no_transit, chosen, rule, self._forwarding.hops_max, now, plan, self.draining, pin)
        candidates = explain_candidates(case, self._adjacency.all(), self._forwarding, self._backlogs)
        return Decision(
            query.class_id,
            chosen.hop if chosen is not None else None,
            rule,
            candidates,
            self._snapshot.root,
            now,
            query,
            self._node_id,
            self._forwarding.hops_max,
            self._forwarding.beta,
            view.blocked,
            self.draining,
            pin,
        )

    def begin(self, hop: Hop, class_id: str, now: float, size_bytes: int = 0) -> None:
        """A transaction starts on a hop: it takes a slot."""
        edge = self._adjacency.get(hop)
        if edge is None:  # a user's sink chose it
            edge = self._adjacency.add(hop, hop.id, now)
            self._forget_ranks()
        edge.begin(now, size_bytes)
        plan = self.planning.of_class(class_id)
        if plan is not None:
            plan.note(None if edge.exit else hop.name, now)

    def record(self, outcome: Outcome, class_id: str, now: float) -> Changes:
        """An attempt or a probe ended."""
        return self._after(self._adjacency.record(outcome, now), now)

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_timer(self, now: float) -> float | None:
        """When `on_timer` has something to do at the latest; None = nothing foreseen."""
        ends = [pin.until for pin in self._pins.values()]
        return min((at for at in (self._adjacency.next_timer(), *ends) if at is not None), default=None)

    def on_timer(self, now: float) -> Changes:
        """Edges that were down long enough are tried; weights and advertisements that drifted are due."""
        transitions, drifted = self._adjacency.on_timer(now)
        reweighted = self._reweigh(now)
        over = self._forget_pins(now)
        if over:
            self._forget_ranks()
        changed = bool(transitions)
        routes_changed = changed or reweighted or bool(over)
        return Changes(transitions, woken=over, routes_changed=routes_changed, links_changed=changed or drifted)

    def probes_due(self, now: float) -> tuple[Hop, ...]:
        """Hops to probe now; each is marked as being probed until its outcome is recorded."""
        return self._adjacency.take_probes(now)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def begin_plan(self, now: float) -> bool:
        """True if a new plan is due or under way: `plan_step` until it says that there is no more."""
        return self.planning.begin(self._snapshot, self._classes, now)

    def plan_step(self, now: float) -> bool:
        """A millisecond or so of work on the plan; True if there is more."""
        return self.planning.step(now)

    # -- showing -------------------------------------------------------------------------------------------------------

    def links(self, now: float) -> tuple[LinkState, ...]:
        """Own edges for an advertisement, sorted by hop id."""
        return self._adjacency.links(now)

    def edges(self) -> list[Edge]:
        """Every own edge, for reading only: metrics. Ten thousand of them are not asked for their scores at once."""
        return list(self._adjacency.all())

    def load(self, now: float) -> Load:
        """Own backlogs for an advertisement."""
        headroom = 0 if self.draining else self.headroom_permille
        return Load(headroom_permille=headroom, classes=self._backlogs.load())

    def state_of(self, hop: Hop) -> EdgeState | None:
        """Of the own edge to a hop; None without one."""
        edge = self._adjacency.get(hop)
        return edge.breaker.state if edge is not None else None

    def rows(self, now: float) -> tuple[RouteRow, ...]:
        """The routing table: for each class the decision that a fresh message would get."""
        return tuple(
            RouteRow(class_id, wanted.exits, self.decide(Query(class_id), now), self._backlogs.here(class_id))
            for class_id, wanted in sorted(self._classes.items())
        )

    def explain(self, query: Query, now: float) -> Explanation:
        """The decision with bound, bottleneck and alternatives. Walks the graph: not for every message."""
        decision = self.decide(query, now)
        topology, wanted = self._current_topology(now), self._class(query.class_id)
        arcs, closed = self._arcs(wanted, topology, now), topology.closed_to(wanted.policy)
        bound = compute_bound(arcs, self._node_id, no_transit=closed)
        paths = find_paths(arcs, self._node_id, no_transit=closed)
        names = {**topology.names, self._node_id: self._node_name}
        return Explanation(
            decision=decision,
            bound_mps=bound.flow_mmps / 1000,
            bottleneck=tuple(f"{names.get(u, u)} -> {names.get(v, v)}" for u, v in bound.cut),
            paths=tuple(" -> ".join(names.get(step, step) for step in path) for path in paths),
        )

    def what_if(
        self, hypothesis: Hypothesis, now: float, *, load_mps: float | None = None, at: Sequence[str] = ()
    ) -> tuple[Answer, ...]:
        """Where the mail of each class would go, now and after the changes. Walks the graph: not for every message.

        `load_mps`: of each class, spread evenly over the relays `at` (node ids; none = all that do not drain); None =
        as much as they can deliver now. Classes of single domains are left out.
        """
        topology = self._current_topology(now)
        relays = sorted(at) or sorted({self._node_id, *topology.names} - self._leaving())
        found = []
        for class_id, wanted in sorted(self._classes.items()):
            if class_id.startswith(DIRECT_PREFIX):
                continue
            arcs, closed = self._arcs(wanted, topology, now), topology.closed_to(wanted.policy)
            closed |= {self._node_id} if self.draining else set()
            load = sum(exit_capacities(arcs).values()) if load_mps is None else load_mps
            demand = {relay: load / len(relays) for relay in relays}
            today, then = (forecast(arcs, demand, changes, no_transit=closed) for changes in (Hypothesis(), hypothesis))
            found.append(Answer(class_id, today, then))
        return tuple(found)

    # -- private -------------------------------------------------------------------------------------------------------

    def _after(self, changes: Changes, now: float) -> Changes:
        """Ways may have opened or closed."""
        if changes.transitions or changes.opened:
            self._reweigh(now)
        return changes

    def _reweigh(self, now: float) -> bool:
        """Ranks are old if an own edge opened, closed, or weighs something else; True if one did.

        A dead hop that is tried and found dead again changed its state twice and the ranks not at all.
        """
        weights = tuple((edge.hop, edge.open, edge.weight(now)) for edge in self._adjacency.all())
        if weights == self._own_weights:
            return False
        self._own_weights = weights
        self._forget_ranks()
        return True

    def _class(self, class_id: str) -> DestinationClass:
        self.ensure_class(class_id)
        return self._classes.get(class_id) or DestinationClass(class_id, ())

    def _forget_pins(self, now: float) -> tuple[str, ...]:
        """Those that are over: their classes."""
        over = tuple(class_id for class_id, pin in self._pins.items() if now >= pin.until)
        for class_id in over:
            del self._pins[class_id]
        return over

    def _leaving(self) -> set[str]:
        """Relays that drain: clients go elsewhere."""
        told = {str(node.node_id) for node in self._snapshot.nodes if node.info.draining}
        return told - {self._node_id} | ({self._node_id} if self.draining else set())

    def _pinned(self, arcs: Sequence[Arc], class_id: str, now: float) -> Sequence[Arc]:
        """Of the own arcs just that to which the class is pinned."""
        pin = self._pins.get(class_id)
        if pin is None or now >= pin.until:
            return arcs
        return [arc for arc in arcs if arc.origin != self._node_id or arc.hop == pin.hop]

    def _arcs(self, wanted: DestinationClass, topology: Topology, now: float) -> Sequence[Arc]:
        return self._pinned(topology.of_class(wanted), wanted.class_id, now)

    def _build_view(self, class_id: str, now: float) -> ClassView:
        wanted = self._class(class_id)
        if len(self._views) >= CLASSES_MAX:
            self._views.clear()
        exits, refused = self._exits(wanted, now)
        topology = self._current_topology(now)
        arcs, closed = topology.exits_of(wanted), topology.closed_to(wanted.policy)
        there = compute_ranks(arcs, topology.senders, without=self._node_id, no_transit=closed)
        there = {node: rank for node, rank in there.items() if node not in closed}
        here = rank_beside(self._pinned(topology.own(wanted), class_id, now), there)
        peers = [edge for edge in self._adjacency.all() if not edge.exit]
        blocked = ""
        if wanted.policy.judges_relays:
            relays = topology.refused_relays(wanted.policy)
            refused |= {edge.hop: relays[edge.hop.name] for edge in peers if edge.hop.name in relays}
        if refused and not any(edge.open for edge in exits) and not any(edge.hop.name in there for edge in peers):
            lifted = compute_ranks(arcs, topology.senders, without=self._node_id, no_transit=topology.no_transit)
            blocked = self._blocked(refused, lifted)
        view = self._views[class_id] = build_view(
            wanted, exits, peers, here=here, there=there, refused=refused, blocked=blocked, pin=self._pins.get(class_id)
        )
        return view

    def _blocked(self, refused: Mapping[Hop, Refusal], lifted: Mapping[str, float]) -> str:
        """The rules that leave out what would take the mail now; `lifted`: ranks of relays without the policy."""
        rules = set[str]()
        for hop, refusal in refused.items():
            edge = self._adjacency.get(hop)
            if edge is not None and edge.open and (edge.exit or hop.name in lifted):
                rules.add(refusal.rule)
        return f"policy: {', '.join(sorted(rules))}" if rules else ""

    def _exits(self, wanted: DestinationClass, now: float) -> tuple[list[Edge], dict[Hop, Refusal]]:
        """Own edges to the exits of a class, and those that its policy leaves out.

        A direct one gets its edge here, if this node delivers to exchangers.
        """
        found, refused = list[Edge](), dict[Hop, Refusal]()
        for hop in map(Hop.parse, wanted.exits):
            edge = self._adjacency.get(hop)
            if edge is None and hop.kind is HopKind.MX and self._delivers_direct:
                edge, forgotten = self._adjacency.add_direct(hop.name, now)
                self._topology = None
                for gone in forgotten:
                    self._views.pop(gone.id, None)
            if edge is None:
                continue
            refusal = wanted.policy.refuse_exit(edge.terms)
            if refusal is None:
                found.append(edge)
            else:
                refused[edge.hop] = refusal
        return found, refused

    def _forget_idle_classes(self) -> None:
        for class_id in [name for name in self._classes if name.startswith(DIRECT_PREFIX)]:
            if not self._backlogs.here(class_id):
                del self._classes[class_id]
                self._views.pop(class_id, None)

    def _current_topology(self, now: float) -> Topology:
        if self._topology is None:
            self._topology = build_topology(self._node_id, self._snapshot, self._adjacency.all(), now, self._digests)
        return self._topology

    def _forget_ranks(self) -> None:
        self._topology = None
        self._views.clear()
