"""100,000 messages and 50 kills of relays and ways, in virtual time: where every message went (rows 6 and 7).

    python3 deploy/run.py bench routing_faults [--messages 100000] [--kills 50]

Four meshes of nine relays share the messages and the kills. A relay is killed (kill -9: connections reset, estimates
and views gone, its disk stays) and comes back after 2 to 15 s; a way between relays, or from a relay to a smart host,
goes silent for as long, with what is in flight on it. Each mesh is parted in two once, for 10 s. In the end everything
is sound, and the queues must become empty.

A second copy at a smart host is the mesh's own fault unless the answer to the first one got lost: whoever sent it never
learnt that it was taken. Of those there must be no more than what was in flight on smart hosts when a relay, or a way
to a host, was killed.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import Row, bar, show
from tests.bench.lab.meshes import Plan, build_mesh, evidence_plan
from tests.bench.lab.runs import hush

RELAYS, MESHES = 9, 4
LOAD = 0.6
REFUSED = 1.08
"""Clients offer so many times the messages that are wanted: a dead relay takes none."""
AWAY_S = (2.0, 15.0)
PARTED_S = 10.0
FIRST_S = 5.0
DRAIN_MAX_S = 600.0
HOPS_MAX = 25


@dataclass(frozen=True)
class Figures:
    """One mesh."""

    accepted: int
    delivered: int
    queued: int
    lost: int
    doubled: int
    doubled_inside: int
    flying: int
    """Transactions on smart hosts that a kill cut off."""
    kills: int
    duplicates_dropped: int
    """Repeats that a relay had already: the doubles that tokens prevented."""
    revisits: int
    repeats: int
    longest: int
    virtual_s: float
    took_s: float


def play(plan: Plan, messages: int, kills: int) -> Figures:
    """One mesh: so many messages, so many kills."""
    hush()
    began, rng = time.process_time(), random.Random(plan.seed)
    offered = LOAD * plan.capacity_mps()
    duration_s = REFUSED * messages / offered
    with Mesh(seed=plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, plan, offered, until=duration_s)
        flying = 0
        for at, fault in sorted(_faults(plan, rng, kills, duration_s)):
            mesh.run(at - mesh.now)
            flying += _break(mesh, plan, fault, rng.uniform(*AWAY_S))
        mesh.run(max(0.0, duration_s + AWAY_S[1] - mesh.now))
        mesh.run_until(lambda: mesh.queued == 0, DRAIN_MAX_S)
        return Figures(
            accepted=mesh.accepted,
            delivered=mesh.delivered,
            queued=mesh.queued,
            lost=mesh.lost,
            doubled=mesh.doubled,
            doubled_inside=mesh.doubled_inside,
            flying=flying,
            kills=kills,
            duplicates_dropped=sum(relay.counters.duplicates_dropped for relay in mesh.relays.values()),
            revisits=mesh.ledger.revisits,
            repeats=mesh.ledger.repeats,
            longest=mesh.ledger.longest,
            virtual_s=mesh.now,
            took_s=time.process_time() - began,
        )


Fault = tuple[str, ...]
"""A relay; the two ends of a way; or nothing: the mesh is parted."""


def _faults(plan: Plan, rng: random.Random, kills: int, duration_s: float) -> list[tuple[float, Fault]]:
    """One after another, evenly over the time; the parting in the middle."""
    exits = [(relay, host) for relay, hosts in plan.exits.items() for host in hosts]
    found: list[tuple[float, Fault]] = [(duration_s / 2, ())]
    for number in range(kills):
        at = FIRST_S + (number + rng.random()) / kills * (duration_s - FIRST_S)
        kind = rng.random()
        if kind < 0.5:
            found.append((at, (rng.choice(plan.names),)))
        else:
            found.append((at, rng.choice(sorted(plan.ways) if kind < 0.75 else sorted(exits))))
    return found


def _break(mesh: Mesh, plan: Plan, fault: Fault, away_s: float) -> int:
    """Make it so, and plan its end; transactions on smart hosts that it cuts off."""
    match fault:
        case (relay,):
            if not mesh.relays[relay].alive:
                return 0
            flying = sum(mesh.inflight(relay, host) for host in plan.exits.get(relay, []))
            mesh.kill(relay)
            mesh.restart(relay, at=mesh.now + away_s)
            return flying
        case (here, there):
            flying = mesh.inflight(here, there) if there in plan.hosts and mesh.relays[here].alive else 0
            mesh.block(here, there)
            mesh.unblock(here, there, at=mesh.now + away_s)
            return flying
        case _:
            half = len(plan.names) // 2
            mesh.partition(plan.names[:half], plan.names[half:])
            mesh.heal(at=mesh.now + PARTED_S)
            return 0
    raise AssertionError(fault)


def bars(pool: Executor, messages: int, kills: int) -> list[Row]:
    """Rows 6 and 7."""
    plans = [evidence_plan(100 + number, RELAYS) for number in range(MESHES)]
    shares = [kills // MESHES + (number < kills % MESHES) for number in range(MESHES)]
    futures = [pool.submit(play, plan, messages // MESHES, share) for plan, share in zip(plans, shares, strict=True)]
    found = [future.result() for future in futures]

    def total(name: str) -> int:
        return sum(getattr(item, name) for item in found)

    doubled = total("doubled") - total("doubled_inside")
    account = f"of {total('accepted')}, {total('kills')} kills"
    per_mille, longest = 1000 * total("revisits") / total("accepted"), max(item.longest for item in found)
    return [
        bar(
            "6  under faults: revisits per 1,000; cycles begun again; longest way",
            f"1; 0; {HOPS_MAX}",
            f"{per_mille:.2f}; {total('repeats')}; {longest}",
            met=per_mille <= 1 and not total("repeats") and longest <= HOPS_MAX,
        ),
        bar(
            "7  lost, doubled inside the mesh",
            "0, 0",
            f"{total('lost')}, {total('doubled_inside')} {account}"
            + (f"; {total('queued')} STILL QUEUED" if total("queued") else ""),
            met=not total("lost") and not total("doubled_inside") and not total("queued"),
        ),
        bar(
            "7  doubled at exits / in flight there at the kills",
            "1",
            f"{doubled} / {total('flying')}; {total('duplicates_dropped')} repeats known and dropped inside",
            met=doubled <= total("flying"),
        ),
    ]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(show(bars(pool, arguments.messages, arguments.kills)))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
