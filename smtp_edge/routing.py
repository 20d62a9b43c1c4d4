"""The shell around the routing engine: it carries news in, and what they change out.

In: ends of attempts, gossip's snapshots and sessions, backlogs, time. Out: log lines of edges that changed,
advertisements, probes, and the dispatcher's "ask again". It decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from gossip.linkstate import LinkState, Load, NodeId, Snapshot
from router.decision import Changes, EdgeState, Hop, HopKind, Outcome, OutcomeKind
from router.engine import RoutingEngine
from smtp_edge.client.attempt import AttemptResult, Target
from smtp_edge.dispatch.dispatcher import Dispatcher
from smtp_edge.settings import Settings, SmartHostSettings
from smtp_edge.sinks.api import LinkOutcome

log = structlog.get_logger()

TICK_S = 0.5
"""Between two looks at backlogs and arrivals; the longest between two looks at timers and probes."""
NOISY_STATES = frozenset({EdgeState.DOWN, EdgeState.SUSPECT})


class Advertiser(Protocol):
    """The part of gossip that this shell speaks to."""

    def publish_links(self, links: Sequence[LinkState]) -> None:
        """Advertise the own links."""
        ...

    def publish_load(self, load: Load) -> None:
        """Advertise what waits here."""
        ...


class Prober(Protocol):
    """The part of the outbound client that this shell speaks to."""

    async def probe(self, target: Target) -> AttemptResult:
        """See whether the target takes a session."""
        ...

    def forget(self, hop: Hop) -> None:
        """The hop is down: close its idle connections, and end what is in flight there and not in doubt."""
        ...


class Addresses(Protocol):
    """Hop ids to targets."""

    def learn(self, snapshot: Snapshot) -> None:
        """Take the addresses of peers."""
        ...

    def find(self, hop_id: str) -> Target | None:
        """The target of a hop id; None if it is not known here."""
        ...


class Targets:
    """Hop ids to targets: smart hosts from the configuration, peers from gossip, MX by domain."""

    def __init__(self, settings: Settings) -> None:
        self._peers: dict[str, Target] = {}
        self._peer_connections_max = settings.router.window_max
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Other smart hosts and exchangers from now on; peers are gossip's."""
        self._hosts = {host.name: _host_target(host) for host in settings.smart_host if not host.elsewhere}
        self._mx = settings.mx

    def learn(self, snapshot: Snapshot) -> None:
        """Take the mesh addresses of peers from a snapshot."""
        for node in snapshot.nodes:
            address, _, port = node.info.mesh_address.rpartition(":")
            if address and port.isdigit():
                self._peers[node.node_id] = Target(
                    Hop(HopKind.PEER, node.node_id),
                    address.strip("[]"),
                    int(port),
                    tls="mesh",
                    connections_max=self._peer_connections_max,
                )

    def find(self, hop_id: str) -> Target | None:
        """The target of a hop id; None if it is not known here."""
        try:
            hop = Hop.parse(hop_id)
        except ValueError:
            return None
        match hop.kind:
            case HopKind.SMART_HOST:
                return self._hosts.get(hop.name)
            case HopKind.PEER:
                return self._peers.get(hop.name)
            case HopKind.MX:
                return Target(
                    hop,
                    hop.name,
                    self._mx.port,
                    connections_max=self._mx.connections_max,
                    messages_per_connection_max=self._mx.messages_per_connection_max,
                )


def _host_target(host: SmartHostSettings) -> Target:
    return Target(
        Hop(HopKind.SMART_HOST, host.name),
        host.host,
        host.port,
        protocol=host.protocol,
        socket=host.socket,
        sink=host.sink,
        tls=host.tls,
        tls_ca=host.tls_ca,
        user=host.user,
        password_file=host.password_file,
        connections_max=host.connections_max,
        messages_per_connection_max=host.messages_per_connection_max,
    )


