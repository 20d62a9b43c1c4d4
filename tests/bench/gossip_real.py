"""Real gossip processes on loopback, broken on purpose: detection, false losses, propagation, what it costs.

    python -m tests.bench.gossip_real [--sizes 10,20,30] [--trials 3] [--only crash,silence,pause,restart,spread,cost]

Times are differences of CLOCK_MONOTONIC readings in two processes of this machine. A cell is the median over the trials
(for costs: over the nodes), with the smallest and the largest. Bytes are what TCP carried (`tests.bench.gossip_node`).
All nodes share this machine's processors, named in the first line: many nodes on few of them show the machine too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.lab import trials
from tests.bench.lab.cluster import GossipCluster, LabError, Usage
from tests.bench.lab.figures import percentile, spread, table

KINDS = ("crash", "silence", "pause", "restart", "spread", "cost")
COST_S = 15.0
SPREAD_ROUNDS = 3
SPREAD_GAP_S = 0.1
"""Between two changes of different nodes: each is alone on its way."""
SPREAD_REST_S = 3.0
"""Between two changes of one node, at least: its hold-down is over."""
SPREAD_MAX_S = 20.0


def main() -> None:
    """See the module."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    print(f"{os.cpu_count()} processors, {arguments.trials} trials, --seed {seed}", flush=True)
    columns = [_size(size, arguments, random.Random(seed)) for size in arguments.sizes]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    heading = ["", *(f"{size} nodes" for size in arguments.sizes)]
    print(table([heading, *([key, *(column.get(key, "-") for column in columns)] for key in keys)]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(word) for word in text.split(",")], default=[10, 20, 30])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--seed", type=int)
    return parser.parse_args()


