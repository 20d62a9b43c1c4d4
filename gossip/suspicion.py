"""A session is silent for too long: is it the peer, or only the way to it? Others are asked first. Pure.

The question travels along sessions that avoid the suspect, to two of its other neighbours (SWIM's indirect probe, on
the overlay that is there). If one of them hears it, only our way is bad, and it gets as much time again; if none does,
or none can be asked, the link is withdrawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.linkstate import NodeId

ASKED_MAX = 2
HOPS_MAX = 6
FRESH_S = 2.5
"""A neighbour of the suspect that heard it this lately vouches for it."""


@dataclass(slots=True)
class Suspicion:
    """One suspect."""

    number: int
    until: float
    asked: set[NodeId] = field(default_factory=set)
    vouched: bool = False
    """Another one hears it."""

    def record_answer(self, asked: NodeId, heard: bool) -> None:
        """One of those asked answered."""
        if asked in self.asked:
            self.asked.discard(asked)
            self.vouched = self.vouched or heard

    def decided(self, now: float) -> bool:
        """Nothing more is to be expected."""
        return self.vouched or not self.asked or now >= self.until
