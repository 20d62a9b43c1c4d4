"""What can be read of a damaged queue, put into a new one; nothing is thrown away.

    found                                       in the new queue
    message, mail data, deliveries              as it was: what was under way is so for the next start, too
    message, mail data, deliveries perhaps lost those, and one held for the recipients that are in none of them
    message without its mail data               as damaged: it is listed, and can be tried again when a file came back
    finished message                            as history
    mail data without its message               not in it; kept as a file, with the recipients that are known
    spool file that no message names            not in it; kept as a file

Held recipients may have the message already: only a person can decide that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from smtp_edge.envelope import Recipient
from smtp_edge.queue.damage import find_gap, is_whole, read_deliveries, read_ends, read_rows
from smtp_edge.queue.entry import Delivery, DeliveryState, Entry, HistoryNote
from smtp_edge.queue.rows import (
    CORRUPT,
    FINAL_STATES,
    SCHEMA,
    SCHEMA_VERSION,
    CorruptRow,
    decode_body,
    decode_delivery,
    decode_entry,
    decode_recipients,
    encode_recipients,
    to_us,
)
from smtp_edge.queue.spool import SPOOL
from smtp_edge.queue.statements import QUEUED, add_note

LOST = "lost"
"""Folder for mail data whose message is lost."""
HELD_REASON = "its deliveries could not be read when the queue was repaired: some of these may have the message already"
NO_DATA = "its mail data could not be read when the queue was repaired"
ENTRY_ALL = "queue_id, origin, accept_key, stored_at, received_at, expires_at, finished_at, size_bytes, spool, document"
DELIVERY_ALL = (
    "queue_id, copy, class_id, received_at, state, token, claimed_by, attempts, due_at, last_hop, last_reply,"
    " in_doubt_hop, delay_notified, transfer_token, recipients"
)
STATE, TOKEN, CLAIMED_BY, DUE_AT, REPLY = 4, 5, 6, 8, 10
"""Of these columns."""


@dataclass(slots=True)
class Report:
    """What was found and done."""

    folder: Path | None = None
    """Where the old files are; None: nothing was changed."""
    problems: list[str] = field(default_factory=list)
    """What was wrong with the database."""
    kept: int = 0
    """Messages that wait, whole."""
    history: int = 0
    held: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Each a line that names the message as far as it is known."""
    files: int = 0
    """Spool files that no message names."""
    holes: bool = False
    """Rows of messages could not be read: there may have been some of which nothing else is left."""

    @property
    def clean(self) -> bool:
        """Nothing of anybody's mail is missing or in doubt."""
        return not (self.held or self.damaged or self.lost or self.files or self.holes)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from (f"problem: {problem}" for problem in self.problems)
        if self.folder is None:
            return
        yield f"{self.kept} messages wait as before, {self.history} finished ones are remembered"
        yield from (f"held: {line}" for line in self.held)
        yield from (f"damaged: {line}" for line in self.damaged)
        yield from (f"lost: {line}" for line in self.lost)
        if self.holes:
            yield "the list of messages has holes: of some that are lost there may be no trace"
        if self.files:
            yield f"{self.files} spool files that no message names are in {self.folder / SPOOL}"
        yield f"the old database is in {self.folder}"


