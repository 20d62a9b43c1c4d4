"""The link-state database: which record is newer, who may issue it, when it ends. Pure.

    a record is stored only if
        its cluster is ours, its origin's certificate is known and valid, and its signature is the origin's
        it is newer than what is held for its key, or equally old with different bytes and a larger hash

Certificates arrive in NODE records, which verify themselves; records of an origin without one are dropped and come
again by repair. Expired records leave a stone, so that nothing older returns from the dead.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Protocol

from gossip.frames import Held as HeldLine
from gossip.frames import Record
from gossip.identity import IdentityError
from gossip.linkstate import (
    Key,
    Kind,
    Links,
    LinkState,
    Load,
    NodeId,
    NodeInfo,
    NodeRecord,
    Sessions,
    Snapshot,
    Version,
)
from gossip.wire import LIFETIME_MAX_S

RECORDS_MAX = 60_000
ORIGIN_RECORDS_MAX = 1000
"""Of one origin: a member may fill its own corner only."""
BUCKETS = 256
SUM_MASK = 2**64 - 1
MARK_MASK = 2**32 - 1
STONE_S = float(LIFETIME_MAX_S)
"""As long as any older version can live: what was issued before is dead by then, whatever lifetime it was given."""
STONES_MAX = 100_000
"""A member that issues and abandons keys pushes out stones, and costs no memory without end."""


class Verifier(Protocol):
    """A member by its certificate (`identity.Member`), or a simulator's."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def certificate_der(self) -> bytes: ...
    def verify(self, signature: bytes, message: bytes) -> bool: ...


