"""What waits, by class: here, and at the neighbours as they told. Pure.

A neighbour's figure on an acknowledgement is fresher than its advertised load, which was measured before it was sent
around; so it counts for `fresh_s`, or until a load is heard that must have been measured later. After that the
advertised load counts again, even if it is older: a load that did not change is not advertised again, so what stands is
what the neighbour stands for. A class that it does not name has nothing waiting there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gossip.linkstate import ClassLoad, Load

ACKNOWLEDGEMENT, GOSSIP, UNKNOWN = "acknowledgement", "gossip", "unknown"
FAST_TAU_S, SLOW_TAU_S = 5.0, 20.0
"""Time constants of the arrivals: the slow mean is told, until the fast one leaves it behind."""
JUMP_RATIO, JUMP_MESSAGES = 1.5, 10.0
"""It does when it differs by this factor and this many messages: less is chance (3 sigma at 4 messages a second)."""
TOLD_RATIO = 1.2
"""What is told stays until the rate has left it by this factor: under a constant load the plan must stand still."""
INGRESS_MIN_MPS = 0.4
"""Less is told as nothing: no plan is made for it, and single messages would be news to the whole cluster."""
INGRESS_KEPT_MPS = 0.05
UNDER_WAY_S = 0.3
"""While the cluster is well, a load that is heard was measured so long before, at most."""
HEARD_CLASSES_MAX = 10_000
"""Classes remembered of one neighbour; past it the oldest knowledge goes."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A neighbour's backlog of one class."""

    count: int
    at: float | None
    """Monotonic seconds; None = never heard."""
    source: str


NOTHING_HEARD = Heard(0, None, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Own backlog of one class."""

    count: int
    oldest_s: float


NOTHING_WAITING = Waiting(0, 0.0)


@dataclass(slots=True)
class Arrivals:
    """Messages of one class from clients, per second."""

    told: float = 0.0
    """As others hear it: 0 while it is less than `INGRESS_MIN_MPS`."""
    slow: float = 0.0
    fast: float = 0.0

    def note(self, count: int, passed_s: float, watched_s: float) -> None:
        """So many came in so many seconds. `watched_s`: since this relay began to count, these included.

        A young mean is a plain one, so that it does not have to climb from 0.
        """
        rate, youth = count / passed_s, passed_s / watched_s
        self.fast += (rate - self.fast) * max(youth, 1 - math.exp(-passed_s / FAST_TAU_S))
        self.slow += (rate - self.slow) * max(youth, 1 - math.exp(-passed_s / SLOW_TAU_S))
        low, high = sorted((self.fast, self.slow))
        if high > JUMP_RATIO * low and (high - low) * FAST_TAU_S > JUMP_MESSAGES:
            self.slow = self.fast
        if self.slow < INGRESS_MIN_MPS:
            self.told = 0.0
        elif not self.told / TOLD_RATIO < self.slow < self.told * TOLD_RATIO:
            self.told = self.slow


class Backlogs:
    """See the module."""

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._own: dict[str, Waiting] = {}
        self._ingress: dict[str, Arrivals] = {}
        self._ingress_at: float | None = None
        self._watched_s = 0.0
        self._acknowledged: dict[str, dict[str, Heard]] = {}
        self._advertised: dict[str, dict[str, Heard]] = {}
        self._advertised_at: dict[str, float] = {}

    def set_own(self, class_id: str, count: int, oldest_s: float) -> None:
        """Own stored messages of a class."""
        if count:
            self._own[class_id] = Waiting(count, oldest_s)
        else:
            self._own.pop(class_id, None)

    def note_arrivals(self, counts: Mapping[str, int], now: float) -> None:
        """What clients submitted since the last call."""
        passed_s = now - self._ingress_at if self._ingress_at is not None else 0.0
        self._ingress_at = now
        if passed_s <= 0:
            return
        self._watched_s += passed_s
        for class_id in {*counts, *self._ingress}:
            arrivals = self._ingress.setdefault(class_id, Arrivals())
            arrivals.note(counts.get(class_id, 0), passed_s, self._watched_s)
            if arrivals.fast < INGRESS_KEPT_MPS and arrivals.slow < INGRESS_KEPT_MPS:
                del self._ingress[class_id]

    def here(self, class_id: str) -> int:
        """Own stored messages of a class."""
        waiting = self._own.get(class_id)
        return waiting.count if waiting is not None else 0

    def there(self, node_id: str, class_id: str, now: float) -> Heard:
        """What counts of a neighbour; unknown counts as nothing waiting."""
        told = self._acknowledged.get(node_id, {}).get(class_id)
        advertised_at = self._advertised_at.get(node_id, -math.inf)
        if told is not None and told.at is not None and advertised_at - UNDER_WAY_S < told.at > now - self._fresh_s:
            return told
        return self._advertised.get(node_id, {}).get(class_id, NOTHING_HEARD)

    def hear_acknowledgement(self, node_id: str, backlogs: Mapping[str, int], now: float) -> None:
        """A peer named some of its backlogs on an acknowledgement."""
        known = self._acknowledged.setdefault(node_id, {})
        for class_id, count in backlogs.items():
            known.pop(class_id, None)
            known[class_id] = Heard(max(0, count), now, ACKNOWLEDGEMENT)
        while len(known) > HEARD_CLASSES_MAX:
            known.pop(next(iter(known)))

    def hear_gossip(self, node_id: str, load: Load, heard_at: float) -> None:
        """A peer's whole load, as advertised."""
        self._advertised_at[node_id] = heard_at
        self._advertised[node_id] = {
            entry.class_id: Heard(entry.backlog_count, heard_at, GOSSIP) for entry in load.classes
        }

    def forget(self, node_id: str) -> None:
        """The neighbour left."""
        self._acknowledged.pop(node_id, None)
        self._advertised.pop(node_id, None)
        self._advertised_at.pop(node_id, None)

    def load(self) -> tuple[ClassLoad, ...]:
        """Own backlogs and arrivals for an advertisement, sorted."""
        told = {class_id: arrivals.told for class_id, arrivals in self._ingress.items() if arrivals.told}
        found = []
        for class_id in sorted({*self._own, *told}):
            waiting = self._own.get(class_id, NOTHING_WAITING)
            mmps = round(1000 * told.get(class_id, 0.0))
            found.append(ClassLoad(class_id, waiting.count, int(waiting.oldest_s), mmps))
        return tuple(found)
