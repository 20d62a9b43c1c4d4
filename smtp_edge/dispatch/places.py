"""Deliveries in memory: who has a place, how many of each class, and for how long the ones in doubt are waited for.

Everything here may vanish at any instant: the store still holds every delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from smtp_edge.dispatch.lines import Waiting
from smtp_edge.queue.entry import Claim, Key
from smtp_edge.queue.shares import Shares


class Places:
    """At most `limit` deliveries, apart from those that somebody insists on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Key, Waiting] = {}
        self._taken: dict[str, int] = {}
        """Class id -> how many of those are of it."""
        self._doubts: dict[Key, float] = {}
        """Until when only the hop in doubt is asked: it goes on while the delivery is back on disk."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._held.values())

    def find(self, key: Key) -> Waiting | None:
        """The delivery, if it is in memory."""
        return self._held.get(key)

    def enter(self, waiting: Waiting) -> None:
        """Into memory."""
        class_id = waiting.claim.delivery.class_id
        self._held[waiting.key] = waiting
        self._taken[class_id] = self._taken.get(class_id, 0) + 1

    def leave(self, waiting: Waiting) -> None:
        """Out of memory; nothing happens to one that has left already."""
        if self._held.pop(waiting.key, None) is not None:
            class_id = waiting.claim.delivery.class_id
            self._taken[class_id] -= 1
            if not self._taken[class_id]:
                del self._taken[class_id]

    def doubt(self, key: Key, until: float) -> float:
        """Until when the hop in doubt is waited for: as it was said first, in whichever claim."""
        return self._doubts.setdefault(key, until)

    def forget_doubts(self, keys: Iterable[Key]) -> None:
        """These have come to their end, or nobody waits for them any more."""
        for key in keys:
            self._doubts.pop(key, None)

    @property
    def free(self) -> int:
        """How many more may come; below zero when more were taken over than there are places for."""
        return self.limit - len(self._held)

    def shares(self) -> Shares:
        """How the free ones are shared."""
        return Shares(self.free, self._taken)

    def count(self, class_id: str) -> int:
        """How many are of a class."""
        return self._taken.get(class_id, 0)

    def early_free(self) -> int:
        """How many more that are not due may come: due mail has the other half."""
        return self.limit // 2 - sum(waiting.early for waiting in self._held.values())

    def holds(self, unwanted: Callable[[Claim], bool]) -> bool:
        """Something unwanted is here, waiting or under way."""
        return any(unwanted(waiting.claim) for waiting in self._held.values())
