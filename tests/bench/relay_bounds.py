"""What a relay needs at most: 100,000 messages in its queue, a start with them, large mail, 10,000 idle connections.

    python3 deploy/run.py bench relay_bounds [--only queue,large,idle] [--messages 100000] [--connections 10000]
        [--large-mb 50] [--workers N]

`queue`: the store is filled, then nodes are started on it, three times (bench queue does the same, and more). `large`:
the kernel's own mark of the most memory, over what an idle relay had after some mail. `idle`: connections that said
EHLO and stay, fifty from each address; meanwhile others' mail goes through. Memory is of all processes of the relay;
`queue` is always one process.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench import queue
from tests.bench.lab.bars import Row, bar, exit_code, show
from tests.bench.lab.figures import spread
from tests.bench.lab.runs import hush
from tests.bench.relays import ground, own
from tests.bench.relays.accounting import receiving, sending
from tests.bench.relays.process import PORT, Relay
from tests.bench.relays.sender import ACCEPTED, Plan

PARTS = ("queue", "large", "idle")
QUEUED_MB, LARGE_GROWTH_MB, IDLE_MB = 300.0, 64.0, 1024.0
SERVING_S, FIRST_S = 2.0, 3.0
MESSAGE_BYTES = 4000
STARTS = 3
QUIET_MAX_S = 10.0
FEW = 300
"""Messages that show that a relay works, and load what it loads late."""
FLOOD_S = 40.0
OPENING_S = 30.0
PATIENCE_S = 60.0
LISTENER = """\
[[listener]]
name = "idle"
listen = "127.0.0.1:{port}"
connections_max = {connections}
"""
IDLE_PORT = 2526


def main() -> int:
    """See the module; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--large-mb", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="0 = as it comes")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {min(unknown)!r} is not known; there are {', '.join(PARTS)}")
    ground.enter()
    rows: list[Row] = []
    with ground.folders(arguments.folder) as place:
        if "queue" in parts:
            rows += measure_queue(place.disk, arguments.messages)
        if "large" in parts:
            rows += measure_large(place.disk, arguments.large_mb, arguments.workers)
        if "idle" in parts:
            rows += measure_idle(place.disk, arguments.connections, arguments.workers)
    print(show(rows))
    return exit_code(rows)


def measure_queue(folder: Path, messages: int) -> list[Row]:
    """Memory and a start with a long queue."""
    filled = folder / "filled"
    hush()
    asyncio.run(queue.fill(filled, messages, 0, MESSAGE_BYTES))
    rest = queue.rest_mb(folder, filled)
    starts = []
    for _ in range(STARTS):
        ground.wait_quiet(QUIET_MAX_S)
        starts.append(queue.time_start(folder, filled))
    name = f"with {messages} queued"
    memory, serving, first = (
        [getattr(start, key) for start in starts] for key in ("memory_mb", "serving_s", "first_s")
    )
    return [
        bar(f"memory {name}, nothing can leave", f"< {QUEUED_MB:.0f} MB", f"{rest:.0f} MB", met=rest < QUEUED_MB),
        _bar(f"memory {name}, delivering", QUEUED_MB, memory, "MB", 0),
        _bar(f"start {name}: serving", SERVING_S, serving, "s", 2),
        _bar(f"start {name}: first delivery", FIRST_S, first, "s", 2),
    ]


def _bar(text: str, most: float, values: list[float], unit: str, digits: int) -> Row:
    """The median counts."""
    return bar(text, f"< {most:.0f} {unit}", spread(values, unit, digits), met=statistics.median(values) < most)


def measure_large(folder: Path, large_mb: int, workers: int) -> list[Row]:
    """One large message passes."""
    with receiving(folder / "received") as receiver, Relay(own.build(workers), folder / "relay") as relay:
        send(folder, Plan(PORT, count=FEW))
        receiver.wait(FEW, PATIENCE_S)
        time.sleep(1)
        idle = relay.memory_mb()
        relay.begin_peak()
        answered = send(folder, Plan(PORT, count=1, sessions=1, size_bytes=large_mb * 1_000_000, seconds=PATIENCE_S))
        arrived = receiver.wait(FEW + 1, PATIENCE_S) - FEW
        growth = relay.peak_mb() - idle
    wanted, measured = f"< {LARGE_GROWTH_MB:.0f} MB over idle", f"{growth:.0f} MB over {idle:.0f} MB"
    return [
        bar(f"memory with a message of {large_mb} MB in flight", wanted, measured, met=growth < LARGE_GROWTH_MB),
        bar("it was taken, and arrived", "1, 1", f"{answered}, {arrived}", met=answered == arrived == 1),
    ]


def measure_idle(folder: Path, connections: int, workers: int) -> list[Row]:
    """Connections that do nothing, and mail of others."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    more = LISTENER.format(port=IDLE_PORT, connections=connections + 100)
    with receiving(folder / "received-2") as receiver, Relay(own.build(workers, more), folder / "relay") as relay:
        send(folder, Plan(PORT, count=FEW))
        receiver.wait(FEW, PATIENCE_S)
        before, files = relay.memory_mb(), relay.files_count()
        words = ["hold", "--port", str(IDLE_PORT), "--connections", str(connections), "--seconds", str(FLOOD_S)]
        flood = subprocess.Popen([sys.executable, "-m", "tests.bench.lab.floods", *words], stdout=subprocess.DEVNULL,
                                 env=own.environment())  # fmt: skip
        try:
            held = wait_files(relay, files + connections) - files
            memory = relay.memory_mb()
            answered = send(folder, Plan(PORT, count=FEW, first=FEW))
            arrived = receiver.wait(2 * FEW, PATIENCE_S) - FEW
            after = relay.files_count() - files
        finally:
            flood.kill()
            flood.wait()
    return [
        bar("idle connections held", str(connections), f"{held}, {after} at the end", met=held >= connections <= after),
        bar("memory with them", f"< {IDLE_MB:.0f} MB", f"{memory:.0f} MB, {before:.0f} MB without",
            met=memory < IDLE_MB),
        bar("mail of others meanwhile: answered, arrived", f"{FEW}, {FEW}", f"{answered}, {arrived}",
            met=answered == arrived == FEW),
    ]  # fmt: skip


def wait_files(relay: Relay, wanted: int) -> int:
    """Until it has so many open, for some time at most; how many."""
    deadline = time.monotonic() + OPENING_S
    while (now := relay.files_count()) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def send(folder: Path, plan: Plan) -> int:
    """All of a plan; how many were answered 250."""
    with sending(plan, folder / "sent") as sender:
        sender.wait()
        return sum(one.code == ACCEPTED for one in sender.sent())


if __name__ == "__main__":
    sys.exit(main())
