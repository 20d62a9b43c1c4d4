"""A cluster of processes, smtpmesh's or Serf's, and each one's own view of the others as events with monotonic times.

Whatever is started here is ended here, by process id, on `close`. Every wait has a limit and says what it waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from gossip.identity import Authority, write_new
from tests.bench.lab.account import own_s

ROOT = Path(__file__).resolve().parents[3]
PORTS = range(20_000, 30_000)
"""Below the range of outgoing connections, so that a killed process finds its own port free again."""
PORT_TRIES_MAX = 500
POLL_S = 0.01
STOP_S = 5.0
ANSWER_S = 10.0
SEEDS = 3


class LabError(Exception):
    """Something did not happen in time; `str()` says what."""


class Loss(NamedTuple):
    """One declaration that a member is lost."""

    at: float
    observer: str
    member: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process used since its start, and holds now."""

    at: float
    cpu_s: float
    rss_bytes: int
    pss_bytes: int


class Process:
    """One member: its events (`at`, `event`, ...) in the order of its output, and whom it has within reach."""

    def __init__(
        self, name: str, words: Sequence[str], log: Path, parse: Callable[[str], dict[str, Any] | None]
    ) -> None:
        self.name, self.paused = name, False
        self.events: list[dict[str, Any]] = []
        self.reached: set[str] = set()
        """In the words of the events, node ids or names."""
        self._parse = parse
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )
        self.pid = self._child.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            event = self._parse(line)
            if event is None:
                continue
            if event["event"] == "found":
                self.reached.add(event["node"])
            elif event["event"] == "lost":
                self.reached.discard(event["node"])
            self.events.append(event)

    def running(self) -> bool:
        """Neither ended nor paused."""
        return not self.paused and self._child.poll() is None

    def ended(self) -> int | None:
        """Its exit status, negative for a signal."""
        return self._child.poll()

    def tell(self, command: str) -> float:
        """Write a command; when it was written."""
        assert self._child.stdin is not None
        at = time.monotonic()
        self._child.stdin.write(command + "\n")
        return at

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command, an event of its name."""
        seen = len(self.events)
        self.tell(command)
        return self.await_event(command, ANSWER_S, since=seen)

    def await_event(self, kind: str, limit_s: float, *, since: int = 0) -> dict[str, Any]:
        """The first event of a kind. LabError if there is none in time, or the process is gone."""
        deadline = time.monotonic() + limit_s
        while True:
            for event in self.events[since:]:
                if event["event"] == kind:
                    return event
            if time.monotonic() > deadline or self._child.poll() is not None:
                raise LabError(f"{self.name} said no {kind!r} within {limit_s:.0f} s")
            time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> float:
        """Send a signal; when."""
        at = time.monotonic()
        os.kill(self.pid, number)
        self.paused = number is signal.SIGSTOP or (self.paused and number is not signal.SIGCONT)
        return at

    def kill(self) -> float:
        """End it as a crash does; when."""
        at = time.monotonic()
        self._child.kill()
        self._child.wait(STOP_S)
        self._reader.join(STOP_S)
        return at

    def stop(self) -> None:
        """Ask it to end; by force if it does not."""
        if self._child.poll() is None:
            with contextlib.suppress(OSError):
                self.send(signal.SIGCONT)
                self.send(signal.SIGTERM)

    def reap(self) -> None:
        """Wait for its end."""
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(STOP_S)
        self._reader.join(STOP_S)
        for stream in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def usage(self) -> Usage:
        """CPU time and memory. PSS shares the pages of libraries among those who map them."""
        sizes = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, _, rest = line.partition(":")
            sizes[key] = int(rest.split()[0]) * 1024
        return Usage(time.monotonic(), own_s(self.pid), sizes["Rss"], sizes["Pss"])

    def loopback_bytes(self) -> int:
        """All bytes that went over loopback in the namespace of this process, with IP headers."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == "lo":
                return int(counters.split()[8])
        return 0


