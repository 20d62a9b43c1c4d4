"""The SQL that changes the store: each function is one change on a connection, without threads or awaiting.

A claim is current when state, token and incarnation all fit; every write that ends a claim names them, so a late
finisher changes nothing. `Changes` collects what the totals in memory must learn once the commit has succeeded.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from smtp_edge.queue.cutthrough import Passed
from smtp_edge.queue.entry import (
    FRESH_TOKEN,
    Claim,
    Delivery,
    DeliveryState,
    EarlyMark,
    Entry,
    HistoryNote,
    Key,
    NewEntry,
    Settlement,
    Stored,
    as_sent,
    claim_fresh,
)
from smtp_edge.queue.picking import Pick
from smtp_edge.queue.rows import (
    BODY_COLUMNS,
    BODY_WIDTH,
    CORRUPT,
    DELIVERY_COLUMNS,
    ENTRY_COLUMNS,
    ENTRY_WIDTH,
    FINAL_STATES,
    CorruptRow,
    Row,
    clean_text,
    decode_delivery,
    decode_entry,
    encode_body,
    encode_entry,
    encode_recipients,
    to_us,
)
from smtp_edge.queue.tally import Changes

log = structlog.get_logger()

Connection = sqlite3.Connection
NOTE_CHARACTERS_MAX = 1000
ROWS_TOGETHER = 64
"""Rows in one statement; SQLite takes 32,766 values."""
QUEUED, CLAIMED, DEFERRED = (
    state.value for state in (DeliveryState.QUEUED, DeliveryState.CLAIMED, DeliveryState.DEFERRED)
)
_FINAL = ", ".join(f"'{state}'" for state in FINAL_STATES)
_TO_COME = "CASE WHEN due_at > :at THEN"
_GIVEN_BACK = f"state = {_TO_COME} '{DEFERRED}' ELSE '{QUEUED}' END, due_at = {_TO_COME} due_at END"
"""Untouched: what was claimed before its time is deferred again."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and where its spool files are."""

    incarnation: str
    spool: Path


def put(
    connection: Connection, changes: Changes, new: NewEntry, *, accept_token: str, incarnation: str, at: datetime
) -> Stored:
    """Insert an entry; born claimed when `incarnation` is given. A repeat of an accepted transfer stores nothing."""
    key = accept_key(accept_token, new) if accept_token else None
    if key is not None:
        row = connection.execute("SELECT queue_id FROM entry WHERE accept_key = ?", (key,)).fetchone()
        if row is not None:
            return Stored(duplicate_of=row[0])
    insert(connection, changes, new, key=key, incarnation=incarnation, at=at)
    return Stored(claim_fresh(new)) if incarnation else Stored()


