"""The joint plan: how good it is, what it costs, and that all relays make the same one (rows 8, 10, 11 and 14).

    python3 deploy/run.py bench routing_plan [--meshes 100] [--runs 6]

The yardstick is a linear program, solved exactly by HiGHS: for row 11 the largest share of the demand that the mesh
carries, for row 8 the minimum of the same delays that the plan minimises, in straight pieces. Times are processor time
of this process. Rows 8 and 14 ask whole meshes in virtual time.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass, replace

import highspy

from gossip.linkstate import ClassLoad, LinkState, LinkStatus, Load, NodeId, NodeInfo, NodeRecord, Snapshot, Version
from router.flow import compute_ranks, rank_beside
from router.plan import complete
from router.planning import Planning
from router.policy import DestinationClass
from router.problem import HOP_S, SINK, UNLIMITED, Commodity, Link, Problem, build_problem
from router.recording import replay
from router.replay import recompute
from router.topology import build_topology
from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import Row, bar, show
from tests.bench.lab.figures import percentile
from tests.bench.lab.linear import new_model
from tests.bench.lab.meshes import Plan as MeshPlan
from tests.bench.lab.meshes import build_mesh, random_plan
from tests.bench.lab.runs import hush

LOAD = 0.9
HOSTS_PER_CLASS = 3
DEGREE = 3.3
PIECES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
"""Utilisations between which the delay is a straight line, for row 8."""
SIZES = ((10, 3, 5.0), (50, 5, 30.0), (100, 20, 200.0))
"""Relays, classes, milliseconds that a plan may take."""
RANKS = (100, 50, 10.0)
STALL_MS = 5.0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=int, default=100, help="for row 11")
    parser.add_argument("--runs", type=int, default=6, help="meshes in virtual time, for rows 8 and 14")
    arguments = parser.parse_args()
    print(show(rows(arguments.meshes, arguments.runs)))


def rows(meshes: int, runs: int) -> list[Row]:
    """Rows 8, 10, 11 and 14."""
    hush()
    whole = [_hops(runs)] if runs else []
    return [*whole, *_costs(), *([_quality(meshes)] if meshes else []), *(_same(runs) if runs else [])]


# -- 8: hops -----------------------------------------------------------------------------------------------------------


def _hops(runs: int) -> list[str]:
    ratios = [hop_ratio(random_plan(seed, 9)) for seed in range(1, runs + 1)]
    text = f"{statistics.median(ratios):.2f} ({max(ratios):.2f}) in {runs} meshes"
    return bar("8  transfers / those of the least delay, load 0.6", "1.15", text, met=statistics.median(ratios) <= 1.15)


def hop_ratio(plan: MeshPlan) -> float:
    """Hops of a message in virtual time, the exit's included, over those of the linear program."""
    offered = 0.6 * plan.capacity_mps()
    with Mesh(seed=plan.seed) as mesh:
        build_mesh(mesh, plan, offered)
        mesh.run(10.0)
        transfers, delivered = mesh.ledger.transfers, mesh.delivered
        mesh.run(30.0)
        hops = 1 + (mesh.ledger.transfers - transfers) / (mesh.delivered - delivered)
    flows = least_delay(_problem_of(plan, offered))
    return hops / (1 + sum(mps for (_, head), mps in flows.items() if ":" not in head and head != SINK) / offered)


def _problem_of(plan: MeshPlan, offered: float) -> Problem:
    links = [Link(here, there, mps, HOP_S) for (here, there), mps in sorted(plan.ways.items())]
    links += [Link(relay, f"host:{name}", UNLIMITED, HOP_S) for relay, names in plan.exits.items() for name in names]
    links += [Link(f"host:{name}", SINK, mps, 0.0) for name, mps in plan.hosts.items()]
    demand = tuple(sorted((relay, share * offered) for relay, share in plan.demand.items()))
    return Problem(tuple(links), (Commodity("default", tuple(range(len(links))), demand),))


def least_delay(problem: Problem) -> dict[tuple[str, str], float]:
    """Flows of least delay, one class: delay x f + f / (c - f) in straight pieces."""
    model, flows = new_model(), {}
    for link in problem.links:
        if link.capacity_mps == UNLIMITED:
            flows[link.tail, link.head] = model.addVariable(lb=0, obj=link.delay_s)
            continue
        parts, before = [], 0.0
        for share in PIECES:
            rise = share / (1 - share) - before / (1 - before)
            width = (share - before) * link.capacity_mps
            parts.append(model.addVariable(lb=0, ub=width, obj=link.delay_s + rise / width))
            before = share
        flows[link.tail, link.head] = sum(parts)
    _conserve(model, flows, dict(problem.commodities[0].demand))
    model.run()
    return {way: float(model.val(flow)) for way, flow in flows.items()}


# -- 10: what it costs -------------------------------------------------------------------------------------------------