class Cluster:
    """Members named m1, m2, ... Subclasses say how one is started and what its output means."""

    product = ""

    def __init__(self, folder: Path, count: int, *, inside: Callable[[str], Sequence[str]] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.names = [f"m{number}" for number in range(1, count + 1)]
        self.processes: dict[str, Process] = {}
        self._inside = inside or (lambda name: ())
        """Words before a member's command: `ip netns exec ...`."""
        self._past: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- to be said by each product ------------------------------------------------------------------------------------

    def command(self, name: str) -> Sequence[str]:
        """Words that start one member in the foreground."""
        raise NotImplementedError

    def parse(self, line: str) -> dict[str, Any] | None:
        """An event from a line of output, or None."""
        raise NotImplementedError

    def identifier(self, name: str) -> str:
        """How events name a member."""
        return name

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, limit_s: float = 120.0) -> None:
        """Start all and wait until each has all others within reach."""
        for name in self.names:
            self.spawn(name)
        for name in self.names:
            self.processes[name].await_event("ready", limit_s)
        self.wait_whole(limit_s)

    def spawn(self, name: str) -> Process:
        """Start one member, for the first time or again."""
        if name in self.processes:
            self._past.append(self.processes[name])
        words = [*self._inside(name), *self.command(name)]
        self.processes[name] = Process(name, words, self.folder / f"{name}.log", self.parse)
        return self.processes[name]

    def close(self) -> None:
        """End all that were started."""
        for process in self.processes.values():
            process.stop()
        for process in [*self.processes.values(), *self._past]:
            process.reap()

    # -- views ---------------------------------------------------------------------------------------------------------

    def running(self) -> list[Process]:
        """Those neither dead nor paused."""
        return [process for process in self.processes.values() if process.running()]

    def is_whole(self) -> bool:
        """Each running member has all other running ones within reach."""
        running = self.running()
        wanted = {self.identifier(process.name) for process in running}
        return all(wanted - {self.identifier(process.name)} <= process.reached for process in running)

    def wait_whole(self, limit_s: float) -> float:
        """Wait for it; when it was so. LabError names who misses whom."""
        deadline = time.monotonic() + limit_s
        while not self.is_whole():
            if time.monotonic() > deadline:
                raise LabError(f"not whole within {limit_s:.0f} s: {self.missing()}")
            time.sleep(POLL_S)
        return time.monotonic()

    def missing(self) -> str:
        """Who misses whom, for people."""
        running = self.running()
        gaps = []
        for process in running:
            others = {other.name for other in running if self.identifier(other.name) not in process.reached}
            if others - {process.name}:
                gaps.append(f"{process.name} misses {' '.join(sorted(others - {process.name}))}")
        for process in self.processes.values():
            if process not in running:
                said = (self.folder / f"{process.name}.log").read_text(errors="replace")
                gaps.append(f"{process.name} is paused or has ended: {process.ended()} {said}")
        return "; ".join(gaps)

    def losses(self, since: float) -> list[Loss]:
        """All declarations since a moment, oldest first."""
        names = {self.identifier(name): name for name in self.names}
        found = [
            Loss(event["at"], process.name, names[event["node"]])
            for process in [*self.processes.values(), *self._past]
            for event in list(process.events)
            if event["event"] == "lost" and event["at"] >= since and event["node"] in names
        ]
        return sorted(found)

    def wait_lost(self, member: str, observers: Sequence[str], since: float, limit_s: float) -> dict[str, float]:
        """When each observer first declared a member lost; some are missing if the limit came first."""
        deadline = time.monotonic() + limit_s
        while True:
            first: dict[str, float] = {}
            for loss in self.losses(since):
                if loss.member == member and loss.observer in observers:
                    first.setdefault(loss.observer, loss.at)
            if len(first) == len(observers) or time.monotonic() > deadline:
                return first
            time.sleep(POLL_S)


