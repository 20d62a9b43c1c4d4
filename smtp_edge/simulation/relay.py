"""One relay of a simulated mesh: the product's acceptor, queue logic, dispatcher, routing shell and engine as
`smtp_edge.node` wires them, on a store in memory, modelled SMTP and simulated gossip.

A kill loses what a process loses: tasks, connections, estimates, views. The store stays, as a disk does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gossip.linkstate import LinkState, NodeId
from router.decision import EdgeState, ExitHop, Hop, HopKind, Pin
from router.engine import RoutingEngine
from router.plan import Plan
from router.policy import RouteTable
from router.problem import Problem
from router.recording import Origin, Recorder
from router.settings import RouterSettings
from router.terms import NO_TERMS, Terms
from smtp_edge.acceptor import QueueAcceptor
from smtp_edge.client.attempt import Job, Target
from smtp_edge.counters import Counters
from smtp_edge.dispatch.dispatcher import Dispatcher, DispatcherLimits
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.envelope import Client, ReceivedMessage
from smtp_edge.handover import HandOver, may_leave
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.spool import Spool
from smtp_edge.reply import Reply
from smtp_edge.routes import find_classes
from smtp_edge.routing import RoutingShell
from smtp_edge.server.door import DRAINED
from smtp_edge.settings import QueueSettings
from smtp_edge.simulation.adapters import SimulatedGossip, WorldClock
from smtp_edge.simulation.store import MemoryStore
from smtp_edge.simulation.ways import ModelledClient, Server, Way
from smtp_edge.sinks.api import Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.mesh import MeshRouter
from smtp_edge.sorting import Sorter

Strategy = Callable[[RoutingEngine, Callable[[], float], random.Random], Sink]
"""A routing sink in place of the mesh's own, for comparison: from engine, clock and randomness of its relay."""
WALL_AT = datetime(2026, 1, 1, tzinfo=UTC)
COMMIT_S = 0.002
"""Of the modelled disk: one group commit."""
SLOTS = 20
PRUNE_S = 3600.0
"""Between two looks for finished messages whose history is over."""
NOWHERE = Path("/nonexistent")
"""The simulated relay keeps mail data inline and asks no disk for room."""
QUEUE = QueueSettings(free_bytes_min=0, connect_timeout_s=1.0, attempt_timeout_s=30.0)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a relay of a mesh is given by it."""

    clock: WorldClock
    table: RouteTable
    server_of: Callable[[str], Server | None]
    way_of: Callable[[NodeId, str], Way]
    on_attempt: Callable[[NodeId, str, float], None]
    on_transfer: Callable[[NodeId, Job], None]
    """A relay took a message of another one."""
    on_unanswered: Callable[[str, Job], None]
    """A hop took a message, and whoever sent it never learnt so."""
    strategy: Strategy | None = None
    records: bool = False
    """Keep what every engine is told and answers (`router.recording`)."""
    router: RouterSettings = field(default_factory=RouterSettings)
    queue: QueueSettings = QUEUE
    capacity_noise: float = 0.0
    """Deviation of the logarithm by which advertised capacities are wrong."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """Of hosts, by name."""
    solved: dict[Problem, Plan] = field(default_factory=dict)
    """Joint plans that a relay of the mesh has worked out already: all of them ask the same."""


class SimulatedRelay:
    """See the module. `start` gives it a process, `kill` takes it away."""

    def __init__(
        self,
        node_id: NodeId,
        name: str,
        exits: Sequence[str],
        around: Surroundings,
        rng: random.Random,
        *,
        tags: Sequence[str] = (),
    ) -> None:
        self.node_id, self.name, self.exits = node_id, name, tuple(exits)
        self.tags = tuple(tags)
        self.alive = False
        self.draining = False
        """The operator's orders survive a kill, as on a disk."""
        self.drained: set[str] = set()
        """Hosts."""
        self.pins: dict[str, Pin] = {}
        self._around, self._rng = around, rng
        self._starts = 0
        self._errors: dict[str, float] = {}
        """Hop id -> factor by which its capacity is told wrong."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.store = self._new_store()
        self.counters = Counters()
        self.recordings: list[Recorder] = []
        """One for each start, if the mesh records."""
        self.server = Server(Hop(HopKind.PEER, node_id), self.accept_transfer, refusing=True)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin, for the first time or after a kill."""
        self._starts += 1
        await self.store.open()
        self._build_process()
        self.alive, self.server.refusing = True, False
        self._spawn(self._shell.run())
        self._spawn(self._handover.run())
        self._spawn(self._prune_often())
        await self._dispatcher.start()
        self._restore()
        self._shell.on_snapshot(self._gossip.snapshot())
        self._leave_missing()
        self._publish_info()
        self._gossip.publish_links(self.engine.links(self.now()))

    def kill(self) -> None:
        """kill -9."""
        self.alive, self.server.refusing = False, True
        self.server.break_connections()
        self._dispatcher.abandon()
        for task in self._tasks:
            task.cancel()
        self._gossip.close()
        self.store.crash()

    # -- orders --------------------------------------------------------------------------------------------------------

    def drain(self, draining: bool) -> None:
        """Give the queue to others and take no mail; False = be as before."""
        self.draining = draining
        if not self.alive:
            return
        self._apply_drain()
        self._publish_info()
        self._dispatcher.ask_again(news=True)

    def drain_host(self, name: str, drained: bool) -> None:
        """Send nothing new to a host; False = it may be used again."""
        (self.drained.add if drained else self.drained.discard)(name)
        if self.alive:
            change = self.engine.drain_hop if drained else self.engine.undrain_hop
            self._shell.act(change(Hop(HopKind.SMART_HOST, name), "by the scenario", self.now()))

    def pin(self, class_id: str, hop: Hop, for_s: float) -> None:
        """All mail of the class goes by this hop."""
        self.pins[class_id] = Pin(hop, self.now() + for_s)
        if self.alive:
            self._shell.act(self.engine.pin(class_id, hop, self.now() + for_s, self.now()))

    def _restore(self) -> None:
        for name in sorted(self.drained):
            self.drain_host(name, True)
        for class_id, pin in self.pins.items():
            self._shell.act(self.engine.pin(class_id, pin.hop, pin.until, self.now()))
        self._apply_drain()

    def _leave_missing(self) -> None:
        """Peers that there is no way to are never tried, as if the operator had said so."""
        for edge in self.engine.edges():
            if self._around.way_of(self.node_id, edge.hop.id).missing:
                self._shell.act(self.engine.drain_hop(edge.hop, "there is no way", self.now()))

    def _apply_drain(self) -> None:
        self.engine.draining = self._acceptor.draining = self.draining
        (self._handover.begin if self.draining else self._handover.end)()

    def _publish_info(self) -> None:
        """What the world says of a node, with what this relay has to add."""
        own = next(node.info for node in self._gossip.snapshot().nodes if node.node_id == self.node_id)
        info = replace(own, tags=self.tags, draining=self.draining)
        if info != own:
            self._gossip.publish_info(info)

    # -- looking at time -----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Virtual seconds."""
        return self._around.clock.now()

    def wall(self) -> datetime:
        """Virtual wall clock."""
        return WALL_AT + timedelta(seconds=self.now())

    def _new_store(self) -> MemoryStore:
        return MemoryStore(
            name=self.name, history_s=self._around.queue.history_s, entries_max=1_000_000, clock=self.wall
        )

    def _build_process(self) -> None:
        around = self._around
        origin = Origin(
            node_id=self.node_id,
            node_name=self.name,
            rules=around.table.rules,
            exits=tuple(
                ExitHop(Hop(HopKind.SMART_HOST, host), host, 0, SLOTS, around.terms.get(host, NO_TERMS))
                for host in self.exits
            ),
            settings=around.router,
            seed=self._rng.getrandbits(64),
            now=self.now(),
            tags=self.tags,
        )
        if around.records:
            self.recordings.append(Recorder(origin))
            self.engine = self.recordings[-1].engine
        else:
            self.engine = origin.build()
            self.engine.planning.solved = around.solved
        self._client = ModelledClient(
            self.node_id,
            around.server_of,
            lambda hop: around.way_of(self.node_id, hop),
            random.Random(self._rng.getrandbits(64)),
            connect_timeout_s=around.queue.connect_timeout_s,
            attempt_timeout_s=around.queue.attempt_timeout_s,
            on_attempt=lambda hop, at: around.on_attempt(self.node_id, hop, at),
            on_unanswered=around.on_unanswered,
        )
        self._shell = RoutingShell(
            self.engine,
            Everywhere(around.server_of),
            self._client,
            backlogs=self.store.moving,
            classes_of=lambda hop: find_classes(around.table, hop, self.store.backlog_counts()),
            now=self.now,
        )
        self._gossip = SimulatedGossip(
            around.clock,
            self.node_id,
            on_change=self._shell.on_snapshot,
            on_session=self._shell.on_session,
            distort=self._distort if around.capacity_noise else lambda link: link,
        )
        self._build_queue()

    def _build_queue(self) -> None:
        around, queue = self._around, self._around.queue
        ids = QueueIds(self.node_id, random.Random(self._starts))
        if around.strategy is None:
            sink: Sink = MeshRouter(self.engine, self.now)
        else:
            sink = around.strategy(self.engine, self.now, random.Random(self._rng.getrandbits(64)))
            self.engine.planning.relays_max = 0
        sorter = Sorter(around.table, "")
        self._dispatcher = Dispatcher(
            self.store,
            SinkChain([Binding("mesh", sink)]),
            self._client,
            self._shell,
            node_id=self.node_id,
            target_of=Everywhere(around.server_of).find,
            reporting=Reporting(
                policy=RetryPolicy.from_settings(queue),
                reporter=Reporter(
                    hostname=f"{self.name}.test",
                    node_id=self.node_id,
                    new_queue_id=ids.new,
                    class_of=lambda recipient: sorter.class_of(recipient.domain),
                    lifetime=timedelta(seconds=queue.lifetime_s),
                ),
            ),
            limits=DispatcherLimits(queue.active_max, queue.in_doubt_hold_s, queue.retry_first_s),
            counters=self.counters,
            now=self.now,
            clock=self.wall,
            rng=random.Random(self._rng.getrandbits(64)),
        )
        self._shell.connect(self._dispatcher, self._gossip)
        self._handover = HandOver(
            self.store,
            self._dispatcher,
            may_leave=lambda class_id: may_leave(self.engine, class_id, self.now()),
            clock=self.wall,
        )
        self._acceptor = QueueAcceptor(
            self.store,
            Spool(NOWHERE),
            around.table,
            self._dispatcher,
            self._shell,
            node_id=self.node_id,
            hostname=f"{self.name}.test",
            settings=queue,
            counters=self.counters,
            backlogs=self.store.moving,
            new_queue_id=ids.new,
            refuse=lambda _: None,
            now=self.now,
            clock=self.wall,
        )

    # -- mail in -------------------------------------------------------------------------------------------------------

    async def accept(self, message: ReceivedMessage) -> Reply | None:
        """The reply to the final dot; None if the process died before it gave one."""
        if not self.alive:
            return None
        life = self._starts
        await asyncio.sleep(COMMIT_S)
        if not self.alive or life != self._starts:
            return None
        if self.draining and not message.client.peer_id:
            return DRAINED
        return await self._acceptor.accept(message)

    async def accept_transfer(self, job: Job, peer: str) -> Reply | None:
        """From another relay."""
        client = Client("192.0.2.1", helo=peer[:8], protocol="ESMTPS", peer_id=peer)
        reply = await self.accept(ReceivedMessage(client, job.envelope, job.data, job.transfer))
        if reply is not None and reply.positive:
            self._around.on_transfer(self.node_id, job)
        return reply

    # -- looking -------------------------------------------------------------------------------------------------------

    def edge_state(self, hop: str) -> EdgeState | None:
        """Of the own edge to a hop; None without one."""
        return self.engine.state_of(Hop.parse(hop))

    def messages(self) -> list[str]:
        """Names of the stored messages that are not finished: the local part of their senders."""
        return [claim.entry.envelope.sender.partition("@")[0] for claim in self.store.unfinished()]

    def inflight(self, hop: str) -> int:
        """Transactions in flight there; of a relay that died, as it died."""
        return self._dispatcher.inflight_count(hop)

    def backlog(self) -> int:
        """Stored deliveries."""
        return sum(self.store.backlog_counts().values())

    def _distort(self, link: LinkState) -> LinkState:
        factor = self._errors.get(link.hop)
        if factor is None:
            factor = self._errors[link.hop] = self._rng.lognormvariate(0, self._around.capacity_noise)
        return replace(link, capacity_mmps=round(link.capacity_mmps * factor))

    async def _prune_often(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_S)
            await self.store.prune(self.wall())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


class Everywhere:
    """Targets by their hop: nothing has an address here."""

    def __init__(self, server_of: Callable[[str], Server | None]) -> None:
        self._server_of = server_of

    def learn(self, snapshot: object) -> None:
        """Addresses are of no use here."""

    def find(self, hop_id: str) -> Target | None:
        """The target of a hop id."""
        server = self._server_of(hop_id)
        return Target(server.hop, server.hop.name, 25, connections_max=SLOTS) if server is not None else None
