"""Every row of the bars of gossip: the machines in virtual time for 10 to 10,000 nodes, real processes for 10 and 30.

    python3 deploy/run.py bench gossip [--sizes 10,100,1000,10000] [--no-real] [--runs 1.0] [--seed 1]

A cell is `measured (bar)`, with a mark where the bar is missed. Times in virtual time are exact; they hold for the
modelled network (1 ms links; 10 to 150 ms for WAN) and leave out what a processor needs. Trials are few at 10,000
nodes, and 1 % of them are starved there instead of up to 10 %: each loss is some 400,000 frames. A crash there is the
restart in place, too, and a node that is cut off the silent loss. The counts stand in the cells. A false loss is a
session given up, or a member told as lost, that was neither starved, frozen nor dead.
Cells are measured side by side on all processors.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from gossip.linkstate import Key, Kind, LinkStatus, NodeId
from gossip.settings import GossipSettings
from smtp_edge.simulation import GossipWorld, Network
from tests.bench.lab.figures import percentile, table

LAN_S = (0.001, 0.001)
WAN_S = (0.010, 0.150)
WALK_MAX = 300
"""Members above which the machines do not walk over all sessions: the figures do not need it."""
FAIR = "no longer neighbours"

WITHDRAWAL, SCORE = "withdrawal to all, LAN, p99", "score change to all, LAN, p99"
STORM, WAN = "withdrawal in a storm of good news, LAN, p99", "withdrawal to all, WAN, p99"
CRASH, SILENCE = "crash (kill -9) known to all", "silent loss known to all"
STARVED, PAUSE = "runs with a false loss", "false losses, 12 s pause"
RESTART, IDLE = "false losses, restart in place", "idle bytes/s sent per node"
HEALED = "partition healed to equal databases"
ROWS = {
    WITHDRAWAL: ("s", {10: 0.06, 100: 0.1, 1000: 0.25, 10000: 0.6}),
    SCORE: ("s", {10: 0.06, 100: 0.1, 1000: 0.25, 10000: 0.6}),
    STORM: ("s", {10: 0.06, 100: 0.1, 1000: 0.25}),
    WAN: ("s", {10: 0.3, 100: 0.5, 1000: 0.8, 10000: 1.5}),
    CRASH: ("s", {10: 0.5, 100: 0.5, 1000: 0.8, 10000: 1.2}),
    SILENCE: ("s", {10: 6.0, 100: 6.0, 1000: 6.5, 10000: 7.0}),
    STARVED: ("runs", {10: 0, 100: 0, 1000: 0, 10000: 1}),
    PAUSE: ("count", {10: 0, 100: 0, 1000: 0, 10000: 0}),
    RESTART: ("count", {10: 0, 100: 0, 1000: 0, 10000: 0}),
    IDLE: ("bytes", {10: 1100, 100: 1500, 1000: 2500, 10000: 2600}),
    HEALED: ("s", {10: 5.0, 100: 10.0, 1000: 30.0, 10000: 60.0}),
}
LARGE = 10_000
TOGETHER = ((CRASH, RESTART), (SILENCE, HEALED))
"""Of a large cluster, in one world: building it and losing a node take most of the time."""
LONGEST = frozenset({STARVED, PAUSE, HEALED, RESTART})
"""Of a size, begun first, so that all processors are busy to the end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried at one size."""

    trials: int
    starved_runs: int
    starved_s: float
    cut_off: int
    """Nodes on the smaller side of the partition."""
    starved_share_max: float = 0.10


EFFORTS = {
    10: Effort(20, 300, 60.0, 5),
    100: Effort(10, 20, 60.0, 50),
    1000: Effort(4, 1, 10.0, 10),
    10000: Effort(1, 1, 5.0, 1, starved_share_max=0.01),
}


def main() -> None:
    """See the module."""
    arguments = _arguments()
    began = time.monotonic()
    print(f"{os.cpu_count()} processors, seed {arguments.seed}; sizes {arguments.sizes}", flush=True)
    tasks = [(size, names) for size in arguments.sizes for names in _groups(size)]
    tasks.sort(key=lambda task: (-task[0], not LONGEST.intersection(task[1])))
    spawn = multiprocessing.get_context("spawn")
    cells: dict[tuple[int, str], Cell] = {}
    with ProcessPoolExecutor(os.cpu_count(), spawn, max_tasks_per_child=1) as pool:  # the memory of 10,000 goes back
        futures = {pool.submit(measure, *task, arguments.seed, arguments.runs): task for task in tasks}
        for future in as_completed(futures):
            size, names = futures[future]
            for name, cell in zip(names, future.result(), strict=True):
                cells[size, name] = cell
                print(f"  {size:>5} nodes, {name}: {cell.text}, took {cell.took_s:.0f} s", flush=True)
    columns = {size: {name: cell.text for (of, name), cell in cells.items() if of == size} for size in arguments.sizes}
    for size in arguments.sizes:
        own = [cell for (of, _), cell in cells.items() if of == size]
        columns[size]["cost"] = (
            f"{sum(cell.took_s for cell in own):.0f} s, {max(cell.memory_gb for cell in own):.1f} GB"
        )
    heading = ["virtual time", *(f"{size} nodes" for size in arguments.sizes)]
    rows = [[name, *(columns[size].get(name, "-") for size in arguments.sizes)] for name in (*ROWS, "cost")]
    print(table([heading, *rows]))
    print(f"virtual part: {time.monotonic() - began:.0f} s\n", flush=True)
    if not arguments.no_real:
        subprocess.run(
            [sys.executable, "-m", "tests.bench.gossip_real", "--sizes", "10,30", "--trials", "1"], check=True
        )
    print(f"all: {time.monotonic() - began:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(word) for word in text.split(",")], default=list(EFFORTS))
    parser.add_argument("--runs", type=float, default=1.0, help="factor on the number of trials")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-real", action="store_true", help="virtual time only")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """What one row found at one size, and what it took."""

    text: str
    took_s: float
    memory_gb: float


def _groups(size: int) -> list[tuple[str, ...]]:
    """Rows that are measured in one world each."""
    names = [name for name, (_, bars) in ROWS.items() if size in bars]
    if size < LARGE:
        return [(name,) for name in names]
    together = {name for group in TOGETHER for name in group}
    return [*TOGETHER, *((name,) for name in names if name not in together)]


def measure(size: int, names: tuple[str, ...], seed: int, runs: float) -> list[Cell]:
    """The cells of a group; what they took together is divided among them."""
    effort = EFFORTS[size]
    trials = max(1, round(effort.trials * runs))
    began = time.monotonic()
    parts: dict[tuple[str, ...], Callable[[], list[str]]] = {
        (WITHDRAWAL,): lambda: [_spread(size, seed, trials, LAN_S, LinkStatus.DOWN)],
        (SCORE,): lambda: [_spread(size, seed, trials, LAN_S, None)],
        (STORM,): lambda: [_storm(size, seed)],
        (WAN,): lambda: [_spread(size, seed, trials, WAN_S, LinkStatus.DOWN)],
        (CRASH,): lambda: [_lost(size, seed, trials, GossipWorld.kill)],
        (SILENCE,): lambda: [_lost(size, seed, trials, GossipWorld.vanish)],
        (STARVED,): lambda: [_starved(size, seed, max(1, round(effort.starved_runs * runs)))],
        (PAUSE,): lambda: [_paused(size, seed, trials)],
        (RESTART,): lambda: [_restarted(size, seed, trials)],
        (IDLE,): lambda: [_idle(size, seed)],
        (HEALED,): lambda: [_healed(size, seed, trials)],
        (CRASH, RESTART): lambda: _crashed_and_restarted(size, seed),
        (SILENCE, HEALED): lambda: _cut_off_and_healed(size, seed),
    }
    texts = parts[names]()
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    took_s = (time.monotonic() - began) / len(texts)
    return [Cell(text, took_s, memory_gb) for text in texts]


def _world(size: int, seed: int, delay_s: tuple[float, float] = LAN_S, loss: float = 0.0) -> GossipWorld:
    network = Network(random.Random(seed), delay_s=delay_s, loss=loss)
    settings = GossipSettings(track_reach=size <= WALK_MAX)
    world = GossipWorld.converged(size, seed=seed, settings=settings, network=network)
    world.keeps_events = False
    return world


def _cell(name: str, size: int, value: float, note: str = "") -> str:
    unit, bars = ROWS[name]
    verdict = "" if value <= bars[size] else " MISSED"
    return f"{_say(value, unit)}{note} ({_say(bars[size], unit)}){verdict}"


def _say(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.0f}"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _change(world: GossipWorld, node: NodeId, status: LinkStatus | None) -> None:
    links = world.by_id[node].links
    if status is not None:
        first = dataclasses.replace(links[0], status=status)
    else:
        first = dataclasses.replace(links[0], capacity_mmps=3 * links[0].capacity_mmps)
    world.publish_links(node, [first, *links[1:]])


def _times_of(world: GossipWorld, node: NodeId, status: LinkStatus | None) -> list[float]:
    """Seconds until each of the others has a change of one node."""
    began, arrived = world.now, dict[NodeId, float]()

    def note(at: NodeId, record: object) -> None:
        found = world.database(at).get(key)
        if at not in arrived and found is not None and found.version > before:
            arrived[at] = world.now - began

    key = Key(node, Kind.LINKS)
    held = world.database(node).get(key)
    assert held is not None
    before = held.version
    world.on_stored = note
    _change(world, node, status)
    others = len(world.alive()) - 1
    world.run_until(lambda: len(arrived) == others, 30.0)
    world.on_stored = None
    return [*arrived.values(), *[30.0] * (others - len(arrived))]


def _spread(size: int, seed: int, trials: int, delay_s: tuple[float, float], status: LinkStatus | None) -> str:
    what, where = "score change" if status is None else "withdrawal", "LAN" if delay_s == LAN_S else "WAN"
    name = f"{what} to all, {where}, p99"
    world, times = _world(size, seed, delay_s), list[float]()
    rng = random.Random(seed)
    world.run(2.0)
    for node in rng.sample(world.nodes, min(trials, size)):
        times += _times_of(world, node, status)
        world.run(0.3)
    return _cell(name, size, percentile(times, 0.99))


def _storm(size: int, seed: int) -> str:
    """Every node tells better scores each second; then one withdraws."""
    world, rng = _world(size, seed), random.Random(seed)

    def better(node: NodeId) -> None:
        found = world.by_id[node]
        links = [dataclasses.replace(link, capacity_mmps=link.capacity_mmps * 2) for link in found.links]
        world.publish_links(node, links)

    rounds = 3 if size <= 100 else 1
    for number in range(rounds):
        for node in world.nodes[1:]:
            world.at(number + rng.random(), better, node)
    world.run(rounds - 0.5)
    times = _times_of(world, world.nodes[0], LinkStatus.DOWN)
    return _cell(STORM, size, percentile(times, 0.99))


def _lost(size: int, seed: int, trials: int, how: Callable[[GossipWorld, NodeId], None]) -> str:
    kill = how is GossipWorld.kill
    name = CRASH if kill else SILENCE
    times: list[float] = []
    for trial in range(trials if size < 1000 else 1):
        world = _world(size, seed + trial)
        world.run(3.0 + random.Random(seed + trial).random())
        for victim in random.Random(seed + trial).sample(world.nodes, 1 if size < 1000 else min(3, trials)):
            began = world.now
            how(world, victim)
            world.run_until(lambda: all(world.knows_dead(node, victim) for node in world.alive()), 30.0, every_s=0.005)  # noqa: B023
            times.append(world.now - began)
    return _cell(name, size, max(times), f", worst of {len(times)}")


def _starved(size: int, seed: int, runs: int) -> str:
    """1-10 % of the nodes get the processor in bits, 1-5 % of the segments are lost."""
    bad = 0
    for run in range(runs):
        rng = random.Random(seed * 1000 + run)
        world = _world(size, seed * 1000 + run, loss=rng.uniform(0.01, 0.05))
        starved = set(rng.sample(world.nodes, max(1, round(size * rng.uniform(0.01, EFFORTS[size].starved_share_max)))))

        def starve(node: NodeId, world: GossipWorld = world, rng: random.Random = rng) -> None:
            world.freeze(node, min(8.0, rng.expovariate(1.0)))
            world.at(rng.expovariate(0.5) + 0.1, starve, node)

        for node in starved:
            world.at(rng.random() * 5, starve, node)
        world.run(EFFORTS[size].starved_s)
        bad += bool(_false(world, starved))
    return _cell(STARVED, size, bad, f" of {runs}, {EFFORTS[size].starved_s:.0f} s each")


def _false(world: GossipWorld, guilty: set[NodeId]) -> list[tuple[float, NodeId, NodeId, str]]:
    return [loss for loss in world.losses if loss[2] not in guilty and loss[3] != FAIR]


def _paused(size: int, seed: int, trials: int) -> str:
    found = 0
    for trial in range(trials if size < 1000 else 1):
        world = _world(size, seed + trial)
        world.run(3.0)
        victim = random.Random(seed + trial).choice(world.nodes)
        world.freeze(victim, 12.0)
        world.run(12.0 + (20.0 if size <= 1000 else 4.0))
        found += len(_false(world, {victim}))
    return _cell(PAUSE, size, found, f" in {trials if size < 1000 else 1}")


def _restarted(size: int, seed: int, trials: int) -> str:
    found = 0
    for trial in range(trials if size < 1000 else 1):
        world = _world(size, seed + trial)
        world.run(3.0)
        victim = random.Random(seed + trial).choice(world.nodes)
        world.kill(victim)
        world.at(1.0, world.restart, victim)
        world.run(20.0 if size <= 1000 else 6.0)
        found += len(_false(world, {victim}))
    return _cell(RESTART, size, found, f" in {trials if size < 1000 else 1}")


def _crashed_and_restarted(size: int, seed: int) -> list[str]:
    world = _world(size, seed)
    world.run(3.0)
    (victim,) = random.Random(seed).sample(world.nodes, 1)
    began = world.now
    world.kill(victim)
    world.run_until(lambda: all(world.knows_dead(node, victim) for node in world.alive()), 30.0, every_s=0.005)
    known_s = world.now - began
    world.at(max(0.0, began + 1.0 - world.now), world.restart, victim)
    world.run(began + 6.0 - world.now)
    return [_cell(CRASH, size, known_s), _cell(RESTART, size, len(_false(world, {victim})), " in 1")]


def _cut_off_and_healed(size: int, seed: int) -> list[str]:
    world = _world(size, seed)
    world.run(2.0)
    (victim,) = random.Random(seed).sample(world.nodes, 1)
    others = [node for node in world.nodes if node != victim]
    began = world.now
    world.partition([victim], others)
    world.run_until(lambda: all(world.knows_dead(node, victim) for node in others), 30.0, every_s=0.005)
    known_s = world.now - began
    for here in (victim, others[0]):
        _change(world, here, LinkStatus.DOWN)
    world.run(5.0)
    assert len(world.roots()) > 1
    began = world.now
    world.heal()
    world.run_until(lambda: len(world.roots()) == 1, 120.0, every_s=0.05)
    return [_cell(SILENCE, size, known_s), _cell(HEALED, size, world.now - began, f", {len(others)}/1")]


def _idle(size: int, seed: int) -> str:
    world = _world(size, seed)
    warm_s, long_s = (20.0, 120.0) if size <= 100 else (10.0, 30.0) if size <= 1000 else (3.0, 10.0)
    world.run(warm_s)
    before = sum(node.bytes_sent for node in world.by_id.values())
    world.run(long_s)
    sent = sum(node.bytes_sent for node in world.by_id.values()) - before
    return _cell(IDLE, size, sent / size / long_s)


def _healed(size: int, seed: int, trials: int) -> str:
    """Part of the cluster is cut off until it is lost; until all databases are equal again after the heal."""
    worst, side, cut_s = 0.0, EFFORTS[size].cut_off, 30.0 if size < 10_000 else 9.0
    for trial in range(min(3, trials) if size < 1000 else 1):
        world = _world(size, seed + trial)
        world.run(2.0)
        cut = set(random.Random(seed + trial).sample(world.nodes, side))
        world.partition(
            [node for node in world.nodes if node in cut], [node for node in world.nodes if node not in cut]
        )
        for here in (next(iter(cut)), next(node for node in world.nodes if node not in cut)):
            world.at(cut_s - 5, _change, world, here, LinkStatus.DOWN)
        world.run(cut_s)
        assert len(world.roots()) > 1
        began = world.now
        world.heal()
        world.run_until(lambda: len(world.roots()) == 1, 120.0, every_s=0.05)  # noqa: B023
        worst = max(worst, world.now - began)
    return _cell(HEALED, size, worst, f", {size - side}/{side}")


if __name__ == "__main__":
    main()