def _size(size: int, arguments: argparse.Namespace, rng: random.Random) -> dict[str, str]:
    """One column of the table. What fails is a cell, and the next part goes on if the cluster is whole again."""
    rows: dict[str, str] = {}
    folder = Path(tempfile.mkdtemp(prefix="sm-bench-"))
    try:
        with GossipCluster(folder, size) as cluster:
            began = time.monotonic()
            cluster.start()
            rows["start to whole"] = f"{cluster.wait_equal(60) - began:.1f} s"
            _say(f"{size} nodes: whole")
            parts: dict[str, Callable[[], dict[str, str]]] = {
                "spread": lambda: _spread(cluster, rng),
                **{kind: lambda kind=kind: _trials(cluster, kind, arguments.trials, rng) for kind in KINDS[:4]},
                "cost": lambda: _cost(cluster),  # the last: its load may leave a backlog of half a minute
            }
            for kind, part in parts.items():
                if kind not in arguments.only:
                    continue
                try:
                    rows |= part()
                    cluster.wait_whole(trials.WHOLE_MAX_S)
                except LabError as error:
                    rows[f"{kind} FAILED"] = str(error)[:40]
                    _say(f"{size} nodes: {kind}: {error}")
                _say(f"{size} nodes: {kind} done")
    except LabError as error:
        rows["cluster FAILED"] = str(error)[:40]
        _say(f"{size} nodes: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _trials(cluster: GossipCluster, kind: str, count: int, rng: random.Random) -> dict[str, str]:
    run = {"crash": trials.crash, "silence": trials.silence, "pause": trials.pause, "restart": trials.restart}[kind]
    outcomes = []
    for victim in rng.sample(cluster.names, min(count, len(cluster.names))):
        outcomes.append(run(cluster, victim))
        _say(f"{kind} of {victim}: {outcomes[-1]}")
    label = {"crash": "kill -9", "silence": "SIGSTOP", "pause": "12 s pause", "restart": "restart in place"}[kind]
    rows: dict[str, str] = {}
    if kind in ("crash", "silence"):
        rows[f"{label}: first observer"] = spread([outcome.first_s for outcome in outcomes], "s", 3)
        rows[f"{label}: all observers"] = spread([outcome.all_s for outcome in outcomes], "s", 3)
    rows[f"{label}: false losses (pairs)"] = spread([float(outcome.pairs) for outcome in outcomes], digits=0)
    rows[f"{label}: members falsely lost"] = spread([float(outcome.accused) for outcome in outcomes], digits=0)
    if kind != "pause":
        rows[f"{label}: ready to whole again"] = spread([outcome.back_s for outcome in outcomes], "s")
    return rows


def _spread(cluster: GossipCluster, rng: random.Random) -> dict[str, str]:
    """One change of every node in random order, a few times. Until all have it: since the command, since its issue."""
    told: dict[str, tuple[str, float]] = {}
    for turn in range(SPREAD_ROUNDS):
        began = time.monotonic()
        for name in rng.sample(cluster.names, len(cluster.names)):
            told[f"{turn}-{name}"] = (name, cluster.processes[name].tell(f"publish {turn}-{name}"))
            time.sleep(SPREAD_GAP_S)
        time.sleep(max(0.0, began + SPREAD_REST_S - time.monotonic()))
    deadline = time.monotonic() + SPREAD_MAX_S
    while True:
        stored: dict[str, dict[str, float]] = {mark: {} for mark in told}
        for process in cluster.running():
            for event in list(process.events):
                if event["event"] == "stored" and event["mark"] in stored:
                    stored[event["mark"]].setdefault(process.name, event["at"])
        whole = [mark for mark in told if len(stored[mark]) == len(cluster.names)]
        if len(whole) == len(told) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if not whole:
        raise LabError("no change was stored at all nodes")
    since_command = [1000 * (max(stored[mark].values()) - told[mark][1]) for mark in whole]
    since_issue = [1000 * (max(stored[mark].values()) - stored[mark][told[mark][0]]) for mark in whole]
    return {
        "change to all, p50": f"{percentile(since_command, 0.5):.1f} ms",
        "change to all, p99": f"{percentile(since_command, 0.99):.1f} ms",
        "issue to all, p50": f"{percentile(since_issue, 0.5):.1f} ms",
        "issue to all, p99": f"{percentile(since_issue, 0.99):.1f} ms",
        "changes seen by all": f"{len(whole)} of {len(told)}",
    }


def _cost(cluster: GossipCluster) -> dict[str, str]:
    """Idle, then with one change per node and second."""
    time.sleep(trials.SETTLE_S)
    rows = _cost_during(cluster, "idle")
    for process in cluster.running():
        process.tell("every 1")
    time.sleep(trials.SETTLE_S)
    rows |= _cost_during(cluster, "1 change/s/node")
    for process in cluster.running():
        process.tell("every 0")
    time.sleep(trials.SETTLE_S)
    return rows


def _cost_during(cluster: GossipCluster, label: str) -> dict[str, str]:
    before = {process.name: (process.ask("status"), process.usage()) for process in cluster.running()}
    time.sleep(COST_S)
    after = {process.name: (process.ask("status"), process.usage()) for process in cluster.running()}

    def pairs(name: str) -> tuple[Usage, Usage]:
        return before[name][1], after[name][1]

    speeds = []
    shares = []
    for name in before:
        (told, old), (told_now, new) = before[name], after[name]
        speeds.append((told_now["bytes_sent"] - told["bytes_sent"]) / (told_now["at"] - told["at"]) / 1000)
        shares.append(100 * (new.cpu_s - old.cpu_s) / (new.at - old.at))
    return {
        f"{label}: sent per node": spread(speeds, "KB/s"),
        f"{label}: CPU per node": spread(shares, "%"),
        f"{label}: CPU of all": f"{sum(shares):.0f} of {100 * (os.cpu_count() or 1)} %",
        f"{label}: RSS": spread([pairs(name)[1].rss_bytes / 1e6 for name in before], "MB", 0),
        f"{label}: PSS": spread([pairs(name)[1].pss_bytes / 1e6 for name in before], "MB", 0),
        f"{label}: sessions": spread([float(len(told["sessions"])) for told, _ in after.values()], digits=0),
    }


def _say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
