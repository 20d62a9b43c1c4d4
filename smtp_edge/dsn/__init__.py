"""Delivery status notifications: from results of recipients to a report for the sender. Pure.

A report is multipart/report (RFC 6522): words for a person, fields for a program (RFC 3464), and the returned message
or its header. It goes out from the null reverse-path, so it can never cause another, and only as the sender wishes:
NOTIFY chooses which events are reported, RET how much comes back (RFC 3461).

    event                                        action       told if NOTIFY has
    a refusal for good, or the lifetime is over  failed       FAILURE (or nothing)
    still in the queue after `delay_notice_s`    delayed      DELAY (or nothing)
    a hop without DSN took it                    relayed      SUCCESS
    LMTP delivered it                            delivered    SUCCESS
    a list or alias took it over                 expanded     SUCCESS

    what comes back
    failed, RET=FULL, at most `return_bytes_max`           the whole message, also from a spool file
    the same, but REQUIRETLS or BINARYMIME                 its header (RFC 8689 section 5; NUL and bare CR may not)
    any other                                              its header

Recipients whose fate was decided at once share a report. A peer takes over the duty to report with the message, and so
does any hop that offers DSN. A report on a message with REQUIRETLS asks for the same, as far as it can be had.

A message with a null reverse-path that fails is told to nobody; with `double_bounces_to` a copy goes to that mailbox,
and when that fails, too, it ends in the log.

Addresses beyond ASCII follow RFC 6533. A sender with such an address understands UTF-8 mail and gets UTF-8 fields; for
any other the addresses are written in ASCII with escapes, so that the report passes relays that know no SMTPUTF8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime

from smtp_edge.dsn.fields import build_message_fields, build_recipient_fields
from smtp_edge.dsn.text import declare_encoding, decode_xtext, encode_lines, encode_utf8_address, one_line
from smtp_edge.dsn.words import build_subject, explain
from smtp_edge.envelope import NOTIFY_DEFAULT, BodyType, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import Action, Delivery, Entry, NewEntry, RecipientResult

__all__ = ["Reporter", "build_dsn", "decode_xtext", "encode_utf8_address", "wants_report"]

BOUNDARY_CHARACTERS_MAX = 70
"""RFC 2046 section 5.1.1."""
DOUBLE_BOUNCE = "double bounce of"
"""How the client of a copy for the postmaster is named: it must not cause another."""

_WISHES = {
    Action.FAILED: Notify.FAILURE,
    Action.DELAYED: Notify.DELAY,
    Action.RELAYED: Notify.SUCCESS,
    Action.EXPANDED: Notify.SUCCESS,
    Action.DELIVERED: Notify.SUCCESS,
}
_NO_TEXT = re.compile(rb"\x00|\r(?!\n)|(?<!\r)\n")


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: what stands in every report of this node, and where reports go."""

    hostname: str
    node_id: str
    new_queue_id: Callable[[datetime], str]
    class_of: Callable[[Recipient], str]
    """Class id of a recipient; never fails (an unroutable sender's class simply never opens)."""
    lifetime: timedelta
    read: Callable[[MailData], bytes | None] = lambda data: data.inline
    """All of some mail data, dot-stuffed; None if it is larger than what comes back, or cannot be read."""
    double_bounces_to: str = ""


def wants_report(recipient: Recipient, action: Action) -> bool:
    """True if the sender wishes to know of the event."""
    if recipient.notify is NOTIFY_DEFAULT:  # what nearly every message has: no need to take flags apart
        return action is Action.FAILED or action is Action.DELAYED
    return _WISHES[action] in recipient.notify


def build_dsn(reporter: Reporter, entry: Entry, results: Sequence[RecipientResult], *, at: datetime) -> NewEntry | None:
    """The report of what became of recipients, as a new entry to be stored; None if nobody is to be told."""
    sender, double = entry.envelope.sender, False
    wanted = [result for result in results if wants_report(result.recipient, result.action)]
    if not sender:
        sender, double = reporter.double_bounces_to, True
        wanted = [result for result in results if result.action is Action.FAILED]
        if entry.client.startswith(DOUBLE_BOUNCE):
            return None
    if not sender or not wanted:
        return None
    queue_id = reporter.new_queue_id(at)
    content = _build_content(reporter, entry, wanted, sender, queue_id, at, double=double)
    return _enclose(reporter, entry, content, sender, queue_id, at, double=double)


