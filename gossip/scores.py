"""What kind of news a new version of the own links is, and whether it is news at all. Pure.

Scores have levels, and only a step of two is told at once: measurements tremble. A change of state is always told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from gossip.linkstate import LinkState, LinkStatus, Urgency

SHARE_LEVEL = 32
"""Permille in one level of availability and reliability."""
RATIO_LEVEL = math.log(1.25)
"""One level of capacity and latency: a quarter more or less."""
LEVELS_MIN = 2
GOOD = frozenset({LinkStatus.UP, LinkStatus.UNKNOWN})
"""UNKNOWN may be used; nothing has spoken against it yet."""
TRIED = frozenset({LinkStatus.DOWN, LinkStatus.HALF_OPEN})
"""A trial that failed is no news."""


def urgency_of(before: Iterable[LinkState], after: Iterable[LinkState]) -> Urgency | None:
    """How urgent the second version is after the first one; None if it can wait for the next turn."""
    old = {link.hop: link for link in before}
    worst: Urgency | None = None
    for link in after:
        was = old.pop(link.hop, None)
        found = Urgency.RECOVER if was is None else _compare(was, link)
        if found is not None:
            worst = found if worst is None else min(worst, found)
    return Urgency.WITHDRAW if old else worst


def is_return(before: Iterable[LinkState], after: Iterable[LinkState]) -> bool:
    """The second version says that a link is up which the first one told as down: mail waits for it elsewhere."""
    down = {link.hop for link in before if link.status in TRIED}
    return bool(down) and any(link.hop in down and link.status == LinkStatus.UP for link in after)


def _compare(was: LinkState, link: LinkState) -> Urgency | None:
    if was.status != link.status:
        if link.status in GOOD:
            return Urgency.RECOVER
        if was.status in TRIED and link.status in TRIED:
            return Urgency.RECOVER  # nobody used it, and nobody should now
        return Urgency.WITHDRAW if link.status == LinkStatus.DOWN else Urgency.DEGRADE
    if link.status in TRIED and _configured(was) == _configured(link):
        return None  # how bad it was matters to nobody while it is not used
    steps = (
        (link.availability_permille - was.availability_permille) / SHARE_LEVEL,
        (link.reliability_permille - was.reliability_permille) / SHARE_LEVEL,
        _ratio(was.capacity_mmps, link.capacity_mmps),
        _ratio(link.latency_us, was.latency_us),
    )
    if min(steps) <= -LEVELS_MIN:
        return Urgency.DEGRADE
    if max(steps) >= LEVELS_MIN or _configured(was) != _configured(link):
        return Urgency.RECOVER
    return None


def _configured(link: LinkState) -> tuple[object, ...]:
    """What the operator set."""
    return link.cost, link.classes, link.tags, link.tls, link.size_bytes_max


def _ratio(before: int, after: int) -> float:
    return math.log((1 + after) / (1 + before)) / RATIO_LEVEL
