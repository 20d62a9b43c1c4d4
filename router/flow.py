"""The mesh as a networkx graph: ranks, the max-flow bound, bottlenecks, alternative paths. The only door to networkx.

networkx breaks ties by insertion order, so arcs arrive sorted; capacities are integers (milli-messages per second),
because floats can hang its flow algorithms; `shortest_augmenting_path` is a twentieth of the default's time on sparse
meshes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import networkx as nx
from networkx.algorithms.flow import shortest_augmenting_path

from router.decision import HopKind
from router.topology import Arc

SINK = "*"
"""The one destination behind all exits of a class."""
SOURCE = "+"
"""In front of all relays that have mail."""
PATHS_MAX = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """What the mesh could carry at most for a class, and where it is narrow."""

    flow_mmps: int
    cut: tuple[tuple[str, str], ...]
    """(node id, hop id of an exit or node id of a peer) of the edges of a minimum cut."""


def compute_ranks(
    exits: Iterable[Arc],
    senders: Mapping[str, Sequence[tuple[str, float]]],
    *,
    without: str = "",
    no_transit: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """Distance of each relay to the nearest exit of a class. Relays that reach none are missing.

    `exits`: arcs to the exits of the class; `senders`: as `Topology.senders`. `without` takes one relay out of the
    graph: how near the others are on their own. A relay in `no_transit` passes on nothing that comes from others, but
    its own distance counts.

    Dijkstra on plain dictionaries: it follows every change of the mesh, and building a networkx graph of a thousand
    relays takes longer than the search. (The tests hold it against networkx.)
    """
    nearest: dict[str, float] = {}
    for arc in exits:
        if arc.origin != without and arc.weight < nearest.get(arc.origin, math.inf):
            nearest[arc.origin] = arc.weight
    waiting = [(rank, relay) for relay, rank in nearest.items()]
    heapq.heapify(waiting)
    found: dict[str, float] = {}
    while waiting:
        rank, relay = heapq.heappop(waiting)
        if relay in found:
            continue
        found[relay] = rank
        if relay in no_transit:
            continue
        for sender, weight in senders.get(relay, ()):
            through = rank + weight
            if sender not in found and sender != without and through < nearest.get(sender, math.inf):
                nearest[sender] = through
                heapq.heappush(waiting, (through, sender))
    return found


def rank_beside(own: Iterable[Arc], there: Mapping[str, float]) -> float | None:
    """Distance of a relay by its own arcs; `there`: ranks of the relays that take its mail, without it."""
    ways = [
        arc.weight if arc.hop.kind is not HopKind.PEER else arc.weight + there[arc.hop.name]
        for arc in own
        if arc.hop.kind is not HopKind.PEER or arc.hop.name in there
    ]
    return min(ways, default=None)


def compute_bound(arcs: Sequence[Arc], source: str, *, no_transit: frozenset[str] = frozenset()) -> Bound:
    """Maximum flow from a relay to the exits of a class. An exit's own bound is what the relays measured together."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for arc in _open_arcs(arcs, no_transit):
        graph.add_edge(arc.origin, _vertex(arc), capacity=arc.capacity_mmps)
        if arc.hop.kind is not HopKind.PEER:
            graph.add_edge(_vertex(arc), SINK)  # no capacity means infinite to networkx
    if source not in graph or SINK not in graph:
        return Bound(0, ())
    value, (near, far) = nx.minimum_cut(graph, source, SINK, flow_func=shortest_augmenting_path)
    return Bound(int(value), tuple(sorted((u, v) for u in near for v in graph[u] if v in far)))


def compute_joint_bound(arcs: Sequence[Arc], sources: Iterable[str], exits: Mapping[str, int]) -> int:
    """Maximum flow (mmps) from several relays together. `exits`: what an exit (hop id) takes from all of them, mmps.

    An exit that is not named there takes what its arcs carry.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    for arc in arcs:
        graph.add_edge(arc.origin, _vertex(arc), capacity=arc.capacity_mmps)
        if arc.hop.kind is not HopKind.PEER:
            limit = {"capacity": exits[arc.hop.id]} if arc.hop.id in exits else {}
            graph.add_edge(_vertex(arc), SINK, **limit)
    found = sorted(source for source in set(sources) if source in graph)
    for source in found:
        graph.add_edge(SOURCE, source)
    if not found or SINK not in graph:
        return 0
    return int(nx.maximum_flow_value(graph, SOURCE, SINK, flow_func=shortest_augmenting_path))


def find_paths(arcs: Sequence[Arc], source: str, *, no_transit: frozenset[str] = frozenset()) -> list[list[str]]:
    """The few best simple paths from a relay to the exits, as node ids and the hop id of the exit last."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for arc in _open_arcs(arcs, no_transit):
        graph.add_edge(arc.origin, _vertex(arc), weight=arc.weight)
        if arc.hop.kind is not HopKind.PEER:
            graph.add_edge(_vertex(arc), SINK, weight=0)
    if source not in graph or SINK not in graph or not nx.has_path(graph, source, SINK):
        return []
    paths = islice(nx.shortest_simple_paths(graph, source, SINK, weight="weight"), PATHS_MAX)
    return [[str(step) for step in path[:-1]] for path in paths]


def _open_arcs(arcs: Sequence[Arc], no_transit: frozenset[str]) -> Iterable[Arc]:
    return (arc for arc in arcs if arc.hop.kind is not HopKind.PEER or arc.hop.name not in no_transit)


def _vertex(arc: Arc) -> str:
    return arc.hop.name if arc.hop.kind is HopKind.PEER else arc.hop.id
