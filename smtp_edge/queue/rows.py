"""Tables of the SQLite store, and entries to rows and back. Pure: no connection here.

    entry      one per message, kept until its history is pruned; `finished_at` is NULL while it is undelivered
    body       its mail data (or just the header of spooled data), removed as soon as every delivery is final
    delivery   one per destination class; `token` is its fencing token, `claimed_by` the incarnation that claimed it
    note       lines of history

Times are microseconds since 1970. What is only ever read whole (envelope, trace, Received) is one JSON document, so
that a new field needs no new column. Nothing here trusts a row: whatever does not decode raises CorruptRow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from smtp_edge.envelope import BodyType, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import Delivery, DeliveryState, Entry

SCHEMA_VERSION = 2
PAGE_BYTES = 8192
CORRUPT = "corrupt"
"""State of a delivery whose entry cannot be read: out of everybody's way, counted, never attempted."""
FINAL_STATES = tuple(state.value for state in DeliveryState if state.final)
SCHEMA = """
CREATE TABLE entry (
    queue_id TEXT PRIMARY KEY, origin TEXT NOT NULL, accept_key TEXT, stored_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, finished_at INTEGER,
    size_bytes INTEGER NOT NULL, spool TEXT, document TEXT NOT NULL
);
CREATE UNIQUE INDEX entry_accept_key ON entry (accept_key) WHERE accept_key IS NOT NULL;
CREATE INDEX entry_origin ON entry (origin);
CREATE INDEX entry_spool ON entry (spool) WHERE spool IS NOT NULL;
CREATE INDEX entry_finished ON entry (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE body (queue_id TEXT PRIMARY KEY, header_bytes INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE delivery (
    queue_id TEXT NOT NULL, copy INTEGER NOT NULL, class_id TEXT NOT NULL, received_at INTEGER NOT NULL,
    state TEXT NOT NULL, token INTEGER NOT NULL, claimed_by TEXT NOT NULL, attempts INTEGER NOT NULL, due_at INTEGER,
    last_hop TEXT NOT NULL, last_reply TEXT NOT NULL, in_doubt_hop TEXT NOT NULL, delay_notified INTEGER NOT NULL,
    transfer_token TEXT NOT NULL, recipients TEXT NOT NULL,
    PRIMARY KEY (queue_id, copy)
) WITHOUT ROWID;
CREATE INDEX delivery_class_queued ON delivery (class_id, received_at) WHERE state = 'queued';
CREATE INDEX delivery_due ON delivery (due_at) WHERE state = 'deferred';
CREATE INDEX delivery_class_due ON delivery (class_id, due_at) WHERE state = 'deferred';
CREATE INDEX delivery_claimed ON delivery (queue_id) WHERE state = 'claimed';
CREATE TABLE note (
    queue_id TEXT NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL,
    hop TEXT NOT NULL, reply TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX note_queue_id ON note (queue_id);
"""

ENTRY_COLUMNS = "e.queue_id, e.origin, e.received_at, e.expires_at, e.size_bytes, e.spool, e.document"
BODY_COLUMNS = "b.header_bytes, b.content"
DELIVERY_COLUMNS = (
    "d.queue_id, d.copy, d.class_id, d.recipients, d.state, d.attempts, d.due_at, d.last_hop, d.last_reply, "
    "d.in_doubt_hop, d.delay_notified, d.transfer_token"
)
ENTRY_WIDTH, BODY_WIDTH, DELIVERY_WIDTH = 7, 2, 12

_EPOCH_AT = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_to_json = json.JSONEncoder(separators=(",", ":")).encode

Row = Sequence[Any]


class CorruptRow(Exception):
    """A row does not decode; `str()` says what is wrong with it."""


