"""A whole mail mesh in virtual time: relays with their real engines and queues, smart hosts, mail, and failures.

    from smtp_edge.simulation import Mesh

    mesh = Mesh(seed=1)
    mesh.host("s1", capacity_mps=40)
    mesh.host("s2", capacity_mps=80)
    mesh.relay("a", exits=["s1", "s2"])
    mesh.relay("b", exits=["s2"])
    mesh.load("a", rate_mps=60)
    mesh.kill("s2", at=10.0)
    mesh.restart("s2", at=20.0)
    mesh.run(40)
    assert mesh.lost == 0
    assert mesh.reroute_s < 1

Times are virtual seconds since the first mail could flow; `at` none means now. Same seed and calls, same run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gossip.linkstate import NodeId
from router.decision import EdgeState, Hop, HopKind
from router.flow import compute_joint_bound
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from router.terms import NO_TERMS, Policy, Terms
from router.topology import Arc
from smtp_edge.client.attempt import Job
from smtp_edge.envelope import Client, Envelope, MailData, ReceivedMessage, Recipient
from smtp_edge.reply import Reply
from smtp_edge.settings import QueueSettings
from smtp_edge.simulation.adapters import WorldClock
from smtp_edge.simulation.gossip import GossipWorld
from smtp_edge.simulation.ledger import Ledger
from smtp_edge.simulation.loop import VirtualTimeLoop
from smtp_edge.simulation.network import Network
from smtp_edge.simulation.relay import QUEUE, SimulatedRelay, Strategy, Surroundings
from smtp_edge.simulation.ways import ACCEPTED, GREYLISTED, TOO_LARGE, Server, Way

WARM_UP_S = 3.0
"""Before the first mail: sessions are measured, probes are back."""
DOMAIN = "example.org"
HEADER = b"Subject: simulated\r\n\r\n"
SAMPLE_S = 0.5
"""Between two samples, unless the mesh is told otherwise."""
UNLIMITED_MMPS = 10**9
WATCH_S = 0.005
WATCHED_MAX_S = 30.0

Rate = float | Callable[[float], float]
"""Messages a second; one that changes is a function of the mesh's time."""


class MeshError(ValueError):
    """The mesh cannot be built or told so; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The mesh at one moment."""

    at: float
    bound_mps: float
    """What it could carry at most from the relays that clients use (max-flow over what works)."""
    queued: int


@dataclass(frozen=True, slots=True)
class Clients:
    """Who submit mail to one relay."""

    relay: str
    rate_mps: Rate
    domain: str
    since: float
    until: float
    size_bytes: int
    even: bool


@dataclass(frozen=True, slots=True)
class Rerouted:
    """How a relay took a failure."""

    relay: str
    hop: str
    failed_at: float
    after_s: float
    """Until its edge to what failed was no longer used for new mail."""


