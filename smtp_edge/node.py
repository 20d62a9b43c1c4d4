"""A node: the only place that builds all parts and wires them together.

    listeners ─> acceptor ─> store <─> dispatcher ─> client
                    │                     │  ▲
                    └──── backlogs ───> routing shell <─> engine
                                          │  ▲
                                          ▼  │
                                         gossip        admin and metrics read all of it

Start order is bottom up, so that nothing is accepted before it can be kept; stop order is the reverse, so that nothing
is accepted that nobody will look at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import structlog

from gossip.core_log import install_core_log
from gossip.identity import Identity, IdentityError
from gossip.linkstate import NodeInfo, SessionStatus, Snapshot
from gossip.revocation import RevocationError, load_revocations
from gossip.service import GossipError, GossipService
from gossip.settings import GossipSettings
from gossip.status import Event, EventKind, GossipStats, MemberStatus
from router.engine import RoutingEngine
from router.settings import RouterSettings
from smtp_edge import __version__
from smtp_edge.acceptor import QueueAcceptor
from smtp_edge.admin.address import find_advertised
from smtp_edge.admin.drain import read_progress
from smtp_edge.admin.events import EventFeed
from smtp_edge.admin.server import AdminError, AdminServer
from smtp_edge.auth.api import AuthError
from smtp_edge.client.outbound import Outbound
from smtp_edge.configuration import find_hostname
from smtp_edge.counters import Counters
from smtp_edge.dispatch.dispatcher import Dispatcher, DispatcherLimits
from smtp_edge.dispatch.lines import Standing
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.handover import HandOver, may_leave
from smtp_edge.logs import configure_logs, flush_logs
from smtp_edge.metrics import MetricsError, MetricsServer
from smtp_edge.operations import Operations
from smtp_edge.orders import FILE as ORDERS_FILE
from smtp_edge.orders import OrdersError
from smtp_edge.originator import Originator
from smtp_edge.postmaster import Postmaster
from smtp_edge.pressure import Pressure
from smtp_edge.queue.entry import Claim
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.spool import Spool, read_whole
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import StoreError
from smtp_edge.reload import Configured, Reloader, ReloadError, Report
from smtp_edge.rerouting import FILE as ROUTES_FILE
from smtp_edge.rerouting import Rerouter
from smtp_edge.room import Room
from smtp_edge.routes import build_exits, build_table, find_classes, find_other_machines
from smtp_edge.routing import RoutingShell, Targets
from smtp_edge.server.inbound import Inbound
from smtp_edge.server.listening import ListenerError
from smtp_edge.services import Services
from smtp_edge.settings import QueueSettings, Settings
from smtp_edge.sinks.api import RouteRequest
from smtp_edge.sinks.bindings import check_alone, check_exits, digest_of, load_bindings
from smtp_edge.sinks.chain import Binding, SinkChain, SinkError
from smtp_edge.sinks.mesh import MeshRouter
from smtp_edge.sinks.rules import Facts
from smtp_edge.workers import Worker

log = structlog.get_logger()
T = TypeVar("T")

ALONE = Worker()
GC_THRESHOLDS = (20_000, 20, 50)
"""Looked through after so many objects more than were freed; Python's own 700 cost a sixteenth of the time."""
STOP_GRACE_S = 10.0
PRUNE_S = 60.0
EMPTY_LOOK_S = 1.0

EXIT_DONE = 0
EXIT_NOT_DONE = 1
EXIT_BAD_CONFIGURATION = 78


class NodeError(Exception):
    """The node cannot start; `str()` names the key at fault and the way out."""


