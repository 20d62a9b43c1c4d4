"""Nothing fails: throughput and delay against the bound, and how steady the shares are (rows 1, 2, 3 and 12).

    python3 deploy/run.py bench routing_steady [--meshes 10]

The meshes are those of `routing_evidence`. What is measured begins after 15 s, when a mesh that knew nothing has found
its windows and capacities, and lasts 45 s. Delays are those of mail submitted until 10 s before the end; what has not
arrived by then is as late as it is old. The wave moves the load by a fifth up and down within 20 s, around 0.8 of what
the mesh carries; its clients come evenly, so that a window of 4 s has no luck in it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from smtp_edge.simulation import Mesh
from smtp_edge.simulation.strategies import STRATEGIES
from tests.bench.lab.bars import Row, bar, median_and_worst
from tests.bench.lab.figures import percentile
from tests.bench.lab.meshes import Plan, build_mesh, evidence_plan
from tests.bench.lab.runs import hush, run_meshes
from tests.bench.routing_evidence import (
    ACCURATE_S,
    OURS,
    STALE_NOISE,
    STALE_S,
    delivered_share,
    worst_window,
)

RELAYS = 9
BEGIN_S, LAST_S, END_S = 15.0, 50.0, 60.0
CHURN_WINDOW_S = 10.0
LOOK_S = 1.0
"""A plan is made at most this often."""
WAVE_LOAD, WAVE_SHARE, WAVE_S = 0.8, 0.2, 20.0


@dataclass(frozen=True)
class Run:
    """What is tried."""

    load: float
    stale: bool = False
    strategy: str = OURS


RUNS = {
    "0.6": Run(0.6),
    "0.9": Run(0.9),
    "1.2": Run(1.2),
    "stale": Run(0.9, stale=True),
    "p2c": Run(0.9, strategy="p2c"),
    "backpressure": Run(0.9, strategy="backpressure"),
}


@dataclass(frozen=True)
class Figures:
    """One run."""

    share: float
    p95_s: float
    churn: int
    """Most changes of a relay's planned shares within any `CHURN_WINDOW_S`, per class."""
    sent_churn: float
    """Largest change, from one such window to the next, of the part of a relay's mail that a hop gets."""


def play(plan: Plan, run: Run) -> Figures:
    """One mesh."""
    hush()
    offered = run.load * plan.capacity_mps()
    with Mesh(
        seed=plan.seed,
        strategy=STRATEGIES[run.strategy],
        gossip_delay_s=STALE_S if run.stale else ACCURATE_S,
        capacity_noise=STALE_NOISE if run.stale else 0.0,
        sample_s=0,
    ) as mesh:
        build_mesh(mesh, plan, offered)
        mesh.run(BEGIN_S)
        shares = Shares(mesh, plan)
        while mesh.now < END_S - LOOK_S / 2:
            mesh.run(LOOK_S)
            shares.look()
        return Figures(
            share=delivered_share(mesh, BEGIN_S, END_S, plan.carries(offered)),
            p95_s=percentile(mesh.ledger.delays(BEGIN_S, LAST_S, mesh.now), 0.95),
            churn=shares.most_planned(),
            sent_churn=shares.largest_sent(),
        )


class Shares:
    """What each relay plans to send where, and what it sends, second by second."""

    def __init__(self, mesh: Mesh, plan: Plan) -> None:
        self._mesh, self._plan = mesh, plan
        self._planned: dict[tuple[str, str], list[dict[str, float]]] = {}
        self._sent: dict[str, list[dict[str, int]]] = {name: [self._taken(name)] for name in plan.names}

    def look(self) -> None:
        """Now."""
        for name, relay in self._mesh.relays.items():
            self._sent[name].append(self._taken(name))
            for class_id in self._plan.classes:
                found = relay.engine.planning.of_class(class_id)
                if found is not None:
                    self._planned.setdefault((name, class_id), []).append({"": found.exits, **found.peers})

    def most_planned(self) -> int:
        """Looks at which a share had changed by a tenth, in any `CHURN_WINDOW_S` of any relay and class."""
        most, length = 0, int(CHURN_WINDOW_S / LOOK_S)
        for seen in self._planned.values():
            changes, told = [], seen[0]
            for shares in seen:
                changed = _change(told, shares) > 0.1
                changes.append(changed)
                told = shares if changed else told
            most = max(most, *(sum(changes[start : start + length]) for start in range(len(changes))))
        return most

    def largest_sent(self) -> float:
        """Of all relays that sent fifty messages in both windows."""
        largest, length = 0.0, int(CHURN_WINDOW_S / LOOK_S)
        for seen in self._sent.values():
            ends = seen[::length]
            parts = [{hop: after[hop] - before[hop] for hop in after} for before, after in itertools.pairwise(ends)]
            for one, other in itertools.pairwise(parts):
                if min(sum(one.values()), sum(other.values())) >= 50:
                    largest = max(largest, _change(_normal(one), _normal(other)))
        return largest

    def _taken(self, name: str) -> dict[str, int]:
        peers = [there for here, there in self._plan.ways if here == name]
        return {hop: self._mesh.taken(name, hop) for hop in [*peers, *self._plan.exits.get(name, [])]}


