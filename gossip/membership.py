"""Who is a member, in which zone, and whom the overlay makes a neighbour of whom. Pure.

Members are nodes whose NODE record is held. A simulation of thousands gives all its machines one dictionary of zones;
the first machine that sees a change goes on with a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gossip.database import Database
from gossip.linkstate import NodeId
from gossip.overlay import Rings

RingsOf = Callable[[int, dict[NodeId, str]], Rings]
"""Rings of members by zone; the number names the set, for those who keep the last answer."""


class Membership:
    """See the module. `shared` zones are those of `database` already, and belong to others, too."""

    def __init__(
        self, node_id: NodeId, database: Database, shared: dict[NodeId, str] | None, rings_of: RingsOf | None
    ) -> None:
        self._node_id = node_id
        self._zones = shared if shared is not None else _zones_of(database)
        self._shared = shared is not None
        self._rings_of: RingsOf = rings_of or (lambda _, zones: Rings.of(zones))
        self._rings = Rings.of({node_id: ""})
        self.stale = True
        """Members or zones changed since the last `neighbours`."""

    def __len__(self) -> int:
        return len(self._zones)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._zones)

    def adopt(self, rings: Rings) -> None:
        """These are the rings of the members of now."""
        self._rings, self.stale = rings, False

    def record(self, node: NodeId, zone: str) -> bool:
        """A NODE record names a zone; True if its origin is a new member."""
        if self._zones.get(node) == zone:
            return False
        new = node not in self._zones
        self._own_zones()[node] = zone
        self.stale = True
        return new

    def remove(self, node: NodeId) -> bool:
        """Its NODE record is gone; True if it was a member."""
        if self._own_zones().pop(node, None) is None:
            return False
        self.stale = True
        return True

    def neighbours(self, stepped_over: Callable[[NodeId], bool]) -> frozenset[NodeId] | None:
        """The neighbours that can be had, and those lost ones whose places they take; None before we are a member."""
        if self.stale:
            self.stale = False
            self._rings = self._rings_of(hash(frozenset(self._zones.items())), self._zones)
        zone = self._zones.get(self._node_id)
        if zone is None:
            return None
        named = self._rings.neighbours(self._node_id, zone, lambda _: False)
        have = self._rings.neighbours(self._node_id, zone, stepped_over)
        return frozenset(named) | frozenset(have)

    def _own_zones(self) -> dict[NodeId, str]:
        """The zones, to be changed: no longer shared with other machines."""
        if self._shared:
            self._shared, self._zones = False, dict(self._zones)
        return self._zones


def _zones_of(database: Database) -> dict[NodeId, str]:
    infos = ((node, database.info(node)) for node in database.nodes())
    return {node: info.zone for node, info in infos if info is not None}