class Node:
    """All parts of one node, or of one `worker` of it (the settings are that worker's). Satisfies
    `smtp_edge.admin.view.NodeView`."""

    def __init__(self, settings: Settings, config_path: Path, worker: Worker = ALONE) -> None:
        self.settings, self.worker = settings, worker
        self.identity = _blame("cluster", lambda: Identity.load(*_cluster_files(settings)))
        self.counters = Counters()
        self._doors: dict[str, str] = {}
        """Where the node's own doors are, but for the listeners."""
        self.events = EventFeed(lambda node: self._gossip.name_of(node), lambda: datetime.now(UTC))
        self._began = time.monotonic()
        self._telling: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        """Sinks of before, until their last answer."""
        self._hostname = find_hostname(settings)
        self.table = build_table(settings)
        self.reloader = Reloader(config_path, self, self._tell_order, derive=worker.derive)
        self._build_queue()
        self._build_routing()
        self._build_edge()
        self._loops: list[asyncio.Task[None]] = []

    # -- building ------------------------------------------------------------------------------------------------------

    def _build_queue(self) -> None:
        data_dir, queue = self.settings.node.data_dir, self.settings.queue
        _blame("node.data_dir", lambda: data_dir.mkdir(parents=True, exist_ok=True, mode=0o700))
        incarnation = uuid.uuid4().hex
        self._ids = QueueIds(self.identity.node_id)
        self._spool = Spool(data_dir / "queue")
        self.store = SQLiteStore(
            data_dir / "queue",
            incarnation=incarnation,
            history_s=queue.history_s,
            entries_max=queue.entries_max,
            history_max=queue.history_max,
            cut_through=queue.cut_through,
            inline_bytes_max=queue.inline_bytes_max,
            clock=lambda: datetime.now(UTC),
        )
        self.room = Room(
            queue,
            data_dir,
            workers=self.worker.count,
            entries=lambda: self.store.entries_count,
            trouble=lambda: self.store.trouble.reason if self.store.trouble is not None else "",
            on_change=self._apply_pressure,
            now=time.monotonic,
        )

    def _build_routing(self) -> None:
        settings, rng = self.settings, random.Random()
        self.engine = RoutingEngine(
            node_id=self.identity.node_id,
            node_name=settings.node.name,
            table=self.table,
            exits=build_exits(settings),
            settings=RouterSettings(
                beta_messages=settings.router.beta_messages,
                window_max=settings.router.window_max,
                probe_interval_s=settings.router.probe_interval_s,
            ),
            rng=rng,
            now=self.now(),
            tags=settings.node.tags,
        )
        self._outbound = Outbound(
            settings,
            hostname=self._hostname,
            identity=self.identity,
            clock=lambda: datetime.now(UTC),
            rng=random.Random(),
        )
        self._client = self._outbound.client
        self._targets = Targets(settings)
        self._routing = RoutingShell(
            self.engine,
            self._targets,
            self._client,
            backlogs=self.store.moving,
            classes_of=lambda hop: find_classes(self.table, hop, self.store.backlog_counts()),
            now=time.monotonic,
        )
        gossip = settings.gossip
        self.operations = Operations(
            settings.node.data_dir / ORDERS_FILE,
            self.engine,
            hosts=[host.name for host in settings.smart_host],
            act=self._routing.act,
            on_drain=self._apply_drain,
            tell=self._tell_order,
            now=time.monotonic,
        )
        self._gossip = GossipService(
            self.identity,
            GossipSettings(listen=gossip.listen, advertise=gossip.advertise, join=gossip.join),
            state_path=settings.node.data_dir / "gossip.state",
            on_change=self._routing.on_snapshot,
            on_session=self._routing.on_session,
            on_event=self._on_gossip_event,
        )

    def _build_edge(self) -> None:
        settings, queue = self.settings, self.settings.queue
        self._own_binding = Binding("mesh", MeshRouter(self.engine, time.monotonic))
        self._sinks = _blame("sink", lambda: self._build_sinks(settings))
        reporting = self._build_reporting()
        self._dispatcher = Dispatcher(
            self.store,
            self._sinks,
            self._client,
            self._routing,
            node_id=self.identity.node_id,
            target_of=self._targets.find,
            reporting=reporting,
            limits=build_dispatcher_limits(queue),
            counters=self.counters,
            now=time.monotonic,
            rng=random.Random(),
            on_late=self._on_late,
        )
        self.postmaster = Postmaster(self.store, self._dispatcher, reporting, on_late=self._on_late)
        self._routing.connect(self._dispatcher, self._gossip)
        self._handover = HandOver(
            self.store, self._dispatcher, may_leave=lambda class_id: may_leave(self.engine, class_id, self.now())
        )
        self._dispatcher.originator = self._build_originator()
        self._acceptor = QueueAcceptor(
            self.store,
            self._spool,
            self.table,
            self._dispatcher,
            self._routing,
            node_id=self.identity.node_id,
            hostname=self._hostname,
            settings=queue,
            counters=self.counters,
            backlogs=self.store.moving,
            new_queue_id=self._ids.new,
            refuse=self.room.refuse,
            now=time.monotonic,
            on_late=self._on_late,
        )
        self._rerouter = Rerouter(
            self.store,
            self._dispatcher,
            sorter=lambda: self._acceptor.sorter,
            path=settings.node.data_dir / ROUTES_FILE,
            doubt_s=lambda: self.settings.queue.in_doubt_hold_s,
            now=time.monotonic,
        )
        self._inbound = Inbound(
            settings,
            self._acceptor,
            self._acceptor.for_peers(),
            hostname=self._hostname,
            identity=self.identity,
            sinks=self._sinks,
        )
        self._admin = AdminServer(self, settings.admin.listen, self.identity)
        self._metrics = MetricsServer(self, settings.metrics.listen) if settings.metrics.listen else None

    def _build_reporting(self) -> Reporting:
        settings, queue = self.settings, self.settings.queue
        return Reporting(
            policy=RetryPolicy.from_settings(queue),
            reporter=Reporter(
                hostname=self._hostname,
                node_id=self.identity.node_id,
                new_queue_id=self._ids.new,
                class_of=lambda recipient: self._acceptor.class_of(recipient),
                lifetime=timedelta(seconds=queue.lifetime_s),
                read=lambda data: read_whole(data, settings.dsn.return_bytes_max),
                double_bounces_to=settings.dsn.double_bounces_to,
            ),
        )

    def _build_originator(self) -> Originator:
        queue = self.settings.queue
        return Originator(
            node_id=self.identity.node_id,
            new_queue_id=self._ids.new,
            sorter=lambda: self._acceptor.sorter,
            spool=self._spool,
            lifetime=timedelta(seconds=queue.lifetime_s),
            inline_bytes_max=queue.inline_bytes_max,
        )

    def _services(self, name: str) -> Services:
        """What a binding may ask of this node."""
        folder = self.settings.node.data_dir / "sinks"
        return Services(
            name,
            self.identity.node_id,
            lambda: self._hostname,
            folder,
            lambda: self._acceptor,
            lambda: self.postmaster,
        )

    def _build_sinks(self, settings: Settings) -> SinkChain:
        """SinkError."""
        bindings = load_bindings(settings.sink)
        check_exits(bindings, settings.smart_host)
        check_alone(bindings, self.worker.count)
        return SinkChain([*bindings, self._own_binding])

    def _on_late(self) -> None:
        self._rerouter.begin()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bottom up: queue, peers' door, gossip, clients' doors, metrics, admin. NodeError says what is in the way.

        A node that was draining when it stopped goes on with that: its doors open, and greet with 421.
        """
        await _blame_async("node.data_dir", self.store.open())
        await _blame_async("node.data_dir", self.operations.restore(retiring=self.worker.retiring))
        await self.room.measure()
        await _blame_async("sink", self._sinks.start(self._services))
        await self._outbound.start()
        self._doors["mesh"] = await _blame_async("mesh.listen", self._inbound.start_mesh())
        self._doors["gossip"] = await _blame_async("gossip.listen", self._gossip.start())
        self._gossip.revoke(_blame("cluster.revocations", self._load_revocations))
        self._gossip.publish_info(self._info())
        self._gossip.publish_links(self.engine.links(self.now()))
        self._routing.on_snapshot(self._gossip.snapshot())
        work = (
            self._routing.run(),
            self._prune_loop(),
            self._handover.run(),
            self.operations.run(),
            self.room.run(),
            self._rerouter.run(),
        )
        self._loops = [asyncio.create_task(loop) for loop in work]
        await self._rerouter.begin_if_changed()
        await self._dispatcher.start()
        try:
            await self._inbound.start(self.settings, self.table, hostname=self._hostname, sinks=self._sinks)
        except (ListenerError, AuthError) as error:  # it names the section
            raise NodeError(str(error)) from error
        if self._metrics is not None:
            self._doors["metrics"] = await _blame_async("metrics.listen", self._metrics.start())
        self._doors["admin"] = await _blame_async("admin.listen", self._admin.start())
        await self.reloader.start()
        log.info("node.ready", node_id=self.identity.node_id, cluster=self.identity.cluster, **self.bound)

    async def stop(self) -> None:
        """Top down; mail in flight gets `STOP_GRACE_S` to finish, the rest stays in the queue."""
        log.info("node.stopping")
        await self.reloader.stop()
        await asyncio.gather(self._inbound.stop(STOP_GRACE_S / 2), self._inbound.stop_mesh(STOP_GRACE_S / 2))
        await self._dispatcher.stop(STOP_GRACE_S)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._outbound.close()
        await self._gossip.stop()
        await self._admin.stop()
        if self._metrics is not None:
            await self._metrics.stop()
        await self._sinks.stop()
        await asyncio.gather(*self._leaving)  # the dispatcher has stopped: nobody waits for their answers
        await self.store.close()
        log.info("node.stopped")

    async def _prune_loop(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_S)
            try:
                await self.store.prune(datetime.now(UTC))
            except StoreError as error:
                log.error("queue.prune_failed", reason=str(error))
            await self._inbound.tidy()

    # -- another configuration -----------------------------------------------------------------------------------------

    async def reconfigure(self, settings: Settings) -> int:
        """Go by other settings and by the files that they name, whole or not at all. ReloadError: not at all.

        What can fail and what takes time comes first and changes nothing: files are read, addresses are taken. Then all
        parts change in one step of the event loop. Sessions and attempts under way keep what they began with. The
        number of client sessions that do.
        """
        async with AsyncExitStack() as undo:
            try:
                identity = await asyncio.to_thread(Identity.load, *_cluster_files(settings))
                self.identity.check_renewal(identity)
                revocations = await asyncio.to_thread(load_revocations, settings.cluster.revocations_folder, identity)
                hostname = await asyncio.to_thread(find_hostname, settings)
                sinks = await self._prepare_sinks(settings, undo)
                change = await self._inbound.prepare(settings, build_table(settings), hostname=hostname, sinks=sinks)
                undo.push_async_callback(self._inbound.discard, change)
                keeper = await self._outbound.prepare(settings)
                if self.identity.renew(identity):
                    self._gossip.renewed()
            except START_ERRORS as error:
                raise ReloadError(_describe(error)) from error
            self._outbound.configure(settings, hostname=hostname, keeper=keeper)
            undo.pop_all()
        rerouted = self._switch(settings, hostname)
        self._inbound.switch(change)
        self._exchange_sinks(sinks)
        self._gossip.publish_info(self._info())
        self._gossip.revoke(revocations)
        stale = self._inbound.stale_count
        await self._inbound.finish(change)
        if rerouted:
            await self.operations.adapt([host.name for host in settings.smart_host])
            self._rerouter.begin()
        return stale

    async def _prepare_sinks(self, settings: Settings, undo: AsyncExitStack) -> SinkChain:
        """The same ones, if nothing is said about them that was not said before. SinkError."""
        if settings.sink == self.settings.sink:
            return self._sinks
        sinks = await asyncio.to_thread(self._build_sinks, settings)
        await sinks.start(self._services)
        undo.push_async_callback(sinks.stop)
        return sinks

    def _exchange_sinks(self, sinks: SinkChain) -> None:
        """What waits is asked about again; what is being asked about gets its answer from those of before."""
        if sinks is self._sinks:
            return
        before, self._sinks, self._dispatcher.sinks = self._sinks, sinks, sinks
        self._dispatcher.ask_again(news=True)
        task = asyncio.create_task(before.retire())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _switch(self, settings: Settings, hostname: str) -> bool:
        """The one step of all that is not SMTP in. True if mail may go other ways."""
        before, self.settings, queue = self.settings, settings, settings.queue
        rerouted = hostname != self._hostname or routing_of(before) != routing_of(settings)
        self._hostname, self.table = hostname, build_table(settings)
        if settings.log != before.log:
            configure_logs(settings.log.format, settings.log.level, settings.node.name)
        self.store.configure(
            history_s=queue.history_s,
            entries_max=queue.entries_max,
            history_max=queue.history_max,
            cut_through=queue.cut_through,
            inline_bytes_max=queue.inline_bytes_max,
        )
        self.room.configure(queue)
        self.postmaster.reporting = reporting = self._build_reporting()
        self._dispatcher.configure(reporting, build_dispatcher_limits(queue))
        self._dispatcher.originator = self._build_originator()
        self._acceptor.configure(self.table, hostname=self._hostname, settings=queue)
        if rerouted:
            self._reroute(before)
        return rerouted

    def _reroute(self, before: Settings) -> None:
        self._targets.configure(self.settings)
        self._routing.act(
            self.engine.reconfigure(
                self.table.rules,
                build_exits(self.settings),
                self.now(),
                tags=self.settings.node.tags,
                anew=find_other_machines(before, self.settings),
            )
        )

    def _load_revocations(self) -> list[tuple[bytes, bytes]]:
        return load_revocations(self.settings.cluster.revocations_folder, self.identity)

    def _on_gossip_event(self, event: Event) -> None:
        self.events.publish(event)
        if event.kind is EventKind.IN_SYNC:
            self._gossip.publish_info(self._info())  # from now on others may send their mail through here

    async def _apply_drain(self, draining: bool) -> None:
        """Everywhere at once: nothing new comes in, what is here goes, others hear of it."""
        self.engine.draining = self._acceptor.draining = draining
        self._inbound.drain(draining)
        if "gossip" in self._doors:
            self._gossip.publish_info(self._info())
            self._gossip.publish_load(self.engine.load(self.now()))
        if draining:
            self._handover.begin()
        else:
            self._handover.end()
        self._dispatcher.ask_again(news=True)
        await self._admin.show_draining(draining)

    def _apply_pressure(self, pressure: Pressure) -> None:
        """Others hear how much more may come, and whoever watches this node why nothing may."""
        self.engine.headroom_permille = pressure.headroom_permille
        if "gossip" in self._doors:
            self._gossip.publish_info(self._info())
            self._gossip.publish_load(self.engine.load(self.now()))
        self.events.publish(Event(EventKind.PRESSURE, self.identity.node_id, str(pressure)))
        task = asyncio.create_task(self._admin.show_pressure(pressure.overloaded, bool(self.room.readings.trouble)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _info(self) -> NodeInfo:
        settings = self.settings
        return NodeInfo(
            name=settings.node.name,
            gossip_address=settings.gossip.advertise or self._doors["gossip"],
            mesh_address=settings.mesh.advertise or self._doors["mesh"],
            zone=settings.node.zone,
            software=f"smtpmesh/{__version__}",
            draining=self.operations.draining,
            overloaded=self.room.pressure.overloaded,
            no_transit=not settings.mesh.transit or self._gossip.joining,
            direct_mx=any(route.via == ("mx",) for route in settings.route),
            routes_digest=self.table.digest(),
            sinks_digest=digest_of(settings.sink),
            tags=settings.node.tags,
            admin_address=find_advertised(settings.admin.listen, settings.admin.advertise),
        )

    def _tell_order(self, text: str) -> None:
        self.events.publish(Event(EventKind.ORDER, self.identity.node_id, text))

    # -- NodeView ------------------------------------------------------------------------------------------------------

    @property
    def bound(self) -> Mapping[str, str]:
        """Every door -> host:port."""
        return {**self._doors, **self._inbound.bound}

    @property
    def configured(self) -> Configured:
        """What it goes by."""
        return self.reloader.configured

    async def reload(self, by: str, *, dry_run: bool) -> Report:
        """Read the configuration again."""
        return await self.reloader.reload(by, dry_run=dry_run)

    def snapshot(self) -> Snapshot:
        """The link-state database."""
        return self._gossip.snapshot()

    def standing(self, queue_id: str, copy: int) -> Standing | None:
        """Where a delivery in memory is."""
        return self._dispatcher.standing(queue_id, copy)

    def request_of(self, claim: Claim) -> RouteRequest:
        """What route sinks are asked about a delivery."""
        return self._dispatcher.request_of(claim)

    def expanders_of(self, facts: Facts) -> tuple[str, ...]:
        """Sinks that are asked who gets such a message."""
        return self._dispatcher.expanders_of(facts)

    def count_in_memory(self, class_id: str) -> int:
        """Deliveries of a class in memory."""
        return self._dispatcher.count_of(class_id)

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Gossip sessions."""
        return self._gossip.sessions()

    def members(self) -> tuple[MemberStatus, ...]:
        """Members as gossip sees them."""
        return self._gossip.members()

    def gossip_stats(self) -> GossipStats:
        """Gossip in numbers."""
        return self._gossip.stats()

    def client_sessions(self) -> int:
        """Open sessions of clients."""
        return self._inbound.session_count

    def uptime_s(self) -> float:
        """Seconds since the node was built."""
        return time.monotonic() - self._began

    def now(self) -> float:
        """The node's monotonic clock, seconds."""
        return time.monotonic()


