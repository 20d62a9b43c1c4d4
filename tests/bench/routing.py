"""The evidence for the routing rule: our engine and what others do, on the same random meshes, in virtual time.

    python3 deploy/run.py bench routing [--meshes 6] [--relays 9] [--loads 0.6,0.9,1.2] [--strategies smtpmesh,p2c]

A mesh has relays on a sparse random graph whose ways carry 4 to 60 messages a second, four smart hosts of unequal speed
at some of the relays, and three relays where clients submit. Its capacity is the largest load, in the clients'
proportions, that a max-flow carries. The busiest inner way is cut at 20 s and heals at 40 s. A cell is delivered
throughput as a share of what could be delivered (the load or the bound, whichever is less), the median over the meshes
with the worst in brackets. Everything but the choice of the next hop is the same for all: queues, late binding,
retries, breakers, gossip, the trace.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import networkx as nx
import structlog

from smtp_edge.simulation import Mesh
from smtp_edge.simulation.strategies import STRATEGIES
from tests.bench.lab.figures import percentile, table

CUT_S, HEAL_S, END_S = 20.0, 40.0, 60.0
SETTLE_S = 5.0
HOSTS = 4
INGRESS = 3
DEGREE = 3.3


@dataclass
class Plan:
    """A random mesh, as numbers."""

    seed: int
    names: list[str]
    ways: dict[tuple[str, str], float] = field(default_factory=dict)
    hosts: dict[str, float] = field(default_factory=dict)
    exits: dict[str, list[str]] = field(default_factory=dict)
    demand: dict[str, float] = field(default_factory=dict)
    """Shares of the load."""

    def graph(self, load_mps: float, *, without: tuple[str, str] | None = None) -> nx.DiGraph:
        """For flows in whole messages per 1000 s."""
        graph = nx.DiGraph()
        for (here, there), mps in self.ways.items():
            if (here, there) != without:
                graph.add_edge(here, there, capacity=round(1000 * mps))
        for relay, hosts in self.exits.items():
            for host in hosts:
                graph.add_edge(relay, host, capacity=10**9)
        for host, mps in self.hosts.items():
            graph.add_edge(host, "*", capacity=round(1000 * mps))
        for relay, share in self.demand.items():
            graph.add_edge("+", relay, capacity=round(1000 * share * load_mps))
        return graph

    def carries(self, load_mps: float, *, without: tuple[str, str] | None = None) -> float:
        """Messages a second that a max-flow delivers of a load."""
        return float(nx.maximum_flow_value(self.graph(load_mps, without=without), "+", "*")) / 1000

    def capacity_mps(self) -> float:
        """The largest load that is carried whole."""
        low, high = 0.0, sum(self.hosts.values())
        for _ in range(30):
            middle = (low + high) / 2
            if self.carries(middle) >= middle * (1 - 1e-4):
                low = middle
            else:
                high = middle
        return low

    def busiest(self, load_mps: float) -> tuple[str, str]:
        """The way between relays that a max-flow uses most."""
        _, flows = nx.maximum_flow(self.graph(load_mps), "+", "*")
        return max(self.ways, key=lambda way: (flows[way[0]].get(way[1], 0), way))


def random_plan(seed: int, relays: int) -> Plan:
    """A connected mesh with all its numbers."""
    rng = random.Random(seed)
    plan = Plan(seed, [f"r{number}" for number in range(relays)])
    pairs = {(number, rng.randrange(number)) for number in range(1, relays)}
    while len(pairs) < relays * DEGREE / 2:
        one, other = sorted(rng.sample(range(relays), 2), reverse=True)
        pairs.add((one, other))
    for one, other in sorted(pairs):
        for here, there in ((one, other), (other, one)):
            plan.ways[f"r{here}", f"r{there}"] = 4 * math.exp(rng.random() * math.log(15))
    for number in range(HOSTS):
        host = f"h{number}"
        plan.hosts[host] = 10 * math.exp(rng.random() * math.log(6))
        for relay in rng.sample(plan.names[INGRESS:], rng.randint(1, 2)):
            plan.exits.setdefault(relay, []).append(host)
    shares = [rng.uniform(0.5, 1.5) for _ in range(INGRESS)]
    plan.demand = {plan.names[number]: share / sum(shares) for number, share in enumerate(shares)}
    return plan


@dataclass(frozen=True)
class Figures:
    """One run."""

    before: float
    during: float
    after: float
    p95_s: float
    lost: int
    doubled: int
    revisits: int
    hops: float
    took_s: float


def play(plan: Plan, load: float, strategy: str, gossip_delay_s: tuple[float, float]) -> Figures:
    """One strategy on one mesh."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    began, offered = time.monotonic(), load * plan.capacity_mps()
    here, there = plan.busiest(offered)
    with Mesh(seed=plan.seed, strategy=STRATEGIES[strategy], gossip_delay_s=gossip_delay_s) as mesh:
        for host, mps in plan.hosts.items():
            mesh.host(host, mps)
        for name in plan.names:
            mesh.relay(name, plan.exits.get(name, []))
        for one in plan.names:
            for other in plan.names:
                if (one, other) in plan.ways:
                    mesh.way(one, other, capacity_mps=plan.ways[one, other], latency_s=0.01)
                elif one != other:
                    mesh.block(one, other, at=0)
        for relay, share in plan.demand.items():
            mesh.load(relay, share * offered)
        mesh.block(here, there, at=CUT_S)
        mesh.unblock(here, there, at=HEAL_S)
        mesh.run(END_S)
        whole, cut = plan.carries(offered), plan.carries(offered, without=(here, there))
        return Figures(
            mesh.throughput_mps(SETTLE_S, CUT_S) / whole,
            mesh.throughput_mps(CUT_S, HEAL_S) / cut,
            mesh.throughput_mps(HEAL_S, END_S) / whole,
            percentile(mesh.ledger.delays_s, 0.95),
            mesh.lost,
            mesh.doubled,
            mesh.ledger.revisits,
            mesh.ledger.transfers / max(1, mesh.delivered),
            time.monotonic() - began,
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=int, default=6)
    parser.add_argument("--relays", type=int, default=9)
    parser.add_argument("--loads", type=lambda text: [float(word) for word in text.split(",")], default=[0.6, 0.9, 1.2])
    parser.add_argument("--strategies", type=lambda text: text.split(","), default=list(STRATEGIES))
    parser.add_argument("--stale", action="store_true", help="gossip takes 1 to 5 s on each link")
    arguments = parser.parse_args()
    delay_s = (0.2, 1.0) if arguments.stale else (0.001, 0.001)
    plans = [random_plan(seed, arguments.relays) for seed in range(1, arguments.meshes + 1)]
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for load in arguments.loads:
            runs = {
                name: [pool.submit(play, plan, load, name, delay_s) for plan in plans] for name in arguments.strategies
            }
            rows = [_row(name, [future.result() for future in futures]) for name, futures in runs.items()]
            heading = [f"load {load:g}", "before", "way cut", "healed", "p95 delay", "transfers", "revisits", "lost"]
            print(table([[*heading, "doubled", "run"], *rows]), flush=True)
            print()
    print(f"{arguments.meshes} meshes of {arguments.relays} relays; {time.monotonic() - began:.0f} s")


def _row(name: str, found: list[Figures]) -> list[str]:
    def share(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f})"

    return [
        name,
        share([item.before for item in found]),
        share([item.during for item in found]),
        share([item.after for item in found]),
        f"{statistics.median(item.p95_s for item in found):.1f} s",
        f"{statistics.median(item.hops for item in found):.2f}",
        str(sum(item.revisits for item in found)),
        str(sum(item.lost for item in found)),
        str(sum(item.doubled for item in found)),
        f"{statistics.median(item.took_s for item in found):.0f} s",
    ]


if __name__ == "__main__":
    main()
