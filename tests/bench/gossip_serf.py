"""The same trials on Serf and on smtpmesh, in turns: detection, false accusations, bytes on the wire while idle.

    python -m tests.bench.gossip_serf [--size 20] [--trials 5] [--only bytes,crash,pause,restart] [--apart]

Serf is Debian's package (`apt-get install serf`), profile lan, no encryption, each agent's view taken from its log;
smtpmesh is `tests.bench.gossip_node` with mutual TLS. Each cluster has a network namespace of its own with nothing but
loopback, whose byte counter counts both alike, with all headers (TCP acknowledgements too); without root both run on
this machine's loopback and the bytes are left out. Both clusters run all the time, so that both suffer from the same
machine; `--apart` starts one, does all its trials, then the other, where that is too much.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench.lab import trials
from tests.bench.lab.cluster import Cluster, GossipCluster, LabError, SerfCluster
from tests.bench.lab.figures import spread, table
from tests.bench.lab.namespaces import Island, unavailable

KINDS = ("bytes", "crash", "pause", "restart")
IDLE_S = 30.0


def main() -> None:
    """See the module."""
    arguments = _arguments()
    if shutil.which("serf") is None:
        print("skipped: serf is not installed here (as root on Debian: apt-get install serf)")
        return
    reason = unavailable()
    told = subprocess.run(["serf", "version"], capture_output=True, text=True, check=False, timeout=10).stdout
    print(f"`serf version` says {told.splitlines()[0]}; {os.cpu_count()} processors")
    print(f"{arguments.size} members, {arguments.trials} trials each", flush=True)
    if reason:
        print(f"bytes are left out: {reason}")
    rng = random.Random(arguments.seed)
    products: list[type[Cluster]] = [GossipCluster, SerfCluster]
    rows: dict[str, dict[str, str]] = {}
    for group in [[product] for product in products] if arguments.apart else [products]:
        with ExitStack() as stack:
            clusters = [_start(stack, product, arguments.size, isolated=not reason) for product in group]
            if "bytes" in arguments.only and not reason:
                _add(rows, "idle: loopback bytes per node", {c.product: f"{_idle(c):.2f} KB/s" for c in clusters})
            for kind in KINDS[1:]:
                if kind in arguments.only:
                    for label, cells in _trials(clusters, kind, arguments.trials, rng).items():
                        _add(rows, label, cells)
    names = [product.product for product in products]
    print(table([["", *names], *([label, *(cells.get(name, "-") for name in names)] for label, cells in rows.items())]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--seed", type=int)
    return parser.parse_args()


def _start(stack: ExitStack, product: type[Cluster], size: int, *, isolated: bool) -> Cluster:
    folder = Path(tempfile.mkdtemp(prefix="sm-bench-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    island = stack.enter_context(Island()) if isolated else None
    cluster = stack.enter_context(product(folder, size, inside=island.inside if island else None))
    began = time.monotonic()
    cluster.start()
    _say(f"{cluster.product}: whole after {time.monotonic() - began:.1f} s")
    return cluster


def _idle(cluster: Cluster) -> float:
    """KB/s per member that went over the cluster's loopback."""
    time.sleep(trials.SETTLE_S)
    first = next(iter(cluster.processes.values()))
    before, at = first.loopback_bytes(), time.monotonic()
    time.sleep(IDLE_S)
    return (first.loopback_bytes() - before) / (time.monotonic() - at) / len(cluster.names) / 1000


def _trials(clusters: list[Cluster], kind: str, count: int, rng: random.Random) -> dict[str, dict[str, str]]:
    """Rows of cells by product."""
    run: Callable[[Cluster, str], trials.Outcome]
    run = {"crash": trials.crash, "pause": trials.pause, "restart": trials.restart}[kind]
    outcomes: dict[str, list[trials.Outcome]] = {cluster.product: [] for cluster in clusters}
    for number in range(count):
        for cluster in clusters:
            victim = rng.choice(cluster.names)
            try:
                outcome = run(cluster, victim)
            except LabError as error:
                _say(f"{cluster.product}: {kind} {number + 1} of {victim} FAILED: {error}")
                continue
            outcomes[cluster.product].append(outcome)
            _say(f"{cluster.product}: {kind} {number + 1} of {victim}: {outcome}")
    label = {"crash": "kill -9", "pause": "12 s pause", "restart": "restart in place"}[kind]
    rows: dict[str, dict[str, str]] = {}
    for product, seen in outcomes.items():
        cells: dict[str, str] = {}
        if kind == "crash":
            cells["first observer"] = spread([outcome.first_s for outcome in seen], "s", 3)
            cells["all observers"] = spread([outcome.all_s for outcome in seen], "s", 3)
        cells["members falsely lost"] = spread([float(outcome.accused) for outcome in seen], digits=0)
        cells["false losses (pairs)"] = spread([float(outcome.pairs) for outcome in seen], digits=0)
        cells["trials with one"] = f"{sum(outcome.pairs > 0 for outcome in seen)} of {len(seen)}"
        for name, cell in cells.items():
            _add(rows, f"{label}: {name}", {product: cell})
    return rows


def _add(rows: dict[str, dict[str, str]], label: str, cells: dict[str, str]) -> None:
    rows.setdefault(label, {}).update(cells)


def _say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
