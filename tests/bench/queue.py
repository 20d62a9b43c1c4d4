"""What a long queue costs: memory, a start, the first delivery, other classes, looking, pruning, repair.

    python3 deploy/run.py bench queue [--messages 100000] [--history 300000] [--size 4000] [--keep FOLDER]

A queue is filled (each message put by the store itself), then a node of its own process is started on it, twice: with a
smart host that is not there, for memory at rest, and with one that takes everything. The bars of the design: less than
300 MB with 100,000 queued messages, serving in less than 2 s and the first delivery in less than 3 s from the start of
the process. The queue's file is not in the page cache at a start, the program is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from smtp_edge.envelope import Envelope, MailData, Recipient
from smtp_edge.queue.entry import Delivery, DeliveryState, Entry, HistoryNote, NewEntry, Settlement
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.repair import repair
from smtp_edge.queue.sqlite import SQLiteStore
from tests.bench.lab.figures import percentile, table

CLASSES = ("slow", "fast", "third", "fourth")
DOMAINS = 500
AT_ONCE = 200
HEADER = b"Subject: bench\r\nFrom: a@sender.example\r\n\r\n"
WAIT_S = 120.0
IDS = QueueIds("bench")


@dataclass(slots=True)
class Sink:
    """A smart host that takes everything at once, or (`hang`) never answers the final dot."""

    hang: bool = False
    taken: list[float] = field(default_factory=list)
    port: int = 0
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """On a thread and loop of its own."""
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._talk, "127.0.0.1", 0, limit=2**20)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._over.wait()
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(self._over.set)
            thread.join()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink.test ESMTP\r\n")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while line := await reader.readline():
                match line[:4].upper():
                    case b"EHLO":
                        writer.write(b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                    case b"DATA":
                        writer.write(b"354 go\r\n")
                        await reader.readuntil(b"\r\n.\r\n")
                        if self.hang:
                            await asyncio.Event().wait()
                        self.taken.append(time.monotonic())
                        writer.write(b"250 2.0.0 taken\r\n")
                    case _:
                        writer.write(b"250 2.0.0 ok\r\n")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--history", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=4000)
    parser.add_argument("--keep", type=Path, help="work here, and leave it")
    words = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = words.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sm-")))
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, words.messages, words.history, words.size)


def measure(folder: Path, messages: int, history: int, size: int) -> None:
    """All of it."""
    rows = [["what", "measured", "bar"]]
    queue = folder / "filled"
    if not queue.exists():
        rows += asyncio.run(fill(queue, messages, history, size))
    rows += measure_rest(folder, queue)
    rows += measure_start(folder, queue)
    rows += measure_neighbours(folder, queue)
    rows += asyncio.run(measure_looking(folder, queue))
    rows += asyncio.run(measure_pruning(folder, queue, history))
    rows += measure_repair(folder, queue)
    print(table(rows))


# -- the queue ---------------------------------------------------------------------------------------------------------


def build(number: int, size: int, class_id: str = "") -> NewEntry:
    """A message of some class."""
    at = datetime.now(UTC)
    class_id = class_id or CLASSES[number % len(CLASSES)]
    queue_id, recipient = IDS.new(at), Recipient(f"user{number}@d{number % DOMAINS}.{class_id}.example")
    body = HEADER + b"x" * size + b"\r\n"
    entry = Entry(
        queue_id,
        at,
        at + timedelta(days=5),
        Envelope("a@sender.example", (recipient,)),
        MailData(len(body), body, header=HEADER),
        origin=f"node/{queue_id}",
        received_field=b"Received: from a.example by b.example id x;\r\n\tWed, 25 Nov 2026 11:52:43 +0000\r\n",
        client="192.0.2.1 a.example",
    )
    return NewEntry(entry, (Delivery(queue_id, 0, class_id, (recipient,), transfer_token=f"node/{queue_id}/0"),))


def open_store(directory: Path, history_s: float = 10 * 86400.0) -> SQLiteStore:
    """As a node opens it."""
    return SQLiteStore(
        directory,
        incarnation="bench",
        history_s=history_s,
        entries_max=10**7,
        clock=lambda: datetime.now(UTC),
        history_max=10**7,
    )


async def fill(queue: Path, messages: int, history: int, size: int) -> list[list[str]]:
    """Messages that wait, and some that are finished."""
    store, began = open_store(queue), time.monotonic()
    await store.open()
    numbers = itertools.count()

    async def put() -> None:
        while (number := next(numbers)) < messages + history:
            finished = number >= messages
            stored = await store.put(build(number, size), claim=finished)
            if finished:
                note = HistoryNote(datetime.now(UTC), "relayed", "host:a", "250 2.0.0 ok", "accepted a[192.0.2.1]:25")
                claim = stored.claims[0]
                end = Settlement(claim.delivery.queue_id, 0, claim.token, DeliveryState.RELAYED, notes=(note,))
                await store.settle([end])

    await asyncio.gather(*(put() for _ in range(AT_ONCE)))
    took = time.monotonic() - began
    commits = store.commits_count
    await store.close()
    size_mb = (queue / "queue.db").stat().st_size / 1e6
    changes = messages + 2 * history
    return [["filled", f"{messages} waiting, {history} finished in {took:.0f} s, {size_mb:.0f} MB, "
             f"{changes / commits:.0f} changes for each commit", ""]]  # fmt: skip


# -- nodes -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Node:
    """A process on a copy of the queue."""

    process: subprocess.Popen[bytes]
    smtp: int
    began: float

    def wait_serving(self) -> float:
        """Seconds until the listener greets."""
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.smtp), 1) as connection:
                if connection.recv(100).startswith(b"220"):
                    return time.monotonic() - self.began
            assert self.process.poll() is None, "the node has ended"
            time.sleep(0.005)

    def memory_mb(self) -> float:
        """Resident, now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def node(folder: Path, queue: Path, hosts: dict[str, int]) -> Iterator[Node]:
    """Start one; each class has a smart host of its own name, or those that are given."""
    home = folder / "node"
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "smtp_edge.cli"]
    subprocess.run([*command, "init", str(home)], check=True, capture_output=True)
    (home / "data").mkdir(exist_ok=True)
    shutil.copytree(queue, home / "data" / "queue")
    smtp, mesh, gossip = (free_port() for _ in range(3))
    (home / "node.toml").write_text(configuration(smtp, mesh, gossip, hosts), encoding="utf-8")
    cool(home / "data" / "queue" / "queue.db")
    with (folder / "node.log").open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen([*command, "run", "--config", str(home / "node.toml")], stderr=log)
        try:
            yield Node(process, smtp, began)
        finally:
            process.kill()
            process.wait()


