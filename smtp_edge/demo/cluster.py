"""A cluster on loopback for demos and end-to-end tests: folders, processes and ports.

    with Cluster(directory, hosts=(HostPlan("A", 20), HostPlan("B", 40))) as cluster:
        cluster.start()
        submit to cluster.submission_targets() ...
        cluster.kill("relay B"); cluster.restart("relay B")

Processes are named for people: `relay A`, `smart host C`. Each relay knows every smart host, takes mail from loopback
and keeps its queue under `directory`. Ports are taken below the range from which the kernel hands out ports to
outgoing connections, so that a killed process finds its own port free again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from gossip.identity import Authority
from smtp_edge.demo.ledger import Arrival, Kill, read_arrivals
from smtp_edge.workers import number_file

CLUSTER_NAME = "demo"
PORTS = range(20_000, 30_000)
ROW = 8
ROWS = range(30_000, 32_000, ROW)
"""Where rows of ports begin, for relays of several workers."""
PORTS_APART = 4
"""Processes that look for ports at the same time mostly look at different ones, one in so many each."""
_given: deque[int] = deque(maxlen=1000)
"""Ports that this process was given: whoever has one may not listen there yet."""
PORT_TRIES_MAX = 200
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
SOURCE_ROOT = Path(__file__).resolve().parents[2]


class ClusterError(Exception):
    """A process did not become ready or died; `str()` names it and its log, with the last lines."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A smart host to be started: `rate_mps` 0 = as fast as it can."""

    letter: str
    rate_mps: float = 0.0
    refuse: tuple[str, ...] = ()
    """Local parts that have no mailbox."""
    greylist: tuple[str, ...] = ()
    """Local parts that are told to come back later, at first."""
    workers: int = 4

    @property
    def name(self) -> str:
        """Name for people."""
        return f"smart host {self.letter}"

    @property
    def hop(self) -> str:
        """Hop id in the routing table."""
        return f"host:{self.letter.lower()}"


