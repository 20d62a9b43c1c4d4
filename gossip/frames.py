"""What two machines say to each other, as values. `gossip.wire` carries them as protobuf; a simulator as they are."""

from __future__ import annotations

from dataclasses import dataclass

from gossip.linkstate import Key, NodeId, Payload, Urgency, Version

PROTOCOL = 1
"""Version of the frames. A newer peer's unknown frames are ignored, and its unknown records passed on."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded advertisement, with the signed bytes as they travel."""

    key: Key
    version: Version
    cluster: str
    lifetime_s: int
    payload: Payload
    certificate: bytes
    """DER, in NODE records; empty in others."""
    body: bytes
    signature: bytes
    urgency: Urgency = Urgency.REFRESH
    mark: int = 0
    """Digest of the body, 128 bits."""


@dataclass(frozen=True, slots=True)
class Aged:
    """A record on its way, with the seconds since its origin issued it, as far as its bearers know."""

    record: Record
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hello:
    """See the proto for each field."""

    sequence: int
    heard: int
    root: int
    lag_ms: int = 0
    wanted: bool = True
    records: int = 0
    protocol: int = PROTOCOL
    held_ms: int = 0


@dataclass(frozen=True, slots=True)
class Push:
    """Records that the receiver may not have."""

    items: tuple[Aged, ...]
    faults: tuple[str, ...] = ()
    """Why other items of the frame could not be read: the peer's fault."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Identifiers (`Record.mark`, upper 96 bits) of records whose bodies travel another way."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graft:
    """Announced records that did not arrive."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """The receiver's bodies come twice."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """256 sums over records by bucket of their origin."""

    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """One line of a digest."""

    key: Key
    version: Version
    mark: int
    """Lowest 32 bits of the record's mark."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Everything held in some buckets."""

    buckets: frozenset[int]
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """Keys wanted."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """The next chunk of everything, after a key."""

    after: Key | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of everything, in the order of `database.order`."""

    items: tuple[Aged, ...]
    last: Key | None
    done: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """Is this node heard? On its way along `path`."""

    number: int
    target: NodeId
    path: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """On its way back along `path`, whose last is the asker."""

    number: int
    target: NodeId
    path: tuple[NodeId, ...]
    session: bool
    silent_ms: int


@dataclass(frozen=True, slots=True)
class Revocations:
    """Revocations as they were signed: body and signature."""

    items: tuple[tuple[bytes, bytes], ...]


Frame = (
    Hello | Push | Announce | Graft | Prune | Buckets | Digest | Request | Fetch | Chunk | Check | Answer | Revocations
)
