"""The link-state database: which record is newer, who may issue it, when it ends. Pure.

    a record is stored only if
        its cluster is ours, its origin's certificate is known and valid, and its signature is the origin's
        it is newer than what is held for its key, or equally old with different bytes and a larger hash

Certificates arrive in NODE records, which verify themselves; records of an origin without one are dropped and come
again by repair. Expired records leave a stone, so that nothing older returns from the dead.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gossip.identity import IdentityError, Member
from gossip.linkstate import Key, Kind, Links, LinkState, Load, NodeId, NodeInfo, NodeRecord, Snapshot, Version
from gossip.wire import Record

RECORDS_MAX = 30_000
ROOT_DIGITS = 16
STONE_FACTOR = 2


class Verdict(enum.Enum):
    """What became of an offered record."""

    STORED = "stored"
    KNOWN = "known"
    """Held already, or older than what is held."""
    CONFLICT = "conflict"
    """Same version, other bytes: two nodes use one key, or an origin broke its word. The larger hash is kept."""
    UNKNOWN_ORIGIN = "unknown origin"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Held:
    """A stored record with its times on this node's clock."""

    record: Record
    received: float
    expires: float
    age_s: float
    """How old it was when it was received."""


@dataclass(frozen=True, slots=True)
class Stone:
    """What is left of an expired record."""

    version: Version
    until: float


class Database:
    """Records by key. `member_of` checks a certificate against the cluster's authority (IdentityError if it fails)."""

    def __init__(self, cluster: str, member_of: Callable[[bytes], Member]) -> None:
        self._cluster, self.member_of = cluster, member_of
        self._held: dict[Key, Held] = {}
        self._stones: dict[Key, Stone] = {}
        self._members: dict[NodeId, Member] = {}
        self._root: str | None = None

    def offer(self, record: Record, now: float, age_s: float = 0.0) -> tuple[Verdict, str]:
        """Store a record if it deserves it; with the reason of a refusal. `age_s`: since its origin issued it."""
        held, stone = self._held.get(record.key), self._stones.get(record.key)
        if held is not None and (held.record.version > record.version or held.record.body == record.body):
            return Verdict.KNOWN, ""
        if held is None and stone is not None and stone.version >= record.version:
            return Verdict.KNOWN, "expired"
        if age_s >= record.lifetime_s:
            return Verdict.KNOWN, "expired"
        if record.cluster != self._cluster:
            return Verdict.REFUSED, "it is of another cluster"
        if held is None and len(self._held) >= RECORDS_MAX:
            return Verdict.REFUSED, "the database is full"
        verdict, reason = self._verify(record)
        if verdict is not Verdict.STORED:
            return verdict, reason
        conflict = held is not None and held.record.version == record.version
        if conflict and held is not None and _hash(held.record.body) > _hash(record.body):
            return Verdict.CONFLICT, "same version, other content; the one held stays"
        self._store(record, now, max(0.0, age_s))
        return (Verdict.CONFLICT, "same version, other content; replaced") if conflict else (Verdict.STORED, "")

    def expire(self, now: float, own: NodeId) -> bool:
        """Remove what is past its lifetime; True if anything was."""
        gone = [key for key, held in self._held.items() if held.expires <= now and key.origin != own]
        for key in gone:
            held = self._held.pop(key)
            self._stones[key] = Stone(held.record.version, now + STONE_FACTOR * held.record.lifetime_s)
        for key in [key for key, stone in self._stones.items() if stone.until <= now]:
            del self._stones[key]
        if gone:
            self._root = None
        return bool(gone)

    def get(self, key: Key) -> Record | None:
        """The record held for a key."""
        held = self._held.get(key)
        return held.record if held is not None else None

    def age_s(self, key: Key, now: float) -> float:
        """How long ago the origin issued what is held for a key; 0 if nothing is."""
        held = self._held.get(key)
        return held.age_s + max(0.0, now - held.received) if held is not None else 0.0

    def versions(self) -> Iterator[tuple[Key, Version]]:
        """Every key with its version, NODE records first."""
        for key in sorted(self._held, key=lambda key: (key.kind, key)):
            yield key, self._held[key].record.version

    def records(self) -> list[Record]:
        """Every record, NODE records first."""
        return [self._held[key].record for key, _ in self.versions()]

    def root(self) -> str:
        """Digest of the NODE and LINKS records. LOAD changes all the time and repairs itself."""
        if self._root is None:
            digest = hashlib.sha256()
            for key, version in self.versions():
                if key.kind is not Kind.LOAD:
                    digest.update(f"{key.origin}/{key.kind}/{key.shard}/{version.epoch}.{version.sequence}\n".encode())
            self._root = digest.hexdigest()[:ROOT_DIGITS]
        return self._root

    def info(self, node_id: NodeId) -> NodeInfo | None:
        """What a node says of itself."""
        record = self.get(Key(node_id, Kind.NODE))
        return record.payload if record is not None and isinstance(record.payload, NodeInfo) else None

    def nodes(self) -> list[NodeId]:
        """Nodes with a NODE record, sorted."""
        return sorted(key.origin for key in self._held if key.kind is Kind.NODE)

    def snapshot(self, now: float) -> Snapshot:
        """A consistent copy."""
        by_origin: dict[NodeId, list[Held]] = {}
        for key in sorted(self._held):
            by_origin.setdefault(key.origin, []).append(self._held[key])
        nodes = [_node_record(origin, held, now) for origin, held in sorted(by_origin.items())]
        return Snapshot(self.root(), tuple(node for node in nodes if node is not None))

    def _verify(self, record: Record) -> tuple[Verdict, str]:
        member = self._members.get(record.key.origin)
        if record.key.kind is Kind.NODE and (member is None or member.certificate_der != record.certificate):
            try:
                member = self.member_of(record.certificate)
            except IdentityError as error:
                return Verdict.REFUSED, str(error)
            if member.node_id != record.key.origin:
                return Verdict.REFUSED, "its certificate is of another node"
        if member is None:
            return Verdict.UNKNOWN_ORIGIN, "its origin's certificate is not known yet"
        if not member.verify(record.signature, record.body):
            return Verdict.REFUSED, "its signature is not its origin's"
        self._members[record.key.origin] = member
        return Verdict.STORED, ""

    def _store(self, record: Record, now: float, age_s: float) -> None:
        self._held[record.key] = Held(record, now, now + record.lifetime_s - age_s, age_s)
        self._stones.pop(record.key, None)
        if record.key.kind is not Kind.LOAD:
            self._root = None


def _node_record(origin: NodeId, held: list[Held], now: float) -> NodeRecord | None:
    info: NodeInfo | None = None
    links: list[LinkState] = []
    load = Load()
    for item in held:
        match item.record.payload:
            case NodeInfo() as found:
                info = found
            case Links(links=found_links):
                links += found_links
            case Load() as found_load:
                load = found_load
    if info is None:
        return None
    newest = max(item.record.version for item in held)
    return NodeRecord(origin, info, tuple(links), load, newest, now - max(item.received for item in held))


def _hash(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
