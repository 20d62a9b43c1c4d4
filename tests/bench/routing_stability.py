"""A way that heals, and a way or a smart host that flaps for ten minutes, in virtual time (rows 13 and 18).

    python3 deploy/run.py bench routing_stability [--meshes 10] [--flap-s 600]

Healing: at load 1.2 (clients come evenly) the way between relays that the mesh can spare least is silent from 15 to
25 s. What it carried in the six seconds before, when everything was full, is the yardstick: how long after the heal
until it carries 0.9 of that again, in windows of 2 s.

Flapping: at load 0.75 the busiest way is silent every other second, or the fastest smart host is killed and started
again. A table change of a relay is any change of what it routes by: its ranks and its neighbours', and which of its
next hops are open; looked at five times a second. The meshes have sound ways, else the flapping way's changes could not
be told from those of lossy ones. A host that is there every other second is used in those seconds, so its relays change
that often; the bar is for links. The stable rate is that of the same mesh when nothing flaps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

from smtp_edge.simulation import Mesh
from smtp_edge.simulation.relay import SimulatedRelay
from tests.bench.lab.bars import Row, bar, median_and_worst, show
from tests.bench.lab.meshes import Plan, build_mesh, evidence_plan, random_plan
from tests.bench.lab.runs import hush

RELAYS = 9
HEAL_LOAD, FLAP_LOAD = 1.2, 0.75
CUT_S, HEAL_S, END_S = 15.0, 25.0, 45.0
USED_S, USED_STEP_S, USED_WINDOW_S = 6.0, 0.25, 2.0
USED_SHARE = 0.9
FLAP_S, FLAP_PERIOD_S, SETTLE_S = 600.0, 2.0, 15.0
CHANGES_MAX = 6
"""In ten minutes."""
FLAP_MESHES = 3
LOOK_S = 0.2
WAY, HOST, NOTHING = "way", "smart host", "nothing"


# -- healing -----------------------------------------------------------------------------------------------------------


def heal(plan: Plan) -> float:
    """Seconds until the healed way carries what it did; infinite = not until the end."""
    hush()
    offered = HEAL_LOAD * plan.capacity_mps()
    here, there = min(plan.ways, key=lambda way: (plan.carries(offered, {way: 0.0}), way))
    with Mesh(seed=plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, plan, offered, even=True)
        mesh.block(here, there, at=CUT_S)
        mesh.unblock(here, there, at=HEAL_S)
        mesh.run(CUT_S - USED_S)
        before = mesh.taken(here, there)
        mesh.run(USED_S)
        used_mps = (mesh.taken(here, there) - before) / USED_S
        mesh.run(HEAL_S - mesh.now)
        seen = [mesh.taken(here, there)]
        while mesh.now < END_S:
            mesh.run(USED_STEP_S)
            seen.append(mesh.taken(here, there))
        return _used_after(seen, used_mps)


def _used_after(seen: list[int], used_mps: float) -> float:
    """The end of the first window in which the way carried enough."""
    length = int(USED_WINDOW_S / USED_STEP_S)
    for number in range(length, len(seen)):
        if (seen[number] - seen[number - length]) / USED_WINDOW_S >= USED_SHARE * used_mps:
            return number * USED_STEP_S
    return float("inf")


# -- flapping ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flapped:
    """One mesh."""

    changes: dict[str, int]
    """Relay -> table changes."""
    owners: tuple[str, ...]
    """Whose next hop it is."""
    rate_mps: float
    lost: int
    doubled_inside: int


def flap(plan: Plan, duration_s: float, what: str) -> Flapped:
    """Count what each relay makes of it."""
    hush()
    offered = FLAP_LOAD * plan.capacity_mps()
    with Mesh(seed=plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, plan, offered)
        owners = _plan_flaps(mesh, plan, offered, duration_s, what)
        mesh.run(SETTLE_S)
        tables = {name: _table(relay, plan) for name, relay in mesh.relays.items()}
        changes = dict.fromkeys(tables, 0)
        while mesh.now < SETTLE_S + duration_s - LOOK_S / 2:
            mesh.run(LOOK_S)
            for name, relay in mesh.relays.items():
                table = _table(relay, plan)
                changes[name] += table != tables[name]
                tables[name] = table
        rate_mps = mesh.throughput_mps(SETTLE_S, mesh.now)
        return Flapped(changes, owners, rate_mps, mesh.lost, mesh.doubled_inside)


def _plan_flaps(mesh: Mesh, plan: Plan, offered: float, duration_s: float, what: str) -> tuple[str, ...]:
    """Who has the flapping thing as a next hop."""
    (here, there), host = plan.busiest(offered), max(plan.hosts, key=lambda name: (plan.hosts[name], name))
    for number in range(int(duration_s / FLAP_PERIOD_S)):
        at = SETTLE_S + number * FLAP_PERIOD_S
        if what == WAY:
            mesh.block(here, there, at=at)
            mesh.unblock(here, there, at=at + FLAP_PERIOD_S / 2)
        elif what == HOST:
            mesh.kill(host, at=at)
            mesh.restart(host, at=at + FLAP_PERIOD_S / 2)
    return (here,) if what == WAY else tuple(relay for relay, hosts in plan.exits.items() if host in hosts)


def _table(relay: SimulatedRelay, plan: Plan) -> list[object]:
    views = [relay.engine.view(class_id, relay.now()) for class_id in plan.classes]
    edges = sorted(edge.hop.id for edge in relay.engine.edges() if edge.open)
    return [edges, *((view.here, view.there) for view in views)]


# -- bars --------------------------------------------------------------------------------------------------------------


def bars(pool: Executor, meshes: int, flap_s: float) -> list[Row]:
    """Rows 13 and 18."""
    plans = [random_plan(seed, RELAYS) for seed in range(1, min(meshes, FLAP_MESHES) + 1)]
    flapping = {what: [pool.submit(flap, plan, flap_s, what) for plan in plans] for what in (WAY, HOST, NOTHING)}
    healing = [pool.submit(heal, evidence_plan(seed, RELAYS)) for seed in range(1, meshes + 1)]
    found = {what: [future.result() for future in futures] for what, futures in flapping.items()}
    times = [future.result() for future in healing]
    rows = [
        bar(
            "13 healed way carries 0.9 of what it had after",
            "10 s",
            f"{median_and_worst(times, best=0, digits=1)} s",
            met=statistics.median(times) <= 10,
        )
    ]
    for what in (WAY, HOST):
        rows += _flap_bars(what, found[what], found[NOTHING], flap_s)
    return rows


def _flap_bars(what: str, found: list[Flapped], stable: list[Flapped], flap_s: float) -> list[Row]:
    owners = [item.changes[name] for item in found for name in item.owners]
    others = [count for item in found for name, count in item.changes.items() if name not in item.owners]
    shares = [item.rate_mps / calm.rate_mps for item, calm in zip(found, stable, strict=True)]
    most, faults = CHANGES_MAX * flap_s / FLAP_S, sum(item.lost + item.doubled_inside for item in found)
    rows = [
        bar(
            f"18 flapping {what}: table changes of {whose}",
            f"{most:g}" if what == WAY else "(no bar)",
            median_and_worst(counts, best=0, digits=0),
            met=what != WAY or max(counts) <= most,
        )
        for whose, counts in (("relays beside it", owners), ("other relays", others))
    ]
    measured = f"{median_and_worst(shares)}; {faults}"
    met = min(shares) >= 0.9 and not faults
    return [*rows, bar(f"18 flapping {what}: delivered / stable; lost, doubled inside", "0.9; 0", measured, met=met)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=int, default=10)
    parser.add_argument("--flap-s", type=float, default=FLAP_S)
    arguments = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(show(bars(pool, arguments.meshes, arguments.flap_s)))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
