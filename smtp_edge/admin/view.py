"""`NodeView`: what the admin service may see of a node. `smtp_edge.node.Node` satisfies it, and so do tests' fakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gossip.identity import Identity
from gossip.linkstate import SessionStatus, Snapshot
from gossip.status import GossipStats, MemberStatus
from router.engine import RoutingEngine
from router.policy import RouteTable
from smtp_edge.admin.events import EventFeed
from smtp_edge.counters import Counters
from smtp_edge.operations import Operations
from smtp_edge.queue.store import MessageStore
from smtp_edge.room import Room
from smtp_edge.settings import Settings


class NodeView(Protocol):
    """Read only but for `operations`, on the node's event loop."""

    @property
    def identity(self) -> Identity: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def engine(self) -> RoutingEngine: ...
    @property
    def store(self) -> MessageStore: ...
    @property
    def table(self) -> RouteTable: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def events(self) -> EventFeed: ...
    @property
    def bound(self) -> Mapping[str, str]:
        """Listener name -> host:port."""
        ...

    @property
    def room(self) -> Room:
        """How much more mail this node can take."""
        ...

    @property
    def operations(self) -> Operations:
        """Takes orders: the only thing here that changes anything."""
        ...

    def client_sessions(self) -> int:
        """Open sessions of clients."""
        ...

    def snapshot(self) -> Snapshot:
        """The link-state database."""
        ...

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Gossip sessions."""
        ...

    def members(self) -> tuple[MemberStatus, ...]:
        """Every node of the snapshot, as it is seen from here."""
        ...

    def gossip_stats(self) -> GossipStats:
        """Gossip in numbers."""
        ...

    def uptime_s(self) -> float:
        """Seconds since the start."""
        ...

    def now(self) -> float:
        """Monotonic seconds."""
        ...
