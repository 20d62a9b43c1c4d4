"""The mesh as arcs: what others advertised, and what this node measured itself. Pure.

Own arcs come from own edges and never from gossip: nobody knows them better. An arc that is DOWN, on trial or DRAINING
is left out, so is every arc to a node that the database no longer holds. Everything is sorted: equal views give equal
answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gossip.linkstate import LinkState, LinkStatus, NodeInfo, NodeRecord, Snapshot
from router.decision import Hop, HopKind
from router.edge import ATTEMPTS_MAX, WEIGHT_STEP, Edge
from router.policy import DIRECT_PREFIX, DestinationClass
from router.terms import ANY_WAY, KEEPS_ANY_FLOOR, NO_TERMS, Policy, Refusal, Terms

DIRECT_CAPACITY_MMPS = 10_000
"""Capacity assumed for a delivery to a domain's own exchangers that nobody has measured."""
CLOSED = frozenset({LinkStatus.DOWN, LinkStatus.HALF_OPEN, LinkStatus.DRAINING})
"""Links that lead nowhere now. One on trial opens within a second if it is sound, and closes again if not."""


@dataclass(frozen=True, slots=True)
class Arc:
    """A directed link of the mesh that may carry mail."""

    origin: str
    """Node id."""
    hop: Hop
    weight: float
    """Expected attempts for one delivery, in quarter steps, plus cost."""
    capacity_mmps: int
    classes: tuple[str, ...]
    """Classes that an exit serves; empty for peers."""
    terms: Terms = NO_TERMS
    """Of an exit."""
    sustained_mmps: int = 0
    """What it was seen to carry; 0 = nothing yet."""


@dataclass(frozen=True, slots=True)
class Topology:
    """All arcs, and what is known of the nodes."""

    self_id: str
    arcs: tuple[Arc, ...]
    names: dict[str, str]
    no_transit: frozenset[str]
    """Nodes that take no mail from others now: by policy, draining, or overloaded."""
    direct_mx: frozenset[str]
    """Nodes other than this that deliver to domains' own exchangers."""
    closed: frozenset[tuple[str, str]]
    """(node id, hop id) of links that their origin advertises as closed."""
    tags: dict[str, tuple[str, ...]]
    """Of the nodes other than this, by node id."""
    same_routes: frozenset[str] = frozenset()
    """Nodes other than this whose routes are those of this one."""
    senders: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Relay -> (relay that may send to it, weight of that arc)."""
    _exits: dict[str, list[Arc]] = field(default_factory=dict)
    """Arcs to exits of other relays by the classes that they serve, and all by hop id."""

    def of_class(self, wanted: DestinationClass) -> tuple[Arc, ...]:
        """Arcs between relays, and those to the exits that the policy of the class allows."""
        peers = [arc for arc in self.arcs if arc.hop.kind is HopKind.PEER]
        return tuple(sorted([*peers, *self.exits_of(wanted)], key=_by_ends))

    def exits_of(self, wanted: DestinationClass) -> list[Arc]:
        """Arcs to the exits that the policy of a class allows, of all relays."""
        name = wanted.served_as
        own = [arc for hop in wanted.exits for arc in self._exits.get(hop, ()) if arc.origin == self.self_id]
        others = [arc for arc in self._exits.get(name, ()) if arc.origin != self.self_id]
        if name.startswith(DIRECT_PREFIX):
            others += self._direct_arcs(wanted, [*own, *others])
        if wanted.policy == ANY_WAY:
            return own + others
        return [arc for arc in own + others if wanted.policy.refuse_exit(arc.terms) is None]

    def own(self, wanted: DestinationClass) -> list[Arc]:
        """Arcs of this node that lead to relays, or to the exits of a class."""
        return [arc for arc in self.exits_of(wanted) if arc.origin == self.self_id] + [
            arc for arc in self.arcs if arc.origin == self.self_id and arc.hop.kind is HopKind.PEER
        ]

    def closed_to(self, policy: Policy) -> frozenset[str]:
        """Nodes that take no mail of a class with this policy from others."""
        if not policy.judges_relays:
            return self.no_transit
        return self.no_transit | self.refused_relays(policy).keys()

    def refused_relays(self, policy: Policy) -> dict[str, Refusal]:
        """Other nodes that a policy leaves out, and why."""
        found = {node: policy.refuse_relay(tags) for node, tags in self.tags.items()}
        return {node: refusal for node, refusal in found.items() if refusal is not None}

    def _direct_arcs(self, wanted: DestinationClass, known: Iterable[Arc]) -> list[Arc]:
        """Nodes that deliver to exchangers themselves reach every domain of which they say nothing else."""
        measured = {arc.origin for arc in known if arc.hop.id == wanted.class_id}
        measured |= {origin for origin, hop_id in self.closed if hop_id == wanted.class_id}
        hop = Hop.parse(wanted.class_id)
        return [
            Arc(node, hop, 1.0, DIRECT_CAPACITY_MMPS, (wanted.class_id,), self._direct_terms(node))
            for node in sorted(self.direct_mx - measured)
        ]

    def _direct_terms(self, node: str) -> Terms:
        return direct_terms(self.tags.get(node, ()), same_routes=node in self.same_routes)


@dataclass(frozen=True, slots=True)
class Digest:
    """What the records of one node come to."""

    info: NodeInfo
    links: tuple[LinkState, ...]
    key: tuple[object, ...]
    """Differs when ranks may."""
    arcs: tuple[Arc, ...]
    """Of its links that are not closed, also those to nodes that are not known here; by hop id."""
    closed: tuple[tuple[str, str], ...]


class Digests:
    """Each node's digest, worked out once for each record: most news are loads, and leave the links as they were."""

    def __init__(self) -> None:
        self._routes_digest = ""
        self._by_node: dict[str, Digest] = {}

    def of(self, node: NodeRecord) -> Digest:
        """Made anew if the record is another one."""
        found = self._by_node.get(node.node_id)
        if found is None or found.links is not node.links or found.info is not node.info:
            found = self._by_node[node.node_id] = _digest(node, same_routes=self.has_same_routes(node))
        return found

    def compare_with(self, routes_digest: str) -> None:
        """These are the routes of this node now; before the first call nobody's are known to be the same."""
        self._routes_digest = routes_digest
        self._by_node.clear()

    def has_same_routes(self, node: NodeRecord) -> bool:
        """Its routes are those of this node."""
        return bool(self._routes_digest) and node.info.routes_digest == self._routes_digest

    def forget(self, node_id: str) -> None:
        """The node left."""
        self._by_node.pop(node_id, None)


