"""Gossip machines in virtual time: one heap of events, and everything that can go wrong with a node or a way.

Nodes crash (`kill`: their peers see a reset), vanish (`vanish`: silence), freeze and thaw, restart with or without
their state, read slowly, and have wall clocks of their own. The shell around each machine is modelled as
`gossip.service` behaves: a dial takes two round trips, of two sessions of a pair the one dialled by the smaller id
stays, a refused dial is told apart from one that times out.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gossip.database import Database, Held
from gossip.effects import Effects
from gossip.fit import shard_links
from gossip.frames import Aged, Announce, Chunk, Digest, Frame, Graft, Hello, Push, Record, Request
from gossip.linkstate import Key, Kind, LinkState, LinkStatus, NodeId, NodeInfo, Payload, Sessions, Version
from gossip.machine import Machine
from gossip.overlay import Rings
from gossip.settings import GossipSettings
from gossip.status import Event
from gossip.wire import decode_record, encode_body
from smtp_edge.simulation.network import Network
from smtp_edge.simulation.shared import Layered
from smtp_edge.simulation.stub import certificate_of, member_of, node_id_of, sign_as

WALL = 1_780_000_000
BEGIN_S = 1000.0
SEGMENT_BYTES = 140
"""Around a frame on the wire: gRPC 5, HTTP/2 9, TLS 22, TCP and IP 52, and the other side's acknowledgement 52."""
ADVERTISEMENT_BYTES = 16
LINE_BYTES = 60
BASE_LIFETIME_S = 86_400
OUTBOX_BLOCKED, OUTBOX_OPEN, OUTBOX_MAX = 32, 4, 1000
"""Frames that wait for one peer, as in `gossip.service`."""


@dataclass(slots=True)
class Stream:
    """One direction-free session of two nodes."""

    one: NodeId
    other: NodeId
    dialled_by: NodeId
    open: set[NodeId] = field(default_factory=set)
    """Ends that use it."""
    arrives: dict[NodeId, float] = field(default_factory=dict)
    """When the last frame to an end arrives: a stream keeps its order."""
    stuck: list[tuple[NodeId, Frame | None]] = field(default_factory=list)
    """What waits for the end of a cut: receiver, frame (None: the closing)."""
    unread: dict[NodeId, deque[Frame | None]] = field(default_factory=dict)
    """What waits for an end that reads slowly."""

    def peer(self, node: NodeId) -> NodeId:
        """The other end."""
        return self.other if node == self.one else self.one


@dataclass(slots=True)
class SimulatedNode:
    """One node with its shell."""

    node_id: NodeId
    name: str
    machine: Machine
    zone: str = ""
    wall_offset_s: int = 0
    alive: bool = True
    vanished: bool = False
    frozen_until: float = 0.0
    reads_every_s: float = 0.0
    """A slow reader: the time between two frames of a stream."""
    timer_at: float = float("inf")
    streams: dict[NodeId, Stream] = field(default_factory=dict)
    links: tuple[LinkState, ...] = ()
    bytes_sent: int = 0
    frames_sent: int = 0
    incarnation: int = 0
    on_effects: Callable[[Effects], None] | None = None
    """What a node around this machine is to be told (`simulation.adapters`)."""