class Verdict(enum.Enum):
    """What became of an offered record."""

    STORED = "stored"
    KNOWN = "known"
    """Held already, or older than what is held."""
    CONFLICT = "conflict"
    """Same version, other bytes: two nodes use one key, or an origin broke its word. The larger hash is kept."""
    UNKNOWN_ORIGIN = "unknown origin"
    UNTRUSTED = "untrusted origin"
    """Its certificate does not hold here: expired by our clock, or of an authority that only others have yet. Whoever
    passed it on may have done so in good faith."""
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
    """Records by key. `member_of` checks a certificate against the cluster's authority (IdentityError if it fails).

    `held` is where records are kept; a simulator gives one that shares what all its nodes have in common.
    """

    def __init__(
        self,
        cluster: str,
        member_of: Callable[[bytes], Verifier],
        held: MutableMapping[Key, Held] | None = None,
        sums: Iterable[int] = (0,) * BUCKETS,
        members: MutableMapping[NodeId, Verifier] | None = None,
        expire_from: float = float("-inf"),
    ) -> None:
        self._cluster, self.member_of = cluster, member_of
        self._held: MutableMapping[Key, Held] = held if held is not None else {}
        self._stones: dict[Key, Stone] = {}
        self._members: MutableMapping[NodeId, Verifier] = members if members is not None else {}
        self._counts: dict[NodeId, int] = {}
        self._revoked: set[NodeId] = set()
        self._sums = list(sums)
        self._root = sum(self._sums) & SUM_MASK
        self._expire_from = expire_from
        """Nothing ends before this."""

    def offer(self, record: Record, now: float, age_s: float = 0.0) -> tuple[Verdict, str]:
        """Store a record if it deserves it; with the reason of a refusal. `age_s`: since its origin issued it."""
        if record.key.origin in self._revoked:
            return Verdict.KNOWN, "revoked"
        held, stone = self._held.get(record.key), self._stones.get(record.key)
        if held is not None and (held.record.version > record.version or held.record.mark == record.mark):
            return Verdict.KNOWN, ""
        if held is None and stone is not None and stone.version >= record.version:
            return Verdict.KNOWN, "expired"
        if age_s >= record.lifetime_s:
            return Verdict.KNOWN, "expired"
        if record.cluster != self._cluster:
            return Verdict.REFUSED, "it is of another cluster"
        if held is None and len(self._held) >= RECORDS_MAX:
            return Verdict.REFUSED, "the database is full"
        if held is None and self._counts.get(record.key.origin, 0) >= ORIGIN_RECORDS_MAX:
            return Verdict.REFUSED, "its origin has too many records"
        verdict, reason = self._verify(record)
        if verdict is not Verdict.STORED:
            return verdict, reason
        conflict = held is not None and held.record.version == record.version
        if conflict and held is not None and held.record.mark > record.mark:
            return Verdict.CONFLICT, "same version, other content; the one held stays"
        self._store(record, now, max(0.0, age_s))
        return (Verdict.CONFLICT, "same version, other content; replaced") if conflict else (Verdict.STORED, "")

    def expire(self, now: float, own: NodeId) -> list[Key]:
        """Remove what is past its lifetime; what was."""
        if now < self._expire_from:
            return []
        gone = [key for key, held in self._held.items() if held.expires <= now and key.origin != own]
        for key in gone:
            self._remove(key, now)
        for key in [key for key, stone in self._stones.items() if stone.until <= now]:
            del self._stones[key]
        ends = [held.expires for key, held in self._held.items() if key.origin != own]
        self._expire_from = min([*ends, *(stone.until for stone in self._stones.values())], default=float("inf"))
        return gone

    def forget(self, origin: NodeId, now: float) -> list[Key]:
        """Remove everything of an origin that was revoked, and take nothing of it any more; what was."""
        self._revoked.add(origin)
        gone = [key for key in self._held if key.origin == origin]
        for key in gone:
            self._remove(key, now)
        self._members.pop(origin, None)
        return gone

    def get(self, key: Key) -> Record | None:
        """The record held for a key."""
        held = self._held.get(key)
        return held.record if held is not None else None

    def age_s(self, key: Key, now: float) -> float:
        """How long ago the origin issued what is held for a key; 0 if nothing is."""
        held = self._held.get(key)
        return held.age_s + max(0.0, now - held.received) if held is not None else 0.0

    def buried(self, key: Key, version: Version) -> bool:
        """True if this version, or a newer one, has ended here, or its origin was revoked."""
        if key.origin in self._revoked:
            return True
        stone = self._stones.get(key)
        return stone is not None and stone.version >= version

    def is_news(self, record: Record) -> bool:
        """True if it is worth a look at its signature."""
        held = self._held.get(record.key)
        if held is None:
            return not self.buried(record.key, record.version)
        return held.record.version < record.version or (
            held.record.version == record.version and held.record.mark != record.mark
        )

    def sessions(self, node_id: NodeId) -> tuple[NodeId, ...]:
        """The peers that a node lists."""
        held = self._held.get(Key(node_id, Kind.SESSIONS))
        payload = held.record.payload if held is not None else None
        return payload.peers if isinstance(payload, Sessions) else ()

    def isolated(self, node_id: NodeId) -> bool:
        """It lists peers, and none of them lists it: all of its neighbours have lost it."""
        peers = self.sessions(node_id)
        return bool(peers) and not any(node_id in self.sessions(peer) for peer in peers)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def stones(self) -> int:
        """Remembered versions of what is gone."""
        return len(self._stones)

    def records(self) -> list[Record]:
        """Every record, NODE records first."""
        return [self._held[key].record for key in sorted(self._held, key=order)]

    def root(self) -> int:
        """64-bit sum over the marks of all records but LOAD, which changes all the time and repairs itself."""
        return self._root

    def sums(self) -> tuple[int, ...]:
        """The same for each bucket of origins."""
        return tuple(self._sums)

    def lines(self, buckets: frozenset[int]) -> list[HeldLine]:
        """What some buckets hold, LOAD left out."""
        wanted = {f"{bucket:02x}" for bucket in buckets}
        keys = [key for key in self._held if key.origin[:2] in wanted and key.kind != Kind.LOAD]
        found = ((key, self._held[key].record) for key in sorted(keys, key=order))
        return [HeldLine(key, record.version, record.mark & MARK_MASK) for key, record in found]

    def after(self, key: Key | None, bytes_max: int) -> tuple[list[Record], bool]:
        """The next records in `order` after a key, at most so many bytes (but one at least); True if it was the end."""
        keys = sorted((found for found in self._held if key is None or order(found) > order(key)), key=order)
        chunk: list[Record] = []
        for found in keys:
            record = self._held[found].record
            bytes_max -= len(record.body) + len(record.signature)
            if chunk and bytes_max < 0:
                return chunk, False
            chunk.append(record)
        return chunk, True

    def info(self, node_id: NodeId) -> NodeInfo | None:
        """What a node says of itself."""
        record = self.get(Key(node_id, Kind.NODE))
        return record.payload if record is not None and isinstance(record.payload, NodeInfo) else None

    def nodes(self) -> list[NodeId]:
        """Nodes with a NODE record, sorted."""
        return sorted(key.origin for key in self._held if key.kind == Kind.NODE)

    def snapshot(self, now: float) -> Snapshot:
        """A consistent copy."""
        by_origin: dict[NodeId, list[Held]] = {}
        for key in sorted(self._held):
            by_origin.setdefault(key.origin, []).append(self._held[key])
        nodes = [_node_record(origin, held, now) for origin, held in sorted(by_origin.items())]
        return Snapshot(f"{self.root():016x}", tuple(node for node in nodes if node is not None))

    def _verify(self, record: Record) -> tuple[Verdict, str]:
        member = self._members.get(record.key.origin)
        if record.key.kind == Kind.NODE:  # also one that is known: it may have expired meanwhile
            try:
                member = self.member_of(record.certificate)
            except IdentityError as error:
                return Verdict.UNTRUSTED, str(error)
            if member.node_id != record.key.origin:
                return Verdict.REFUSED, "its certificate is of another node"
        if member is None:
            return Verdict.UNKNOWN_ORIGIN, "its origin's certificate is not known yet"
        if not member.verify(record.signature, record.body):
            return Verdict.REFUSED, "its signature is not its origin's"
        self._members[record.key.origin] = member
        return Verdict.STORED, ""

    def _store(self, record: Record, now: float, age_s: float) -> None:
        key, old = record.key, self._held.get(record.key)
        expires = now + record.lifetime_s - age_s
        self._held[key] = Held(record, now, expires, age_s)
        self._expire_from = min(self._expire_from, expires)
        self._stones.pop(key, None)
        if old is None:
            self._counts[key.origin] = self._counts.get(key.origin, 0) + 1
        self._count(key, record.mark - (old.record.mark if old is not None else 0))

    def _remove(self, key: Key, now: float) -> None:
        held = self._held.pop(key)
        until = now + STONE_S
        self._stones[key] = Stone(held.record.version, until)
        if len(self._stones) > STONES_MAX:
            del self._stones[next(iter(self._stones))]
        self._expire_from = min(self._expire_from, until)
        self._counts[key.origin] = self._counts.get(key.origin, 1) - 1
        self._count(key, -held.record.mark)

    def _count(self, key: Key, difference: int) -> None:
        if key.kind != Kind.LOAD:
            bucket = bucket_of(key)
            self._sums[bucket] = (self._sums[bucket] + difference) & SUM_MASK
            self._root = (self._root + difference) & SUM_MASK


def order(key: Key) -> tuple[int, NodeId, int]:
    """NODE records first: they carry the certificates that verify the others."""
    return key.kind, key.origin, key.shard


def bucket_of(key: Key) -> int:
    """0..255, by origin."""
    return int(key.origin[:2], 16)


def _node_record(origin: NodeId, held: list[Held], now: float) -> NodeRecord | None:
    info: NodeInfo | None = None
    links: tuple[LinkState, ...] = ()
    load = Load()
    load_age_s = 0.0
    sessions: tuple[NodeId, ...] = ()
    for item in held:
        match item.record.payload:
            case NodeInfo() as found:
                info = found
            case Links(links=found_links):
                links = links + found_links if links else found_links  # the payload's own: readers know it again
            case Load() as found_load:
                load, load_age_s = found_load, now - item.received
            case Sessions(peers=peers):
                sessions = peers
            case _:
                pass
    if info is None:
        return None
    age_s = now - max(item.received for item in held)
    newest = max(item.record.version for item in held)
    return NodeRecord(origin, info, links, load, newest, age_s, sessions, load_age_s)
