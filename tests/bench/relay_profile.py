"""Where a message's processor time goes: threads, rooms, functions. For those who want the next tenth.

    python3 deploy/run.py bench relay_profile [--mix 4k] [--count 20000] [--top 25] [--flame FILE.svg]

First the node as it is: what each of its threads used, in the interpreter and in the kernel, and how often it had to
wait; a thread that waits thousands of times a second is one that waits for the interpreter's lock. Then a node under
the profiler (cProfile): how often the event loop's thread calls what for each message, and for how long. The profiler's
own cost is in those times, a third of a microsecond or so for each call: believe the calls, and the order of the times.
`--flame` has py-spy (of your own: `pip install py-spy`) draw a flame graph of the first run.
"""

from __future__ import annotations

import argparse
import contextlib
import pstats
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.lab.figures import table
from tests.bench.relays import ground, load, own
from tests.bench.relays.contender import Contender, Place, RelayError
from tests.bench.relays.ground import TICKS_PER_S, Ground
from tests.bench.relays.load import LoadError, Mix, Sink, parse_mix, send
from tests.bench.relays.process import PORT, SINK_PORT, Relay

PROFILED_SHARE = 0.3
"""Of the messages: under the profiler everything takes longer."""
DRAIN_S = 60.0
WARM_COUNT = 1000
SELDOM = 0.5
"""What is called less often for a message is of the start, and not shown."""


@dataclass(frozen=True, slots=True)
class Thread:
    """What the kernel counted for one."""

    user_s: float = 0.0
    kernel_s: float = 0.0
    waits: int = 0

    def minus(self, before: Thread) -> Thread:
        """Since then."""
        return Thread(self.user_s - before.user_s, self.kernel_s - before.kernel_s, self.waits - before.waits)


@dataclass(frozen=True, slots=True)
class Function:
    """What the profiler counted for one, for each message."""

    room: str
    name: str
    calls: float
    own_us: float
    whole_us: float


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", type=parse_mix, default=parse_mix("4k"))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--flame", type=Path, help="a file for the flame graph")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    arguments = parser.parse_args()
    ground.enter()
    if reason := load.missing():
        sys.exit(f"nothing to measure with: {reason}")
    if arguments.flame is not None and shutil.which("py-spy") is None:
        sys.exit("--flame needs py-spy: pip install py-spy")
    try:
        with ground.folders(arguments.folder) as place:
            print(look_at_threads(arguments.mix, arguments.count, place, arguments.flame), flush=True)
            functions = look_at_functions(arguments.mix, int(arguments.count * PROFILED_SHARE), place)
    except (RelayError, LoadError, OSError) as error:
        sys.exit(str(error))
    print(show_rooms(functions, arguments.top))
    print(show_functions(functions, arguments.top))
    return 0


# -- threads -----------------------------------------------------------------------------------------------------------


def look_at_threads(mix: Mix, count: int, place: Ground, flame: Path | None) -> str:
    """A node as it is."""
    with load.sink(SINK_PORT, place.memory) as sink, Relay(own.build(), place.disk / "n") as relay:
        warm_up(mix, sink)
        pid = relay.pid
        before, began = read_threads(pid), time.monotonic()
        with drawing(pid, flame):
            send_through(mix, count, sink)
        took_s, after = time.monotonic() - began, read_threads(pid)
    used = {number: thread.minus(before.get(number, Thread())) for number, thread in after.items()}
    others = [thread for number, thread in used.items() if number != pid]
    rows = [["thread", "interpreter us", "kernel us", "waits"]]
    for name, threads in ("event loop", [used[pid]]), ("the others, the queue's writer above all", others):
        user_s, kernel_s = sum(one.user_s for one in threads), sum(one.kernel_s for one in threads)
        waits = sum(one.waits for one in threads)
        rows.append([name, f"{1e6 * user_s / count:.0f}", f"{1e6 * kernel_s / count:.0f}", f"{waits / count:.2f}"])
    return f"{mix.name}: {count / took_s:.0f} messages/s; for each of them:\n\n{table(rows)}\n"


