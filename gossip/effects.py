"""What the machine wants done. The shell (`gossip.service`, or a simulator) does it and reports how it went."""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.frames import Frame
from gossip.linkstate import NodeId
from gossip.status import Event, EventKind


@dataclass(frozen=True, slots=True)
class Refusal:
    """An advertisement that was not stored, and why. One log line each."""

    peer: NodeId
    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerChange:
    """A member can be reached again, or no more."""

    node_id: NodeId
    up: bool
    reason: str


@dataclass(slots=True)
class Effects:
    """In the order in which they arose."""

    frames: list[tuple[NodeId, Frame]] = field(default_factory=list)
    drops: list[tuple[NodeId, str]] = field(default_factory=list)
    """Sessions to close, with the reason. The machine has forgotten them already."""
    dials: list[tuple[NodeId, str]] = field(default_factory=list)
    """Members to dial, with their addresses. Report with `on_session` or `on_dial_failed`."""
    peers: list[PeerChange] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What of our own could not be advertised."""
    events: list[Event] = field(default_factory=list)
    changed: bool = False
    """The database is different."""

    def event(self, kind: EventKind, node: NodeId, text: str = "", peer: NodeId | None = None) -> None:
        """One more line of the monitor."""
        self.events.append(Event(kind, node, text, peer))