def _change(one: dict[str, float], other: dict[str, float]) -> float:
    return max((abs(one.get(hop, 0.0) - other.get(hop, 0.0)) for hop in {*one, *other}), default=0.0)


def _normal(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {hop: count / total for hop, count in counts.items()}


def play_wave(plan: Plan) -> float:
    """The worst window under a load that rises and falls, as a share of what came and could be carried."""
    hush()
    capacity = plan.capacity_mps()
    with Mesh(seed=plan.seed, sample_s=0) as mesh:
        build_mesh(mesh, plan, WAVE_LOAD * capacity, even=True, wave=_wave)
        mesh.run(END_S)
        transit_s = statistics.median(mesh.ledger.delays(BEGIN_S, LAST_S, mesh.now))
        return worst_window(mesh, BEGIN_S, END_S, capacity, transit_s)


def _wave(now: float) -> float:
    return 1 + WAVE_SHARE * math.sin(2 * math.pi * now / WAVE_S)


# -- bars --------------------------------------------------------------------------------------------------------------


def begin(pool: Executor, meshes: int) -> tuple[dict[str, list[Future[Figures]]], list[Future[float]]]:
    """Put all runs into the pool."""
    plans = [evidence_plan(seed, RELAYS) for seed in range(1, meshes + 1)]
    runs = {name: [pool.submit(play, plan, run) for plan in plans] for name, run in RUNS.items()}
    return runs, [pool.submit(play_wave, plan) for plan in plans]


def bars(pool: Executor, meshes: int) -> list[Row]:
    """Rows 1, 2, 3 and 12."""
    runs, wave = begin(pool, meshes)
    found = {name: [future.result() for future in futures] for name, futures in runs.items()}
    rows = []
    for name in ("0.9", "1.2"):
        shares = [item.share for item in found[name]]
        met = statistics.median(shares) >= 0.97 and min(shares) >= 0.93
        rows.append(bar(f"1  delivered / bound, load {name}", "0.97, worst 0.93", median_and_worst(shares), met=met))
    return rows + _delay_bars(found) + _steady_bars(found["0.9"], [future.result() for future in wave])


def _delay_bars(found: dict[str, list[Figures]]) -> list[Row]:
    p95 = {name: statistics.median(item.p95_s for item in runs) for name, runs in found.items()}
    loss = _median_share(found["0.9"]) - _median_share(found["stale"])
    slower = p95["stale"] / p95["0.9"]
    rows = [
        bar(
            "2  gossip of 1-5 s, capacities 25 % wrong",
            "-0.02, p95 x 1.5",
            f"{-loss:+.2f}, p95 x {slower:.2f}",
            met=loss <= 0.02 and slower <= 1.5,
        )
    ]
    for text, wanted, other in (
        ("3  p95 at load 0.9 / at 0.6", 2.5, "0.6"),
        ("3  p95 / of p2c", 0.1, "p2c"),
        ("3  p95 / of plain backpressure", 0.25, "backpressure"),
    ):
        ratio = p95["0.9"] / p95[other]
        rows.append(
            bar(text, f"{wanted:g}", f"{ratio:.2f} ({p95['0.9']:.2f} s, {p95[other]:.2f} s)", met=ratio <= wanted)
        )
    return rows


def _steady_bars(runs: list[Figures], wave: list[float]) -> list[Row]:
    churn, sent = [item.churn for item in runs], [item.sent_churn for item in runs]
    return [
        bar(
            "12 planned shares that change by 10 %, in 10 s and class",
            "1",
            f"{statistics.median(churn):g} ({max(churn)})",
            met=max(churn) <= 1,
        ),
        bar(
            "12 shares of what was sent: change from 10 s to 10 s",
            "0.1",
            median_and_worst(sent, best=0),
            met=statistics.median(sent) <= 0.1,
        ),
        bar("12 load wave of 20 %: worst 4 s", "0.95", median_and_worst(wave), met=min(wave) >= 0.95),
    ]


def _median_share(runs: list[Figures]) -> float:
    return statistics.median(item.share for item in runs)


if __name__ == "__main__":
    run_meshes(__doc__, bars)
