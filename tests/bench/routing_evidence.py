"""The evidence for the routing rule: our engine and what others do, on the same random meshes, in virtual time.

    python3 deploy/run.py bench routing_evidence [--meshes 10] [--cases 9:0.9,24:0.9:stale] [--only smtpmesh,p2c]

The meshes are those of 4-routing.md: three classes of mail, each with three smart hosts of unequal speed, clients at
three relays, inner ways of 4 to 60 messages a second that lose up to 15 % of the connections. Load 1 is the largest
that a linear program carries whole. The busiest inner way fails at 10 s and is sound again at 20 s: `hard` cuts it
without a word, `gray` leaves it a fifth of its speed and breaks half of the connections. With `stale` gossip takes 1 to
5 s and tells every capacity wrong by a quarter. A cell is delivered throughput as a share of what could be delivered
(the load or the linear program's bound, whichever is less), the median over the meshes with the worst in brackets.
Everything but the choice of the next hop is the same for all: queues, late binding, retries, breakers, gossip.

Both failures of a mesh branch off from the same first 10 seconds. Delays are those of mail submitted before the
failure; what has not arrived at the end is as late as it is old, so a strategy that leaves mail behind does not look
fast. Undelivered is what was submitted up to 5 s before the end and is not there at the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass

from smtp_edge.simulation import Mesh
from smtp_edge.simulation.strategies import STRATEGIES
from tests.bench.lab.bars import Row, bar, median_and_worst, show
from tests.bench.lab.branches import in_branch
from tests.bench.lab.figures import percentile, table
from tests.bench.lab.meshes import Plan, Way, build_mesh, evidence_plan
from tests.bench.lab.runs import hush

SETTLE_S, CUT_S, HEAL_S, END_S = 4.0, 10.0, 20.0, 28.0
WINDOW_S = 4.0
"""Of the bars' sliding windows, and the time to react to a failure."""
STEP_S = 0.5
"""Between two sliding windows."""
LATE_S = 5.0
"""What was submitted so shortly before the end may still be on its way."""
GRAY_SPEED, GRAY_ERRORS = 0.2, 0.5
STALE_S, ACCURATE_S = (1.0, 5.0), (0.001, 0.001)
STALE_NOISE = 0.25
HARD, GRAY = "hard", "gray"
CASES = ",".join(f"{relays}:{load}{word}" for relays in (9, 24) for load in (0.6, 0.9, 1.2) for word in ("", ":stale"))
QUICK = "9:0.6,9:0.9,9:1.2,9:0.9:stale"
OURS = "smtpmesh"


@dataclass(frozen=True)
class Case:
    """What is tried."""

    relays: int
    load: float
    stale: bool

    @classmethod
    def parse(cls, text: str) -> Case:
        """`RELAYS:LOAD[:stale]`."""
        relays, load, *words = text.split(":")
        return cls(int(relays), float(load), "stale" in words)

    def __str__(self) -> str:
        return f"{self.relays} relays, load {self.load:g}, {'stale' if self.stale else 'accurate'} gossip"


@dataclass(frozen=True)
class Figures:
    """One run."""

    before: float
    during: float
    reacted: float
    """From `WINDOW_S` after the failure on."""
    worst_window: float
    """While the way had failed, as a share of the new bound."""
    after: float
    back: float
    """The worst window from the heal on."""
    covered: bool
    """What was left could carry the load."""
    p95_s: float
    p95_during_s: float
    undelivered: float
    lost: int
    doubled_inside: int
    revisits: int
    steps_back: int
    repeats: int
    longest: int
    hops: float
    delivered: int
    took_s: float


Found = dict[Case, dict[str, dict[str, list[Figures]]]]
"""Case -> strategy -> failure -> one for each mesh."""


# -- one run -----------------------------------------------------------------------------------------------------------


