"""The SQL that gives deliveries other classes: the routes are other ones, and what waits goes by them.

The first part keeps the row, further ones get rows of their own. What was held stays held; everything else is due now,
because what it waited for was another way. A doubt (`in_doubt_hop`) stays with a delivery that is whole: its token is
still the one that the hop would recognise.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from smtp_edge.queue.entry import DeliveryState, HistoryNote, Regrouping
from smtp_edge.queue.questions import UNCLAIMED
from smtp_edge.queue.rows import CorruptRow, clean_text, decode_recipients, encode_recipients
from smtp_edge.queue.statements import add_note
from smtp_edge.queue.tally import Changes

QUEUED, CLAIMED, HELD = (
    state.value for state in (DeliveryState.QUEUED, DeliveryState.CLAIMED, DeliveryState.HELD)
)  # fmt: skip
PART_COLUMNS = "received_at, attempts, last_hop, last_reply, delay_notified"
"""What a part has from the whole."""


def regroup(connection: sqlite3.Connection, changes: Changes, item: Regrouping, incarnation: str, at: datetime) -> bool:
    """True if it was done; see `Regrouping` for when it is not."""
    row = connection.execute(
        "SELECT class_id, received_at, state, token, claimed_by, recipients FROM delivery"
        " WHERE queue_id = ? AND copy = ?",
        (item.queue_id, item.copy),
    ).fetchone()
    if row is None or not _holds(row[5], item):
        return False
    class_id, received_us, state = row[:3]
    free = state in UNCLAIMED if not item.token else (state, *row[3:5]) == (CLAIMED, item.token, incarnation)
    if not free:
        return False
    after = HELD if state == HELD else QUEUED
    _change(connection, item, after)
    _add_parts(connection, item, after)
    changes.add(class_id, received_us, state, "")
    for group in item.groups:
        changes.add(group.class_id, received_us, "", after)
    for note in item.notes:
        add_note(connection, item.queue_id, note)
    names = ", ".join(group.class_id for group in item.groups)
    add_note(connection, item.queue_id, HistoryNote(at, "rerouted", detail=f"{class_id} -> {names}"))
    return True


def _holds(recipients: str, item: Regrouping) -> bool:
    try:
        return decode_recipients(recipients) == item.recipients
    except CorruptRow:  # counted and logged when it is claimed
        return False


def _change(connection: sqlite3.Connection, item: Regrouping, after: str) -> None:
    group, parted = item.groups[0], len(item.groups) > 1
    connection.execute(
        "UPDATE delivery SET class_id = ?, recipients = ?, transfer_token = ?, state = ?, due_at = NULL,"
        " claimed_by = '', in_doubt_hop = CASE WHEN ? THEN '' ELSE in_doubt_hop END WHERE queue_id = ? AND copy = ?",
        (
            group.class_id,
            encode_recipients(group.recipients),
            clean_text(group.transfer_token),
            after,
            parted,
            item.queue_id,
            item.copy,
        ),
    )


def _add_parts(connection: sqlite3.Connection, item: Regrouping, after: str) -> None:
    for group in item.groups[1:]:
        connection.execute(
            f"INSERT INTO delivery (queue_id, copy, class_id, state, token, claimed_by, in_doubt_hop,"
            f" transfer_token, recipients, {PART_COLUMNS})"
            " SELECT queue_id, (SELECT max(copy) + 1 FROM delivery WHERE queue_id = :queue_id), :class_id, :state, 0,"
            f" '', '', :token, :recipients, {PART_COLUMNS} FROM delivery WHERE queue_id = :queue_id AND copy = :copy",
            {
                "queue_id": item.queue_id,
                "copy": item.copy,
                "class_id": group.class_id,
                "state": after,
                "token": clean_text(group.transfer_token),
                "recipients": encode_recipients(group.recipients),
            },
        )