def configuration(smtp: int, mesh: int, gossip: int, hosts: dict[str, int]) -> str:
    """One route and one host for each class."""
    lines = [
        f'[node]\nname = "bench"\n[gossip]\nlisten = "127.0.0.1:{gossip}"\n[mesh]\nlisten = "127.0.0.1:{mesh}"',
        f'[[listener]]\nlisten = "127.0.0.1:{smtp}"\nallow_networks = ["127.0.0.0/8"]',
        '[log]\nlevel = "warning"\nformat = "json"',
    ]
    for name in CLASSES:
        lines.append(f'[[smart_host]]\nname = "{name}"\nhost = "127.0.0.1"\nport = {hosts[name]}\ntls = "none"')
        lines.append(f'[[route]]\nname = "{name}"\ndomains = ["*.{name}.example"]\nvia = ["{name}"]')
    return "\n".join(lines)


def measure_rest(folder: Path, queue: Path) -> list[list[str]]:
    """Nothing can be delivered."""
    return [["memory, nothing can leave", f"{rest_mb(folder, queue):.0f} MB", "< 300 MB"]]


def rest_mb(folder: Path, queue: Path) -> float:
    """Resident memory of a node none of whose messages can leave."""
    nowhere = dict.fromkeys(CLASSES, free_port())
    with node(folder, queue, nowhere) as started:
        started.wait_serving()
        time.sleep(10)
        return started.memory_mb()


@dataclass(frozen=True, slots=True)
class Start:
    """Of a node on a long queue, from the start of the process."""

    serving_s: float
    first_s: float
    """Until the first delivery."""
    rate: float
    memory_mb: float


