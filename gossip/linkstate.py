"""Link-state values: what an advertisement says, and which of two is newer.

Only the origin issues a record about itself, as in OSPF (RFC 2328 section 12.1). Scores are bounded integers on the
wire and in memory, so there is no NaN, no infinity and no negative capacity to defend against downstream.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

NodeId = NewType("NodeId", str)
"""Hash of the node's public key: 32 lower-case hexadecimal digits. The name of a node is only a label."""


class Kind(enum.IntEnum):
    """What a record describes. NODE sorts first: it carries the certificate that verifies the others."""

    NODE = 1
    LINKS = 2
    LOAD = 3
    SESSIONS = 4


TAG_PATTERN = r"[a-z0-9][a-z0-9._-]{0,31}"
TAGS_MAX = 16
KIND_MAX = 255
"""Kinds that this version does not know are kept and passed on as they are: a newer version may have issued them."""


class Urgency(enum.IntEnum):
    """How a new version differs from the last one; what waits for the wire goes in this order."""

    WITHDRAW = 0
    DEGRADE = 1
    RECOVER = 2
    REFRESH = 3


class LinkStatus(enum.IntEnum):
    """State of one link as its origin sees it (the breaker's states, `router.breaker`)."""

    UNKNOWN = 0
    UP = 1
    SUSPECT = 2
    HALF_OPEN = 3
    """Understood, and not told by this release: a trial is told when it is over (`router.edge.STATUS`)."""
    DOWN = 4
    DRAINING = 5


class TlsLevel(enum.IntEnum):
    """What a link promises of every transaction; opportunistic encryption promises nothing."""

    NONE = 0
    ENCRYPTED = 1
    VERIFIED = 2
    """Encrypted, and the certificate is checked."""


class Version(NamedTuple):
    """Total order over the records of one key: epoch counts restarts of the origin, sequence its changes."""

    epoch: int
    sequence: int


NEVER = Version(0, 0)
"""Older than every version."""


class Key(NamedTuple):
    """Names one record of the database. A tuple, because every record that arrives looks several of them up."""

    origin: NodeId
    kind: int
    """A `Kind`, or a number that only newer versions know."""
    shard: int = 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Payload of a NODE record: who a node is, where it listens, what it is willing to do."""

    name: str
    gossip_address: str
    """host:port of the gossip listener."""
    mesh_address: str
    """host:port of the peer SMTP listener (implicit TLS, cluster certificates only)."""
    zone: str = "default"
    software: str = ""
    draining: bool = False
    overloaded: bool = False
    no_transit: bool = False
    direct_mx: bool = False
    """This node delivers to MX destinations itself."""
    routes_digest: str = ""
    """Hash of the route configuration; nodes that differ are shown to the operator."""
    tags: tuple[str, ...] = ()
    """What the operator calls it (a region, a provider), for the policies of routes; sorted."""
    admin_address: str = ""
    """host:port of the admin service, if it can be reached over the network."""
    sinks_digest: str = ""
    """Hash of which sinks are bound and when; nodes that differ are shown to the operator."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """One link of the origin: to a peer, a smart host or an MX destination, as measured by the origin alone."""

    hop: str
    """Hop id: `peer:NODE_ID`, `host:NAME` or `mx:DOMAIN` (see `router.decision.Hop`)."""
    status: LinkStatus
    availability_permille: int
    """Share of time that the link accepts a session, 0..1000."""
    reliability_permille: int
    """Share of attempts that end in a final 2yz reply, the hop's own faults only, 0..1000."""
    capacity_mmps: int
    """Messages that the link accepts, per 1000 s (milli-messages per second)."""
    latency_us: int
    """Typical time from MAIL to the final reply, microseconds."""
    samples: int = 0
    """Attempts behind the reliability, after forgetting; 0 = nothing but the prior."""
    cost: int = 0
    """What the operator set; added to the rank."""
    classes: tuple[str, ...] = ()
    """Destination classes that an exit serves; empty for peers."""
    tags: tuple[str, ...] = ()
    """Of an exit, as of a node; sorted."""
    tls: TlsLevel = TlsLevel.NONE
    size_bytes_max: int = 0
    """Largest message that an exit takes; 0 = any that gets here."""
    sustained_mmps: int = 0
    """What it was seen to carry: on average while it was full, else at best; 0 = nothing yet. Of links that several
    nodes fill at once the sum is what their common end takes, which `capacity_mmps` overrates."""


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """Stored mail of one destination class on the origin."""

    class_id: str
    backlog_count: int
    oldest_s: int
    ingress_mmps: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Payload of a LOAD record: what waits on the origin and how much it can still accept (back-pressure)."""

    accept_capacity_mmps: int = 0
    headroom_permille: int = 1000
    classes: tuple[ClassLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class Links:
    """Payload of a LINKS record (one shard of them)."""

    links: tuple[LinkState, ...] = ()


@dataclass(frozen=True, slots=True)
class Sessions:
    """Payload of a SESSIONS record: the peers with which the origin has a two-way gossip session.

    A session counts only if both ends list it, as in OSPF (RFC 2328 section 16.1): nobody can claim a link alone.
    """

    peers: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Opaque:
    """Payload of a kind that this version does not know."""


Payload = NodeInfo | Links | Load | Sessions | Opaque


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Everything that the database holds about one origin, as `Snapshot` shows it."""

    node_id: NodeId
    info: NodeInfo
    links: tuple[LinkState, ...] = ()
    load: Load = field(default_factory=Load)
    version: Version = NEVER
    """The newest version among the origin's records."""
    age_s: float = 0.0
    """Seconds since the newest of the records was received (0 for the own node)."""
    sessions: tuple[NodeId, ...] = ()
    """Peers with which it has a gossip session, as it says itself."""
    load_age_s: float = 0.0
    """Seconds since `load` was received."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent copy of the database, sorted by node id. Equal roots mean equal databases."""

    root: str
    """Digest over all records but LOAD, 16 hexadecimal digits."""
    nodes: tuple[NodeRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One gossip session as seen from here, for people."""

    node_id: NodeId
    address: str
    up: bool
    since_s: float
    """Seconds in this state."""
    heard_s: float | None
    """Seconds since its last frame; None = never."""
    reason: str = ""
    """Why it is down."""
