"""Mail waits for a dead smart host, and the host is back: how long until every relay delivers again (virtual time).

    python3 deploy/run.py bench routing_wake [--meshes 10]

Each relay has the one smart host, and mail for it that waits on disk. The host was dead for 10 to 70 s: the process
(connections are refused), or its machine (silence). Seconds from its return until waiting mail leaves each relay, to
the host or to a relay that noticed first; and until all that waited is delivered, apart from what is in doubt (an
attempt that hung when the machine died: its answer is waited for). On real sockets: `routing_real`.
"""

from __future__ import annotations

import math
import random
import statistics
from concurrent.futures import Executor
from dataclasses import dataclass

from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import Row, bar, median_and_worst
from tests.bench.lab.runs import hush, run_meshes

SIZES = (3, 5, 9)
HOST, HOST_MPS = "s1", 500.0
LOAD_MPS = 2.0
"""Of each relay, as long as the host is dead."""
DEAD_AT_S, DEAD_S = 5.0, (10.0, 70.0)
LOOK_S = 0.01
WAIT_MAX_S = 60.0
WANTED_S = 1.0
KILLED, SILENT = "killed", "silent"


@dataclass(frozen=True)
class Woken:
    """Seconds from the host's return; infinite = not within `WAIT_MAX_S`."""

    first: float
    """Until mail leaves one relay."""
    every: float
    """Until mail has left every relay."""
    whole: float
    """Until no more is missing than what hung in attempts when the host came back."""
    waiting: int


def play(seed: int, relays: int, how: str) -> Woken:
    """One mesh."""
    hush()
    names, dead_s = [f"r{number}" for number in range(relays)], random.Random(seed).uniform(*DEAD_S)
    with Mesh(seed=seed, sample_s=0) as mesh:
        mesh.host(HOST, HOST_MPS)
        for name in names:
            mesh.relay(name, [HOST])
            mesh.load(name, LOAD_MPS, until=DEAD_AT_S + dead_s - 1)
        (mesh.kill if how == KILLED else mesh.silence)(HOST, at=DEAD_AT_S)
        mesh.run(DEAD_AT_S + dead_s)
        waiting = mesh.accepted - mesh.delivered
        hung = sum(mesh.inflight(name, HOST) for name in names)
        mesh.restart(HOST)
        began, before = mesh.now, {name: _left(mesh, name) for name in names}
        after: dict[str, float] = {}
        whole = math.inf
        while (len(after) < relays or whole == math.inf) and mesh.now < began + WAIT_MAX_S:
            mesh.run(LOOK_S)
            for name in names:
                if name not in after and _left(mesh, name) > before[name]:
                    after[name] = mesh.now - began
            if whole == math.inf and mesh.accepted - mesh.delivered <= hung:
                whole = mesh.now - began
        times = [after.get(name, math.inf) for name in names]
        return Woken(min(times), max(times), whole, waiting)


def _left(mesh: Mesh, name: str) -> int:
    """Messages that next hops took from a relay."""
    return sum(mesh.taken(name, there) for there in (HOST, *mesh.relays) if there != name)


def bars(pool: Executor, meshes: int) -> list[Row]:
    """A goal of the product table, beside the rows of the design's."""
    rows = []
    runs = {
        (how, relays): [pool.submit(play, seed, relays, how) for seed in range(1, meshes + 1)]
        for how in (KILLED, SILENT)
        for relays in SIZES
    }
    for (how, relays), futures in runs.items():
        found = [future.result() for future in futures]
        last, whole = [item.every for item in found], [item.whole for item in found]
        measured = (
            f"{median_and_worst(last, best=0)} s, first {statistics.median(item.first for item in found):.2f} s; "
            f"all {statistics.median(item.waiting for item in found):g} delivered {median_and_worst(whole, best=0)} s"
        )
        text = f"wake {how} host is back: until mail has left all of {relays} relays"
        rows.append(bar(text, f"{WANTED_S:g} s", measured, met=max(last) <= WANTED_S))
    return rows


if __name__ == "__main__":
    run_meshes(__doc__, bars)
