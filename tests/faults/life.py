"""The process that is killed, and whose disk fails: everything that holds a message, wired as `smtp_edge.node` does.

Listener, acceptor, store, dispatcher and outbound client are the product's; only routing is a sink that knows one next
hop: a smart host, or a peer. Names of spool files are counted instead of random, so that a tracer can be told of them
beforehand.

It says `port N M` once it serves (M: for peers), or `cannot start`, obeys lines, and answers each with a line:

    empty    when nothing is left in the queue        prune    forget what is finished
    stop     stop in the order of a node, and end
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gossip.identity import Identity
from router.decision import Hop, HopKind
from router.policy import RouteRule, RouteTable
from smtp_edge.acceptor import QueueAcceptor
from smtp_edge.client.attempt import AttemptResult, Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.counters import Counters
from smtp_edge.dispatch.dispatcher import Dispatcher, DispatcherLimits
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.logs import configure_logs
from smtp_edge.queue import cutthrough
from smtp_edge.queue import spool as spool_module
from smtp_edge.queue import writer as writer_module
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.spool import Spool
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import StoreError
from smtp_edge.server.listener import Listener, MeshListener, Surroundings
from smtp_edge.server.pressure import Memory
from smtp_edge.settings import ListenerSettings, QueueSettings
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink
from smtp_edge.sinks.chain import Binding, SinkChain

INLINE_BYTES_MAX, KEPT_BYTES_MAX = 4096, 16_384
HOP = Hop(HopKind.SMART_HOST, "out")
POLL_S = 0.01
TRIAL_S = 0.1
"""Instead of a second: so long a disk that failed is left alone."""
PASS_S = 2.0
"""A traced process is slow."""
EXIT_CANNOT_START = 78
QUEUE = QueueSettings(inline_bytes_max=INLINE_BYTES_MAX, free_bytes_min=0, retry_first_s=0.05, retry_max_s=0.1)


@dataclass(frozen=True, slots=True)
class Mesh:
    """What a life needs that has to do with peers."""

    ca: Path
    certificate: Path
    key: Path
    port: int = 0
    """Where it listens for peers."""
    peer: str = ""
    """Node id to which everything goes, instead of to a smart host; at the same port as that."""

    @classmethod
    def of(cls, words: dict[str, Any]) -> Mesh:
        """From JSON."""
        return cls(
            **{name: Path(value) if name in ("ca", "certificate", "key") else value for name, value in words.items()}
        )


class OneHop(Sink):
    """Everything goes there."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop

    async def route(self, delivery: RouteRequest) -> Route | None:
        """It may always be tried: what failed there waits on disk."""
        return Route((NextHop(self._hop.id),))


class Deaf:
    """Nobody learns from attempts here."""

    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None: ...
    def arrived(self, class_id: str) -> None: ...
    def backlog_changed(self, class_id: str) -> None: ...
    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None: ...