class GossipCluster(Cluster):
    """`tests.bench.gossip_node` processes. `host_of` gives each its address, by default all on loopback."""

    product = "smtpmesh"

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        inside: Callable[[str], Sequence[str]] | None = None,
        host_of: Callable[[str], str] = lambda name: "127.0.0.1",
    ) -> None:
        super().__init__(folder, count, inside=inside)
        authority = Authority.create("bench", at=datetime.now(UTC))
        ports = free_ports(count)
        self._ids: dict[str, str] = {}
        self.addresses = {name: f"{host_of(name)}:{port}" for name, port in zip(self.names, ports, strict=True)}
        for name in self.names:
            certificate, key = authority.issue(name, at=datetime.now(UTC))
            (folder / name).mkdir()
            write_new(folder / name / "ca.crt", authority.certificate_pem, mode=0o644)
            write_new(folder / name / "node.crt", certificate, mode=0o644)
            write_new(folder / name / "node.key", key, mode=0o600)

    def command(self, name: str) -> Sequence[str]:
        """One node, with the first members as its seeds."""
        seeds = [self.addresses[other] for other in self.names[:SEEDS] if other != name]
        folder, address = str(self.folder / name), self.addresses[name]
        return [sys.executable, "-X", "faulthandler", "-m", "tests.bench.gossip_node", folder, address, *seeds]

    def parse(self, line: str) -> dict[str, Any] | None:
        """Lines are events already."""
        event: dict[str, Any] = json.loads(line)
        return event

    def identifier(self, name: str) -> str:
        """Its node id, from its first line."""
        if name not in self._ids:
            self._ids[name] = self.processes[name].await_event("ready", ANSWER_S)["node_id"]
        return self._ids[name]

    def roots(self) -> set[str]:
        """Of the databases of all running members."""
        return {process.ask("status")["root"] for process in self.running()}

    def wait_equal(self, limit_s: float) -> float:
        """Wait until all running members hold the same; when it was so."""
        deadline = time.monotonic() + limit_s
        while len(self.roots()) > 1:
            if time.monotonic() > deadline:
                raise LabError(f"databases differ after {limit_s:.0f} s")
            time.sleep(0.1)
        return time.monotonic()


class SerfCluster(Cluster):
    """HashiCorp Serf agents, profile lan, observed by their log: it has a line for each change of a member."""

    product = "Serf"
    EVENTS = {"EventMemberFailed": "lost", "EventMemberJoin": "found"}  # noqa: RUF012

    def __init__(self, folder: Path, count: int, *, inside: Callable[[str], Sequence[str]] | None = None) -> None:
        super().__init__(folder, count, inside=inside)
        ports = free_ports(2 * count)
        self._gossip = dict(zip(self.names, ports[:count], strict=True))
        self._rpc = dict(zip(self.names, ports[count:], strict=True))

    def command(self, name: str) -> Sequence[str]:
        """One agent, with the first members to join."""
        seeds = [f"-retry-join=127.0.0.1:{self._gossip[other]}" for other in self.names[:SEEDS] if other != name]
        return [
            "serf", "agent", f"-node={name}", "-profile=lan", f"-bind=127.0.0.1:{self._gossip[name]}",
            f"-rpc-addr=127.0.0.1:{self._rpc[name]}", "-log-level=info", "-retry-interval=1s", *seeds,
        ]  # fmt: skip

    def parse(self, line: str) -> dict[str, Any] | None:
        """`... [INFO] serf: EventMemberFailed: m3 127.0.0.1`. The time is that of reading, well under 10 ms late."""
        now = time.monotonic()
        if "Serf agent running" in line:
            return {"at": now, "event": "ready"}
        _, _, text = line.partition("serf: ")
        kind, _, rest = text.partition(": ")
        if kind not in self.EVENTS or not rest:
            return None
        return {"at": now, "event": self.EVENTS[kind], "node": rest.split()[0]}


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, TCP and UDP."""
    found: list[int] = []
    for port in random.sample(PORTS, PORT_TRIES_MAX):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise LabError("no free ports")