class RoutingShell:
    """Implements `AttemptObserver`; `run` is its timer loop."""

    def __init__(
        self,
        engine: RoutingEngine,
        targets: Addresses,
        client: Prober,
        *,
        backlogs: Callable[[], Mapping[str, int]],
        classes_of: Callable[[Hop], Sequence[str]],
        now: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._targets = targets
        self._client = client
        self._backlogs = backlogs
        self._classes_of = classes_of
        self._now = now
        self._rearm = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._wakes: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()
        self._ticks_at = 0.0
        self._arrivals: dict[str, int] = {}
        """Messages from clients since the last tick, by class."""
        self._planner: asyncio.Task[None] | None = None
        self._dispatcher: Dispatcher | None = None
        self._advertiser: Advertiser | None = None

    def connect(self, dispatcher: Dispatcher, advertiser: Advertiser) -> None:
        """Close the circle of news; called once, before anything happens."""
        self._dispatcher, self._advertiser = dispatcher, advertiser

    # -- AttemptObserver -----------------------------------------------------------------------------------------------

    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None:
        """A slot is taken."""
        self._engine.begin(hop, class_id, self._now(), size_bytes)

    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None:
        """A slot is free, and the edge has one more measurement."""
        now = self._now()
        if result.peer_backlogs and hop.kind is HopKind.PEER:
            self._engine.hear_backlog(hop.name, result.peer_backlogs, now)
        outcome = Outcome(hop, result.kind, began, result.latency_s, size_bytes, message=message, reason=result.reason)
        self.act(self._engine.record(outcome, class_id, now))

    def arrived(self, class_id: str) -> None:
        """A client submitted a message of the class."""
        self._arrivals[class_id] = self._arrivals.get(class_id, 0) + 1

    def backlog_changed(self, class_id: str) -> None:
        """Tell the engine how much of a class is stored here."""
        self._engine.ensure_class(class_id)
        self._engine.set_backlog(class_id, self._backlogs().get(class_id, 0))

    # -- gossip --------------------------------------------------------------------------------------------------------

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """The database changed."""
        self._targets.learn(snapshot)
        self.act(self._engine.apply(snapshot, self._now()))

    def on_session(self, node_id: NodeId, up: bool, reason: str) -> None:
        """A neighbour appeared or is lost."""
        log.info("gossip.session", peer=node_id, up=up, reason=reason)
        self.act(self._engine.peer_session(node_id, up, self._now()))

    # -- time ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Timers, probes, backlogs; ends by cancellation."""
        try:
            while True:
                if self._now() >= self._ticks_at:
                    self.tick()
                else:
                    self._look()
                due = self._engine.next_timer(self._now())
                until = self._ticks_at if due is None else min(self._ticks_at, due)
                delay_s = max(0.01, until - self._now())
                try:
                    async with asyncio.timeout(delay_s):
                        await self._rearm.wait()
                except TimeoutError:
                    pass
                self._rearm.clear()
        finally:
            if self._planner is not None:
                self._planner.cancel()

    def tick(self) -> None:
        """Twice a second, whatever happens: what waits and what came is taken in and told; then the edges.

        News wake the shell far more often, but they are about edges. Were they a reason to tell the own load, every
        load that gossip brings would be one.
        """
        self._ticks_at = self._now() + TICK_S
        backlogs = self._backlogs()
        for class_id in {*backlogs, *self._told}:
            self._engine.ensure_class(class_id)
            self._engine.set_backlog(class_id, backlogs.get(class_id, 0))
        self._told = set(backlogs)
        now = self._now()
        arrivals, self._arrivals = self._arrivals, {}
        self._engine.note_arrivals(arrivals, now)
        if self._planner is None and self._engine.begin_plan(now):
            self._planner = asyncio.create_task(self._plan())
        self._look()
        if self._advertiser is not None:
            self._advertiser.publish_load(self._engine.load(self._now()))

    def _look(self) -> None:
        """Edges whose time has come, and probes."""
        now = self._now()
        self.act(self._engine.on_timer(now))
        for hop in self._engine.probes_due(now):
            task = asyncio.create_task(self._probe(hop))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _plan(self) -> None:
        """Work on the joint plan in steps: mail goes on in between."""
        try:
            while self._engine.plan_step(self._now()):  # noqa: ASYNC110  (it yields, it does not wait)
                await asyncio.sleep(0)
        finally:
            self._planner = None

    async def _probe(self, hop: Hop) -> None:
        target, began = self._targets.find(hop.id), self._now()
        if target is None:
            result = AttemptResult(OutcomeKind.CONNECT_FAILED, reason="its address is not known here")
        elif target.sink:  # what it can do shows with the next message
            result = AttemptResult(OutcomeKind.ACCEPTED)
        else:
            result = await self._client.probe(target)
        log.debug("probe", next_hop=hop.id, outcome=result.kind.value, reason=result.reason)
        outcome = Outcome(hop, result.kind, began, result.latency_s, probe=True, reason=result.reason)
        self.act(self._engine.record(outcome, "", self._now()))

    # -- acting --------------------------------------------------------------------------------------------------------

    def act(self, changes: Changes) -> None:
        """Log, advertise, ask again: what a change of the routes brings along."""
        if not changes:
            return
        for change in changes.transitions:
            level = log.warning if change.after in NOISY_STATES else log.info
            level(
                "route.change", next_hop=change.hop.id, before=change.before, after=change.after, reason=change.reason
            )
            if change.after is EdgeState.DOWN:
                self._client.forget(change.hop)
            if self._dispatcher is not None and self._dispatcher.reports.wanted("link"):
                told = LinkOutcome(change.hop.id, change.before.value, change.after.value, change.reason)
                self._dispatcher.reports.tell(told)
        if self._advertiser is not None and (changes.links_changed or changes.transitions):
            self._advertiser.publish_links(self._engine.links(self._now()))
        if self._dispatcher is not None:
            self._dispatcher.ask_again(news=True, back=[hop.id for hop in changes.opened])
            classes = sorted({*changes.woken, *(name for hop in changes.opened for name in self._classes_of(hop))})
            if classes:
                task = asyncio.create_task(self._dispatcher.wake(classes))
                self._wakes.add(task)
                task.add_done_callback(self._wakes.discard)
        self._rearm.set()