def _costs() -> list[list[str]]:
    found = []
    for relays, classes, bar_ms in SIZES:
        times = [_timed_plan(relays, classes, seed) for seed in range(5)]
        measured = f"{statistics.median(times):.1f} ms ({max(times):.1f})"
        found.append(bar(f"10 plan, {relays} relays x {classes}", f"{bar_ms:g} ms", measured, met=max(times) <= bar_ms))
    relays, classes, bar_ms = RANKS
    ranks = [_timed_ranks(relays, classes, seed) for seed in range(5)]
    found.append(
        bar(
            f"10 ranks, {relays} relays x {classes}",
            f"{bar_ms:g} ms",
            f"{statistics.median(ranks):.1f} ms ({max(ranks):.1f})",
            met=statistics.median(ranks) <= bar_ms,
        )
    )
    steps = [step for seed in range(3) for step in _steps(100, 20, seed)]
    stall = percentile(steps, 0.99)
    found.append(
        bar("10 longest wait of the event loop, p99", f"{STALL_MS:g} ms", f"{stall:.1f} ms", met=stall <= STALL_MS)
    )
    return found


def _timed_plan(relays: int, classes: int, seed: int) -> float:
    problem = random_problem(relays, classes, seed)
    began = time.process_time()
    complete(problem)
    return 1000 * (time.process_time() - began)


def _timed_ranks(relays: int, classes: int, seed: int) -> float:
    """As after a change of the mesh: the topology, and the ranks of every class."""
    snapshot, wanted = cluster(relays, classes, seed)
    began = time.process_time()
    topology = build_topology(snapshot.nodes[0].node_id, snapshot, (), 0.0)
    for item in wanted.values():
        closed = topology.no_transit
        there = compute_ranks(topology.exits_of(item), topology.senders, without=topology.self_id, no_transit=closed)
        rank_beside(topology.own(item), there)
    return 1000 * (time.process_time() - began)


def _steps(relays: int, classes: int, seed: int) -> list[float]:
    """Milliseconds of each step of a plan."""
    snapshot, wanted = cluster(relays, classes, seed)
    planning, found = Planning(snapshot.nodes[0].node_id), list[float]()
    planning.begin(snapshot, wanted, 0.0)
    more = True
    while more:
        began = time.process_time()
        more = planning.step(0.0)
        found.append(1000 * (time.process_time() - began))
    return found


# -- 11: quality -------------------------------------------------------------------------------------------------------


def _quality(meshes: int) -> list[str]:
    peaks = [peak_utilisation(random_problem(10, 3, seed)) for seed in range(meshes)]
    text = f"{statistics.median(peaks):.3f} ({max(peaks):.3f}) in {meshes} meshes"
    return bar(f"11 peak utilisation at {LOAD:g} of the optimum", "0.93", text, met=statistics.median(peaks) <= 0.93)


def peak_utilisation(problem: Problem) -> float:
    """Of the plan for `LOAD` of the largest demand that fits."""
    factor = LOAD * largest_factor(problem)
    scaled = replace(
        problem,
        commodities=tuple(
            replace(item, demand=tuple((node, factor * mps) for node, mps in item.demand))
            for item in problem.commodities
        ),
    )
    total: dict[tuple[str, str], float] = {}
    for flows in complete(scaled).flows.values():
        for (tail, head), mps in flows.items():
            total[tail, head] = total.get((tail, head), 0.0) + mps
            if ":" in head:
                total[head, SINK] = total.get((head, SINK), 0.0) + mps
    limited = [link for link in problem.links if link.capacity_mps != UNLIMITED]
    return max(total.get((link.tail, link.head), 0.0) / link.capacity_mps for link in limited)


def largest_factor(problem: Problem) -> float:
    """By which all demand can be multiplied and still be carried."""
    model = new_model()
    factor = model.addVariable(lb=0, obj=-1.0)
    loads: list[list[object]] = [[] for _ in problem.links]
    for item in problem.commodities:
        flows = {}
        for number in item.links:
            link = problem.links[number]
            flows[link.tail, link.head] = model.addVariable(lb=0)
            loads[number].append(flows[link.tail, link.head])
        _conserve(model, flows, {node: mps * factor for node, mps in item.demand})
    for link, load in zip(problem.links, loads, strict=True):
        if load and link.capacity_mps != UNLIMITED:
            model.addConstr(sum(load) <= link.capacity_mps)
    model.run()
    return float(model.val(factor))


def _conserve(model: highspy.Highs, flows: dict[tuple[str, str], object], demand: dict[str, object]) -> None:
    """What comes to a vertex leaves it."""
    arriving: dict[str, list[object]] = {}
    leaving: dict[str, list[object]] = {}
    for (tail, head), flow in flows.items():
        leaving.setdefault(tail, []).append(flow)
        arriving.setdefault(head, []).append(flow)
    for vertex in sorted({*arriving, *leaving} - {SINK}):
        come = [*arriving.get(vertex, []), *([demand[vertex]] if vertex in demand else [])]
        model.addConstr(sum(leaving.get(vertex, [0.0])) - sum(come) == 0.0)


