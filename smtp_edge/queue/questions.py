"""The SQL that asks: each function is one question on a reading connection, without threads or awaiting.

A row that does not decode is left out of lists; it is counted and logged when somebody tries to claim it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from sqlite3 import Connection

from smtp_edge.envelope import MailData
from smtp_edge.queue.entry import Claim, DeliveryState, HistoryNote, Key, MessageHistory, NewEntry, as_sent
from smtp_edge.queue.rows import (
    BODY_COLUMNS,
    CORRUPT,
    DELIVERY_COLUMNS,
    ENTRY_COLUMNS,
    ENTRY_WIDTH,
    CorruptRow,
    Row,
    decode_body,
    decode_delivery,
    decode_entry,
    from_us,
)
from smtp_edge.queue.statements import accept_key
from smtp_edge.queue.store import StoreError
from smtp_edge.queue.tally import Change, Changes

UNCLAIMED = tuple(state.value for state in (DeliveryState.QUEUED, DeliveryState.DEFERRED, DeliveryState.HELD))


def next_due_at(connection: Connection) -> datetime | None:
    """When the next deferred delivery is due."""
    row = connection.execute(
        f"SELECT min(due_at) FROM delivery WHERE state = '{DeliveryState.DEFERRED.value}'"
    ).fetchone()
    return None if row[0] is None else from_us(row[0])


def find_accepted(connection: Connection, new: NewEntry, accept_token: str) -> str:
    """Queue id of an entry that came under this token with these recipients; empty if there is none."""
    key = accept_key(accept_token, new)
    row = connection.execute("SELECT queue_id FROM entry WHERE accept_key = ?", (key,)).fetchone()
    return "" if row is None else str(row[0])


def mail_data(connection: Connection, queue_id: str, spool: Path) -> MailData:
    """Mail data of an entry that is not finished."""
    row = connection.execute(
        f"SELECT e.size_bytes, e.spool, {BODY_COLUMNS} FROM entry e JOIN body b USING (queue_id) WHERE e.queue_id = ?",
        (queue_id,),
    ).fetchone()
    if row is None:
        raise StoreError(f"{queue_id}: no mail data is stored under this queue id")
    try:
        return decode_body(row[0], row[1], row[2:], spool)
    except CorruptRow as error:
        raise StoreError(f"{queue_id}: {error}") from error


def list_deliveries(
    connection: Connection, states: Sequence[DeliveryState], class_id: str, limit: int, spool: Path
) -> list[Claim]:
    """Deliveries with their entries, without mail data, in the order in which they were stored."""
    wanted = [state.value for state in states] or [state.value for state in DeliveryState if not state.final]
    where, values = f"d.state IN ({', '.join('?' * len(wanted))})", [*wanted]
    if class_id:
        where, values = where + " AND d.class_id = ?", [*values, class_id]
    cursor = connection.execute(
        f"SELECT {ENTRY_COLUMNS}, {DELIVERY_COLUMNS} FROM delivery d JOIN entry e USING (queue_id) WHERE {where}"
        " ORDER BY d.queue_id, d.copy LIMIT ?",
        (*values, limit),
    )
    return list(_decode_claims(cursor, spool))


def _decode_claims(rows: Iterable[Row], spool: Path) -> Iterator[Claim]:
    for row in rows:
        try:
            entry = decode_entry(row[:ENTRY_WIDTH], None, spool)
            delivery = decode_delivery(row[ENTRY_WIDTH:])
            yield Claim(as_sent(entry, delivery), delivery, 0)
        except CorruptRow:  # counted and logged when it is claimed
            continue


def page(connection: Connection, after: Key, limit: int, spool: Path) -> list[Claim]:
    """Deliveries that wait unclaimed, with their entries, without mail data, in the order of their ids behind one."""
    cursor = connection.execute(
        f"SELECT {ENTRY_COLUMNS}, {DELIVERY_COLUMNS} FROM delivery d JOIN entry e USING (queue_id)"
        " WHERE (d.queue_id, d.copy) > (?, ?) AND d.state IN (?, ?, ?) ORDER BY d.queue_id, d.copy",
        (*after, *UNCLAIMED),
    )
    return list(islice(_decode_claims(cursor, spool), limit))


def history(connection: Connection, name: str, spool: Path) -> MessageHistory | None:
    """A message by queue id, else by origin (the newest, should it have come here twice)."""
    row = connection.execute(
        f"SELECT {ENTRY_COLUMNS}, e.stored_at FROM entry e WHERE e.queue_id = :name OR e.origin = :name"
        " ORDER BY e.queue_id = :name DESC, e.queue_id DESC LIMIT 1",
        {"name": name},
    ).fetchone()
    if row is None:
        return None
    queue_id = row[0]
    deliveries = connection.execute(
        f"SELECT {DELIVERY_COLUMNS} FROM delivery d WHERE d.queue_id = ? AND d.state != '{CORRUPT}' ORDER BY d.copy",
        (queue_id,),
    ).fetchall()
    notes = connection.execute(
        "SELECT at, event, hop, reply, detail FROM note WHERE queue_id = ? ORDER BY at, rowid", (queue_id,)
    ).fetchall()
    try:
        entry = decode_entry(row[:ENTRY_WIDTH], None, spool)
        received = HistoryNote(from_us(row[-1]), "received", detail=entry.client)
        return MessageHistory(
            entry,
            tuple(decode_delivery(columns) for columns in deliveries),
            (received, *(HistoryNote(from_us(at), *words) for at, *words in notes)),
        )
    except CorruptRow as error:
        raise StoreError(f"{queue_id} cannot be read: {error}") from error


def find_spooled(connection: Connection) -> set[str]:
    """Spool files that entries name."""
    return {row[0] for row in connection.execute("SELECT spool FROM entry WHERE spool IS NOT NULL")}


def count_everything(connection: Connection) -> Changes:
    """The totals by counting all rows: at opening, and for the test that compares."""
    changes = Changes()
    changes.entries, changes.bytes_stored = connection.execute(
        "SELECT count(*), coalesce(sum(e.size_bytes), 0) FROM body b JOIN entry e USING (queue_id)"
    ).fetchone()
    changes.finished = connection.execute("SELECT count(*) FROM entry WHERE finished_at IS NOT NULL").fetchone()[0]
    rows: list[Row] = connection.execute(
        "SELECT class_id, received_at / 1000000, state, count(*) FROM delivery GROUP BY 1, 2, 3"
    ).fetchall()
    for class_id, second, state, count in rows:
        changes.deliveries.append(Change(class_id, second * 1_000_000, "", state, count))
    return changes
