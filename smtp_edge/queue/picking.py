"""Which deliveries on disk are claimed next: those that have waited longest, but of no class more than its share.

Each class is asked for its first few by an index of its own, so a class with a hundred thousand deliveries costs no
more than one with ten. With very many classes (each domain of direct delivery is one) a pick goes on where the last one
ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from sqlite3 import Connection

from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.rows import to_us
from smtp_edge.queue.shares import Shares

CLASSES_MAX = 1000
"""Classes asked in one pick."""
QUEUED, DEFERRED = DeliveryState.QUEUED.value, DeliveryState.DEFERRED.value


@dataclass(frozen=True, slots=True, order=True)
class Pick:
    """A delivery, in the order of the instants since which it could go."""

    since_us: int
    queue_id: str
    copy: int


@dataclass(slots=True)
class Picked:
    """What was found, and how far the classes were asked."""

    picks: list[Pick]
    after: dict[str, str]
    """State -> the class after which the next pick begins; empty: at the first."""


def pick(connection: Connection, limit: int, at: datetime, shares: Shares | None, after: dict[str, str]) -> Picked:
    """Up to `limit` deliveries that are queued, or deferred and due. Changes nothing."""
    due_us = to_us(at)
    left: dict[str, int] = {}
    found: list[Pick] = []
    marks: dict[str, str] = {}
    for state, order, bound in ((QUEUED, "received_at", None), (DEFERRED, "due_at", due_us)):
        for asked, class_id in enumerate(_classes(connection, state, after.get(state, ""))):
            if asked >= CLASSES_MAX:
                marks[state] = class_id
                break
            room = left.setdefault(class_id, min(limit, shares.room(class_id)) if shares is not None else limit)
            if room > 0:
                picks = _first_of(connection, state, order, class_id, room, bound)
                left[class_id] = room - len(picks)
                found += picks
    return Picked(heapq.nsmallest(limit, found), marks)


def _classes(connection: Connection, state: str, after: str) -> Iterator[str]:
    """Classes that have deliveries in a state, in their order: each found by one step in the index."""
    sql = f"SELECT min(class_id) FROM delivery WHERE state = '{state}' AND class_id >= ?"
    class_id = connection.execute(sql, (after,)).fetchone()[0]
    following = sql.replace(">=", ">")
    while class_id is not None:
        yield class_id
        class_id = connection.execute(following, (class_id,)).fetchone()[0]


def _first_of(
    connection: Connection, state: str, order: str, class_id: str, count: int, bound: int | None
) -> list[Pick]:
    until = f"AND {order} <= {bound}" if bound is not None else ""
    rows = connection.execute(
        f"SELECT {order}, queue_id, copy FROM delivery WHERE state = '{state}' AND class_id = ? {until}"
        f" ORDER BY {order}, queue_id, copy LIMIT ?",
        (class_id, count),
    )
    return [Pick(*row) for row in rows]
