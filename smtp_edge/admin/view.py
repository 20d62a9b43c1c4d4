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
from smtp_edge.dispatch.lines import Standing
from smtp_edge.operations import Operations
from smtp_edge.postmaster import Postmaster
from smtp_edge.queue.entry import Claim
from smtp_edge.queue.store import MessageStore
from smtp_edge.reload import Configured, Report
from smtp_edge.room import Room
from smtp_edge.settings import Settings
from smtp_edge.sinks.api import RouteRequest
from smtp_edge.sinks.rules import Facts


class NodeView(Protocol):
    """Read only but for `operations`, `postmaster` and `reload`, on the node's event loop."""

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
    def postmaster(self) -> Postmaster:
        """Takes orders about the queue."""
        ...

    def standing(self, queue_id: str, copy: int) -> Standing | None:
        """Where a delivery in memory is, and why; None for one that is not."""
        ...

    def request_of(self, claim: Claim) -> RouteRequest:
        """What is asked of route sinks about a delivery, as it is now."""
        ...

    def expanders_of(self, facts: Facts) -> tuple[str, ...]:
        """Sinks that are asked who gets such a message instead of its recipients."""
        ...

    def count_in_memory(self, class_id: str) -> int:
        """Deliveries of a class in memory."""
        ...

    @property
    def operations(self) -> Operations:
        """Takes orders about the node, its hosts and routes."""
        ...

    @property
    def configured(self) -> Configured:
        """Since when it goes by its configuration, and what the last reload left open."""
        ...

    async def reload(self, by: str, *, dry_run: bool) -> Report:
        """Read the configuration again, or only say what that would change."""
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
