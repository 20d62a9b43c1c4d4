"""How much of the memory for deliveries one class may take: as much as it leaves free for all. Pure.

    a class may have as many deliveries in memory as there are places free

So one class alone fills half of `active_max`, two classes a third each, and there is always room for one that comes: a
dead destination with a long queue cannot stand before the mail of others. (Dynamic thresholds, as in switches with
shared memory: Choudhury and Hahne, 1998.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shares:
    """Who has how many places, and how many are free."""

    free: int
    taken: Mapping[str, int]
    """Class id -> deliveries in memory."""

    def room(self, class_id: str) -> int:
        """How many more deliveries of the class may come: each takes a place and leaves one less free."""
        return max(0, (self.free - self.taken.get(class_id, 0) + 1) // 2)

    def admits(self, class_ids: Iterable[str]) -> bool:
        """One more delivery of each of these classes may come."""
        return all(self.taken.get(class_id, 0) < self.free for class_id in class_ids)
