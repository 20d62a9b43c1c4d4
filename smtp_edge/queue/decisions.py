"""The SQL of operators' orders: each function is one change, as in statements.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from sqlite3 import Connection

from smtp_edge.queue.entry import Decision, DeliveryState, HistoryNote
from smtp_edge.queue.rows import CORRUPT
from smtp_edge.queue.statements import CLAIMED, QUEUED, add_note, finish_if_done, settle
from smtp_edge.queue.tally import Changes


def apply(connection: Connection, changes: Changes, decision: Decision, incarnation: str, at: datetime) -> bool:
    """End a delivery as decided; False, and nothing is changed, if it is no longer as it was found, or is over.

    What is over has lost its mail data: no order brings it back.
    """
    end = decision.settlement
    if decision.before.final:
        return False
    row = connection.execute(
        "SELECT class_id, received_at, state, token, claimed_by FROM delivery WHERE queue_id = ? AND copy = ?",
        (end.queue_id, end.copy),
    ).fetchone()
    if row is None or row[2:4] != (decision.before.value, end.token):
        return False
    class_id, received_us, state, token, claimed_by = row
    if state == CLAIMED:
        if claimed_by != incarnation:
            return False
    else:
        token += 1
        connection.execute(
            "UPDATE delivery SET state = ?, token = ?, claimed_by = ? WHERE queue_id = ? AND copy = ?",
            (CLAIMED, token, incarnation, end.queue_id, end.copy),
        )
        changes.add(class_id, received_us, state, CLAIMED)
    settle(connection, changes, replace(end, token=token), incarnation, at)
    return True


def revive(connection: Connection, changes: Changes, queue_ids: Sequence[str], note: HistoryNote) -> int:
    """Queue what was set aside: a person has put back what was missing. If not, the next claim sets it aside again."""
    return _change_damaged(connection, changes, queue_ids, QUEUED, note)


def bury(connection: Connection, changes: Changes, queue_ids: Sequence[str], note: HistoryNote) -> int:
    """Give up what was set aside."""
    buried = _change_damaged(connection, changes, queue_ids, DeliveryState.FAILED.value, note)
    for queue_id in queue_ids:
        finish_if_done(connection, changes, queue_id, note.at)
    return buried


def _change_damaged(
    connection: Connection, changes: Changes, queue_ids: Sequence[str], after: str, note: HistoryNote
) -> int:
    changed = 0
    for queue_id in queue_ids:
        rows = connection.execute(
            f"SELECT copy, class_id, received_at FROM delivery WHERE queue_id = ? AND state = '{CORRUPT}'", (queue_id,)
        ).fetchall()
        for copy, class_id, received_us in rows:
            connection.execute(
                "UPDATE delivery SET state = ?, token = token + 1 WHERE queue_id = ? AND copy = ?",
                (after, queue_id, copy),
            )
            changes.add(class_id, received_us, CORRUPT, after)
        if rows:
            add_note(connection, queue_id, note)
        changed += len(rows)
    return changed
