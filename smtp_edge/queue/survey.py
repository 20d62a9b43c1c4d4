"""The SQL that looks for what an operator means: in pages, so that other questions are answered in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection

from smtp_edge.queue.entry import Claim, DeliveryState, as_sent
from smtp_edge.queue.rows import (
    BODY_COLUMNS,
    BODY_WIDTH,
    CORRUPT,
    DELIVERY_COLUMNS,
    DELIVERY_WIDTH,
    ENTRY_COLUMNS,
    ENTRY_WIDTH,
    CorruptRow,
    decode_delivery,
    decode_entry,
    from_us,
    to_us,
)
from smtp_edge.queue.selection import NULL_SENDER, Selection
from smtp_edge.queue.shape import Shape, ShapeBy


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far somebody came who goes through deliveries in the order of their ids."""

    queue_id: str = ""
    copy: int = -1


FIRST = Place()
PAGE_ROWS = 2000
"""Deliveries counted before other questions get their turn: some ten milliseconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some deliveries, and where the next page begins; None: there is none."""

    found: tuple[Claim, ...]
    after: Place | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A delivery whose rows or files cannot be read."""

    queue_id: str
    copy: int
    class_id: str
    received_at: datetime
    reason: str


def find(
    connection: Connection, selection: Selection, limit: int, after: Place, spool: Path, *, with_data: bool
) -> Page:
    """A page of what is meant, in the order of ids, with current tokens; without mail data, unless asked for.

    What does not decode is left out: it is found when it is claimed, or by `find_damaged`.
    """
    where, values = selection.where()
    body = f", {BODY_COLUMNS}" if with_data else ""
    join = "LEFT JOIN body b USING (queue_id)" if with_data else ""
    rows = connection.execute(
        f"SELECT {ENTRY_COLUMNS}, {DELIVERY_COLUMNS}, d.token{body}"
        f" FROM delivery d JOIN entry e USING (queue_id) {join}"
        f" WHERE (d.queue_id, d.copy) > (?, ?) AND {where} ORDER BY d.queue_id, d.copy LIMIT ?",
        (after.queue_id, after.copy, *values, limit),
    ).fetchall()
    found: list[Claim] = []
    for row in rows:
        columns, token, data = row[ENTRY_WIDTH:][:DELIVERY_WIDTH], row[ENTRY_WIDTH + DELIVERY_WIDTH], None
        if with_data:
            data = row[-BODY_WIDTH:]
        try:
            entry, delivery = decode_entry(row[:ENTRY_WIDTH], data, spool), decode_delivery(columns)
            claim = Claim(as_sent(entry, delivery), delivery, token)
        except CorruptRow:
            continue
        if selection.matches(claim):
            found.append(claim)
    last = Place(rows[-1][ENTRY_WIDTH], rows[-1][ENTRY_WIDTH + 1]) if len(rows) == limit else None
    return Page(tuple(found), last)


def find_damaged(connection: Connection, limit: int) -> tuple[Damaged, ...]:
    """What was set aside, oldest first."""
    rows = connection.execute(
        f"SELECT queue_id, copy, class_id, received_at, last_reply FROM delivery WHERE state = '{CORRUPT}'"
        " ORDER BY queue_id, copy LIMIT ?",
        (limit,),
    )
    return tuple(
        Damaged(queue_id, copy, class_id, from_us(received_us), reason)
        for queue_id, copy, class_id, received_us, reason in rows
    )


def add_page(
    connection: Connection, *, shape: Shape, by: ShapeBy, states: Sequence[DeliveryState], at: datetime, after: Place
) -> Place | None:
    """Count a page of deliveries into a shape; where the next begins, or None."""
    where, values = Selection(states=tuple(states)).where()
    document = "e.document" if by is ShapeBy.SENDER else "NULL"
    join = "JOIN entry e USING (queue_id)" if by is ShapeBy.SENDER else ""
    rows = connection.execute(
        f"SELECT d.queue_id, d.copy, d.received_at, d.class_id, d.recipients, {document} FROM delivery d {join}"
        f" WHERE (d.queue_id, d.copy) > (?, ?) AND {where} ORDER BY d.queue_id, d.copy LIMIT ?",
        (after.queue_id, after.copy, *values, PAGE_ROWS),
    ).fetchall()
    at_us = to_us(at)
    for _, _, received_us, class_id, recipients, sender in rows:
        try:
            names = _name(by, class_id, recipients, sender)
        except (ValueError, KeyError, TypeError, IndexError):  # damaged: it is counted elsewhere
            continue
        shape.add(names, (at_us - received_us) / 1e6)
    return Place(rows[-1][0], rows[-1][1]) if len(rows) == PAGE_ROWS else None


def _name(by: ShapeBy, class_id: str, recipients: str, document: str | None) -> set[str]:
    match by:
        case ShapeBy.CLASS:
            return {class_id}
        case ShapeBy.RECIPIENT:
            return {_domain(packed[0]) for packed in json.loads(recipients)}
        case ShapeBy.SENDER:
            sender = json.loads(document or "")["sender"]
            return {_domain(sender) if sender else NULL_SENDER}


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()
