"""What waits, by class: here, and at the neighbours as they told. Pure.

A neighbour's figure on an acknowledgement is fresher than its advertised load, which was measured before it was sent
around; so it counts for `fresh_s`. After that the advertised load counts again, even if it is older: a load that did
not change is not advertised again, so what stands is what the neighbour stands for. A class that it does not name has
nothing waiting there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gossip.linkstate import ClassLoad, Load

ACKNOWLEDGEMENT, GOSSIP, UNKNOWN = "acknowledgement", "gossip", "unknown"
INGRESS_TAU_S = 5.0
INGRESS_STEP = 1.1
"""The rate that is told is a power of this: what changes by less is no news."""
INGRESS_MIN_MPS = 0.4
"""Less is told as nothing: no plan is made for it, and single messages would be news to the whole cluster."""
INGRESS_KEPT_MPS = 0.05
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


class Backlogs:
    """See the module."""

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._own: dict[str, Waiting] = {}
        self._ingress: dict[str, float] = {}
        """Messages per second from clients, a mean of the last seconds."""
        self._ingress_at: float | None = None
        self._acknowledged: dict[str, dict[str, Heard]] = {}
        self._advertised: dict[str, dict[str, Heard]] = {}

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
        weight = 1 - math.exp(-passed_s / INGRESS_TAU_S)
        for class_id in {*counts, *self._ingress}:
            rate = self._ingress.get(class_id, 0.0)
            rate += (counts.get(class_id, 0) / passed_s - rate) * weight
            if rate >= INGRESS_KEPT_MPS or class_id in counts:
                self._ingress[class_id] = rate
            else:
                del self._ingress[class_id]

    def here(self, class_id: str) -> int:
        """Own stored messages of a class."""
        waiting = self._own.get(class_id)
        return waiting.count if waiting is not None else 0

    def there(self, node_id: str, class_id: str, now: float) -> Heard:
        """What counts of a neighbour; unknown counts as nothing waiting."""
        told = self._acknowledged.get(node_id, {}).get(class_id)
        if told is not None and told.at is not None and now - told.at < self._fresh_s:
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
        self._advertised[node_id] = {
            entry.class_id: Heard(entry.backlog_count, heard_at, GOSSIP) for entry in load.classes
        }

    def forget(self, node_id: str) -> None:
        """The neighbour left."""
        self._acknowledged.pop(node_id, None)
        self._advertised.pop(node_id, None)

    def load(self) -> tuple[ClassLoad, ...]:
        """Own backlogs and arrivals for an advertisement, sorted."""
        told = {class_id: rate for class_id, rate in self._ingress.items() if rate >= INGRESS_MIN_MPS}
        found = []
        for class_id in sorted({*self._own, *told}):
            waiting = self._own.get(class_id, NOTHING_WAITING)
            found.append(ClassLoad(class_id, waiting.count, int(waiting.oldest_s), _told(told.get(class_id, 0.0))))
        return tuple(found)


def _told(rate_mps: float) -> int:
    """Milli-messages per second, in steps."""
    if not rate_mps:
        return 0
    return round(1000 * INGRESS_STEP ** round(math.log(rate_mps) / math.log(INGRESS_STEP)))
