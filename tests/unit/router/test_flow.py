"""The graph: ranks, bound, paths, and which arcs are in it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest

from gossip.linkstate import ClassLoad, LinkState, LinkStatus, Load, Snapshot
from router.decision import Hop, HopKind
from router.flow import Bound, compute_bound, compute_joint_bound, compute_ranks, find_paths, rank_beside
from router.policy import DestinationClass
from router.topology import Arc, Digests, Topology, build_topology, rank_key
from tests.unit.router.worlds import CLASS, host, link, node_id, peer, record

A = DestinationClass(CLASS, ("host:a",))


def arc(origin: str, hop: str, weight: float = 1, capacity_mmps: int = 10_000) -> Arc:
    return Arc(origin, Hop.parse(hop), weight, capacity_mmps, (CLASS,) if hop.startswith("host") else ())


CHAIN = [arc("r", "peer:s"), arc("s", "host:a", 2), arc("s", "peer:r"), arc("t", "peer:r")]


def seen_from(number: int, *records: object) -> Topology:
    return build_topology(node_id(number), Snapshot("r", tuple(records)), (), 0.0)  # type: ignore[arg-type]


def ranks(arcs: list[Arc], **named: Any) -> dict[str, float]:
    senders: dict[str, list[tuple[str, float]]] = {}
    for item in arcs:
        if item.hop.kind is HopKind.PEER:
            senders.setdefault(item.hop.name, []).append((item.origin, item.weight))
    return compute_ranks([item for item in arcs if item.hop.kind is not HopKind.PEER], senders, **named)


def test_ranks_are_expected_attempts_to_the_nearest_exit() -> None:
    assert ranks(CHAIN) == {"s": 2, "r": 3, "t": 4}


def test_without_a_relay_nobody_goes_through_it() -> None:
    assert ranks(CHAIN, without="r") == {"s": 2}


def test_a_relay_without_transit_still_has_its_own_way() -> None:
    assert ranks(CHAIN, no_transit=frozenset({"r"})) == {"s": 2, "r": 3}


def test_the_lighter_of_two_exits_counts_and_no_exit_is_no_rank() -> None:
    assert ranks([arc("r", "host:a", 3), arc("r", "host:b", 1), arc("r", "host:c", 2)]) == {"r": 1}
    assert ranks([arc("r", "peer:s")]) == {}


@pytest.mark.parametrize("seed", range(40))
def test_ranks_are_those_of_networkx(seed: int) -> None:
    rng = random.Random(seed)
    relays = [f"r{number}" for number in range(rng.randint(2, 30))]
    arcs = [arc(one, f"peer:{rng.choice(relays)}", rng.randint(4, 20) / 4) for one in relays for _ in range(4)]
    arcs += [arc(relay, f"host:{rng.choice('ab')}", rng.randint(4, 20) / 4) for relay in relays if rng.random() < 0.3]
    closed = frozenset(relay for relay in relays if rng.random() < 0.1)
    without = rng.choice(["", *relays])
    graph: nx.DiGraph[str] = nx.DiGraph()
    for item in sorted(arcs, key=lambda item: -item.weight):  # the lightest of parallel arcs stays
        exit_ = item.hop.kind is HopKind.SMART_HOST
        if without not in (item.origin, item.hop.name) and (exit_ or item.hop.name not in closed):
            graph.add_edge("*" if exit_ else item.hop.name, item.origin, weight=item.weight)
    wanted = nx.single_source_dijkstra_path_length(graph, "*") if "*" in graph else {}
    wanted.pop("*", None)
    assert ranks(arcs, without=without, no_transit=closed) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_a_relays_own_rank_follows_from_those_of_the_others(seed: int) -> None:
    rng = random.Random(seed)
    relays = [f"r{number}" for number in range(8)]
    arcs = [arc(one, f"peer:{rng.choice(relays)}", rng.randint(4, 20) / 4) for one in relays for _ in range(3)]
    arcs += [arc(relay, "host:a", rng.randint(4, 20) / 4) for relay in relays if rng.random() < 0.3]
    there = ranks(arcs, without="r0")
    assert rank_beside([item for item in arcs if item.origin == "r0"], there) == ranks(arcs).get("r0")


def test_the_bound_is_the_narrowest_cut() -> None:
    arcs = [arc("r", "host:a", 1, 20_000), arc("r", "peer:s", 1, 50_000), arc("s", "host:b", 1, 30_000)]
    assert compute_bound(arcs, "r") == Bound(50_000, (("r", "host:a"), ("s", "host:b")))
    assert compute_bound(arcs, "r", no_transit=frozenset({"s"})) == Bound(20_000, (("r", "host:a"),))


def test_no_way_is_no_flow_and_no_path() -> None:
    for arcs in ([], [arc("s", "host:a")], [arc("r", "peer:s")], [arc("r", "peer:s"), arc("t", "host:a")]):
        assert compute_bound(arcs, "r").flow_mmps == 0
        assert find_paths(arcs, "r") == []


def test_at_most_four_paths_the_best_first() -> None:
    arcs = [arc("r", f"host:{name}", weight) for name, weight in zip("abcdef", (3, 1, 2, 6, 5, 4), strict=True)]
    assert find_paths(arcs, "r") == [["r", "host:b"], ["r", "host:c"], ["r", "host:a"], ["r", "host:f"]]


def test_closed_links_and_links_to_strangers_are_no_arcs() -> None:
    closed = (LinkStatus.DOWN, LinkStatus.HALF_OPEN, LinkStatus.DRAINING)
    links: list[LinkState] = [link(host(status.name), status) for status in LinkStatus] + [link(peer(9))]
    topology = seen_from(1, record(1), record(2, links))
    assert {arc.hop.name for arc in topology.arcs} == {status.name for status in LinkStatus if status not in closed}


def test_a_relay_that_reports_a_domain_down_is_no_way_to_it() -> None:
    wanted = DestinationClass("mx:example.org", ("mx:example.org",))
    down = link(Hop.parse("mx:example.org"), LinkStatus.DOWN)
    topology = seen_from(1, record(1), record(2, [down], direct_mx=True), record(3, direct_mx=True))
    assert [arc.origin for arc in topology.of_class(wanted)] == [node_id(3)]


def test_capacity_and_latency_never_move_a_rank() -> None:
    view = [Snapshot("r", (record(1, [link(host("a"), capacity_mmps=mmps)]),)) for mmps in (1000, 90_000)]
    assert rank_key(view[0]) == rank_key(view[1])
    worse = Snapshot("r", (record(1, [link(host("a"), LinkStatus.DOWN)]),))
    assert rank_key(worse) != rank_key(view[0])


def test_a_digest_is_worked_out_once_for_each_record_and_follows_the_next_one() -> None:
    digests = Digests()
    first = record(2, [link(host("a")), link(peer(9))])
    loaded = replace(first, load=Load(classes=(ClassLoad(CLASS, 7, 1),)))
    assert digests.of(loaded) is digests.of(first), "a load leaves the links as they were"
    worse = record(2, [link(host("a"), LinkStatus.DOWN)])
    for view in (
        Snapshot("r", (record(1), first)),
        Snapshot("r", (record(1), worse)),
        Snapshot("r", (record(9), first)),
    ):
        assert build_topology(node_id(1), view, (), 0.0, digests) == build_topology(node_id(1), view, (), 0.0)
        assert rank_key(view, digests) == rank_key(view)


def test_a_link_that_never_works_has_a_finite_weight() -> None:
    hopeless = LinkState("host:a", LinkStatus.UP, 0, 0, 0, 0, 0, 2, (CLASS,))
    (only,) = seen_from(1, record(2, [hopeless])).of_class(A)
    assert only.weight == 22


def test_the_joint_bound_shares_exits_among_relays() -> None:
    arcs = [
        Arc("a", Hop(HopKind.SMART_HOST, "s"), 1.0, 50_000, ()),
        Arc("b", Hop(HopKind.SMART_HOST, "s"), 1.0, 50_000, ()),
        Arc("c", Hop(HopKind.PEER, "b"), 1.0, 10_000, ()),
    ]
    assert compute_joint_bound(arcs, ["a", "b"], {"host:s": 70_000}) == 70_000
    assert compute_joint_bound(arcs, ["a", "b"], {}) == 100_000
    assert compute_joint_bound(arcs, ["c"], {"host:s": 70_000}) == 10_000
    assert compute_joint_bound(arcs, ["nobody"], {}) == 0
    assert compute_joint_bound([], ["a"], {}) == 0