# -- 14: the same for all ----------------------------------------------------------------------------------------------


@dataclass
class Agreement:
    """Of relays that planned in one mesh."""

    pairs: int = 0
    """Relays with equal views of the mesh, two and two, second by second."""
    differ: int = 0
    """Of those, with different plans."""
    decisions: int = 0
    wrong: int = 0
    """Of the decisions, those whose terms lead elsewhere."""
    calls: int = 0
    other: int = 0
    """Of the recorded calls, those with another answer when replayed."""


def _same(runs: int) -> list[list[str]]:
    found = Agreement()
    for seed in range(1, runs + 1):
        _agree(random_plan(seed, 9), found)
    return [
        bar(
            "14 decisions whose terms lead elsewhere, answers that differ in a replay",
            "0, 0",
            f"{found.wrong} of {found.decisions}, {found.other} of {found.calls}",
            met=not found.wrong and not found.other,
        ),
        bar(
            "14 equal views with different plans",
            "0",
            f"{found.differ} of {found.pairs} pairs of relays",
            met=not found.differ and found.pairs > 0,
        ),
    ]


def _agree(plan: MeshPlan, found: Agreement) -> None:
    with Mesh(seed=plan.seed, records=True) as mesh:
        build_mesh(mesh, plan, 0.9 * plan.capacity_mps())
        for _ in range(15):
            mesh.run(1.0)
            seen: dict[str, list[str]] = {}
            for relay in mesh.relays.values():
                made = relay.engine.planning.plan
                if made is not None:
                    seen.setdefault(made.problem.digest, []).append(repr(made.flows))
                for line in relay.engine.rows(mesh.now):
                    found.decisions += 1
                    found.wrong += recompute(line.decision) != (line.decision.chosen, line.decision.rule)
            for plans in seen.values():
                found.pairs += len(plans) - 1
                found.differ += sum(other != plans[0] for other in plans[1:])
        for relay in mesh.relays.values():
            for recorder in relay.recordings:
                calls, differences = replay(recorder.lines())
                found.calls += calls
                found.other += len(differences)


# -- meshes ------------------------------------------------------------------------------------------------------------


def cluster(relays: int, classes: int, seed: int) -> tuple[Snapshot, dict[str, DestinationClass]]:
    """A database: a sparse random graph, three exits for each class, mail at a third of the relays."""
    rng = random.Random(seed)
    links: dict[int, dict[str, LinkState]] = {number: {} for number in range(relays)}
    pairs = {(number, rng.randrange(number)) for number in range(1, relays)}
    while len(pairs) < relays * DEGREE / 2:
        one, other = sorted(rng.sample(range(relays), 2), reverse=True)
        pairs.add((one, other))
    for one, other in sorted(pairs):
        for here, there in ((one, other), (other, one)):
            hop = f"peer:{there:032x}"
            links[here][hop] = LinkState(hop, LinkStatus.UP, 1000, 1000, _random_mmps(rng, 4, 15), 5000, 10)
    wanted = {}
    for number in range(classes):
        name = f"c{number:02}"
        exits = [f"host:{name}-{host}" for host in range(HOSTS_PER_CLASS)]
        wanted[name] = DestinationClass(name, tuple(exits))
        for hop in exits:
            for relay in rng.sample(range(relays), rng.randint(1, 2)):
                capacity = _random_mmps(rng, 10, 6)
                links[relay][hop] = LinkState(hop, LinkStatus.UP, 1000, 1000, capacity, 5000, 10, 0, (name,))
    loads: dict[int, list[ClassLoad]] = {}
    for name in wanted:
        for relay in rng.sample(range(relays), max(3, relays // 3)):
            loads.setdefault(relay, []).append(ClassLoad(name, 0, 0, round(1000 * rng.uniform(0.5, 1.5))))
    nodes = tuple(
        NodeRecord(
            NodeId(f"{number:032x}"),
            NodeInfo(f"r{number}", "g", "m"),
            tuple(link for _, link in sorted(links[number].items())),
            Load(classes=tuple(loads.get(number, ()))),
            Version(1, 1),
        )
        for number in range(relays)
    )
    return Snapshot(str(seed), nodes), wanted


def random_problem(relays: int, classes: int, seed: int) -> Problem:
    """The problem of such a database."""
    snapshot, wanted = cluster(relays, classes, seed)
    topology = build_topology("", snapshot, (), 0.0)
    return build_problem({name: topology.of_class(item) for name, item in wanted.items()}, snapshot.nodes)


def _random_mmps(rng: random.Random, least: float, times: float) -> int:
    return round(1000 * least * math.exp(rng.random() * math.log(times)))


if __name__ == "__main__":
    main()