def _enclose(
    reporter: Reporter, entry: Entry, content: bytes, sender: str, queue_id: str, at: datetime, *, double: bool
) -> NewEntry:
    """The entry that carries the content to the sender."""
    header, _, _ = content.partition(b"\r\n\r\n")
    recipient = Recipient(sender, notify=Notify.NEVER)
    envelope = Envelope(
        sender="",
        recipients=(recipient,),
        body_type=BodyType.SEVEN_BIT if content.isascii() else BodyType.EIGHT_BIT_MIME,
        smtputf8=not sender.isascii(),
        requiretls=entry.envelope.requiretls,
    )
    origin = f"{reporter.node_id}/{queue_id}"
    report = Entry(
        queue_id=queue_id,
        received_at=at,
        expires_at=at + reporter.lifetime,
        envelope=envelope,
        data=MailData(len(content), inline=content, header=header + b"\r\n\r\n"),
        origin=origin,
        client=f"{DOUBLE_BOUNCE if double else 'report on'} {entry.queue_id}",
    )
    class_id = reporter.class_of(recipient)
    return NewEntry(report, (Delivery(queue_id, 0, class_id, (recipient,), transfer_token=f"{origin}/0"),))


def _build_content(
    reporter: Reporter,
    entry: Entry,
    results: Sequence[RecipientResult],
    sender: str,
    queue_id: str,
    at: datetime,
    *,
    double: bool,
) -> bytes:
    hostname = reporter.hostname
    # with the new queue id in it, it never occurs in the returned message
    boundary = f"={queue_id}/{hostname}"[:BOUNDARY_CHARACTERS_MAX]
    words = explain(entry, results, hostname, double=double)
    words_are_ascii = all(line.isascii() for line in words)
    body = encode_lines(
        [
            "This is a delivery status report in MIME format.",
            "",
            f"--{boundary}",
            f"Content-Type: text/plain; charset={'us-ascii' if words_are_ascii else 'utf-8'}",
            *declare_encoding(words_are_ascii),
            "",
            *words,
            "",
            *_status_part(entry, results, hostname, at, boundary, utf8=not sender.isascii()),
        ]
    )
    body += _returned(reporter, entry, results, boundary) + f"--{boundary}--\r\n".encode()
    header = [
        f"From: Mail delivery <postmaster@{hostname}>",
        f"To: <{one_line(sender)}>",
        f"Subject: {build_subject(results, double=double)}",
        f"Date: {format_datetime(at)}",
        f"Message-ID: <{queue_id}@{hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        *declare_encoding(body.isascii()),
        "",
    ]
    return encode_lines(header) + body


def _status_part(
    entry: Entry, results: Sequence[RecipientResult], hostname: str, at: datetime, boundary: str, *, utf8: bool
) -> list[str]:
    kind = "global-delivery-status" if utf8 else "delivery-status"
    lines = [f"--{boundary}", f"Content-Type: message/{kind}", *declare_encoding(not utf8), ""]
    lines += build_message_fields(entry, hostname)
    for result in results:
        lines += ["", *build_recipient_fields(entry, result, at, utf8=utf8)]
    return [*lines, ""]


def _returned(reporter: Reporter, entry: Entry, results: Sequence[RecipientResult], boundary: str) -> bytes:
    """The third part; see the second table. Both forms are dot-stuffed already, like the report around them."""
    international = entry.envelope.smtputf8
    content = reporter.read(entry.data) if _returns_all(entry, results) else None
    if content is not None:
        kind = "message/global" if international else "message/rfc822"
    else:
        kind = "message/global-headers" if international else "text/rfc822-headers"
        content = _NO_TEXT.sub(b" ", entry.data.header)
        if not content.endswith(b"\r\n"):
            content = content[: content.rfind(b"\r\n") + 2]  # cut off inside a line: only whole ones
    if not content:
        return b""
    opening = [f"--{boundary}", f"Content-Type: {kind}", *declare_encoding(content.isascii()), ""]
    return encode_lines(opening) + content + b"\r\n"


def _returns_all(entry: Entry, results: Sequence[RecipientResult]) -> bool:
    envelope = entry.envelope
    return (
        envelope.ret == "FULL"
        and any(result.action is Action.FAILED for result in results)
        and not envelope.requiretls
        and envelope.body_type is not BodyType.BINARY_MIME
    )