def to_us(at: datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (at - _EPOCH_AT) // _MICROSECOND


def from_us(number: int) -> datetime:
    """The aware UTC time; CorruptRow beyond what a datetime holds."""
    try:
        return _EPOCH_AT + timedelta(microseconds=number)
    except (OverflowError, TypeError) as error:
        raise CorruptRow(f"impossible time {number!r}") from error


def clean_text(text: str) -> str:
    """Text of a remote as SQLite can bind it: what UTF-8 cannot carry becomes `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def encode_entry(entry: Entry) -> str:
    """The document of an entry."""
    envelope = entry.envelope
    return _to_json(
        {
            "sender": envelope.sender,
            "recipients": _pack_recipients(envelope.recipients),
            "body_type": envelope.body_type.value,
            "smtputf8": envelope.smtputf8,
            "envid": envelope.envid,
            "ret": envelope.ret,
            "requiretls": envelope.requiretls,
            "verp": envelope.verp,
            "verp_key": envelope.verp_key,
            "trace": entry.trace,
            "received_field": entry.received_field.decode("latin-1"),
            "client": entry.client,
        }
    )


def encode_recipients(recipients: Sequence[Recipient]) -> str:
    """The recipients of a delivery."""
    return _to_json(_pack_recipients(recipients))


def decode_recipients(text: str) -> tuple[Recipient, ...]:
    """The recipients of a delivery. CorruptRow."""
    try:
        return _unpack_recipients(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptRow(f"recipients: {error!r}") from error


def encode_body(data: MailData) -> tuple[int, bytes]:
    """`header_bytes` and `content` of mail data: all of inline data, just the header of spooled data.

    A header that is not the beginning of inline data is not kept apart: the rows could not tell where it ends.
    """
    if data.inline is None:
        return len(data.header), data.header
    return (len(data.header) if data.inline.startswith(data.header) else 0), data.inline


def decode_entry(row: Row, body: Row | None, spool: Path) -> Entry:
    """An entry from its row; `body` None leaves the mail data out (empty inline bytes, true size)."""
    queue_id, origin, received_at, expires_at, size_bytes, spooled, document = row
    try:
        fields = json.loads(document)
        envelope = Envelope(
            sender=_text(fields["sender"]),
            recipients=_unpack_recipients(fields["recipients"]),
            body_type=BodyType(fields["body_type"]),
            smtputf8=bool(fields["smtputf8"]),
            envid=_text(fields["envid"]),
            ret=_text(fields["ret"]),
            requiretls=bool(fields.get("requiretls", False)),
            verp=bool(fields.get("verp", False)),
            verp_key=_text(fields.get("verp_key", "")),
        )
        return Entry(
            queue_id=queue_id,
            received_at=from_us(received_at),
            expires_at=from_us(expires_at),
            envelope=envelope,
            data=MailData(size_bytes, b"") if body is None else decode_body(size_bytes, spooled, body, spool),
            trace=tuple(_text(node) for node in fields["trace"]),
            origin=origin,
            received_field=_text(fields["received_field"]).encode("latin-1"),
            client=_text(fields["client"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptRow(f"entry {queue_id}: {error!r}") from error


def decode_body(size_bytes: int, spooled: str | None, body: Row, spool: Path) -> MailData:
    """Mail data from its rows; checks that a spool file is there and has its size."""
    header_bytes, content = body
    if not isinstance(content, bytes):
        raise CorruptRow("no mail data")
    if spooled is None:
        if len(content) != size_bytes:
            raise CorruptRow(f"mail data has {len(content)} bytes instead of {size_bytes}")
        return MailData(size_bytes, inline=content, header=content[:header_bytes])
    path = spool / spooled
    try:
        actual_bytes = path.stat().st_size
    except OSError as error:
        raise CorruptRow(f"spool file {spooled}: {error.strerror}") from error
    if actual_bytes != size_bytes:
        raise CorruptRow(f"spool file {spooled} has {actual_bytes} bytes instead of {size_bytes}")
    return MailData(size_bytes, path=path, header=content)


def decode_delivery(row: Row) -> Delivery:
    """A delivery from its row."""
    queue_id, copy, class_id, recipients, state, attempts, due_at, hop, reply, doubt, notified, token = row
    try:
        return Delivery(
            queue_id=queue_id,
            copy=copy,
            class_id=class_id,
            recipients=_unpack_recipients(json.loads(recipients)),
            state=DeliveryState(state),
            attempts=attempts,
            next_attempt_at=None if due_at is None else from_us(due_at),
            last_hop=hop,
            last_reply=reply,
            in_doubt_hop=doubt,
            delay_notified=bool(notified),
            transfer_token=token,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptRow(f"delivery {queue_id}/{copy}: {error!r}") from error


def _pack_recipients(recipients: Sequence[Recipient]) -> list[list[str | int]]:
    return [[recipient.address, recipient.orcpt, recipient.notify.value] for recipient in recipients]


def _unpack_recipients(packed: Any) -> tuple[Recipient, ...]:
    return tuple(Recipient(_text(address), _text(orcpt), Notify(notify)) for address, orcpt, notify in packed)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
