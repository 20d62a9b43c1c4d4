"""What the gossip tests share: real identities of one authority, and a small network in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from gossip.effects import Effects, Refusal
from gossip.fit import shard_links
from gossip.frames import Aged, Frame, Push, Record
from gossip.identity import Authority, Identity
from gossip.linkstate import Key, Kind, LinkState, LinkStatus, NodeId, NodeInfo, Payload, Version
from gossip.machine import Machine
from gossip.settings import GossipSettings
from gossip.wire import decode_record, encode_body

AT = datetime(2026, 6, 1, tzinfo=UTC)
WALL = 1_780_000_000
FIRST = Version(1, 1)
AUTHORITY = Authority.create("test", at=AT)


def new_identity(name: str = "node", authority: Authority = AUTHORITY) -> Identity:
    certificate, key = authority.issue(name, at=AT)
    return Identity(authority.certificate_pem, certificate, key)


IDENTITIES = sorted((new_identity(f"node-{index}") for index in range(5)), key=lambda identity: identity.node_id)


def info_of(identity: Identity) -> NodeInfo:
    return NodeInfo(identity.name, f"{identity.name}:1", f"{identity.name}:2")


def link(hop: str = "host:a", **fields: object) -> LinkState:
    values: dict[str, object] = {
        "status": LinkStatus.UP,
        "availability_permille": 999,
        "reliability_permille": 998,
        "capacity_mmps": 20_000,
        "latency_us": 5_000,
    }
    return LinkState(hop, **(values | fields))  # type: ignore[arg-type]


def record_of(
    identity: Identity,
    kind: Kind,
    payload: Payload,
    *,
    version: Version = FIRST,
    shard: int = 0,
    cluster: str = "test",
    lifetime_s: int = 100,
    signer: Identity | None = None,
) -> Record:
    """A signed record; `signer` forges it."""
    body = encode_body(
        Key(identity.node_id, kind, shard),
        version,
        cluster,
        payload,
        certificate=identity.certificate_der if kind is Kind.NODE else b"",
        issued_at=WALL,
        lifetime_s=lifetime_s,
    )
    return decode_record(body, (signer or identity).sign(body))


def push_of(*records: Record, age_s: float = 0.0) -> Push:
    return Push(tuple(Aged(record, age_s) for record in records))


class World:
    """Machines on a network with delay, loss and partitions. Same seed, same run."""

    def __init__(self, count: int, *, settings: GossipSettings | None = None, seed: int = 1) -> None:
        self.settings = settings or GossipSettings()
        self.now, self.delay_s = 1000.0, 0.01
        self.rng = random.Random(seed)
        self.identities = {identity.node_id: identity for identity in IDENTITIES[:count]}
        self.nodes = list(self.identities)
        self.machines = {node: self.machine(node) for node in self.nodes}
        self.refusals: list[Refusal] = []
        self.drops: list[tuple[NodeId, NodeId, str]] = []
        self.sent: list[tuple[NodeId, NodeId, Frame]] = []
        self.loses: Callable[[NodeId, NodeId, Frame], bool] = lambda *_: False
        self.paused: set[NodeId] = set()
        self.dialled: dict[NodeId, list[tuple[NodeId, str]]] = {node: [] for node in self.nodes}
        self._flying: list[tuple[float, int, NodeId, NodeId, Frame]] = []
        self._serial = itertools.count()
        for node in self.nodes:
            self.publish(node, Kind.NODE, [info_of(self.identities[node])])

    def machine(self, node: NodeId, epoch: int = 1) -> Machine:
        identity = self.identities[node]
        return Machine(
            node_id=node,
            cluster="test",
            certificate=identity.certificate_der,
            sign=identity.sign,
            member_of=lambda certificate: identity.member(certificate, at=AT),
            settings=self.settings,
            epoch=epoch,
            rng=random.Random(7),
            now=self.now,
        )

    def publish(self, node: NodeId, kind: Kind, payloads: list[Payload]) -> Effects:
        effects = self.machines[node].publish(kind, payloads, self.now, WALL)
        self.act(node, effects)
        return effects

    def publish_links(self, node: NodeId, links: Iterable[LinkState]) -> None:
        self.publish(node, Kind.LINKS, shard_links(list(links))[0])

    def connect(self, one: NodeId, other: NodeId) -> None:
        for here, there in ((one, other), (other, one)):
            self.act(here, self.machines[here].on_session(there, self.now, WALL))

    def connect_all(self) -> None:
        for one, other in itertools.combinations(self.nodes, 2):
            self.connect(one, other)

    def disconnect(self, one: NodeId, other: NodeId) -> None:
        self.act(one, self.machines[one].on_session_lost(other, self.now, WALL))
        self.act(other, self.machines[other].on_session_lost(one, self.now, WALL))

    def send(self, here: NodeId, there: NodeId, frame: Frame) -> None:
        self.sent.append((here, there, frame))
        if not self.loses(here, there, frame):
            heapq.heappush(self._flying, (self.now + self.delay_s, next(self._serial), here, there, frame))

    def act(self, node: NodeId, effects: Effects) -> None:
        self.refusals += effects.refusals
        for peer, frame in effects.frames:
            self.send(node, peer, frame)
        self.dialled[node] += effects.dials
        for peer, reason in effects.drops:
            self.drops.append((node, peer, reason))

    def run(self, duration_s: float) -> None:
        end = self.now + duration_s
        while True:
            timers = [(self.machines[n].next_timer(self.now), n) for n in self.nodes if n not in self.paused]
            due, node = min(timers, default=(end, self.nodes[0]))
            arrival = self._flying[0][0] if self._flying else float("inf")
            if min(due, arrival) > end:
                self.now = end
                return
            if arrival <= due:
                self.now, _, here, there, frame = heapq.heappop(self._flying)
                if there not in self.paused:
                    self.act(there, self.machines[there].on_frame(here, frame, self.now, WALL))
            else:
                self.now = max(self.now, due) + 1e-6
                self.act(node, self.machines[node].on_timer(self.now, WALL))

    def roots(self) -> set[int]:
        return {machine.database.root() for machine in self.machines.values()}

    def hops(self, at: NodeId, of: NodeId) -> list[str]:
        found = [record for record in self.machines[at].snapshot(self.now).nodes if record.node_id == of]
        return sorted(item.hop for record in found for item in record.links)
