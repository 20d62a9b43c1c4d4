"""A node's view for tests of the admin service: real engine, table, identity and store; a snapshot made by hand.

The server runs on an event loop of its own thread, as the blocking client needs it answered meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from gossip.identity import Authority, Identity
from gossip.linkstate import (
    ClassLoad,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    NodeRecord,
    SessionStatus,
    Snapshot,
    Version,
)
from gossip.status import Event, EventKind, GossipStats, MemberState, MemberStatus
from router.decision import ExitHop, Hop, HopKind
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from smtp_edge.admin.events import EventFeed
from smtp_edge.admin.server import AdminServer
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.counters import Counters
from smtp_edge.dispatch.dispatcher import Dispatcher, DispatcherLimits
from smtp_edge.dispatch.lines import Standing
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.operations import Operations
from smtp_edge.postmaster import Postmaster
from smtp_edge.queue.entry import Claim
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.reload import Configured, Report
from smtp_edge.room import Room
from smtp_edge.settings import NodeSettings, RouteSettings, Settings, SmartHostSettings
from smtp_edge.sinks.api import RouteRequest
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.mesh import MeshRouter
from smtp_edge.sinks.rules import Facts

T = TypeVar("T")
NOW = 1000.0
PEER = NodeId("b" * 32)
OTHER = NodeId("c" * 32)
WAIT_S = 10.0
ROUTES = (
    RouteRule("partners", ("partner.example", "*.partner.example"), ("a",)),
    RouteRule("direct", ("direct.example",), ("mx",)),
    RouteRule("default", ("*.test",), ("a", "b")),
)

STATS = GossipStats(
    frames_sent={"hello": 12, "push": 5},
    frames_received={"hello": 11, "fetch": 1},
    bytes_sent=2048,
    bytes_received=1024,
    records={"known": 3, "stored": 30},
    originated={"node": 1, "links": 4},
    events={"session-up": 2},
    sessions=6,
    sessions_wanted=8,
    members=9,
    unreachable=10,
    database_records=13,
    stones=14,
    outbox_records=15,
    eager_sessions=7,
    own_lag_s=0.25,
    patience=1.5,
    damped=16,
    quarantined=17,
    epoch=1_800_000_000,
    root="0123456789abcdef",
)
"""Every number is another one."""


def make_identity(folder: Path, name: str = "relay-a", authority: Authority | None = None) -> Identity:
    """An identity with files `ca.crt`, `node.crt` and `node.key` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = authority or Authority.create("test", at=datetime.now(UTC))
    certificate, key = authority.issue(name, at=datetime.now(UTC))
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "node.crt").write_bytes(certificate)
    (folder / "node.key").touch(mode=0o600)
    (folder / "node.key").write_bytes(key)
    return Identity.load(folder / "ca.crt", folder / "node.crt", folder / "node.key")


class Nobody:
    """A client that never comes to an end."""

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        await asyncio.Event().wait()
        raise AssertionError


class Deaf:
    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None: ...
    def arrived(self, class_id: str) -> None: ...
    def backlog_changed(self, class_id: str) -> None: ...
    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None: ...