def time_start(folder: Path, queue: Path) -> Start:
    """Everything can be delivered."""
    sink = Sink()
    with sink.running(), node(folder, queue, dict.fromkeys(CLASSES, sink.port)) as started:
        serving = started.wait_serving()
        while not sink.taken:
            assert time.monotonic() < started.began + WAIT_S, "nothing is delivered"
            time.sleep(0.005)
        first = sink.taken[0] - started.began
        time.sleep(10)
        rate = len(sink.taken) / (time.monotonic() - sink.taken[0])
        return Start(serving, first, rate, started.memory_mb())


def measure_start(folder: Path, queue: Path) -> list[list[str]]:
    """Everything can."""
    start = time_start(folder, queue)
    return [
        ["start: serving after", f"{start.serving_s:.2f} s", "< 2 s"],
        ["start: first delivery after", f"{start.first_s:.2f} s", "< 3 s"],
        ["delivery from disk", f"{start.rate:.0f} msg/s", ""],
        ["memory, delivering", f"{start.memory_mb:.0f} MB", "< 300 MB"],
    ]


def measure_neighbours(folder: Path, queue: Path) -> list[list[str]]:
    """One class's host never answers: what do the others get?"""
    hanging, sink = Sink(hang=True), Sink()
    with hanging.running(), sink.running():
        hosts = {name: hanging.port if name == "slow" else sink.port for name in CLASSES}
        with node(folder, queue, hosts) as started:
            started.wait_serving()
            time.sleep(15)
            rate = len(sink.taken) / (time.monotonic() - sink.taken[0]) if sink.taken else 0.0
    return [["delivery while one class of four hangs", f"{rate:.0f} msg/s", "as without"]]


# -- looking and pruning -----------------------------------------------------------------------------------------------


async def measure_looking(folder: Path, queue: Path) -> list[list[str]]:
    """Questions of operators."""
    store = open_store(queue)
    await store.open()
    rows = []
    for name, question in (
        ("list of 100", store.list(limit=100)),
        ("list of 100 of a class", store.list(class_id="fast", limit=100)),
        ("list of 10,000", store.list(limit=10_000)),
        ("totals", store.summary()),
    ):
        began = time.monotonic()
        await question
        rows.append([name, f"{1000 * (time.monotonic() - began):.1f} ms", ""])
    await store.close()
    return rows


async def measure_pruning(folder: Path, queue: Path, history: int) -> list[list[str]]:
    """Forgetting all history at once, and what fresh mail notices of it."""
    copy = folder / "pruned"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(queue, copy)
    store = open_store(copy, history_s=0)
    await store.open()
    quiet = await time_puts(store, asyncio.get_running_loop().create_task(asyncio.sleep(3)))
    began = time.monotonic()
    pruning = asyncio.get_running_loop().create_task(store.prune(datetime.now(UTC) + timedelta(days=1)))
    busy = await time_puts(store, pruning)
    took = time.monotonic() - began
    await store.close()
    return [
        ["pruning", f"{history} finished messages in {took:.1f} s", ""],
        ["a put, median and p99, quiet", show_ms(quiet), ""],
        ["a put, median and p99, while pruning", show_ms(busy), ""],
    ]


def measure_repair(folder: Path, queue: Path) -> list[list[str]]:
    """Everything into a new database."""
    copy = folder / "repaired"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(queue, copy)
    began = time.monotonic()
    report = repair(copy, class_of=lambda domain: "default", at=datetime.now(UTC), force=True)
    took = time.monotonic() - began
    return [["queue repair", f"{report.kept} waiting, {report.history} finished in {took:.0f} s", ""]]


async def time_puts(store: SQLiteStore, until: asyncio.Task[object]) -> list[float]:
    """One after the other until a task has ended."""
    times = []
    for number in itertools.count(10**7):
        if until.done():
            break
        began = time.monotonic()
        await store.put(build(number, 1000), claim=False)
        times.append(time.monotonic() - began)
    return times


def show_ms(times: list[float]) -> str:
    """Of some puts."""
    return f"{1000 * statistics.median(times):.1f} ms, {1000 * percentile(times, 0.99):.1f} ms"


def free_port() -> int:
    """That nobody listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cool(file: Path) -> None:
    """Out of the page cache: a start may not profit from the copy that was just made."""
    number = os.open(file, os.O_RDONLY)
    os.fsync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(number)


if __name__ == "__main__":
    main()