def accept_key(accept_token: str, new: NewEntry) -> str:
    """Under what an accepted transfer is remembered: its token and its recipients.

    A token names a message *and* its recipients. Should a sender repeat one with other recipients (those refused
    the first time), the repeat is a different transfer: a second copy is a nuisance, a forgotten recipient is a loss.
    """
    addresses = sorted(recipient.address for recipient in new.entry.envelope.recipients)
    digest = hashlib.sha256("\0".join(addresses).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{accept_token} {digest[:16]}"


def record(connection: Connection, changes: Changes, passed: Sequence[Passed]) -> None:
    """Insert what is remembered of messages that were relayed without having been here."""
    entries, deliveries, notes = [], [], []
    for item in passed:
        entry, settlement, at_us = item.new.entry, item.settlement, to_us(item.at)
        ended = _end_in_memory(item.new.deliveries[0], settlement)
        entries.append(_entry_row(entry, key=None, stored_us=at_us, finished_us=at_us))
        deliveries.append(_delivery_row(entry, ended, ended.state.value, settlement.token, ""))
        notes += [_note_row(entry.queue_id, note) for note in settlement.notes]
        changes.add(ended.class_id, to_us(entry.received_at), "", ended.state.value)
        if entry.data.path is not None:
            changes.unlinked.append(entry.data.path.name)
    _insert_all(connection, _INSERT_ENTRY, entries)
    _insert_all(connection, _INSERT_DELIVERY, deliveries)
    _insert_all(connection, _INSERT_NOTE, notes)
    changes.finished += len(passed)


def _insert_all(connection: Connection, insert: str, rows: Sequence[Row]) -> None:
    """Many rows in few steps. The interpreter's lock is let go and taken back for each step: with one for each row,
    this thread and that of the event loop would spend more time on taking turns than on their work.
    """
    into, _, values = insert.partition(" VALUES ")
    together = f"{into} VALUES {', '.join([values] * ROWS_TOGETHER)}"
    whole = len(rows) - len(rows) % ROWS_TOGETHER
    for start in range(0, whole, ROWS_TOGETHER):
        connection.execute(together, [value for row in rows[start : start + ROWS_TOGETHER] for value in row])
    connection.executemany(insert, rows[whole:])


def _end_in_memory(delivery: Delivery, settlement: Settlement) -> Delivery:
    return delivery.but(
        class_id=settlement.class_id or delivery.class_id,
        state=settlement.state,
        attempts=delivery.attempts + int(settlement.attempted),
        last_hop=settlement.hop,
        last_reply=settlement.reply[:NOTE_CHARACTERS_MAX],
    )


def insert(
    connection: Connection, changes: Changes, new: NewEntry, *, key: str | None, incarnation: str, at: datetime
) -> None:
    """Insert the rows of an entry."""
    entry = new.entry
    connection.execute(_INSERT_ENTRY, _entry_row(entry, key=key, stored_us=to_us(at)))
    connection.execute("INSERT INTO body VALUES (?, ?, ?)", (entry.queue_id, *encode_body(entry.data)))
    changes.entries += 1
    changes.bytes_stored += entry.data.size_bytes
    token = FRESH_TOKEN if incarnation else 0
    for delivery in new.deliveries:
        state = CLAIMED if incarnation else delivery.state.value
        connection.execute(_INSERT_DELIVERY, _delivery_row(entry, delivery, state, token, incarnation))
        changes.add(delivery.class_id, to_us(entry.received_at), "", state)


_INSERT_ENTRY = (
    "INSERT INTO entry (queue_id, origin, accept_key, stored_at, received_at, expires_at, finished_at, size_bytes,"
    " spool, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _entry_row(entry: Entry, *, key: str | None, stored_us: int, finished_us: int | None = None) -> Row:
    """One that is finished has no file any more."""
    path = entry.data.path if finished_us is None else None
    return (
        entry.queue_id,
        clean_text(entry.origin),
        key,
        stored_us,
        to_us(entry.received_at),
        to_us(entry.expires_at),
        finished_us,
        entry.data.size_bytes,
        path.name if path is not None else None,
        encode_entry(entry),
    )


_INSERT_DELIVERY = (
    "INSERT INTO delivery (queue_id, copy, class_id, received_at, state, token, claimed_by, attempts, due_at,"
    " last_hop, last_reply, in_doubt_hop, delay_notified, transfer_token, recipients)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _delivery_row(entry: Entry, delivery: Delivery, state: str, token: int, claimed_by: str) -> Row:
    return (
        delivery.queue_id,
        delivery.copy,
        delivery.class_id,
        to_us(entry.received_at),
        state,
        token,
        claimed_by,
        delivery.attempts,
        to_us(delivery.next_attempt_at) if delivery.next_attempt_at else None,
        delivery.last_hop,
        clean_text(delivery.last_reply),
        delivery.in_doubt_hop,
        delivery.delay_notified,
        clean_text(delivery.transfer_token),
        encode_recipients(delivery.recipients),
    )


# -- claims ------------------------------------------------------------------------------------------------------------


def claim(connection: Connection, changes: Changes, picks: Sequence[Pick], at: datetime, by: Claimant) -> list[Claim]:
    """Claim what was picked, in that order; sets aside what cannot be read."""
    rows = []
    for found in picks:
        rows += connection.execute(
            f"SELECT {DELIVERY_COLUMNS}, d.token, d.received_at FROM delivery d WHERE d.queue_id = ? AND d.copy = ?"
            f" AND d.state IN ('{QUEUED}', '{DEFERRED}')",
            (found.queue_id, found.copy),
        ).fetchall()
    return _claim_rows(connection, changes, rows, at, by)


def claim_early(
    connection: Connection,
    changes: Changes,
    class_id: str,
    limit: int,
    at: datetime,
    after: EarlyMark | None,
    by: Claimant,
) -> list[Claim]:
    """Claim what is deferred and not due, in the order of the times, beginning after a mark."""
    mark = (to_us(after.due_at), after.queue_id, after.copy) if after is not None else (0, "", 0)
    rows = connection.execute(
        f"SELECT {DELIVERY_COLUMNS}, d.token, d.received_at FROM delivery d WHERE d.state = '{DEFERRED}'"
        " AND d.class_id = ? AND d.due_at > ? AND (d.due_at, d.queue_id, d.copy) > (?, ?, ?)"
        " ORDER BY d.due_at, d.queue_id, d.copy LIMIT ?",
        (class_id, to_us(at), *mark, limit),
    ).fetchall()
    return _claim_rows(connection, changes, rows, at, by)


def _claim_rows(
    connection: Connection, changes: Changes, rows: Sequence[Row], at: datetime, by: Claimant
) -> list[Claim]:
    """A time that is to come stays with the claim: if it ends untouched, the delivery is deferred as it was."""
    claims: list[Claim] = []
    entries: dict[str, Entry] = {}
    """Decoded once: of a list's message thousands of deliveries may be claimed together."""
    for *columns, token, received_us in rows:
        queue_id, copy, class_id, _, before = columns[:5]
        try:
            delivery = decode_delivery(columns).but(state=DeliveryState.CLAIMED)
            entry = entries.get(queue_id) or _load_entry(connection, queue_id, by.spool)
        except CorruptRow as error:
            set_aside(connection, changes, queue_id, copy, str(error))
            continue
        connection.execute(
            "UPDATE delivery SET state = ?, token = ?, claimed_by = ?, due_at = CASE WHEN due_at > ? THEN due_at END"
            " WHERE queue_id = ? AND copy = ?",
            (CLAIMED, token + 1, by.incarnation, to_us(at), queue_id, copy),
        )
        changes.add(class_id, received_us, before, CLAIMED)
        entries[queue_id] = entry
        claims.append(Claim(as_sent(entry, delivery), delivery, token + 1))
    return claims


def _load_entry(connection: Connection, queue_id: str, spool: Path) -> Entry:
    row = connection.execute(
        f"SELECT {ENTRY_COLUMNS}, {BODY_COLUMNS} FROM entry e LEFT JOIN body b USING (queue_id) WHERE e.queue_id = ?",
        (queue_id,),
    ).fetchone()
    if row is None:
        raise CorruptRow(f"delivery of an unknown entry {queue_id}")
    if row[ENTRY_WIDTH] is None:
        raise CorruptRow(f"entry {queue_id} has lost its mail data")
    return decode_entry(row[:ENTRY_WIDTH], row[ENTRY_WIDTH : ENTRY_WIDTH + BODY_WIDTH], spool)


def set_aside(connection: Connection, changes: Changes, queue_id: str, copy: int, reason: str) -> None:
    """Take a delivery that cannot be read out of everybody's way; its rows and files stay for a person to look at."""
    log.error("queue.corrupt", queue_id=queue_id, copy=copy, reason=reason)
    row = connection.execute(
        "SELECT class_id, received_at, state FROM delivery WHERE queue_id = ? AND copy = ?", (queue_id, copy)
    ).fetchone()
    connection.execute(
        "UPDATE delivery SET state = ?, last_reply = ?, due_at = NULL WHERE queue_id = ? AND copy = ?",
        (CORRUPT, clean_text(reason), queue_id, copy),
    )
    changes.add(row[0], row[1], row[2], CORRUPT)


def void_claims(connection: Connection, at: datetime, offers: Mapping[Key, str]) -> int:
    """Give back what earlier incarnations had claimed: the token rises, so that they cannot settle it any more.

    `offers`: queue id and copy -> the peer that may have it, of those that were under way.
    """
    connection.executemany(
        f"UPDATE delivery SET in_doubt_hop = ? WHERE queue_id = ? AND copy = ? AND state = '{CLAIMED}'",
        [(hop, queue_id, copy) for (queue_id, copy), hop in offers.items()],
    )
    return connection.execute(
        f"UPDATE delivery SET {_GIVEN_BACK}, token = token + 1, claimed_by = '' WHERE state = '{CLAIMED}'",
        {"at": to_us(at)},
    ).rowcount


# -- settlements -------------------------------------------------------------------------------------------------------


def settle(connection: Connection, changes: Changes, settlement: Settlement, incarnation: str, at: datetime) -> None:
    """End a claim, with its history and the reports that take over; nothing at all if the claim is not current."""
    row = connection.execute(
        "SELECT class_id, received_at, due_at FROM delivery"
        " WHERE queue_id = ? AND copy = ? AND token = ? AND claimed_by = ?"
        f" AND state = '{CLAIMED}'",
        (settlement.queue_id, settlement.copy, settlement.token, incarnation),
    ).fetchone()
    if row is None:
        log.warning("queue.stale_settlement", queue_id=settlement.queue_id, copy=settlement.copy)
        return
    if settlement.state is DeliveryState.QUEUED:
        after = DEFERRED if row[2] is not None and row[2] > to_us(at) else QUEUED
        connection.execute(
            f"UPDATE delivery SET {_GIVEN_BACK}, claimed_by = '' WHERE queue_id = :queue_id AND copy = :copy",
            {"at": to_us(at), "queue_id": settlement.queue_id, "copy": settlement.copy},
        )
    else:
        after = settlement.state.value
        _end_claim(connection, settlement, at)
    class_id, received_us, _ = row
    if settlement.class_id and settlement.class_id != class_id:
        _move(connection, changes, settlement, class_id, received_us)
        class_id = settlement.class_id
    changes.add(class_id, received_us, CLAIMED, after)
    for note in settlement.notes:
        add_note(connection, settlement.queue_id, note)
    for report in settlement.reports:
        insert(connection, changes, report, key=None, incarnation="", at=at)
    if settlement.state.final:
        finish_if_done(connection, changes, settlement.queue_id, at)


def _move(connection: Connection, changes: Changes, settlement: Settlement, class_id: str, received_us: int) -> None:
    """To another class; it is still claimed."""
    connection.execute(
        "UPDATE delivery SET class_id = ? WHERE queue_id = ? AND copy = ?",
        (settlement.class_id, settlement.queue_id, settlement.copy),
    )
    changes.add(class_id, received_us, CLAIMED, "")
    changes.add(settlement.class_id, received_us, "", CLAIMED)


def _end_claim(connection: Connection, settlement: Settlement, at: datetime) -> None:
    due_at = settlement.next_attempt_at
    if settlement.state is DeliveryState.DEFERRED and due_at is None:
        due_at = at
    columns: dict[str, Any] = {
        "state": settlement.state.value,
        "claimed_by": "",
        "due_at": to_us(due_at) if due_at is not None and not settlement.state.final else None,
        "in_doubt_hop": settlement.in_doubt_hop,
        "delay_notified": settlement.delay_notified,
        "last_reply": clean_text(settlement.reply)[:NOTE_CHARACTERS_MAX],
    }
    if settlement.hop:
        columns["last_hop"] = settlement.hop
    if settlement.recipients is not None:
        columns["recipients"] = encode_recipients(settlement.recipients)
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(
        f"UPDATE delivery SET {names}, attempts = attempts + ? WHERE queue_id = ? AND copy = ?",
        (*columns.values(), int(settlement.attempted), settlement.queue_id, settlement.copy),
    )


def finish_if_done(connection: Connection, changes: Changes, queue_id: str, at: datetime) -> None:
    """Once every delivery is final, the mail data goes and the history's retention begins."""
    open_row = connection.execute(
        f"SELECT 1 FROM delivery WHERE queue_id = ? AND state NOT IN ({_FINAL}) ORDER BY copy DESC LIMIT 1",
        (queue_id,),  # of thousands the first ones end first: the last one tells
    ).fetchone()
    row = connection.execute(
        "SELECT size_bytes, spool FROM entry WHERE queue_id = ? AND finished_at IS NULL", (queue_id,)
    ).fetchone()
    if open_row is not None or row is None:
        return
    size_bytes, spool = row
    connection.execute("DELETE FROM body WHERE queue_id = ?", (queue_id,))
    connection.execute("UPDATE entry SET finished_at = ?, spool = NULL WHERE queue_id = ?", (to_us(at), queue_id))
    changes.entries -= 1
    changes.finished += 1
    changes.bytes_stored -= size_bytes
    if spool is not None:
        changes.unlinked.append(spool)


def add_note(connection: Connection, queue_id: str, note: HistoryNote) -> None:
    """Append a line of history."""
    connection.execute(_INSERT_NOTE, _note_row(queue_id, note))


_INSERT_NOTE = "INSERT INTO note VALUES (?, ?, ?, ?, ?, ?)"


def _note_row(queue_id: str, note: HistoryNote) -> Row:
    texts = (clean_text(text)[:NOTE_CHARACTERS_MAX] for text in (note.event, note.hop, note.reply, note.detail))
    return (queue_id, to_us(note.at), *texts)


# -- changes by time ----------------------------------------------------------------------------------


def wake(connection: Connection, _: Changes, class_id: str, at: datetime, limit: int) -> int:
    """Make up to `limit` deferred deliveries of a class due at `at`, soonest first."""
    return connection.execute(
        "UPDATE delivery SET due_at = :at WHERE (queue_id, copy) IN (SELECT queue_id, copy FROM delivery"
        f" WHERE state = '{DEFERRED}' AND class_id = :class_id AND due_at > :at ORDER BY due_at LIMIT :limit)",
        {"at": to_us(at), "class_id": class_id, "limit": limit},
    ).rowcount


def prune(connection: Connection, changes: Changes, before: datetime, excess: int, limit: int) -> tuple[int, int]:
    """Forget up to `limit` entries finished before a time, or the `excess` that were finished first.

    How many entries, and how many rows of all tables.
    """
    finished = connection.execute(
        "SELECT queue_id, finished_at FROM entry WHERE finished_at IS NOT NULL ORDER BY finished_at LIMIT ?", (limit,)
    ).fetchall()
    before_us = to_us(before)
    over = [queue_id for number, (queue_id, at_us) in enumerate(finished) if number < excess or at_us < before_us]
    return len(over), sum(_forget(connection, changes, queue_id) for queue_id in over)


def _forget(connection: Connection, changes: Changes, queue_id: str) -> int:
    for class_id, received_us, state in connection.execute(
        "SELECT class_id, received_at, state FROM delivery WHERE queue_id = ?", (queue_id,)
    ):
        changes.add(class_id, received_us, state, "")
    changes.finished -= 1
    return sum(
        connection.execute(f"DELETE FROM {table} WHERE queue_id = ?", (queue_id,)).rowcount
        for table in ("note", "delivery", "entry")
    )
