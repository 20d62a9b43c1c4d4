"""What gossip shows of itself to people and tools: members, sessions, counters, events. Values only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from gossip.linkstate import NodeId


class MemberState(enum.Enum):
    """A member as seen from here. Nobody announces another's death: these are conclusions, drawn on each node."""

    SELF = "this node"
    UP = "up"
    """A session with it is up here."""
    SUSPECT = "suspect"
    """Its session here is silent or broken, and the verdict is not final."""
    REACHABLE = "reachable"
    """No session here; a path of two-way sessions of others leads to it."""
    UNREACHABLE = "unreachable"
    """Every neighbour withdrew its link to it."""
    REVOKED = "revoked"
    """The cluster's authority took its certificate back."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member."""

    node_id: NodeId
    name: str
    state: MemberState
    since_s: float
    """Seconds in this state."""
    sources: tuple[NodeId, ...] = ()
    """Who says so: nodes whose records list a session with it, or for an unreachable one those that withdrew theirs."""
    reason: str = ""
    root: str = ""
    """Root of its database as its last hello showed it; empty without a session."""
    in_sync: bool | None = None
    """Its root was one of ours within the last moments; None without a session."""
    lag_ms: int | None = None
    """How late its own timer was at its last hello; None without a session."""
    round_trip_ms: float | None = None
    """Of hellos, smoothed; None without a session."""


class EventKind(enum.Enum):
    """What `smtpmesh monitor` shows. The values are stable names."""

    SESSION_UP = "session-up"
    SESSION_DOWN = "session-down"
    SUSPECT = "suspect"
    CLEARED = "cleared"
    NODE_JOINED = "node-joined"
    NODE_REACHABLE = "node-reachable"
    NODE_UNREACHABLE = "node-unreachable"
    NODE_EXPIRED = "node-expired"
    NODE_REVOKED = "node-revoked"
    CHANGED = "changed"
    """A record with a state change was stored (withdraw, degrade, recover; not refreshes)."""
    IN_SYNC = "in-sync"
    REFUSED = "refused"
    CONFLICT = "conflict"
    QUARANTINED = "quarantined"
    DUPLICATE_IDENTITY = "duplicate-identity"
    PAUSED = "paused"
    """This node itself was paused or starved, and accuses nobody for a while."""
    DAMPED = "damped"
    UNDAMPED = "undamped"
    ORDER = "order"
    """The operator ordered something on this node: a drain, a pin."""
    PRESSURE = "pressure"
    """This node has more or less room for mail than before, or none."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the monitor."""

    kind: EventKind
    node_id: NodeId
    """Whom it is about; this node for its own affairs."""
    text: str = ""
    peer: NodeId | None = None
    """Through whom it was learned, where that matters."""


@dataclass(frozen=True, slots=True)
class GossipStats:
    """Counters since the start, and gauges of this moment. Keys of the maps are of small closed sets."""

    frames_sent: Mapping[str, int] = field(default_factory=dict)
    """By kind of frame: hello, push, ihave, ..."""
    frames_received: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    """Of frames as gRPC carries them, without TLS and TCP."""
    bytes_received: int = 0
    records: Mapping[str, int] = field(default_factory=dict)
    """Offered records by verdict: stored, known, conflict, refused, ..."""
    originated: Mapping[str, int] = field(default_factory=dict)
    """Own versions issued, by kind of record: node, links, load, sessions."""
    events: Mapping[str, int] = field(default_factory=dict)
    """By `EventKind` value."""
    sessions: int = 0
    sessions_wanted: int = 0
    """Neighbours that the overlay names."""
    members: int = 0
    unreachable: int = 0
    database_records: int = 0
    stones: int = 0
    outbox_records: int = 0
    """Records that wait to be sent, over all sessions."""
    eager_sessions: int = 0
    """Sessions that carry bodies; the others carry announcements."""
    own_lag_s: float = 0.0
    """How late the own timer was, the worst of late."""
    patience: float = 1.0
    """Factor on the silence allowed to others, because of our own lag."""
    damped: int = 0
    quarantined: int = 0
    epoch: int = 0
    root: str = ""
