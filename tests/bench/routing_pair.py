"""All mail from one relay to a smart host at another, against the max-flow between them (row 15).

    python3 deploy/run.py bench routing_pair [--meshes 10]

The pair has at least three paths without a common way; the smart host takes everything at once, so that the ways alone
are the limit, and the load is 1.2 times the max-flow. Beside it stands what the best single path could carry: the most
that any routing along one path reaches.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import networkx as nx

from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import Row, bar, median_and_worst
from tests.bench.lab.meshes import Plan, build_mesh, random_graph
from tests.bench.lab.runs import hush, run_meshes

RELAYS, DEGREE, PATHS_MIN = 9, 4.0, 3
LOAD = 1.2
BEGIN_S, END_S = 15.0, 45.0
HOST_MPS = 100_000.0


@dataclass(frozen=True)
class Pair:
    """A mesh whose only clients are at one relay and whose only exit is at another."""

    plan: Plan
    bound_mps: float
    widest_mps: float
    """Of the best single path."""


def pairs() -> Iterator[Pair]:
    """Random ones, without end."""
    for seed in itertools.count(1):
        rng = random.Random(seed)
        plan = random_graph(rng, seed, RELAYS, DEGREE)
        graph = nx.DiGraph()
        for (here, there), mps in plan.ways.items():
            graph.add_edge(here, there, capacity=round(1000 * mps))
        source, target = rng.sample(plan.names, 2)
        if nx.edge_connectivity(graph, source, target) < PATHS_MIN:
            continue
        plan.hosts, plan.exits, plan.classes = {"h0": HOST_MPS}, {target: ["h0"]}, {"default": ["h0"]}
        plan.demands = {(source, "default"): 1.0}
        bound = nx.maximum_flow_value(graph, source, target) / 1000
        yield Pair(plan, bound, _widest(plan, source, target))


def _widest(plan: Plan, source: str, target: str) -> float:
    """Ways are taken from the fastest on, until the two are connected."""
    graph = nx.DiGraph()
    graph.add_nodes_from(plan.names)
    for (here, there), mps in sorted(plan.ways.items(), key=lambda item: -item[1]):
        graph.add_edge(here, there)
        if nx.has_path(graph, source, target):
            return mps
    raise AssertionError("a pair without a path")


def play(pair: Pair) -> float:
    """Delivered, as a share of the max-flow."""
    hush()
    with Mesh(seed=pair.plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, pair.plan, LOAD * pair.bound_mps)
        mesh.run(END_S)
        return mesh.throughput_mps(BEGIN_S, END_S) / pair.bound_mps


def bars(pool: Executor, meshes: int) -> list[Row]:
    """Row 15."""
    chosen = list(itertools.islice(pairs(), meshes))
    shares = list(pool.map(play, chosen))
    single = statistics.median(pair.widest_mps / pair.bound_mps for pair in chosen)
    text = f"{median_and_worst(shares)}; the best single path {single:.2f}"
    return [bar("15 single pair: delivered / max-flow", "0.97", text, met=statistics.median(shares) >= 0.97)]


if __name__ == "__main__":
    run_meshes(__doc__, bars)