class GossipWorld:
    """See the module. Build with `converged` (everybody knows everybody) or `fresh` (everybody has one seed)."""

    def __init__(self, *, seed: int, settings: GossipSettings | None = None, network: Network | None = None) -> None:
        self.settings = settings or GossipSettings()
        self.rng = random.Random(seed)
        self.network = network or Network(random.Random(seed + 1))
        self.now = BEGIN_S
        self.by_id: dict[NodeId, SimulatedNode] = {}
        self.nodes: list[NodeId] = []
        self.events: list[tuple[float, NodeId, Event]] = []
        self.losses: list[tuple[float, NodeId, NodeId, str]] = []
        """(when, who, whom, why): sessions that a machine gave up, and peers that it told as lost."""
        self.on_stored: Callable[[NodeId, Record], None] | None = None
        self.keeps_events = True
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)
        self._rings: dict[int, Rings] = {}
        self.handled = 0

    # -- building ------------------------------------------------------------------------------------------------------

    @classmethod
    def converged(
        cls,
        count: int,
        *,
        seed: int = 1,
        settings: GossipSettings | None = None,
        network: Network | None = None,
        zones: int = 1,
    ) -> GossipWorld:
        """A cluster that has run for a while: equal databases, all sessions up."""
        world = cls(seed=seed, settings=settings, network=network)
        ids = [node_id_of(index) for index in range(count)]
        zone_of = {node: f"zone-{index % zones}" for index, node in enumerate(ids)}
        rings = Rings.of(zone_of)
        neighbours = {node: sorted(rings.neighbours(node, zone_of[node], lambda _: False)) for node in ids}
        base: dict[Key, Held] = {}
        sums = [0] * 256
        payloads: dict[NodeId, dict[Kind, Payload]] = {}
        for index, node in enumerate(ids):
            links = _links(index)
            payloads[node] = {
                Kind.NODE: _info(index, zone_of[node]),
                Kind.LINKS: shard_links(links)[0][0],
                Kind.SESSIONS: Sessions(tuple(neighbours[node])),
            }
            for sequence, (kind, payload) in enumerate(payloads[node].items(), start=1):
                record = _record(node, kind, payload, sequence)
                base[record.key] = Held(record, world.now, world.now + BASE_LIFETIME_S, 0.0)
                sums[int(node[:2], 16)] = (sums[int(node[:2], 16)] + record.mark) % 2**64
        members = {node: member_of(certificate_of(node)) for node in ids}
        for index, node in enumerate(ids):
            database = Database(
                "simulated", member_of, Layered(base), sums, Layered(members), expire_from=world.now + BASE_LIFETIME_S
            )
            machine = world._machine(node, WALL, database, zone_of)
            world._add(SimulatedNode(node, f"n{index}", machine, zone_of[node], links=_links(index)))
        for node in ids:
            world.by_id[node].machine.resume(payloads[node], neighbours[node], rings, world.now)
            for peer in neighbours[node]:
                stream = world.by_id[peer].streams.get(node) or Stream(node, peer, min(node, peer), {node, peer})
                world.by_id[node].streams[peer] = stream
            world._arm(world.by_id[node])
        return world

    @classmethod
    def fresh(
        cls, count: int, *, seed: int = 1, settings: GossipSettings | None = None, network: Network | None = None
    ) -> GossipWorld:
        """Nodes that have never met; each dials the first one."""
        world = cls(seed=seed, settings=settings, network=network)
        for index in range(count):
            world.join(index)
        return world

    def join(self, index: int, *, seed_node: NodeId | None = None, zone: str = "zone-0") -> NodeId:
        """A new node, which dials a seed (the first node) until it knows somebody."""
        node = node_id_of(index)
        machine = self._machine(node, WALL, None, None)
        made = SimulatedNode(node, f"n{index}", machine, zone, links=_links(index))
        self._add(made)
        self._begin(made, index)
        if self.nodes[0] != node:
            self._dial_seed(node, seed_node or self.nodes[0], made.incarnation)
        return node

    def _begin(self, node: SimulatedNode, index: int) -> None:
        wall = self._wall(node)
        info = _info(index, node.zone)
        self._act(node, node.machine.publish(Kind.NODE, [info], self.now, wall))
        self._act(node, node.machine.publish(Kind.LINKS, shard_links(node.links)[0], self.now, wall))
        self._arm(node)

    def _machine(self, node: NodeId, epoch: int, database: Database | None, zones: dict[NodeId, str] | None) -> Machine:
        return Machine(
            node_id=node,
            cluster="simulated",
            certificate=certificate_of(node),
            sign=lambda message: sign_as(node, message),
            member_of=member_of,
            settings=self.settings,
            epoch=epoch,
            rng=random.Random(self.rng.getrandbits(64)),
            now=self.now,
            database=database,
            rings_of=self._rings_of,
            zones=zones,
        )

    def _rings_of(self, number: int, zones: dict[NodeId, str]) -> Rings:
        if number not in self._rings:
            if len(self._rings) > 64:
                self._rings.clear()
            self._rings[number] = Rings.of(zones)
        return self._rings[number]

    def _add(self, node: SimulatedNode) -> None:
        self.by_id[node.node_id] = node
        self.nodes.append(node.node_id)

    # -- what happens to nodes -----------------------------------------------------------------------------------------

    def publish_links(self, node: NodeId, links: Iterable[LinkState]) -> None:
        """A node measured something."""
        found = self.by_id[node]
        found.links = tuple(links)
        self.publish(node, Kind.LINKS, shard_links(found.links)[0])

    def publish(self, node: NodeId, kind: Kind, payloads: Sequence[Payload]) -> None:
        """A node says something new about itself. A dead one says nothing."""
        found = self.by_id[node]
        if found.alive:
            self._act(found, found.machine.publish(kind, payloads, self.now, self._wall(found)))
            self._arm(found)

    def kill(self, node: NodeId) -> None:
        """kill -9: the system resets its connections."""
        found = self.by_id[node]
        found.alive = False
        found.timer_at = float("inf")
        for peer, stream in list(found.streams.items()):
            stream.open.discard(node)
            self._send(stream, node, peer, None)
        found.streams.clear()

    def reset(self, one: NodeId, other: NodeId) -> None:
        """The connection of two nodes breaks, and both see it at once."""
        stream = self.by_id[one].streams[other]
        self._push(self.now, self._deliver, stream, one, other, None)
        self._push(self.now, self._deliver, stream, other, one, None)

    def vanish(self, node: NodeId) -> None:
        """Power or network gone: nobody is told anything."""
        found = self.by_id[node]
        found.alive = False
        found.vanished = True
        found.timer_at = float("inf")
        found.streams.clear()

    def freeze(self, node: NodeId, duration_s: float) -> None:
        """The process stands still; its system goes on accepting bytes for it."""
        found = self.by_id[node]
        found.frozen_until = max(found.frozen_until, self.now + duration_s)

    def read_slowly(self, node: NodeId, every_s: float) -> None:
        """A node takes one frame of each stream in this time (infinity: none), or reads as others do again (0)."""
        found = self.by_id[node]
        found.reads_every_s = every_s
        for peer, stream in list(found.streams.items()):
            if stream.unread.get(node) and every_s < float("inf"):
                self._push(self.now, self._read, stream, peer, node)

    def restart(self, node: NodeId, *, keeps_state: bool = True, wall_offset_s: int | None = None) -> None:
        """Start a killed node again, with the members that it knew or with nothing but its seed."""
        found = self.by_id[node]
        old = found.machine.database
        if wall_offset_s is not None:
            found.wall_offset_s = wall_offset_s
        epoch = max(found.machine.epoch + 1 if keeps_state else 0, self._wall(found))
        found.machine = self._machine(node, epoch, None, None)
        if keeps_state:
            for record in old.records():
                if record.key.kind == Kind.NODE and record.key.origin != node:
                    found.machine.remember(record, self.now, old.age_s(record.key, self.now))
        found.alive, found.vanished, found.frozen_until = True, False, 0.0
        found.incarnation += 1
        self._begin(found, self.nodes.index(node))
        if not keeps_state:
            seed = next(other for other in self.nodes if other != node)
            self._dial_seed(node, seed, found.incarnation)

    def partition(self, one: Iterable[NodeId], other: Iterable[NodeId]) -> None:
        """Cut two groups from each other."""
        self.network.partition(one, other)

    def heal(self) -> None:
        """End all cuts: what waited for that arrives."""
        self.network.heal()
        streams = {id(stream): stream for node in self.by_id.values() for stream in node.streams.values()}
        for stream in streams.values():
            stuck, stream.stuck = stream.stuck, []
            for receiver, frame in stuck:
                self._send(stream, stream.peer(receiver), receiver, frame, extra_s=self.rng.random())

    # -- looking -------------------------------------------------------------------------------------------------------

    def alive(self) -> list[NodeId]:
        """Nodes that run."""
        return [node for node in self.nodes if self.by_id[node].alive]

    def database(self, node: NodeId) -> Database:
        """What a node holds."""
        return self.by_id[node].machine.database

    def knows_dead(self, node: NodeId, dead: NodeId) -> bool:
        """In a node's database nobody but itself lists `dead` as a peer."""
        return self.database(node).isolated(dead)

    def roots(self) -> set[int]:
        """Of the running nodes: one if all databases are equal."""
        return {self.by_id[node].machine.database.root() for node in self.nodes if self.by_id[node].alive}

    def trace(self) -> str:
        """Digest of everything that was delivered so far: equal for equal runs."""
        return self._trace.hexdigest()

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        self.run_until(lambda: False, duration_s)

    def run_until(self, done: Callable[[], bool], limit_s: float, *, every_s: float = 0.0) -> bool:
        """Let time pass until a condition holds (looked at after events, at most each `every_s`); True if it did."""
        return self._run_to(self.now + limit_s, done, every_s)

    def _run_to(self, end: float, done: Callable[[], bool], every_s: float) -> bool:
        look_at = self.now
        while self._heap and self._heap[0][0] <= end:
            at, _, what, arguments = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            what(*arguments)
            self.handled += 1
            if self.now >= look_at:
                look_at = self.now + every_s
                if done():
                    return True
        self.now = end
        return done()

    def next_event(self) -> float:
        """When the next thing happens; infinity if nothing ever will."""
        return self._heap[0][0] if self._heap else float("inf")

    def advance(self, now: float) -> None:
        """Let everything happen that is due at a moment."""
        self._run_to(max(now, self.now), lambda: False, float("inf"))

    def at(self, delay_s: float, what: Callable[..., None], *arguments: object) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._serial), what, arguments))

    def _push(self, at: float, what: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._heap, (at, next(self._serial), what, arguments))

    def _wall(self, node: SimulatedNode) -> int:
        return WALL + node.wall_offset_s + int(self.now - BEGIN_S)

    def _arm(self, node: SimulatedNode) -> None:
        due = node.machine.next_timer(self.now)
        if due < node.timer_at or node.timer_at < self.now:
            node.timer_at = due
            self._push(due, self._on_timer, node, node.incarnation, due)

    def _on_timer(self, node: SimulatedNode, incarnation: int, due: float) -> None:
        if not node.alive or node.incarnation != incarnation or node.timer_at != due:
            return
        if self.now < node.frozen_until:
            self._push(node.frozen_until + 1e-6, self._on_timer, node, incarnation, due)
            return
        node.timer_at = float("inf")
        self._act(node, node.machine.on_timer(self.now, self._wall(node)))
        self._arm(node)

    # -- the shell of each node ----------------------------------------------------------------------------------------

    def _act(self, node: SimulatedNode, effects: Effects) -> None:
        for peer, frame in effects.frames:
            stream = node.streams.get(peer)
            if stream is not None:
                size = frame_bytes(frame)
                node.bytes_sent += size
                node.frames_sent += 1
                self._send(stream, node.node_id, peer, frame)
        for peer, reason in effects.drops:
            self.losses.append((self.now, node.node_id, peer, reason))
            self._close(node, peer)
        for peer, _ in effects.dials:
            self._dial(node, peer)
        for change in effects.peers:
            if not change.up:
                self.losses.append((self.now, node.node_id, change.node_id, change.reason))
        if node.on_effects is not None:
            node.on_effects(effects)
        if self.keeps_events:
            self.events += [(self.now, node.node_id, event) for event in effects.events]

    def _close(self, node: SimulatedNode, peer: NodeId) -> None:
        stream = node.streams.pop(peer, None)
        if stream is not None:
            stream.open.discard(node.node_id)
            self._send(stream, node.node_id, peer, None)

    def _send(self, stream: Stream, here: NodeId, there: NodeId, frame: Frame | None, *, extra_s: float = 0.0) -> None:
        if self.network.blocked(here, there) or stream.stuck:
            stream.stuck.append((there, frame))
            return
        if self.by_id[there].reads_every_s or stream.unread.get(there):
            self._queue_unread(stream, here, there, frame)
            return
        at = self.now + self.network.flight_s(here, there) + extra_s
        before = stream.arrives.get(there, 0.0)
        stream.arrives[there] = at = max(at, before)
        self._push(at, self._deliver, stream, here, there, frame)

    def _queue_unread(self, stream: Stream, here: NodeId, there: NodeId, frame: Frame | None) -> None:
        """The shell holds back what the peer does not read, and tells its machine; far too much ends the session."""
        unread = stream.unread.setdefault(there, deque())
        unread.append(frame)
        every_s = self.by_id[there].reads_every_s
        if len(unread) == 1 and every_s < float("inf"):
            self._push(self.now + every_s, self._read, stream, here, there)
        elif len(unread) == OUTBOX_BLOCKED:
            self._push(self.now, self._block, stream, here, there, True)
        elif len(unread) == OUTBOX_MAX:
            unread.clear()
            for end in (here, there):
                self._push(self.now, self._deliver, stream, stream.peer(end), end, None)

    def _read(self, stream: Stream, here: NodeId, there: NodeId) -> None:
        unread = stream.unread[there]
        if not unread:
            return
        self._deliver(stream, here, there, unread.popleft())
        if unread:
            self._push(self.now + self.by_id[there].reads_every_s, self._read, stream, here, there)
        if len(unread) == OUTBOX_OPEN:
            self._block(stream, here, there, False)

    def _block(self, stream: Stream, here: NodeId, there: NodeId, blocked: bool) -> None:
        node = self.by_id[here]
        if node.alive and node.streams.get(there) is stream:
            self._act(node, node.machine.on_blocked(there, self.now, self._wall(node), blocked=blocked))
            self._arm(node)

    def _deliver(self, stream: Stream, here: NodeId, there: NodeId, frame: Frame | None) -> None:
        node = self.by_id[there]
        if not node.alive or there not in stream.open:
            return
        if self.now < node.frozen_until:
            self._push(node.frozen_until, self._deliver, stream, here, there, frame)
            return
        self._trace.update(f"{self.now:.6f} {here} {there} {type(frame).__name__}\n".encode())
        if frame is None:
            if node.streams.get(here) is stream:
                del node.streams[here]
                stream.open.discard(there)
                self._act(node, node.machine.on_session_lost(here, self.now, self._wall(node)))
        else:
            self._act(node, node.machine.on_frame(here, frame, self.now, self._wall(node)))
            if self.on_stored is not None and isinstance(frame, Push | Chunk):
                for item in frame.items:
                    self.on_stored(there, item.record)
        self._arm(node)

    # -- dialling ------------------------------------------------------------------------------------------------------

    def _dial(self, node: SimulatedNode, peer: NodeId) -> None:
        trip_s = 2 * self.network.delay_s(node.node_id, peer)
        node.bytes_sent += 60
        other = self.by_id.get(peer)
        mute = other is None or other.vanished or self.network.blocked(node.node_id, peer)
        if mute or self.network.blocked(peer, node.node_id):
            self._push(self.now + self.settings.dial_timeout_s, self._dial_failed, node, node.incarnation, peer, False)
        elif other is not None and not other.alive:
            self._push(self.now + trip_s, self._dial_failed, node, node.incarnation, peer, True)
        else:
            node.bytes_sent += 3500  # two TLS handshakes: the look and the session
            self._push(self.now + 2.5 * trip_s, self._accept, node, node.incarnation, peer, self.now)

    def _dial_seed(self, node: NodeId, seed: NodeId, incarnation: int) -> None:
        found = self.by_id[node]
        if not found.alive or found.incarnation != incarnation or found.streams:
            return
        self._dial(found, seed)
        self.at(1.0, self._dial_seed, node, seed, incarnation)

    def _dial_failed(self, node: SimulatedNode, incarnation: int, peer: NodeId, refused: bool) -> None:
        if not node.alive or node.incarnation != incarnation:
            return
        if self.now < node.frozen_until:
            self._push(node.frozen_until, self._dial_failed, node, incarnation, peer, refused)
            return
        self._act(node, node.machine.on_dial_failed(peer, self.now, self._wall(node), refused=refused))
        self._arm(node)

    def _accept(self, node: SimulatedNode, incarnation: int, peer: NodeId, began: float) -> None:
        """The handshakes are done: the accepting end has the session first."""
        if not node.alive or node.incarnation != incarnation:
            return
        other, here = self.by_id[peer], node.node_id
        cut = self.network.blocked(here, peer) or self.network.blocked(peer, here)
        waits_until = max(other.frozen_until, node.frozen_until)
        if not other.alive or cut or (self.now < waits_until and waits_until - began > self.settings.dial_timeout_s):
            self._dial_failed(node, incarnation, peer, other.alive is False and not other.vanished and not cut)
            return
        if self.now < waits_until:
            self._push(waits_until, self._accept, node, incarnation, peer, began)
            return
        current = other.streams.get(here)
        preferred = min(here, peer)
        if current is not None and current.dialled_by != here and current.dialled_by == preferred:
            if node.streams.get(peer) is not current:  # it has not noticed yet that this one is gone
                self._dial_failed(node, incarnation, peer, False)
            return
        if other.machine.shut_out(here, self.now) or node.machine.shut_out(peer, self.now):
            self._dial_failed(node, incarnation, peer, False)
            return
        stream = Stream(here, peer, here, {here, peer})
        for end in (other, node):
            old = end.streams.get(stream.peer(end.node_id))
            if old is not None:
                old.open.discard(end.node_id)
            end.streams[stream.peer(end.node_id)] = stream
        self._act(other, other.machine.on_session(here, self.now, self._wall(other)))
        self._arm(other)
        self._act(node, node.machine.on_session(peer, self.now, self._wall(node)))
        self._arm(node)


