"""What-if against reality: a prediction on the live table, then the failure is made (virtual time).

    python3 deploy/run.py bench routing_what_if [--meshes 10]

Meshes of five relays, each with one to three of four smart hosts of unequal speed; between relays passes whatever must
(the forecast knows no limits there: of a way that was never full nobody knows what it carries). Clients offer 0.7 to
1.2 times what the hosts take. One relay is asked what would be delivered, and what each host would get, if the fastest
host died, if it had half its speed, or if a relay died; then that happens, and from 15 s later on it is counted for
30 s. Off: the difference as a part of what was seen; of shares, in points of all mail.
"""

from __future__ import annotations

import math
import random
import statistics
from concurrent.futures import Executor
from dataclasses import dataclass

from router.decision import Hop, HopKind
from router.whatif import Hypothesis
from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import Row, bar
from tests.bench.lab.meshes import Plan, build_mesh
from tests.bench.lab.runs import hush, run_meshes

RELAYS, HOSTS, EXITS_MAX = 5, 4, 3
LOADS = 0.7, 1.2
WAY_MPS = 5000.0
ASKED_S, SETTLE_S, COUNTED_S = 30.0, 15.0, 30.0
TOLERANCE = 0.1
HOST_DIES, HOST_SLOW, RELAY_DIES = "a smart host dies", "a smart host at half its speed", "a relay dies"


@dataclass(frozen=True)
class Compared:
    """One prediction."""

    rate_off: float
    shares_off: float
    """Of the host that is farthest off."""


def open_plan(seed: int) -> Plan:
    """Every relay beside every other; each takes mail from clients."""
    rng = random.Random(seed)
    plan = Plan(seed, [f"r{number}" for number in range(RELAYS)])
    plan.ways = {(one, other): WAY_MPS for one in plan.names for other in plan.names if one != other}
    plan.hosts = {f"h{number}": 10 * math.exp(rng.random() * math.log(6)) for number in range(HOSTS)}
    plan.classes = {"default": list(plan.hosts)}
    for number, name in enumerate(plan.names):
        chosen = {f"h{number % HOSTS}", *rng.sample(sorted(plan.hosts), rng.randint(0, EXITS_MAX - 1))}
        plan.exits[name] = sorted(chosen)
    shares = [rng.uniform(0.5, 1.5) for _ in plan.names]
    plan.demands = {(name, "default"): share / sum(shares) for name, share in zip(plan.names, shares, strict=True)}
    return plan


def play(plan: Plan, what: str) -> Compared:
    """Ask, break, count."""
    hush()
    offered = random.Random(-plan.seed).uniform(*LOADS) * sum(plan.hosts.values())
    host = max(plan.hosts, key=lambda name: (plan.hosts[name], name))
    asked, victim = plan.names[0], plan.names[-1]
    with Mesh(seed=plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, plan, offered, even=True)
        mesh.run(ASKED_S)
        hop, relay = Hop(HopKind.SMART_HOST, host), mesh.relays[asked]
        hypotheses = {
            HOST_DIES: Hypothesis(exits_down=frozenset({hop})),
            HOST_SLOW: Hypothesis(factors={hop: 0.5}),
            RELAY_DIES: Hypothesis(relays_down=frozenset({mesh.relays[victim].node_id})),
        }
        (answer,) = relay.engine.what_if(hypotheses[what], relay.now(), load_mps=offered)
        match what:
            case "a smart host dies":
                mesh.kill(host)
            case "a relay dies":
                mesh.kill(victim)
            case _:
                mesh.degrade(host, speed=0.5, error_rate=0.0)
        mesh.run(SETTLE_S)
        since = mesh.now
        mesh.run(COUNTED_S)
        seen, shares = mesh.throughput_mps(since, mesh.now), mesh.shares(since=since)
        return Compared(
            rate_off=abs(answer.then.delivered_mps - seen) / seen,
            shares_off=max(abs(answer.then.share(Hop(HopKind.SMART_HOST, name)) - shares[name]) for name in plan.hosts),
        )


def bars(pool: Executor, meshes: int) -> list[Row]:
    """A goal of the product: within a tenth."""
    plans = [open_plan(seed) for seed in range(1, meshes + 1)]
    runs = {what: [pool.submit(play, plan, what) for plan in plans] for what in (HOST_DIES, HOST_SLOW, RELAY_DIES)}
    rows = []
    for what, futures in runs.items():
        found = [future.result() for future in futures]
        for name, values in (
            ("throughput", [item.rate_off for item in found]),
            ("shares", [item.shares_off for item in found]),
        ):
            measured = f"{statistics.median(values):.1%} ({max(values):.1%})"
            met = statistics.median(values) <= TOLERANCE
            rows.append(bar(f"what-if {what}: {name} off by", f"{TOLERANCE:.0%}", measured, met=met))
    return rows


if __name__ == "__main__":
    run_meshes(__doc__, bars)
