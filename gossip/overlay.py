"""Who is whose neighbour: computed by every node from the same member list, so that nobody has to agree. Pure.

Up to `MESH_MAX` members everybody is everybody's neighbour. Above, members stand on 3 hash rings (4 above 500), the
first one sorted by zone so that most of its edges stay inside a zone; neighbours are the next ones on both sides of
each ring (a union of random cycles is an expander: Law and Siu, INFOCOM 2003). Neighbourhood is symmetric: my
successor's predecessor is me. A member that cannot be reached is stepped over, by both its sides.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gossip.linkstate import NodeId

MESH_MAX = 7
"""Members with a full mesh."""
RINGS = 3
RINGS_LARGE = 4
LARGE = 500
STEPS_MAX = 64
"""Members stepped over on one side before we give up on it."""

Place = tuple[str, int, NodeId]
"""Order on a ring: zone (empty but on the first), hash, node id."""


@dataclass(frozen=True, slots=True)
class Rings:
    """All members on each ring, sorted."""

    rings: tuple[tuple[Place, ...], ...]
    count: int

    @classmethod
    def of(cls, zones: Mapping[NodeId, str]) -> Rings:
        """Rings of members by zone."""
        number = RINGS_LARGE if len(zones) > LARGE else RINGS
        rings = tuple(tuple(sorted(_place(ring, node, zone) for node, zone in zones.items())) for ring in range(number))
        return cls(rings, len(zones))

    def members(self) -> list[NodeId]:
        """Everybody."""
        return [node for _, _, node in self.rings[0]]

    def neighbours(self, node: NodeId, zone: str, skipped: Callable[[NodeId], bool]) -> list[NodeId]:
        """The neighbours of a member, nearest first, without those that are `skipped`. Distinct."""
        if self.count <= MESH_MAX:
            return [member for member in self.members() if member != node]
        found: dict[NodeId, None] = {}
        for number, ring in enumerate(self.rings):
            at = bisect_left(ring, _place(number, node, zone))
            for step in (1, -1):
                for distance in range(1, min(STEPS_MAX, len(ring))):
                    candidate = ring[(at + step * distance) % len(ring)][2]
                    if candidate != node and not skipped(candidate):
                        found[candidate] = None
                        break
        return list(found)


def _place(ring: int, node: NodeId, zone: str) -> Place:
    digest = hashlib.blake2b(f"{ring}/{node}".encode(), digest_size=8).digest()
    return (zone if ring == 0 else "", int.from_bytes(digest, "big"), node)