def play(plan: Plan, case: Case, strategy: str) -> dict[str, Figures]:
    """One strategy on one mesh, with both failures."""
    hush()
    began, offered = time.process_time(), case.load * plan.capacity_mps()
    victim = plan.busiest(min(offered, 0.95 * plan.capacity_mps()))
    whole = plan.carries(offered)
    left = {HARD: 0.0, GRAY: GRAY_SPEED * (1 - GRAY_ERRORS) / (1 - plan.losses.get(victim, 0.0))}
    bounds = {failure: plan.carries(offered, {victim: factor}) for failure, factor in left.items()}
    with Mesh(
        seed=plan.seed,
        strategy=STRATEGIES[strategy],
        gossip_delay_s=STALE_S if case.stale else ACCURATE_S,
        capacity_noise=STALE_NOISE if case.stale else 0.0,
        sample_s=0,
    ) as mesh:
        build_mesh(mesh, plan, offered)
        mesh.run(CUT_S)
        took_s = (time.process_time() - began) / len(bounds)

        def branch(failure: str) -> Figures:
            return _fail(mesh, plan, victim, failure, offered, whole, bounds[failure], took_s)

        return {failure: in_branch(lambda failure=failure: branch(failure)) for failure in bounds}


def _fail(
    mesh: Mesh, plan: Plan, victim: Way, failure: str, offered: float, whole: float, cut: float, took_s: float
) -> Figures:
    began, (here, there) = time.process_time(), victim
    if failure == GRAY:
        mesh.degrade(here, to=there, speed=GRAY_SPEED, error_rate=GRAY_ERRORS)
        mesh.degrade(here, to=there, speed=1.0, error_rate=plan.losses.get(victim, 0.0), at=HEAL_S)
    else:
        mesh.block(here, there)
        mesh.unblock(here, there, at=HEAL_S)
    mesh.run(END_S - mesh.now)
    ledger, transit_s = mesh.ledger, statistics.median(mesh.ledger.delays(SETTLE_S, CUT_S, mesh.now))
    due = [name for name, at in ledger.accepted.items() if at < END_S - LATE_S]
    return Figures(
        before=delivered_share(mesh, SETTLE_S, CUT_S, whole),
        during=delivered_share(mesh, CUT_S, HEAL_S, cut),
        reacted=delivered_share(mesh, CUT_S + WINDOW_S, HEAL_S, cut),
        worst_window=worst_window(mesh, CUT_S, HEAL_S, cut, transit_s),
        after=delivered_share(mesh, HEAL_S, END_S, whole),
        back=worst_window(mesh, HEAL_S, END_S, whole, transit_s),
        covered=cut >= 0.999 * offered,
        p95_s=percentile(ledger.delays(SETTLE_S, CUT_S, mesh.now), 0.95),
        p95_during_s=percentile(ledger.delays(CUT_S, HEAL_S, mesh.now), 0.95),
        undelivered=sum(name not in ledger.deliveries for name in due) / len(due),
        lost=mesh.lost,
        doubled_inside=mesh.doubled_inside,
        revisits=ledger.revisits,
        steps_back=ledger.steps_back,
        repeats=ledger.repeats,
        longest=ledger.longest,
        hops=ledger.transfers / max(1, mesh.delivered),
        delivered=mesh.delivered,
        took_s=took_s + time.process_time() - began,
    )


def delivered_share(mesh: Mesh, since: float, until: float, bound_mps: float, transit_s: float = 0.0) -> float:
    """As a share of the bound, or of what came where that was less: clients are a Poisson stream.

    What comes takes `transit_s` through the mesh: in a short window it is what came so long before that can leave.
    """
    came = sum(since - transit_s <= at < until - transit_s for at in mesh.ledger.accepted.values()) / (until - since)
    return mesh.throughput_mps(since, until) / max(0.01, min(bound_mps, came))


def worst_window(mesh: Mesh, since: float, until: float, bound_mps: float, transit_s: float) -> float:
    """The smallest share in any window."""
    count = int((until - since - WINDOW_S) / STEP_S) + 1
    starts = [since + STEP_S * number for number in range(count)]
    return min(delivered_share(mesh, start, start + WINDOW_S, bound_mps, transit_s) for start in starts)


# -- tables ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=int, default=10)
    parser.add_argument("--cases", default=CASES, help="RELAYS:LOAD[:stale],...")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(STRATEGIES))
    arguments = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = gather(pool, arguments.cases, arguments.meshes, arguments.only)
    print(show(bars(found)))
    print(f"{time.monotonic() - began:.0f} s")