def routing_of(settings: Settings) -> tuple[object, ...]:
    """What decides where mail goes."""
    return settings.smart_host, settings.route, settings.mx, settings.node.tags


def build_dispatcher_limits(queue: QueueSettings) -> DispatcherLimits:
    """From the configuration."""
    return DispatcherLimits(queue.active_max, queue.in_doubt_hold_s, queue.retry_first_s)


def _cluster_files(settings: Settings) -> tuple[Path, Path, Path]:
    return settings.cluster.ca, settings.cluster.certificate, settings.cluster.key


START_ERRORS = (
    AuthError,
    IdentityError,
    RevocationError,
    GossipError,
    ListenerError,
    StoreError,
    AdminError,
    MetricsError,
    SinkError,
    OrdersError,
    OSError,
)


def _blame(key: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except START_ERRORS as error:
        raise NodeError(f"{key}: {_describe(error)}") from error


async def _blame_async(key: str, work: Awaitable[T]) -> T:
    try:
        return await work
    except START_ERRORS as error:
        raise NodeError(f"{key}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def run(settings: Settings, config_path: Path, worker: Worker = ALONE) -> int:
    """Run a node, or one worker of it by its own settings, until SIGTERM or SIGINT; the exit code of the process.

    A worker that retires ends when it holds no mail any more.
    """
    install_core_log()  # first: what is said before it would go through its pipe
    configure_logs(settings.log.format, settings.log.level, settings.node.name)
    try:
        return _run_loop(_serve(settings, config_path, worker))
    except NodeError as error:
        print(f"smtpmesh: {config_path}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_CONFIGURATION
    finally:
        flush_logs()


def _run_loop(main: Coroutine[None, None, int]) -> int:
    """On uvloop where it is installed, else on asyncio: the behaviour is the same."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _serve(settings: Settings, config_path: Path, worker: Worker) -> int:
    node = Node(settings, config_path, worker)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.reloader.hang_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # a supervisor's worker has held it back until here
    await node.start()
    _rarely_collect()
    if worker.retiring:
        await _wait_empty(node, stop)
    else:
        await stop.wait()
    await node.stop()
    return EXIT_DONE


def _rarely_collect() -> None:
    """What a node is made of never becomes garbage, and little that a message is made of is a circle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _wait_empty(node: Node, stop: asyncio.Event) -> None:
    """Until it holds no mail, or is told to stop before that."""
    while not stop.is_set():
        progress = await read_progress(node, datetime.now(UTC))
        if progress.done:
            log.info("worker.empty", data_dir=str(node.settings.node.data_dir))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), EMPTY_LOOK_S)