class Salvage:
    """From an old connection to a new one, within one transaction. sqlite3.Error is about the new one only."""

    def __init__(
        self,
        old: sqlite3.Connection,
        new: sqlite3.Connection,
        spool: Path,
        folder: Path,
        report: Report,
        class_of: Callable[[str], str],
        at: datetime,
    ) -> None:
        self._old, self._new, self._spool, self._folder = old, new, spool, folder
        self._report, self._class_of, self._at = report, class_of, at
        self._gap = find_gap(old)
        """Queue ids between which deliveries may be missing."""

    def run(self) -> None:
        """All tables."""
        for statement in SCHEMA.split(";"):
            self._new.execute(statement)
        self._new.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        bodies = {row[1]: row[0] for row in read_rows(self._old, "body", "queue_id")}
        known = set()
        for row in read_rows(self._old, "entry", ENTRY_ALL):
            if row[1] not in known:
                known.add(row[1])
                self._take(row[1:], bodies.pop(row[1], None))
        for row in read_rows(self._old, "note", "queue_id, at, event, hop, reply, detail"):
            if row[1] in known:
                self._insert("note (rowid, queue_id, at, event, hop, reply, detail)", row)
        self._keep_strays(bodies, known)
        self._report.holes = not is_whole(self._old, "entry", "document")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, row: Sequence[Any], body_rowid: int | None) -> None:
        queue_id, finished = row[0], row[6] is not None
        try:
            columns = [row[index] for index in (0, 1, 4, 5, 7, 8, 9)]  # as ENTRY_COLUMNS has them
            entry = decode_entry(columns, None, self._spool)
        except CorruptRow as error:
            self._lose(str(queue_id), str(error), body_rowid, finished=finished)
            return
        if not self._insert("entry", row) and not self._insert("entry", (*row[:2], None, *row[3:])):
            self._lose(_name(entry), "its row fits into no queue", body_rowid, finished=finished)
            return
        rows = read_deliveries(self._old, DELIVERY_ALL, queue_id)
        if finished:
            for delivery in rows:
                self._insert("delivery", delivery)
            self._report.history += 1
        else:
            self._take_deliveries(entry, rows, whole=self._take_body(queue_id, body_rowid, row))

    def _lose(self, name: str, reason: str, body_rowid: int | None, *, finished: bool) -> None:
        if finished:  # it is only history
            self._report.problems.append(f"{name}: {reason}")
            return
        self._report.lost.append(f"{name}: {reason}")
        self._save_body(name.partition(" ")[0], body_rowid)

    def _take_body(self, queue_id: str, rowid: int | None, row: Sequence[Any]) -> bool:
        """Its mail data; False if it cannot be read, or is not what was stored."""
        body = self._body(rowid)
        if body is None:
            return False
        self._insert("body", (queue_id, *body))
        try:
            decode_body(row[7], row[8], body, self._spool)
        except CorruptRow:
            return False
        return True

    def _take_deliveries(self, entry: Entry, rows: Sequence[Sequence[Any]], *, whole: bool) -> None:
        covered: set[str] = set()
        complete = self._gap is None or not self._gap[0] <= entry.queue_id <= self._gap[1]
        for row in rows:
            try:
                delivery = _decode(row)
            except (CorruptRow, ValueError, TypeError):
                self._report.problems.append(f"a delivery of {entry.queue_id} cannot be read")
                complete = False
                continue
            covered |= {recipient.address for recipient in delivery.recipients}
            self._insert("delivery", _rest(row, whole=whole))
        missing = [who for who in entry.envelope.recipients if who.address not in covered]
        if missing and not complete:  # else they had it, and left their delivery
            self._hold(entry, rows, missing, whole=whole)
        elif whole:
            self._report.kept += 1
        if not whole:
            self._report.damaged.append(_name(entry))

    def _hold(self, entry: Entry, rows: Sequence[Sequence[Any]], missing: Sequence[Recipient], *, whole: bool) -> None:
        """One delivery for each class of those who are in none."""
        groups: dict[str, list[Recipient]] = {}
        for recipient in missing:
            groups.setdefault(self._class_of(recipient.domain), []).append(recipient)
        copy = max((row[1] for row in rows if isinstance(row[1], int)), default=-1)
        for class_id, members in groups.items():
            copy += 1
            state, reason = (DeliveryState.HELD.value, HELD_REASON) if whole else (CORRUPT, NO_DATA)
            token = f"{entry.origin}/salvaged-{copy}"
            received_us, packed = to_us(entry.received_at), encode_recipients(members)
            self._insert(
                "delivery",
                (entry.queue_id, copy, class_id, received_us, state, 1, "", 0, None, "", reason, "", 0, token, packed),
            )
        if whole:
            self._report.held.append(f"{_name(entry)} to {', '.join(recipient.address for recipient in missing)}")
            add_note(self._new, entry.queue_id, HistoryNote(self._at, "held", detail=f"by repair: {HELD_REASON}"))

    # -- mail data -----------------------------------------------------------------------------------------------------

    def _body(self, rowid: int | None) -> tuple[int, bytes] | None:
        try:
            row = self._old.execute("SELECT header_bytes, content FROM body WHERE rowid = ?", (rowid,)).fetchone()
        except sqlite3.Error:
            return None
        return row if row is not None and isinstance(row[1], bytes) else None

    def _save_body(self, queue_id: str, rowid: int | None) -> bool:
        """As a file, for a person."""
        body = self._body(rowid)
        if body is None:
            return False
        (self._folder / LOST).mkdir(exist_ok=True)
        safe = "".join(letter if letter.isalnum() else "_" for letter in queue_id)
        (self._folder / LOST / f"{safe}.eml").write_bytes(body[1])
        return True

    def _keep_strays(self, bodies: dict[str, int], known: set[str]) -> None:
        """What is left of messages that are not there: mail data, and who had yet to get it."""
        recipients: dict[str, set[str]] = {}
        for queue_id, state, packed in read_ends(self._old, "queue_id, state, recipients"):
            if queue_id not in known and state not in FINAL_STATES:
                recipients.setdefault(queue_id, set()).update(_read_addresses(packed))
        for queue_id in sorted({*bodies, *recipients}, key=str):
            saved = self._save_body(str(queue_id), bodies.get(queue_id))
            where = f"its mail data is in {LOST}" if saved else "nor can its mail data"
            for_whom = ", ".join(sorted(recipients.get(queue_id, ()))) or "unknown recipients"
            self._report.lost.append(f"{queue_id}: its sender cannot be read, {where}; for {for_whom}")

    def _insert(self, table: str, values: Sequence[Any]) -> bool:
        """False if it contradicts what is there."""
        try:
            self._new.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
        except sqlite3.IntegrityError:
            return False
        return True


def _decode(row: Sequence[Any]) -> Delivery:
    """A delivery from all of its columns. CorruptRow, ValueError, TypeError."""
    state = QUEUED if row[STATE] == CORRUPT else row[STATE]
    columns = [row[index] for index in (0, 1, 2, 14, 4, 7, 8, 9, 10, 11, 12, 13)]  # as DELIVERY_COLUMNS
    columns[4] = state
    int(row[TOKEN])
    return decode_delivery(columns)


def _read_addresses(packed: Any) -> set[str]:
    try:
        return {recipient.address for recipient in decode_recipients(packed)}
    except (CorruptRow, TypeError):
        return set()


def _rest(row: Sequence[Any], *, whole: bool) -> list[Any]:
    """The row of a delivery that nobody has in hand; who may have it is known to the next start (offers.py)."""
    values = list(row)
    values[TOKEN], values[CLAIMED_BY] = row[TOKEN] + 1, ""
    if not whole and row[STATE] not in FINAL_STATES:
        values[STATE], values[DUE_AT], values[REPLY] = CORRUPT, None, NO_DATA
    return values


def _name(entry: Entry) -> str:
    return f"{entry.queue_id} from <{entry.envelope.sender}>"