class FakeView:
    """A node of three: this one and a peer have sessions, the third is only known."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self.clock_at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.drains: list[bool] = []
        """Orders about the node that were carried out."""
        self.open_clients = 0
        self.expanders: tuple[str, ...] = ("lists",)
        """Sinks that are asked about mail to lists.test."""
        self.admin_addresses: dict[str, str] = {}
        """Of other nodes."""
        self.server: AdminServer | None = None
        self.settings = Settings(
            node=NodeSettings(name="relay-a", data_dir=folder),
            smart_host=tuple(SmartHostSettings(name=name, host=f"{name}.example") for name in "ab"),
            route=tuple(RouteSettings(name=rule.name, domains=rule.domains, via=rule.via) for rule in ROUTES),
        )
        self.table = RouteTable(ROUTES)
        self.counters = Counters(accepted=7, relayed=1)
        self.bound: Mapping[str, str] = {"smtp": "127.0.0.1:2525", "mesh": "127.0.0.1:7925"}
        self.events = EventFeed(self._name_of, lambda: datetime(2026, 3, 1, 12, 0, tzinfo=UTC))
        self.engine = RoutingEngine(
            node_id=identity.node_id,
            node_name="relay-a",
            table=self.table,
            exits=[ExitHop(Hop(HopKind.SMART_HOST, name), name) for name in "ab"],
            settings=RouterSettings(),
            rng=random.Random(1),
            now=NOW,
        )
        self.engine.apply(self.snapshot(), NOW)
        self.store = SQLiteStore(
            folder / "queue", incarnation="test", history_s=3600, entries_max=1000, clock=lambda: datetime.now(UTC)
        )
        self.room = Room(
            self.settings.queue,
            folder,
            entries=lambda: self.store.entries_count,
            trouble=lambda: self.trouble,
            on_change=lambda pressure: None,
            now=self.now,
        )
        self.reloads: list[tuple[str, bool]] = []
        self.report = Report()
        self.configured = Configured(datetime(2026, 3, 1, 11, 58, tzinfo=UTC))
        self.trouble = ""
        """Of the queue's disk."""
        reporting = Reporting(
            RetryPolicy.from_settings(self.settings.queue),
            Reporter(
                hostname="relay-a.example",
                node_id=identity.node_id,
                new_queue_id=QueueIds("views").new,
                class_of=lambda recipient: "default",
                lifetime=timedelta(days=5),
            ),
        )
        self.dispatcher = Dispatcher(
            self.store,
            SinkChain([Binding("mesh", MeshRouter(self.engine, self.now))]),
            Nobody(),
            Deaf(),
            node_id=identity.node_id,
            target_of=lambda hop: Target(Hop.parse(hop), "127.0.0.1", 1),
            reporting=reporting,
            limits=DispatcherLimits(100, 30, 10),
            counters=self.counters,
            now=self.now,
            rng=random.Random(1),
        )
        """Not started: nothing is claimed from disk, and what is submitted by hand waits."""
        self.postmaster = Postmaster(self.store, self.dispatcher, reporting)
        self.operations = Operations(
            folder / "orders.json",
            self.engine,
            hosts=["a", "b"],
            act=lambda changes: None,
            on_drain=self._apply_drain,
            tell=lambda text: self.events.publish(Event(EventKind.ORDER, self.identity.node_id, text)),
            now=self.now,
            clock=lambda: self.clock_at,
        )

    async def _apply_drain(self, draining: bool) -> None:
        self.drains.append(draining)
        self.engine.draining = draining
        if self.server is not None:
            await self.server.show_draining(draining)

    def standing(self, queue_id: str, copy: int) -> Standing | None:
        return self.dispatcher.standing(queue_id, copy)

    def request_of(self, claim: Claim) -> RouteRequest:
        return self.dispatcher.request_of(claim)

    def expanders_of(self, facts: Facts) -> tuple[str, ...]:
        return self.expanders if any(item.domain == "lists.test" for item in facts.recipients) else ()

    def count_in_memory(self, class_id: str) -> int:
        return self.dispatcher.count_of(class_id)

    async def reload(self, by: str, *, dry_run: bool) -> Report:
        self.reloads.append((by, dry_run))
        return self.report

    def client_sessions(self) -> int:
        return self.open_clients

    def snapshot(self) -> Snapshot:
        exits = tuple(
            LinkState(f"host:{name}", LinkStatus.UP, 1000, 990, 20_000, 5_000, 40, classes=("default",))
            for name in "ab"
        )
        own = NodeRecord(self.identity.node_id, self._info("relay-a", 1), exits, version=Version(1, 3))
        load = Load(10_000, classes=(ClassLoad("default", 4, 9),))
        peer = NodeRecord(PEER, self._info("relay-b", 2), exits, load, Version(1, 9), 0.5)
        other = NodeRecord(OTHER, self._info("relay-c", 3, draining=True, digest="other"), age_s=40)
        return Snapshot("0123456789abcdef", tuple(sorted((own, peer, other), key=lambda node: node.node_id)))

    def _info(self, name: str, number: int, *, draining: bool = False, digest: str = "") -> NodeInfo:
        return NodeInfo(
            name,
            f"192.0.2.{number}:7946",
            f"192.0.2.{number}:7925",
            software="smtpmesh/9.1",
            draining=draining,
            routes_digest=digest or self.table.digest(),
            tags=("eu",) if number == 2 else (),
            admin_address=self.admin_addresses.get(name, ""),
        )

    def _name_of(self, node_id: NodeId) -> str:
        return next((node.info.name for node in self.snapshot().nodes if node.node_id == node_id), "")

    def sessions(self) -> tuple[SessionStatus, ...]:
        return (
            SessionStatus(PEER, "192.0.2.2:7946", True, 60, 0.2),
            SessionStatus(OTHER, "192.0.2.3:7946", False, 40, 40, "connection refused"),
        )

    def members(self) -> tuple[MemberStatus, ...]:
        own = self.identity.node_id
        return (
            MemberStatus(own, "relay-a", MemberState.SELF, 120),
            MemberStatus(PEER, "relay-b", MemberState.UP, 60, (own,), "", "0123456789abcdef", True, 3, 0.4),
            MemberStatus(OTHER, "relay-c", MemberState.UNREACHABLE, 40, (own, PEER), "connection refused"),
        )

    def gossip_stats(self) -> GossipStats:
        return STATS

    def uptime_s(self) -> float:
        return 120.0

    def now(self) -> float:
        return NOW


class Served:
    """An admin server on its own loop; `address` is what clients dial."""

    def __init__(self, view: FakeView, listen: str) -> None:
        self.view = view
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.run(view.store.open())
            self._server = self.run(self._build(listen))
            self.address = self.run(self._server.start())
        except BaseException:
            self._end()
            raise

    async def _build(self, listen: str) -> AdminServer:
        self.view.server = AdminServer(self.view, listen, self.view.identity)
        return self.view.server

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def close(self) -> None:
        self.run(self._server.stop())
        self._end()

    def _end(self) -> None:
        self.run(self.view.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()