def read_threads(pid: int) -> dict[int, Thread]:
    """Those of a process, by their ids."""
    return {int(folder.name): _read_thread(folder) for folder in Path(f"/proc/{pid}/task").iterdir()}


def _read_thread(folder: Path) -> Thread:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    waits = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("voluntary"))
    return Thread(int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S, int(waits.split()[1]))


@contextlib.contextmanager
def drawing(pid: int, flame: Path | None) -> Iterator[None]:
    """Have a flame graph drawn of what happens in the block."""
    if flame is None:
        yield
        return
    words = ["py-spy", "record", "--pid", str(pid), "--rate", "500", "--duration", "3600", "--output", str(flame)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)  # it draws what it has


# -- functions ---------------------------------------------------------------------------------------------------------


def look_at_functions(mix: Mix, count: int, place: Ground) -> list[Function]:
    """A node under the profiler."""
    file = place.memory / "profile"
    plain = own.build()

    def prepare(where: Place) -> list[str]:
        interpreter, *words = plain.prepare(where)
        return [interpreter, "-m", "tests.bench.relays.profiled", str(file), *words[words.index("run") :]]

    node: Contender = replace(plain, prepare=prepare)
    with load.sink(SINK_PORT, place.memory) as sink, Relay(node, place.disk / "profiled") as relay:
        warm_up(mix, sink)
        send_through(mix, count, sink)
        relay.stop()
    return read_functions(file, count + WARM_COUNT)


def read_functions(file: Path, count: int) -> list[Function]:
    """What is called for most messages, the longest first."""
    found = []
    for (path, line, name), (_, calls, own_s, whole_s, _) in pstats.Stats(str(file)).stats.items():  # type: ignore[attr-defined]
        if calls / count >= SELDOM:
            room = name_room(path)
            shares = calls / count, 1e6 * own_s / count, 1e6 * whole_s / count
            found.append(Function(room, f"{name} ({room}:{line})", *shares))
    return sorted(found, key=lambda function: -function.own_us)


def name_room(path: str) -> str:
    """A file as it is called here: ours from the root on, libraries by their own names."""
    for root in (str(own.ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        path = path.removeprefix(f"{root}/")
    return path.rpartition("site-packages/")[2]


def show_rooms(functions: Sequence[Function], top: int) -> str:
    """A row for each file."""
    rooms: dict[str, list[Function]] = defaultdict(list)
    for function in functions:
        rooms[function.room].append(function)
    parts = [(room, sum(one.calls for one in own_), sum(one.own_us for one in own_)) for room, own_ in rooms.items()]
    rows = [["room", "calls", "own us"]]
    rows += [[room, f"{calls:.1f}", f"{us:.1f}"] for room, calls, us in sorted(parts, key=lambda part: -part[2])[:top]]
    whole = sum(part[1] for part in parts), sum(part[2] for part in parts)
    rows.append(["all", f"{whole[0]:.0f}", f"{whole[1]:.0f}"])
    return f"{table(rows)}\n"


def show_functions(functions: Sequence[Function], top: int) -> str:
    """A row for each function."""
    rows = [["function", "calls", "own us", "with what it calls us"]]
    rows += [[one.name, f"{one.calls:.2f}", f"{one.own_us:.2f}", f"{one.whole_us:.2f}"] for one in functions[:top]]
    return table(rows)


# -- mail --------------------------------------------------------------------------------------------------------------


def warm_up(mix: Mix, sink: Sink) -> None:
    """Connections, caches, the first commits."""
    send_through(mix, WARM_COUNT, sink)


def send_through(mix: Mix, count: int, sink: Sink) -> None:
    """LoadError if not all of it arrives."""
    wanted = sink.count() + count
    send(PORT, mix, count)
    if (arrived := sink.wait(wanted, DRAIN_S)) < wanted:
        raise LoadError(f"{arrived} of {wanted} messages arrived")


if __name__ == "__main__":
    sys.exit(main())
