"""What routing costs: a decision per message, and a recomputation after a change, at growing sizes.

    python3 deploy/run.py bench routing_cost [--sizes 10,100,1000,5000] [--repeats 5]

Decisions are asked as the dispatcher asks them (no explanation), of an engine with so many exits and peers, all up. The
dictionary lookup beside them is the yardstick for this machine. A recomputation is what follows a withdrawal that
arrives by gossip: `apply` of the new database, and the first decision after it; each node of the mesh has links to a
few others, one in ten has an exit. Medians, smallest and largest.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeInfo, NodeRecord, Snapshot, Version
from router.decision import ExitHop, Hop, HopKind, Outcome, OutcomeKind, Query
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from tests.bench.lab.bars import Row, bar
from tests.bench.lab.figures import table

CLASS = "default"
DEGREE = 8
DECISIONS = 20_000


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,100,1000,5000")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = [["decision per message", "µs", "of a dict lookup"]]
    for exits, peers in ((4, 4), (10, 20), (10, 90)):
        engine = build_engine(exits, peers)
        found = [time_decisions(engine) for _ in range(arguments.repeats)]
        lookups = [time_lookups() for _ in range(arguments.repeats)]
        ratio = statistics.median(found) / statistics.median(lookups)
        rows.append([f"{exits} exits, {peers} peers", spread(found, 1e6, 1), f"{ratio:.0f} times"])
    classify = [time_classes() for _ in range(arguments.repeats)]
    rows.append(["class of a domain, 5,000 routes", spread(classify, 1e6, 2), ""])
    print(table(rows))
    print()
    rows = [["recomputation, ms", "database applied", "first decision", "explanation (max flow, paths)"]]
    for size in map(int, arguments.sizes.split(",")):
        applied, decided, explained = recompute(size, arguments.repeats)
        rows.append([f"{size} nodes", *(spread(times, 1e3, 1) for times in (applied, decided, explained))])
    print(table(rows))


def bars(repeats: int = 5) -> list[Row]:
    """Row 9, but for the share of a message's processor time (`routing_real`)."""
    engine = build_engine(4, 4)
    found, lookups = ([timer() for _ in range(repeats)] for timer in (lambda: time_decisions(engine), time_lookups))
    few, many = ([time_classes(routes) for _ in range(repeats)] for routes in (50, 5000))
    decision, ratio = statistics.median(found), statistics.median(found) / statistics.median(lookups)
    growth = statistics.median(many) / statistics.median(few)
    return [
        bar("9  a decision, 8 edges", "2 us", f"{spread(found, 1e6, 1)} us", met=decision <= 2e-6),
        bar("9  a decision / a lookup in a dictionary", "50", f"{ratio:.0f}", met=ratio <= 50),
        bar("9  class of a domain: 5,000 routes / 50", "about 1", f"{growth:.2f}", met=growth <= 1.5),
    ]


def spread(times: Sequence[float], unit: float, digits: int) -> str:
    """Median (smallest - largest)."""
    low, middle, high = (f"{unit * value:.{digits}f}" for value in (min(times), statistics.median(times), max(times)))
    return f"{middle} ({low}-{high})"


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def build_engine(exits: int, peers: int) -> RoutingEngine:
    """Everything is up and measured."""
    names = [f"s{number}" for number in range(exits)]
    engine = RoutingEngine(
        node_id=node_id(0),
        node_name="r0",
        table=RouteTable([RouteRule(CLASS, ("*",), tuple(names))]),
        exits=[ExitHop(Hop(HopKind.SMART_HOST, name), name) for name in names],
        settings=RouterSettings(),
        rng=random.Random(1),
        now=0.0,
    )
    nodes = [node(number, [exit_link(f"s{number % exits}")]) for number in range(1, peers + 1)]
    engine.apply(Snapshot("root", (node(0, []), *nodes)), 0.0)
    for edge in engine.edges():
        engine.record(Outcome(edge.hop, OutcomeKind.ACCEPTED, 0.0, 0.005, probe=True), CLASS, 0.1)
    engine.set_backlog(CLASS, 50)
    return engine


def time_decisions(engine: RoutingEngine) -> float:
    """Seconds for one."""
    query, pick = Query(CLASS, (node_id(1),)), engine.pick

    def ask() -> None:
        for _ in range(DECISIONS):
            pick(query, 1.0)

    return timed(ask) / DECISIONS


def time_lookups() -> float:
    """Seconds for one lookup in a dictionary."""
    known = {str(number): number for number in range(1000)}

    def look() -> None:
        for _ in range(DECISIONS):
            known["500"]

    return timed(look) / DECISIONS


def time_classes(routes: int = 5000) -> float:
    """Seconds for one domain among so many exact routes, never asked before."""
    rules = [RouteRule(f"c{number}", (f"d{number}.example",), ("s",)) for number in range(routes)]
    found = RouteTable(rules)
    domains = [f"d{number}.example" for number in range(0, routes, max(1, routes // 1000))]
    return timed(lambda: [found.classify(domain) for domain in domains]) / len(domains)


def recompute(size: int, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds for a withdrawal's way into the engine, and for an explanation after it."""
    rng = random.Random(size)
    nodes = [node(number, links_of(number, size, rng)) for number in range(size)]
    engine = build_engine(1, 0)
    engine.apply(Snapshot("first", tuple(nodes)), 1.0)
    engine.pick(Query(CLASS), 1.0)
    applied, decided, explained = [], [], []
    for turn in range(repeats):
        victim = 1 + rng.randrange(size - 1)
        nodes[victim] = node(victim, [down(link) for link in links_of(victim, size, rng)])
        snapshot = Snapshot(str(turn), tuple(nodes))
        applied.append(timed(lambda snapshot=snapshot: engine.apply(snapshot, 2.0)))
        decided.append(timed(lambda: engine.pick(Query(CLASS), 2.0)))
        explained.append(timed(lambda: engine.explain(Query(CLASS), 2.0)))
    return applied, decided, explained


def node_id(number: int) -> str:
    """Of node `number`."""
    return f"{number:032x}"


def node(number: int, links: list[LinkState]) -> NodeRecord:
    """Its record."""
    info = NodeInfo(f"r{number}", "g", "m")
    return NodeRecord(NodeId(node_id(number)), info, tuple(links), version=Version(1, 1), age_s=0.1)


def exit_link(name: str) -> LinkState:
    """To a smart host."""
    return LinkState(f"host:{name}", LinkStatus.UP, 1000, 1000, 50_000, 5000, 10, 0, (CLASS,))


def links_of(number: int, size: int, rng: random.Random) -> list[LinkState]:
    """To a few others, and now and then to an exit."""
    others = rng.sample(range(size), min(DEGREE, size))
    links = [
        LinkState(f"peer:{node_id(other)}", LinkStatus.UP, 1000, 1000, 50_000, 5000, 10)
        for other in sorted(others)
        if other != number
    ]
    return [exit_link(f"s{number % 7}"), *links] if number % 10 == 1 else links


def down(link: LinkState) -> LinkState:
    """The same, withdrawn."""
    return LinkState(link.hop, LinkStatus.DOWN, 1000, 1000, 0, 5000, 10, 0, link.classes)


if __name__ == "__main__":
    main()
