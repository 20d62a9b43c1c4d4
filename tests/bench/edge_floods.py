"""A node under floods: slow clients, thousands of connections, endless lines, bombs; memory, and a bystander's mail.

    python3 deploy/run.py bench edge_floods [--seconds 6] [--share 1.0] [--only NAME ...]

A relay of its own process with its limits on takes one attack after the other (tests/bench/lab/floods.py), each from a
process of its own. Beside each a bystander sends one message after the other to a listener of his own. For
each attack the table says what the attackers were told, memory before and at its peak, how long the bystander's
messages took (to the 250, beside nobody and beside the attack), and how many of them were taken.

The bars: the bystander's mail is all taken; memory grows by no more than `Flood.growth_mb_max`, and the relay has no
session and no spool file left a moment after. Latencies are figures, not bars: attackers and relay share the cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster, HostPlan, find_port
from tests.bench.lab.figures import percentile, table

MIB = 1024 * 1024
BYSTANDER = "127.0.0.2"
MESSAGE = b"Subject: x\r\n\r\nhello\r\n.\r\n"
PAUSE_S = 0.05
PATIENCE_S = 30.0
SETTINGS = """\
[[listener]]
name = "edge"
listen = "127.0.0.1:{edge}"
relay_domains = ["here.test"]
connections_max = 8000
idle_timeout_s = {idle}
limits = {{ data_bytes_per_s_min = 100, data_window_s = {idle} }}

[[listener]]
name = "large"
listen = "127.0.0.1:{large}"
relay_domains = ["here.test"]
size_bytes_max = 2147483648
connections_max = 8000

[[listener]]
name = "tls"
listen = "127.0.0.1:{tls}"
tls = "implicit"
certificate = "node.crt"
key = "node.key"
connections_max = 8000
limits = {{ handshake_timeout_s = {idle} }}
"""


@dataclass(frozen=True, slots=True)
class Flood:
    """An attack, and what it may cost."""

    attack: str
    connections: int
    growth_mb_max: float
    told: frozenset[str] = frozenset()
    """Codes that the attackers have to hear."""
    listener: str = "edge"
    slow: bool = False
    """Ended by a limit of time: lasts longer than that."""


FLOODS = (
    Flood("hold", 5000, 400, listener="large"),
    Flood("drip_command", 1000, 100, frozenset({"421"}), slow=True),
    Flood("drip_data", 1000, 100, frozenset({"421"}), slow=True),
    Flood("guess_recipients", 100, 60, frozenset({"421", "550"})),
    Flood("heap_recipients", 100, 150, frozenset({"452"})),
    Flood("talk_nonsense", 100, 60, frozenset({"421", "500"})),
    Flood("talk_for_ever", 100, 60),  # 500, but what the server did not read turns its end into a reset
    Flood("one_long_line", 20, 100),
    Flood("one_long_line", 2, 60, listener="large"),
    Flood("header_bomb", 50, 100, frozenset({"552"})),
    Flood("field_bomb", 50, 100, frozenset({"552"})),
    Flood("deaf", 200, 150, slow=True),
    Flood("half_handshake", 1000, 150, listener="tls", slow=True),
)


@dataclass(slots=True)
class Bystander:
    """Sends mail and notes how long each message takes."""

    port: int
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """In a thread, for the time of the block."""
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(PATIENCE_S + 5)

    def _work(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self._send()
                self.latencies_s.append(time.monotonic() - began)
            except (OSError, AssertionError) as error:
                self.failures.append(str(error) or type(error).__name__)
            self._over.wait(PAUSE_S)

    def _send(self) -> None:
        address = ("127.0.0.1", self.port)
        with socket.create_connection(address, PATIENCE_S, source_address=(BYSTANDER, 0)) as link:
            lines = link.makefile("rb")
            for said in (
                b"",
                b"EHLO by.test\r\n",
                b"MAIL FROM:<>\r\n",
                b"RCPT TO:<x@far.test>\r\n",
                b"DATA\r\n",
                MESSAGE,
            ):
                link.sendall(said)
                line = bytes(lines.readline())
                while line[3:4] == b"-":
                    line = bytes(lines.readline())
                assert line[:1] in (b"2", b"3"), f"{said[:20]!r}: {line!r}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One flood."""

    flood: Flood
    heard: dict[str, int]
    connections: int
    before_mb: float
    peak_mb: float
    alone_s: list[float]
    beside_s: list[float]
    failures: list[str]
    left_over: str

    def faults(self) -> list[str]:
        """Bars that were missed."""
        missed = [f"the bystander: {failure}" for failure in self.failures[:3]]
        if not self.beside_s:
            missed.append("the bystander: not one message")
        if self.peak_mb - self.before_mb > self.flood.growth_mb_max:
            missed.append(f"memory: more than {self.flood.growth_mb_max:.0f} MB")
        if not self.flood.told <= self.heard.keys():
            missed.append(f"never told: {' '.join(sorted(self.flood.told - self.heard.keys()))}")
        return missed + ([self.left_over] if self.left_over else [])