@dataclass(slots=True)
class Server:
    """A child process that can be killed and started again with the same command."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start it; output is appended to its log. It does not see the terminal's Ctrl-C."""
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(_python_path()), PYTHONUNBUFFERED="1")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*_die_with_parent(), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> float:
        """SIGKILL; returns the instant (Unix seconds). It is gone when this returns."""
        assert self.process is not None
        at = time.time()
        self.process.kill()
        self.process.wait()
        return at

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_TIMEOUT_S`."""
        if self.process is None or not self.alive:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, line_count: int = 12) -> str:
        """The end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-line_count:])


@dataclass(slots=True)
class Relay:
    """Where a relay lives."""

    name: str
    letter: str
    folder: Path
    ports: Mapping[str, int]
    server: Server
    workers: int = 1

    @property
    def hostname(self) -> str:
        """Its name in EHLO and Received."""
        return relay_hostname(self.letter)

    @property
    def admin(self) -> str:
        """Address of its admin service; of its first worker."""
        return self.admins[0]

    @property
    def admins(self) -> list[str]:
        """Those of all its workers."""
        return [f"unix:{number_file(self.folder / 'admin.sock', n)}" for n in range(1, self.workers + 1)]

    @property
    def smtp(self) -> tuple[str, int]:
        """Where clients submit."""
        return "127.0.0.1", self.ports["smtp"]

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.folder / "node.toml"

    @property
    def data_dir(self) -> Path:
        """Where it keeps its queue."""
        return self.folder / "data"


@dataclass(slots=True)
class Host:
    """Where a smart host lives."""

    plan: HostPlan
    port: int
    ledger: Path
    ready: Path
    server: Server


class Cluster:
    """See the module. Not thread-safe; `close` stops only what it started."""

    def __init__(
        self,
        directory: Path,
        *,
        relays: Sequence[str] = ("A", "B", "C"),
        hosts: Sequence[HostPlan] = (HostPlan("A", 20), HostPlan("B", 40), HostPlan("C", 80)),
        external: Mapping[str, int] | None = None,
        settings: str = "",
        workers: int = 1,
    ) -> None:
        """`external`: further smart hosts by name -> port. `settings`: TOML appended to every relay's configuration.

        `workers`: processes of each relay.
        """
        self.directory = directory
        self._taken: set[int] = set()
        self._external = dict(external or {})
        self._settings, self._workers = settings, workers
        self.kills: list[Kill] = []
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = _create_authority(directory)
        self.hosts = {plan.name: self._plan_host(plan) for plan in hosts}
        self.relays: dict[str, Relay] = {}
        for letter in relays:
            self.add_relay(letter)

    # -- building ------------------------------------------------------------------------------------------------------

    def add_relay(self, letter: str, authority: Authority | None = None) -> Relay:
        """Make a relay's folder: key, certificate (by another CA if `authority` is given) and configuration."""
        name, folder = f"relay {letter}", self.directory / f"relay-{letter.lower()}"
        folder.mkdir()
        (folder / "data").mkdir(mode=0o700)
        ports = {use: self._take_port() for use in ("smtp", *(("mesh", "gossip") if self._workers == 1 else ()))}
        if self._workers > 1:
            ports |= {use: self._take_ports(self._workers) for use in ("mesh", "gossip")}
        issuer = authority or self.authority
        for number in range(1, self._workers + 1):
            issue_identity(issuer, folder, name.replace(" ", "-").lower(), number, relay_hostname(letter))
        (folder / "ca.crt").write_bytes(issuer.certificate_pem)
        server = Server(name, _run_command(folder), folder / "log.json")
        relay = Relay(name, letter, folder, ports, server, self._workers)
        relay.config.write_text(self._configuration(relay), encoding="utf-8")
        self.relays[name] = relay
        return relay

    def _plan_host(self, plan: HostPlan) -> Host:
        stem = self.directory / f"smart-host-{plan.letter.lower()}"
        ledger, ready, port = stem.with_suffix(".ledger"), stem.with_suffix(".ready"), self._take_port()
        command = [sys.executable, "-m", "smtp_edge.demo.smart_host", "--ledger", str(ledger), "--port", str(port)]
        command += ["--rate", str(plan.rate_mps), "--workers", str(plan.workers), "--ready-file", str(ready)]
        command += [word for local_part in plan.refuse for word in ("--refuse", local_part)]
        command += [word for local_part in plan.greylist for word in ("--greylist", local_part)]
        return Host(plan, port, ledger, ready, Server(plan.name, command, stem.with_suffix(".log")))

    def _take_ports(self, count: int) -> int:
        """The first of so many that follow each other."""
        first = find_ports(count)
        self._taken |= set(range(first, first + count))
        return first

    def _take_port(self) -> int:
        port = find_port(self._taken)
        self._taken.add(port)
        return port

    def _configuration(self, relay: Relay) -> str:
        exits = {
            plan.letter.lower(): host.port for host in self.hosts.values() for plan in [host.plan]
        } | self._external
        join = [f"127.0.0.1:{other.ports['gossip']}" for other in self.relays.values()]
        parts = [
            CONFIGURATION.format(
                name=relay.name.replace(" ", "-").lower(),
                hostname=relay.hostname,
                join=json.dumps(join),
                admin=json.dumps(relay.admin),
                via=json.dumps(sorted(exits)),
                workers=relay.workers,
                **relay.ports,
            )
        ]
        parts += [SMART_HOST.format(name=name, port=port) for name, port in sorted(exits.items())]
        return "\n".join([*parts, self._settings])

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until all relays serve. ClusterError if one does not."""
        for server in [host.server for host in self.hosts.values()] + [relay.server for relay in self.relays.values()]:
            server.spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every smart host listens and every relay's health says SERVING."""
        for host in self.hosts.values():
            self._wait_host(host)
        for relay in self.relays.values():
            self.wait_relay(relay)

    def wait_relay(self, relay: Relay, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the relay's health says SERVING."""
        deadline = time.monotonic() + timeout_s
        for admin in relay.admins:
            while not is_serving(admin):
                self._demand_alive(relay.server, deadline)

    def _wait_host(self, host: Host) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not host.ready.exists():
            self._demand_alive(host.server, deadline)

    def _demand_alive(self, server: Server, deadline: float) -> None:
        if not server.alive or time.monotonic() > deadline:
            what = "is not ready in time" if server.alive else "ended"
            raise ClusterError(f"{server.name} {what}; the end of {server.log}:\n{server.tail()}")
        time.sleep(POLL_S)

    def server(self, name: str) -> Server:
        """By its name for people."""
        return self.relays[name].server if name in self.relays else self.hosts[name].server

    def kill(self, name: str) -> float:
        """kill -9; noted in `kills`. Returns the instant."""
        at = self.server(name).kill()
        self.kills.append(Kill(name, at))
        if name in self.hosts:
            self.hosts[name].ready.unlink(missing_ok=True)
        return at

    def restart(self, name: str) -> None:
        """Start again what was killed, on its old ports and files, and wait until it serves."""
        self.server(name).spawn()
        if name in self.relays:
            self.wait_relay(self.relays[name])
        else:
            self._wait_host(self.hosts[name])
        last = max(index for index, kill in enumerate(self.kills) if kill.name == name)
        self.kills[last] = Kill(name, self.kills[last].at, time.time())

    def stop(self) -> None:
        """Stop what runs: relays first, so that they can finish."""
        servers = [relay.server for relay in self.relays.values()] + [host.server for host in self.hosts.values()]
        for server in servers:
            if server.alive and server.process is not None:
                server.process.send_signal(signal.SIGTERM)
        for server in servers:
            server.stop()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- for submitters and ledgers ------------------------------------------------------------------------------------

    def submission_targets(self) -> dict[str, tuple[str, int]]:
        """Relay -> (host, port)."""
        return {name: relay.smtp for name, relay in self.relays.items()}

    def relay_names(self) -> dict[str, str]:
        """EHLO name -> name for people."""
        return {relay.hostname: name for name, relay in self.relays.items()}

    def arrivals(self) -> list[Arrival]:
        """All that the smart hosts wrote so far."""
        names = self.relay_names()
        return [a for name, host in self.hosts.items() for a in read_arrivals(host.ledger, name, names)]

    def logs(self) -> dict[str, Path]:
        """Relay -> its log."""
        return {name: relay.server.log for name, relay in self.relays.items()}


def relay_hostname(letter: str) -> str:
    """`relay-a.demo.test`"""
    return f"relay-{letter.lower()}.demo.test"


def is_serving(admin: str, timeout_s: float = 1.0) -> bool:
    """Ask the standard health service."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(admin) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service="smtpmesh.smtp")
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def find_port(taken: set[int]) -> int:
    """A loopback port that nobody listens on, outside the kernel's range for outgoing connections."""
    own = PORTS[os.getpid() % PORTS_APART :: PORTS_APART]
    for _ in range(PORT_TRIES_MAX):
        port = random.choice(own)
        if port in taken or port in _given:
            continue
        if _is_free(port):
            _given.append(port)
            return port
    raise ClusterError(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop - 1}")


def find_ports(count: int) -> int:
    """The first of `count` loopback ports in a row that nobody listens on, at most `ROW` of them."""
    assert count <= ROW
    own = ROWS[os.getpid() % PORTS_APART :: PORTS_APART]
    for _ in range(PORT_TRIES_MAX):
        first = random.choice(own)
        ports = range(first, first + count)
        if first not in _given and all(_is_free(port) for port in ports):
            _given.extend(ports)
            return first
    raise ClusterError(f"no {count} free ports in a row on 127.0.0.1 between {ROWS.start} and {ROWS.stop}")


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def issue_identity(authority: Authority, folder: Path, name: str, number: int, hostname: str) -> None:
    """Certificate and key of a relay's worker."""
    certificate, key = authority.issue(
        name if number == 1 else f"{name}-{number}", hosts=[hostname], at=datetime.now(UTC)
    )
    number_file(folder / "node.crt", number).write_bytes(certificate)
    _write_private(number_file(folder / "node.key", number), key)


def _create_authority(directory: Path) -> Authority:
    authority = Authority.create(CLUSTER_NAME, at=datetime.now(UTC))
    authority.save(directory / "ca.crt", directory / "ca.key")
    return authority


def _write_private(path: Path, secret: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)


def _run_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "smtp_edge.cli", "run", "--config", str(folder / "node.toml")]


def _die_with_parent() -> list[str]:
    """Prefix that has the kernel stop a child whose parent was killed, where util-linux offers it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _python_path() -> list[str]:
    """The checkout, and whatever the parent was given."""
    inherited = os.environ.get("PYTHONPATH", "")
    return [str(SOURCE_ROOT), str(SOURCE_ROOT / "proto"), *([inherited] if inherited else [])]


CONFIGURATION = """\
[node]
name = "{name}"
hostname = "{hostname}"
data_dir = "data"
workers = {workers}

[cluster]
ca = "ca.crt"
certificate = "node.crt"
key = "node.key"

[gossip]
listen = "127.0.0.1:{gossip}"
join = {join}

[mesh]
listen = "127.0.0.1:{mesh}"

[[listener]]
name = "smtp"
listen = "127.0.0.1:{smtp}"
allow_networks = ["127.0.0.0/8"]

[[route]]
name = "default"
domains = ["*"]
via = {via}

[admin]
listen = {admin}

[log]
format = "json"
"""

SMART_HOST = """\
[[smart_host]]
name = "{name}"
host = "127.0.0.1"
port = {port}
tls = "none"
"""