def gather(pool: Executor, cases: str, meshes: int, strategies: Sequence[str]) -> Found:
    """Play everything, and print each case's tables as it is done."""
    runs: dict[Case, dict[str, list[Future[dict[str, Figures]]]]] = {}
    for case in map(Case.parse, cases.split(",")):
        plans = [evidence_plan(seed, case.relays) for seed in range(1, meshes + 1)]
        runs[case] = {name: [pool.submit(play, plan, case, name) for plan in plans] for name in strategies}
    found: Found = {}
    for case, by_name in runs.items():
        found[case] = {}
        for name, futures in by_name.items():
            pairs = [future.result() for future in futures]
            found[case][name] = {failure: [pair[failure] for pair in pairs] for failure in (HARD, GRAY)}
        for failure in (HARD, GRAY):
            rows = [_row(name, figures[failure]) for name, figures in found[case].items()]
            print(f"{case}, {failure} failure; {len(next(iter(by_name.values())))} meshes")
            print(table([HEADING, *rows]), end="\n\n", flush=True)
    return found


HEADING = [
    "",
    "before",
    "failed",
    "healed",
    "p95 delay",
    "undelivered",
    "transfers",
    "revisits",
    "lost",
    "doubled",
    "run",
]


def _row(name: str, found: list[Figures]) -> list[str]:
    return [
        name,
        median_and_worst([item.before for item in found]),
        median_and_worst([item.during for item in found]),
        median_and_worst([item.after for item in found]),
        f"{median_and_worst([item.p95_s for item in found], best=0, digits=1)} s",
        f"{statistics.median(item.undelivered for item in found):.1%}",
        f"{statistics.median(item.hops for item in found):.2f}",
        str(sum(item.revisits for item in found)),
        str(sum(item.lost for item in found)),
        str(sum(item.doubled_inside for item in found)),
        f"{statistics.median(item.took_s for item in found):.0f} s",
    ]


# -- bars --------------------------------------------------------------------------------------------------------------


def bars(found: Found) -> list[Row]:
    """Rows 4, 5, 6 and 13, as far as the cases decide them; for 1 to 3 a longer calm is needed (`routing_steady`)."""

    def of(case: str, failure: str = HARD) -> list[Figures]:
        return found.get(Case.parse(case), {}).get(OURS, {}).get(failure, [])

    plain, gray = of("9:0.9"), of("9:0.9", GRAY)
    rows: list[Row] = []
    if plain:
        rows += _failure_bars(plain)
    if gray:
        shares = [item.during for item in gray]
        met = statistics.median(shares) >= 0.97
        rows.append(bar("5  gray way: delivered / degraded bound", "0.97", median_and_worst(shares), met=met))
    every = [item for by_name in found.values() for runs in by_name.get(OURS, {}).values() for item in runs]
    return rows + (_loop_bars(every) if every else [])


def _failure_bars(runs: list[Figures]) -> list[Row]:
    windows, reacted, backs = ([getattr(item, name) for item in runs] for name in ("worst_window", "reacted", "back"))
    rows = [
        bar("4  dead way: worst 4 s", "0.85", median_and_worst(windows), met=min(windows) >= 0.85),
        bar("4  dead way: after 4 s", "0.97", median_and_worst(reacted), met=statistics.median(reacted) >= 0.97),
    ]
    ratios = [item.p95_during_s / item.p95_s for item in runs if item.covered]
    if ratios:
        text = f"{median_and_worst(ratios, best=0, digits=1)}, {len(ratios)} meshes"
        rows.append(bar("4  dead way: p95 / before", "2.5", text, met=statistics.median(ratios) <= 2.5))
    met = statistics.median(backs) >= 0.95
    return [*rows, bar("13 healed way: worst 4 s", "0.95", median_and_worst(backs), met=met)]


def _loop_bars(every: list[Figures]) -> list[Row]:
    delivered, revisits = sum(item.delivered for item in every), sum(item.revisits for item in every)
    per_mille, longest = 1000 * revisits / delivered, max(item.longest for item in every)
    return [
        bar("6  revisits per 1,000 messages", "1", f"{per_mille:.2f} of {delivered}", met=per_mille <= 1),
        bar(
            "6  cycles begun again; longest way",
            "0; 25 transfers",
            f"{sum(item.repeats for item in every)}; {longest}",
            met=longest <= 25 and not any(item.repeats for item in every),
        ),
    ]


if __name__ == "__main__":
    main()
