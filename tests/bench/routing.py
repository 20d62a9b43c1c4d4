"""The evidence for the routing rule, and every bar of 4-routing.md with what was measured.

    python3 deploy/run.py bench routing                 everything: two to three hours on two cores
    python3 deploy/run.py bench routing --quick         three meshes of each, without 24 relays: some minutes
    python3 deploy/run.py bench routing --no-evidence   the bars alone

This is the door: each part can be run alone as well, and its own words say how it measures.

    routing_evidence    our engine and what others do on the same meshes, with a failure (tables; rows 4, 5, 6, 13)
    routing_steady      nothing fails: throughput, delay, steadiness (rows 1, 2, 3, 12)
    routing_faults      100,000 messages, 50 kills (rows 6, 7)
    routing_plan        the joint plan, replays (rows 8, 10, 11, 14)
    routing_cost        a decision, a recomputation (row 9)
    routing_stability   what heals, what flaps (rows 13, 18)
    routing_pair        one pair against its max-flow (row 15)
    routing_real        real processes and sockets (rows 16, 17; waking)
    routing_wake        waking in virtual time
    routing_what_if     predictions against what happens
    routing_day         24 hours (not part of this)
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from smtp_edge.simulation.strategies import STRATEGIES
from tests.bench import (
    routing_cost,
    routing_evidence,
    routing_faults,
    routing_pair,
    routing_plan,
    routing_real,
    routing_stability,
    routing_steady,
    routing_wake,
    routing_what_if,
)
from tests.bench.lab.bars import Row, show

QUICK_MESHES, QUICK_FLAP_S, QUICK_MESSAGES, QUICK_KILLS = 3, 120.0, 10_000, 12


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-evidence", action="store_true")
    parser.add_argument("--no-real", action="store_true", help="without the rows on real sockets")
    arguments = parser.parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        if not arguments.no_evidence:
            rows += evidence(pool, quick=arguments.quick)
        rows += simulated(pool, quick=arguments.quick)
    rows += alone(quick=arguments.quick, real=not arguments.no_real)
    print(show(rows))
    print(f"{time.monotonic() - began:.0f} s")


def evidence(pool: ProcessPoolExecutor, *, quick: bool) -> list[Row]:
    """The tables, printed as they are done; the rows that they decide."""
    cases, meshes = (routing_evidence.QUICK, QUICK_MESHES) if quick else (routing_evidence.CASES, 10)
    return routing_evidence.bars(routing_evidence.gather(pool, cases, meshes, list(STRATEGIES)))


def simulated(pool: ProcessPoolExecutor, *, quick: bool) -> list[Row]:
    """In virtual time, both cores at work."""
    meshes = QUICK_MESHES if quick else 10
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("steady", lambda: routing_steady.bars(pool, meshes)),
        ("wake", lambda: routing_wake.bars(pool, meshes)),
        ("pair", lambda: routing_pair.bars(pool, meshes)),
        ("what-if", lambda: routing_what_if.bars(pool, meshes)),
        (
            "faults",
            lambda: (
                routing_faults.bars(pool, QUICK_MESSAGES, QUICK_KILLS)
                if quick
                else routing_faults.bars(pool, 100_000, 50)
            ),
        ),
        (
            "stability",
            lambda: routing_stability.bars(pool, meshes, QUICK_FLAP_S if quick else routing_stability.FLAP_S),
        ),
    ]
    return [row for name, part in parts for row in _timed(name, part)]


def alone(*, quick: bool, real: bool) -> list[Row]:
    """Times of this process, and processes that share the machine."""
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("plan", lambda: routing_plan.rows(20 if quick else 100, 2 if quick else 6)),
        ("cost", routing_cost.bars),
    ]
    if real:
        parts.append(("real sockets", lambda: routing_real.bars(routing_real.gather(1 if quick else 3))))
    return [row for name, part in parts for row in _timed(name, part)]


def _timed(name: str, part: Callable[[], list[Row]]) -> list[Row]:
    began = time.monotonic()
    rows = part()
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    main()