def frame_bytes(frame: Frame) -> int:
    """About what a frame takes on the wire, with everything around it."""
    match frame:
        case Hello():
            return SEGMENT_BYTES + 32
        case Push(items=items) | Chunk(items=items):
            return SEGMENT_BYTES + sum(_item_bytes(item) for item in items)
        case Announce(ids=ids) | Graft(ids=ids):
            return SEGMENT_BYTES + 12 * len(ids)
        case Digest(held=held):
            return SEGMENT_BYTES + LINE_BYTES * len(held)
        case Request(keys=keys):
            return SEGMENT_BYTES + 40 * len(keys)
        case _:
            return SEGMENT_BYTES + 100


def _item_bytes(item: Aged) -> int:
    return len(item.record.body) + len(item.record.signature) + ADVERTISEMENT_BYTES


def _info(index: int, zone: str) -> NodeInfo:
    high, low = divmod(index, 250)
    return NodeInfo(f"n{index}", f"10.0.{high}.{low + 1}:7420", f"10.0.{high}.{low + 1}:2525", zone=zone)


def _links(index: int) -> tuple[LinkState, ...]:
    hosts = (index % 3, (index + 1) % 3)
    return tuple(
        LinkState(f"host:smarthost-{host}", LinkStatus.UP, 1000, 1000, 20_000 << host, 5_000, 100) for host in hosts
    )


def _record(node: NodeId, kind: Kind, payload: Payload, sequence: int) -> Record:
    body = encode_body(
        Key(node, kind),
        Version(WALL, sequence),
        "simulated",
        payload,
        certificate=certificate_of(node) if kind is Kind.NODE else b"",
        issued_at=WALL,
        lifetime_s=BASE_LIFETIME_S,
    )
    return decode_record(body, sign_as(node, body))