class Life:
    """One process's worth of a relay."""

    def __init__(self, directory: Path, host_port: int, mesh: Mesh | None = None, *, cut_through: bool = False) -> None:
        table = RouteTable([RouteRule("default", ("*",), ("out",))])
        identity = Identity.load(mesh.ca, mesh.certificate, mesh.key) if mesh is not None else None
        node_id = identity.node_id if identity is not None else "life"
        ids, counters, observer = QueueIds(node_id), Counters(), Deaf()
        target = Target(HOP, "127.0.0.1", host_port, tls="none")
        if mesh is not None and mesh.peer:
            target = Target(Hop(HopKind.PEER, mesh.peer), "127.0.0.1", host_port, tls="mesh")
        self.store = SQLiteStore(
            directory,
            incarnation=uuid.uuid4().hex,
            history_s=0,
            inline_bytes_max=INLINE_BYTES_MAX,
            entries_max=1000,
            cut_through=cut_through,
            clock=lambda: datetime.now(UTC),
        )
        self._client = DeliveryClient(
            hostname="life.test", identity=identity, connect_timeout_s=5, attempt_timeout_s=10
        )
        self.dispatcher = Dispatcher(
            self.store,
            SinkChain([Binding("one", OneHop(target.hop))]),
            self._client,
            observer,
            node_id=node_id,
            target_of=lambda hop: target,
            reporting=Reporting(
                policy=RetryPolicy.from_settings(QUEUE),
                reporter=Reporter(
                    hostname="life.test",
                    node_id=node_id,
                    new_queue_id=ids.new,
                    class_of=lambda recipient: "default",
                    lifetime=timedelta(days=5),
                ),
            ),
            limits=DispatcherLimits(active_max=100, in_doubt_hold_s=1, park_retry_s=0.05),
            counters=counters,
            now=time.monotonic,
            rng=random.Random(1),
        )
        self._acceptor = QueueAcceptor(
            self.store,
            Spool(directory),
            table,
            self.dispatcher,
            observer,
            node_id=node_id,
            hostname="life.test",
            settings=QUEUE,
            counters=counters,
            backlogs=self.store.backlog_counts,
            new_queue_id=ids.new,
            refuse=lambda size_bytes: None,
            now=time.monotonic,
        )
        settings = ListenerSettings(listen="127.0.0.1:0", allow_networks=(ip_network("127.0.0.0/8"),))
        surroundings = Surroundings(
            hostname="life.test", inline_bytes_max=QUEUE.inline_bytes_max, kept_bytes_max=KEPT_BYTES_MAX
        )
        self._listener = Listener(settings, self._acceptor, surroundings)
        self._mesh: MeshListener | None = None
        if identity is not None and mesh is not None:
            self._mesh = MeshListener(
                f"127.0.0.1:{mesh.port}",
                identity,
                self._acceptor.for_peers(),
                hostname="life.test",
                inline_bytes_max=QUEUE.inline_bytes_max,
                size_bytes_max=2**20,
                memory=Memory(2**24),
            )

    async def start(self) -> tuple[str, str]:
        """As a node: nothing is accepted before it can be kept. The ports for clients and for peers."""
        await self.store.open()
        await self.dispatcher.start()
        peers = await self._mesh.start() if self._mesh is not None else ""
        clients = await self._listener.start()
        return clients.rpartition(":")[2], peers.rpartition(":")[2]

    async def stop(self) -> None:
        """As a node."""
        await self._listener.stop(1)
        if self._mesh is not None:
            await self._mesh.stop(1)
        await self.dispatcher.stop(1)
        await self._client.close()
        await self.store.close()


async def run(
    directory: Path, host_port: int, channel: socket.socket, mesh: Mesh | None, *, cut_through: bool = False
) -> int:
    """See the module; the exit code."""
    commands, answers = await asyncio.open_connection(sock=channel)

    def say(line: str) -> None:
        answers.write(f"{line}\n".encode())

    life = Life(directory, host_port, mesh, cut_through=cut_through)
    try:
        ports = await life.start()
    except StoreError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    say(f"port {' '.join(ports)}")
    while True:
        match (await commands.readline()).decode().strip():
            case "empty":
                while (summary := await life.store.summary()).classes:  # noqa: ASYNC110  (there is no event for it)
                    await asyncio.sleep(POLL_S)
                say(f"empty {summary.corrupt}")
            case "prune":
                say(f"pruned {await prune(life.store)}")
            case "stop" | "":
                await life.stop()
                say("stopped")
                await answers.drain()
                return 0


async def prune(store: SQLiteStore) -> int:
    """Rows that were forgotten; -1 if the disk said no."""
    try:
        return await store.prune(datetime.now(UTC) + timedelta(seconds=1))
    except StoreError:
        return -1


def live(
    directory: Path,
    host_port: int,
    names: str,
    channel: socket.socket,
    mesh: dict[str, Any] | None,
    *,
    cut_through: bool = False,
) -> int:
    """In a process of its own: run until it is told to stop. `names`: what names of spool files begin with."""
    numbers = itertools.count(1)
    counted = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{names}{next(numbers)}"))
    spool_module.uuid = counted  # type: ignore[assignment]
    writer_module.TRIAL_S = TRIAL_S
    cutthrough.PASS_S = PASS_S
    configure_logs("json", "warning", "life")
    channel.setblocking(False)
    peers = Mesh.of(mesh) if mesh else None
    return asyncio.run(run(directory, host_port, channel, peers, cut_through=cut_through))