class Field:
    """A relay with a smart host, and room to attack it."""

    def __init__(self, directory: Path, idle_s: float) -> None:
        self.ports = {name: find_port(set()) for name in ("edge", "large", "tls")}
        settings = SETTINGS.format(idle=idle_s, **self.ports)
        self._cluster = Cluster(directory, relays=("A",), hosts=(HostPlan("S"),), settings=settings)
        self._relay = self._cluster.relays["relay A"]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While it runs. The relay inherits how many files may be open."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            with self._cluster:
                self._cluster.start()
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def suffer(self, flood: Flood, seconds: float, alone_s: float) -> Outcome:
        """One attack."""
        port = self._relay.smtp[1]
        with (alone := Bystander(port)).at_work():
            time.sleep(alone_s)
        before = self._memory_mb("VmRSS")
        (self._proc / "clear_refs").write_text("5")  # VmHWM begins anew
        with (beside := Bystander(port)).at_work():
            report = self._attack(flood, seconds)
        peak = self._memory_mb("VmHWM")
        failures = alone.failures + beside.failures
        return Outcome(flood, report["heard"], report["connections"], before, peak, alone.latencies_s,
                       beside.latencies_s, failures, self._wait_over())  # fmt: skip

    def _attack(self, flood: Flood, seconds: float) -> dict[str, Any]:
        words = [flood.attack, "--port", self.ports[flood.listener], "--connections", flood.connections]
        command = [sys.executable, "-m", "tests.bench.lab.floods", *map(str, words), "--seconds", str(seconds)]
        done = subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    @property
    def _proc(self) -> Path:
        process = self._relay.server.process
        assert process is not None
        return Path(f"/proc/{process.pid}")

    def _memory_mb(self, key: str) -> float:
        line = next(line for line in (self._proc / "status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    def _wait_over(self) -> str:
        """Empty once no connection and no file is left; else what is."""
        deadline = time.monotonic() + PATIENCE_S
        while (left := self._left_over()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _left_over(self) -> str:
        spool = self._relay.data_dir / "queue" / "spool"
        files = [path for path in spool.rglob("*") if path.is_file()] if spool.exists() else []
        if files:
            return f"{len(files)} spool files are left"
        ports = {f":{port:04X}" for port in self.ports.values()}
        rows = [line.split() for line in (self._proc / "net" / "tcp").read_text().splitlines()[1:]]
        held = [row for row in rows if row[1][-5:] in ports and row[3] == "01"]
        return f"{len(held)} connections are left" if held else ""


def row_of(outcome: Outcome) -> list[str]:
    """For the table."""
    told = " ".join(f"{code}x{count}" for code, count in sorted(outcome.heard.items())) or "nothing"
    name = outcome.flood.attack + ("" if outcome.flood.listener == "edge" else f" ({outcome.flood.listener})")
    return [
        name,
        f"{outcome.flood.connections} ({outcome.connections} made)",
        told,
        f"{outcome.before_mb:.0f} > {outcome.peak_mb:.0f}",
        *(_milliseconds(latencies) for latencies in (outcome.alone_s, outcome.beside_s)),
        f"{len(outcome.beside_s)}/{len(outcome.beside_s) + len(outcome.failures)}",
        "; ".join(outcome.faults()) or "ok",
    ]


def _milliseconds(latencies: list[float]) -> str:
    if not latencies:
        return "-"
    return f"{percentile(latencies, 0.5) * 1000:.0f} / {percentile(latencies, 0.99) * 1000:.0f}"


HEADING = ["attack", "at once", "told", "RSS MB", "alone p50/p99 ms", "beside p50/p99 ms", "taken", "verdict"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each attack; slow ones take twice as long")
    parser.add_argument("--share", type=float, default=1.0, help="of the connections of each attack")
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    rows, missed = [HEADING], False
    with tempfile.TemporaryDirectory(prefix="sm-flood-") as folder:
        ground = Field(Path(folder), arguments.seconds / 2)
        with ground.open():
            for flood in FLOODS:
                if arguments.only and flood.attack not in arguments.only:
                    continue
                count = max(1, int(flood.connections * arguments.share))
                smaller = Flood(flood.attack, count, flood.growth_mb_max, flood.told, flood.listener, flood.slow)
                outcome = ground.suffer(smaller, arguments.seconds * (2 if flood.slow else 1), 1.0)
                rows.append(row_of(outcome))
                missed |= bool(outcome.faults())
                print(" | ".join(rows[-1]), flush=True)
    print()
    print(table(rows))
    sys.exit(missed)


if __name__ == "__main__":
    main()