class Mesh:
    """See the module."""

    def __init__(
        self,
        *,
        seed: int = 1,
        strategy: Strategy | None = None,
        gossip_delay_s: tuple[float, float] = (0.001, 0.001),
        capacity_noise: float = 0.0,
        router: RouterSettings | None = None,
        queue: QueueSettings = QUEUE,
        records: bool = False,
        sample_s: float = SAMPLE_S,
    ) -> None:
        """`capacity_noise`: how wrong what relays tell of their links' capacities is (deviation of its logarithm).

        `records`: each relay keeps what its engine was told and answered (`SimulatedRelay.recordings`).
        """
        self._records, self._sample_s, self._capacity_noise = records, sample_s, capacity_noise
        self._router, self._queue = router or RouterSettings(), queue
        self._rng = random.Random(seed)
        self._seed, self._strategy, self._gossip_delay_s = seed, strategy, gossip_delay_s
        self._rules: list[RouteRule] = []
        self._exits: dict[str, tuple[str, ...]] = {}
        self._hosts: dict[str, Server] = {}
        self._ways: dict[tuple[str, str], Way] = {}
        self._default_way = Way()
        self._terms: dict[str, Terms] = {}
        self._tags: dict[str, tuple[str, ...]] = {}
        self._loads: list[Clients] = []
        self._plan: list[tuple[float, Callable[[], None]]] = []
        self._loop = VirtualTimeLoop()
        self._began = 0.0
        self._built = False
        self._bound_mps: float | None = None
        """Until the next event."""
        self._watched: list[asyncio.Task[None]] = []
        self._restarts: Counter[str] = Counter()
        self.relays: dict[str, SimulatedRelay] = {}
        self.ledger = Ledger()
        self.rerouted: list[Rerouted] = []
        self.events: list[tuple[float, str]] = []
        """(when, what) for timelines."""
        self.samples: list[Sample] = []
        """Every `sample_s`."""

    # -- the topology --------------------------------------------------------------------------------------------------

    def host(
        self,
        name: str,
        capacity_mps: float = float("inf"),
        *,
        error_rate: float = 0.0,
        tags: Sequence[str] = (),
        size_bytes_max: int = 0,
        greylist_s: float = 0.0,
    ) -> None:
        """A smart host that takes so many messages a second from all relays together.

        `greylist_s`: it tells every message to come back, until so long after it saw it first.
        """
        self._new(name)
        hop = Hop(HopKind.SMART_HOST, name)
        self._terms[name] = Terms(tuple(sorted(tags)), size_bytes_max=size_bytes_max)
        seen: dict[str, float] = {}

        async def accept(job: Job, _client: str) -> Reply | None:
            message = _message_id(job)
            if size_bytes_max and len(job.prefix) + job.data.size_bytes > size_bytes_max:
                return TOO_LARGE
            if self.now - seen.setdefault(message, self.now) < greylist_s:
                return GREYLISTED
            self.ledger.delivered(message, name, self.now)
            return ACCEPTED

        self._hosts[name] = Server(hop, accept, capacity_mps, error_rate)

    def relay(self, name: str, exits: Sequence[str] = (), *, tags: Sequence[str] = ()) -> None:
        """A relay of the cluster and the smart hosts that it can reach."""
        self._new(name)
        self._exits[name], self._tags[name] = tuple(exits), tuple(tags)

    def route(
        self,
        name: str,
        domains: Sequence[str] = ("*",),
        via: Sequence[str] = (),
        *,
        require_tags: Sequence[str] = (),
        forbid_tags: Sequence[str] = (),
        transit: bool = True,
    ) -> None:
        """A class of destinations and its exits; without any there is one class that leaves by every host.

        What its mail asks of exits and relays is as in `[[route]]` of a node.
        """
        policy = Policy(tuple(require_tags), tuple(forbid_tags), transit=transit)
        self._rules.append(RouteRule(name, tuple(domains), tuple(via), policy))

    def way(
        self,
        here: str,
        there: str,
        *,
        capacity_mps: float = float("inf"),
        latency_s: float = 0.002,
        loss: float = 0.0,
        lost_replies: float = 0.0,
    ) -> None:
        """How the path from a relay to a next hop is (`ways.Way`)."""
        self._ways[here, there] = Way(latency_s, capacity_mps, loss=loss, lost_replies=lost_replies)

    def apart(self, here: str, there: str) -> None:
        """There is no way from a relay to another one, whatever is healed: they know of each other by gossip only."""
        self._ways.setdefault((here, there), Way()).missing = True

    def load(
        self,
        relay: str,
        rate_mps: Rate,
        *,
        domain: str = DOMAIN,
        since: float = 0.0,
        until: float = float("inf"),
        size_bytes: int = 0,
        even: bool = False,
    ) -> None:
        """Clients submit mail to a relay: a Poisson stream, or evenly spaced.

        `size_bytes`: of each message, 0 = a short one.
        """
        self._loads.append(Clients(relay, rate_mps, domain, since, until, size_bytes, even))

    def _new(self, name: str) -> None:
        if self._built:
            raise MeshError("the mesh runs already: name its relays and hosts first")
        if name in self._hosts or name in self._exits:
            raise MeshError(f"there is a {name!r} already")

    # -- failures ------------------------------------------------------------------------------------------------------

    def kill(self, name: str, *, at: float | None = None) -> None:
        """kill -9 of a relay or a host: its connections are reset, new ones refused."""
        known = self._known(name)
        self._at(at, lambda: self._kill(known), f"kill {name}")

    def restart(self, name: str, *, at: float | None = None) -> None:
        """Start it again; a relay finds its queue as it was."""
        known = self._known(name)
        self._at(at, lambda: self._restart(known), f"restart {name}")

    def silence(self, name: str, *, at: float | None = None) -> None:
        """A black hole: nothing comes back from there, and nothing says why."""
        known = self._known(name)
        self._at(at, lambda: self._silence(known), f"silence {name}")

    def degrade(
        self, name: str, *, to: str = "", speed: float = 0.2, error_rate: float = 0.5, at: float | None = None
    ) -> None:
        """A gray failure: a share of the speed, and errors. `speed=1, error_rate=0` ends it.

        Of a host, whose errors are 451 replies; with `to` of the way from a relay to a next hop, whose errors are
        connections that break before the final dot.
        """

        def act() -> None:
            if to:
                way = self._way_of(self._nodes[name], self._hop_id(to))
                way.speed, way.loss = speed, error_rate
            else:
                self._hosts[name].speed, self._hosts[name].error_rate = speed, error_rate

        self._known(name)
        if to:
            self._known(to)
        if (name in self._exits) != bool(to):
            raise MeshError(f"{name}: degrade a host, or the way from a relay to a next hop")
        self._at(at, act, f"degrade {name}{f' -> {to}' if to else ''} to {speed:.0%}, {error_rate:.0%} errors")

    def partition(self, one: Iterable[str], other: Iterable[str], *, at: float | None = None) -> None:
        """Cut two groups of relays from each other, gossip and mail."""
        west, east = [self._known(name) for name in one], [self._known(name) for name in other]
        self._at(at, lambda: self._cut(west, east, blocked=True), f"partition {' '.join(west)} | {' '.join(east)}")

    def heal(self, *, at: float | None = None) -> None:
        """End all cuts."""
        self._at(at, self._heal, "heal")

    def block(self, here: str, there: str, *, at: float | None = None) -> None:
        """Mail from a relay to one next hop gets lost on its way."""
        self._known(here), self._known(there)
        self._at(at, lambda: self._block(here, there, blocked=True), f"block {here} -> {there}")

    def unblock(self, here: str, there: str, *, at: float | None = None) -> None:
        """It comes through again."""
        self._known(here), self._known(there)
        self._at(at, lambda: self._block(here, there, blocked=False), f"unblock {here} -> {there}")

    # -- orders --------------------------------------------------------------------------------------------------------

    def drain(self, name: str, *, at: float | None = None) -> None:
        """The operator drains a relay (it takes nothing and gives its queue away), or a host on all relays.

        It stays so until `undrain`, over kills and restarts.
        """
        known = self._known(name)
        self._at(at, lambda: self._drain(known, True), f"drain {name}")

    def undrain(self, name: str, *, at: float | None = None) -> None:
        """The order is taken back."""
        known = self._known(name)
        self._at(at, lambda: self._drain(known, False), f"undrain {name}")

    def pin(self, relay: str, class_id: str, hop: str, *, for_s: float = 3600.0, at: float | None = None) -> None:
        """The operator of a relay sends all mail of a class by one host or relay."""
        here, there = self._known(relay), self._known(hop)

        def act() -> None:
            self.relays[here].pin(class_id, Hop.parse(self._hop_id(there)), for_s)

        self._at(at, act, f"pin {class_id} to {hop} at {relay}")

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> Mesh:
        """Let time pass."""
        if not self._built:
            self._loop.run_until_complete(self._build())
        self._loop.run_until_complete(asyncio.sleep(duration_s))
        return self

    def run_until(self, condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
        """Let time pass until it holds; False after the limit."""
        end = self.now + limit_s if self._built else limit_s
        while not condition():
            if self.now >= end:
                return False
            self.run(0.01)
        return True

    def close(self) -> None:
        """End everything. A closed mesh can still be asked."""
        if self._loop.is_closed():
            return
        for relay in self.relays.values():
            if relay.alive:
                relay.kill()
        if self._built:
            self._clock.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(_gather(tasks))
        self._loop.close()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since mail could flow."""
        return self._loop.time() - self._began if self._built else 0.0

    @property
    def accepted(self) -> int:
        """Messages answered 250 by a relay."""
        return len(self.ledger.accepted)

    @property
    def delivered(self) -> int:
        """Different messages that reached a smart host."""
        return len(self.ledger.deliveries)

    @property
    def doubled(self) -> int:
        """Second and further copies at smart hosts."""
        return sum(self.ledger.deliveries.values()) - len(self.ledger.deliveries)

    @property
    def doubled_inside(self) -> int:
        """Those of them that the mesh is to blame for: there may be none, ever."""
        return self.ledger.doubled_inside

    @property
    def queued(self) -> int:
        """Deliveries in the queues of all relays, dead ones included."""
        return sum(relay.backlog() for relay in self.relays.values())

    @property
    def lost(self) -> int:
        """Accepted messages that are neither delivered nor in a queue: there may be none, ever."""
        waiting = {name for relay in self.relays.values() for name in relay.messages()}
        return sum(name not in self.ledger.deliveries and name not in waiting for name in self.ledger.accepted)

    def taken(self, here: str, there: str) -> int:
        """Messages that a next hop accepted from a relay so far."""
        return self._way_of(self._nodes[here], self._hop_id(there)).taken

    def inflight(self, here: str, there: str) -> int:
        """Transactions of a relay in flight on a next hop."""
        return self.relays[here].inflight(self._hop_id(there))

    @property
    def reroute_s(self) -> float:
        """The longest time that any relay went on using something that had failed; 0 if nothing failed."""
        return max((item.after_s for item in self.rerouted), default=0.0)

    def throughput_mps(self, since: float = 0.0, until: float | None = None) -> float:
        """Messages a second at the smart hosts."""
        end = self.now if until is None else until
        return self.ledger.count(since, end) / (end - since) if end > since else 0.0

    def rates(self, since: float, until: float) -> dict[str, float]:
        """Messages a second at each smart host."""
        return {
            host: (self.ledger.count_of(host, since) - self.ledger.count_of(host, until)) / (until - since)
            for host in sorted(self._hosts)
        }

    def shares(self, since: float = 0.0) -> dict[str, float]:
        """Of the deliveries since then, by host."""
        counts = Counter({host: self.ledger.count_of(host, since) for host in self._hosts})
        total = counts.total()
        return {host: count / total if total else 0.0 for host, count in sorted(counts.items())}

    def bound_mps(self) -> float:
        """What could be carried now at most, from the relays that clients use: the max-flow over all that works."""
        if self._bound_mps is None:
            self._bound_mps = self._compute_bound()
        return self._bound_mps

    def _compute_bound(self) -> float:
        arcs = [arc for name, relay in self.relays.items() if relay.alive for arc in self._arcs_of(name)]
        exits = {
            f"host:{name}": _mmps(host.capacity_mps * host.speed * (1 - host.error_rate))
            for name, host in self._hosts.items()
        }
        sources = {load.relay for load in self._loads if self._takes_mail(load.relay)}
        return compute_joint_bound(arcs, [self._nodes[name] for name in sources], exits) / 1000

    def _takes_mail(self, relay: str) -> bool:
        return self.relays[relay].alive and not self.relays[relay].draining

    def _arcs_of(self, name: str) -> list[Arc]:
        arcs = []
        hops = [*self._exits[name], *(other for other in self._exits if other != name)]
        for hop in hops:
            hop_id = f"peer:{self._nodes[hop]}" if hop in self._nodes else f"host:{hop}"
            way, server = self._way_of(self._nodes[name], hop_id), self._server_of(hop_id)
            if way.closed or server is None or server.refusing or server.silent:
                continue
            if hop in self.relays[name].drained or (hop in self.relays and self.relays[hop].draining):
                continue
            capacity = _mmps(way.capacity_mps * way.speed * (1 - way.loss))
            arcs.append(Arc(self._nodes[name], server.hop, 1.0, capacity, ()))
        return arcs

    # -- building ------------------------------------------------------------------------------------------------------

    async def _build(self) -> None:
        if not self._exits:
            raise MeshError("there is no relay")
        for name, exits in self._exits.items():
            if unknown := [host for host in exits if host not in self._hosts]:
                raise MeshError(f"{name} has the exits {', '.join(unknown)}, which are no hosts")
        rules = [
            dataclasses.replace(rule, terms=tuple(self._terms.get(host, NO_TERMS) for host in rule.via))
            for rule in self._rules or [RouteRule("default", ("*",), tuple(self._hosts))]
        ]
        world = GossipWorld.converged(
            len(self._exits),
            seed=self._seed,
            network=Network(random.Random(self._seed), delay_s=self._gossip_delay_s),
        )
        world.keeps_events = False
        self._clock = WorldClock(world)
        self._nodes = dict(zip(self._exits, world.nodes, strict=True))
        self._names = {node: name for name, node in self._nodes.items()}
        around = Surroundings(
            self._clock,
            RouteTable(rules),
            self._server_of,
            self._way_of,
            self._note_attempt,
            self._note_transfer,
            self._note_unanswered,
            strategy=self._strategy,
            records=self._records,
            router=self._router,
            queue=self._queue,
            capacity_noise=self._capacity_noise,
            terms=self._terms,
        )
        for name, exits in self._exits.items():
            rng = random.Random(self._rng.getrandbits(64))
            self.relays[name] = SimulatedRelay(self._nodes[name], name, exits, around, rng, tags=self._tags[name])
        for relay in self.relays.values():
            await relay.start()
        await asyncio.sleep(WARM_UP_S)
        self._built, self._began = True, self._loop.time()
        for clients in self._loads:
            self._known(clients.relay)
            rng = random.Random(self._rng.getrandbits(64))
            self._watched.append(asyncio.create_task(self._submit_often(clients, rng)))
        for at, act in self._plan:
            self._loop.call_at(self._began + at, act)
        if self._sample_s:
            self._watched.append(asyncio.create_task(self._sample_often()))

    def _server_of(self, hop_id: str) -> Server | None:
        kind, _, name = hop_id.partition(":")
        if kind == HopKind.PEER:
            found = self._names.get(NodeId(name))
            return self.relays[found].server if found is not None and found in self.relays else None
        return self._hosts.get(name)

    def _way_of(self, node: NodeId, hop_id: str) -> Way:
        name = hop_id.partition(":")[2]
        key = self._names[node], self._names.get(NodeId(name), name)
        if key not in self._ways:
            self._ways[key] = dataclasses.replace(self._default_way)
        return self._ways[key]

    def _known(self, name: str) -> str:
        if name not in self._exits and name not in self._hosts:
            known = ", ".join([*self._exits, *self._hosts])
            raise MeshError(f"there is no relay or host {name!r}; there are: {known}")
        return name

    def _at(self, at: float | None, act: Callable[[], None], text: str) -> None:
        def noted() -> None:
            self.events.append((self.now, text))
            self._bound_mps = None
            act()

        if self._built:
            self._loop.call_at(self._loop.time() if at is None else self._began + at, noted)
            if at is None:
                self.run(0)
        else:
            self._plan.append((at or 0.0, noted))

    # -- mail ----------------------------------------------------------------------------------------------------------

    async def _submit_often(self, clients: Clients, rng: random.Random) -> None:
        await asyncio.sleep(clients.since)
        number, body = 0, _body(clients.size_bytes)
        size = f"-{clients.size_bytes}" if clients.size_bytes else ""
        name = f"{clients.relay}-{clients.domain}-{clients.since:g}{size}"
        while True:
            rate_mps = clients.rate_mps(self.now) if callable(clients.rate_mps) else clients.rate_mps
            await asyncio.sleep(1 / rate_mps if clients.even else rng.expovariate(rate_mps))
            if self.now >= clients.until:
                return
            number += 1
            task = asyncio.create_task(self._submit(clients.relay, f"{name}-{number}", clients.domain, body))
            self._watched.append(task)
            task.add_done_callback(self._watched.remove)

    async def _sample_often(self) -> None:
        while True:
            self.samples.append(Sample(self.now, self.bound_mps(), self.queued))
            await asyncio.sleep(self._sample_s)

    async def _submit(self, relay: str, name: str, domain: str, body: bytes) -> None:
        message = ReceivedMessage(
            Client("192.0.2.9", helo="client.test", protocol="ESMTP"),
            Envelope(f"{name}@client.test", (Recipient(f"r@{domain}"),)),
            MailData(len(body), inline=body, header=HEADER),
        )
        self.ledger.offered += 1
        at = self.now
        reply = await self.relays[relay].accept(message)
        if reply is not None and reply.positive:
            self.ledger.accepted[name] = at
        else:
            self.ledger.refused += 1

    # -- acts ----------------------------------------------------------------------------------------------------------

    def _kill(self, name: str) -> None:
        if name in self._hosts:
            self._hosts[name].refusing = True
            self._hosts[name].break_connections()
        elif self.relays[name].alive:
            self.relays[name].kill()
            self._clock.world.kill(self._nodes[name])
            self._clock.arm()
        self._watch(name)

    def _restart(self, name: str) -> None:
        self._restarts[name] += 1
        if name in self._hosts:
            host = self._hosts[name]
            host.refusing, host.silent = False, False
            host.break_connections()
            return
        self.relays[name].server.silent = False
        if not self.relays[name].alive:
            self._clock.world.restart(self._nodes[name])
            self._clock.arm()
            self._watched.append(self._loop.create_task(self._start(self.relays[name])))

    async def _start(self, relay: SimulatedRelay) -> None:
        await relay.start()
        self._bound_mps = None

    def _drain(self, name: str, draining: bool) -> None:
        if name in self.relays:
            self.relays[name].drain(draining)
        else:
            for relay in self.relays.values():
                if name in relay.exits:
                    relay.drain_host(name, draining)

    def _silence(self, name: str) -> None:
        if name in self._hosts:
            self._hosts[name].silent = True
        else:
            self.relays[name].server.silent = True
            self.relays[name].kill()
            self._clock.world.vanish(self._nodes[name])
            self._clock.arm()
        self._watch(name)

    def _cut(self, west: Sequence[str], east: Sequence[str], *, blocked: bool) -> None:
        for one in west:
            for other in east:
                self._block(one, other, blocked=blocked)
                self._block(other, one, blocked=blocked)
        self._clock.world.partition([self._nodes[name] for name in west], [self._nodes[name] for name in east])
        self._clock.arm()

    def _heal(self) -> None:
        for way in self._ways.values():
            way.unblock()
        self._clock.world.heal()
        self._clock.arm()

    def _block(self, here: str, there: str, *, blocked: bool) -> None:
        way = self._way_of(self._nodes[here], self._hop_id(there))
        if blocked:
            way.blocked = True
        else:
            way.unblock()

    def _hop_id(self, name: str) -> str:
        return f"peer:{self._nodes[name]}" if name in self._nodes else f"host:{name}"

    # -- rerouting -----------------------------------------------------------------------------------------------------

    def _watch(self, name: str) -> None:
        hop = self._hop_id(name)
        for relay in self.relays.values():
            if relay.alive and relay.edge_state(hop) in (EdgeState.UP, EdgeState.SUSPECT):
                task = self._loop.create_task(self._watch_one(relay, hop, name, self._loop.time()))
                self._watched.append(task)
                task.add_done_callback(self._watched.remove)

    async def _watch_one(self, relay: SimulatedRelay, hop: str, name: str, failed: float) -> None:
        restarts = self._restarts[name]
        while relay.alive and self._loop.time() - failed < WATCHED_MAX_S and restarts == self._restarts[name]:
            if relay.edge_state(hop) not in (EdgeState.UP, EdgeState.SUSPECT):
                self.rerouted.append(Rerouted(relay.name, name, failed - self._began, self._loop.time() - failed))
                return
            await asyncio.sleep(WATCH_S)
        if relay.alive and restarts == self._restarts[name]:  # what is back need not be left any more
            self.rerouted.append(Rerouted(relay.name, name, failed - self._began, WATCHED_MAX_S))

    def _note_attempt(self, node: NodeId, hop_id: str, at: float) -> None:
        self.ledger.attempts += 1

    def _note_transfer(self, node: NodeId, job: Job) -> None:
        self.ledger.transferred(job.transfer.trace if job.transfer is not None else (), node)

    def _note_unanswered(self, hop_id: str, job: Job) -> None:
        if hop_id.partition(":")[2] in self._hosts:
            self.ledger.unanswered[_message_id(job)] += 1


def _mmps(capacity_mps: float) -> int:
    return int(min(UNLIMITED_MMPS, capacity_mps * 1000))


def _body(size_bytes: int) -> bytes:
    return HEADER + b"x" * (max(len(HEADER) + 6, size_bytes) - len(HEADER) - 2) + b"\r\n"


def _message_id(job: Job) -> str:
    return job.envelope.sender.partition("@")[0]


async def _gather(tasks: Iterable[asyncio.Task[object]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