def build_topology(
    self_id: str, snapshot: Snapshot, own: Iterable[Edge], now: float, digests: Digests | None = None
) -> Topology:
    """The topology of a database, with the own edges as measured."""
    digests = digests or Digests()
    others = [node for node in snapshot.nodes if node.node_id != self_id]
    known = {node.node_id for node in snapshot.nodes} | {self_id}
    arcs = [
        Arc(
            self_id,
            edge.hop,
            edge.weight(now),
            round(1000 * edge.effective_capacity(now)),
            (),
            edge.terms,
            round(1000 * edge.capacity.sustained(now)),
        )
        for edge in own
        if edge.open
    ]
    for node in others:
        arcs += [a for a in digests.of(node).arcs if a.hop.kind is not HopKind.PEER or a.hop.name in known]
    senders, exits = dict[str, list[tuple[str, float]]](), dict[str, list[Arc]]()
    arcs.sort(key=_by_ends)
    for arc in arcs:
        if arc.hop.kind is HopKind.PEER:
            senders.setdefault(arc.hop.name, []).append((arc.origin, arc.weight))
        else:
            for name in {arc.hop.id, *arc.classes}:
                exits.setdefault(name, []).append(arc)
    return Topology(
        self_id=self_id,
        arcs=tuple(arcs),
        names={node.node_id: node.info.name for node in snapshot.nodes},
        no_transit=frozenset(node.node_id for node in others if takes_nothing(node.info)),
        direct_mx=frozenset(node.node_id for node in others if node.info.direct_mx),
        closed=frozenset(pair for node in others for pair in digests.of(node).closed),
        tags={node.node_id: node.info.tags for node in others},
        same_routes=frozenset(node.node_id for node in others if digests.has_same_routes(node)),
        senders=senders,
        _exits=exits,
    )


def _by_ends(arc: Arc) -> tuple[str, str]:
    return arc.origin, arc.hop.id


def takes_nothing(info: NodeInfo) -> bool:
    """A node that takes no mail from other relays now."""
    return info.no_transit or info.draining or info.overloaded


def rank_key(snapshot: Snapshot, digests: Digests | None = None) -> tuple[object, ...]:
    """Differs when ranks may: membership, policy, state, weight; never load, latency or capacity."""
    digests = digests or Digests()
    return tuple(digests.of(node).key for node in snapshot.nodes)


def _digest(node: NodeRecord, *, same_routes: bool) -> Digest:
    links = tuple(
        (link.hop, link.status in CLOSED, _weight(link), link.classes, link.tags, link.tls, link.size_bytes_max)
        for link in node.links
    )
    return Digest(
        info=node.info,
        links=node.links,
        key=(node.node_id, takes_nothing(node.info), node.info.direct_mx, node.info.tags, same_routes, links),
        arcs=tuple(sorted(_advertised(node, same_routes=same_routes), key=_by_ends)),
        closed=tuple((node.node_id, link.hop) for link in node.links if link.status in CLOSED),
    )


def _advertised(node: NodeRecord, *, same_routes: bool) -> Iterable[Arc]:
    for link in node.links:
        if link.status in CLOSED:
            continue
        hop = Hop.parse(link.hop)
        direct = hop.kind is HopKind.MX
        terms = direct_terms(node.info.tags, same_routes=same_routes) if direct else _terms(link)
        yield Arc(node.node_id, hop, _weight(link), link.capacity_mmps, link.classes, terms, link.sustained_mmps)


def direct_terms(tags: tuple[str, ...], *, same_routes: bool) -> Terms:
    """What a domain's own exchangers are when another node delivers to them."""
    return Terms(tags, KEEPS_ANY_FLOOR if same_routes else NO_TERMS.tls)


def _terms(link: LinkState) -> Terms:
    return Terms(link.tags, link.tls, link.size_bytes_max)


def _weight(link: LinkState) -> float:
    """The weight of `Edge.weight`, from the bounded integers of an advertisement."""
    attempts = min(ATTEMPTS_MAX, 1e6 / max(1, link.availability_permille * link.reliability_permille))
    return max(1.0, round(attempts / WEIGHT_STEP) * WEIGHT_STEP) + link.cost
