"""Delivery status notifications: from results of recipients to a report for the sender. Pure.

A report is multipart/report (RFC 6522): words for a person, fields for a program (RFC 3464), and the returned message
or its header. It goes out from the null reverse-path, so it can never cause another, and only as the sender wishes:
NOTIFY chooses which events are reported, RET how much comes back (RFC 3461). A null reverse-path is told nothing.

Addresses beyond ASCII follow RFC 6533. A sender with such an address understands UTF-8 mail and gets UTF-8 fields; for
any other the addresses are written in ASCII with escapes, so that the report passes relays that know no SMTPUTF8.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.utils import format_datetime

from smtp_edge.envelope import BodyType, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import Delivery, Entry, NewEntry, RecipientResult

BOUNDARY_CHARACTERS_MAX = 70
"""RFC 2046 section 5.1.1."""
LINE_BYTES_MAX = 900
"""Stays below the 998 of RFC 5322 whatever a remote said."""

_WISHES = {"failed": Notify.FAILURE, "delayed": Notify.DELAY, "relayed": Notify.SUCCESS, "delivered": Notify.SUCCESS}
_STATUSES = {"failed": "5.0.0", "delayed": "4.0.0", "relayed": "2.0.0", "delivered": "2.0.0"}
"""Status where no reply gives one."""
_SUBJECTS = {
    "failed": "Your message could not be delivered",
    "delayed": "Your message is delayed",
    "relayed": "Your message was passed on",
    "delivered": "Your message was delivered",
}
_WORDS = {
    "failed": "Your message could not be delivered to the recipients below. It will not be tried again.",
    "delayed": "Your message could not be delivered to the recipients below so far. You need not do anything: "
    "delivery is tried until {until}.",
    "relayed": "Your message was passed on to the mail system of the recipients below, which sends no further reports.",
    "delivered": "Your message was delivered to the recipients below.",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_UTF8_ADDRESS_ESCAPED = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
"""What is not QCHAR of RFC 6533 section 3."""


def build_dsn(
    entry: Entry,
    results: Sequence[RecipientResult],
    *,
    action: str,
    hostname: str,
    queue_id: str,
    at: datetime,
    boundary: str,
    lifetime: timedelta,
    class_of: Callable[[str], str],
) -> NewEntry | None:
    """The report of what became of recipients, as a new entry to be stored; None if the sender wants none.

    `action` is `failed`, `delayed`, `relayed` or `delivered`. `class_of` maps the domain of the sender to a class id.
    The boundary must not occur in the returned message; one with the new queue id in it never does.
    """
    wanted = [result for result in results if _WISHES[action] in result.recipient.notify]
    sender = entry.envelope.sender
    if not sender or not wanted:
        return None
    boundary = boundary[:BOUNDARY_CHARACTERS_MAX]
    content = _build_content(entry, wanted, action, hostname, queue_id, at, boundary)
    header, _, _ = content.partition(b"\r\n\r\n")
    recipient = Recipient(sender, notify=Notify.NEVER)
    envelope = Envelope(
        sender="",
        recipients=(recipient,),
        body_type=BodyType.SEVEN_BIT if content.isascii() else BodyType.EIGHT_BIT_MIME,
        smtputf8=not sender.isascii(),
    )
    origin = f"{hostname}/{queue_id}"
    report = Entry(
        queue_id=queue_id,
        received_at=at,
        expires_at=at + lifetime,
        envelope=envelope,
        data=MailData(len(content), inline=content, header=header + b"\r\n\r\n"),
        origin=origin,
        client=f"report on {entry.queue_id}",
    )
    delivery = Delivery(queue_id, 0, class_of(recipient.domain), (recipient,), transfer_token=f"{origin}/0")
    return NewEntry(report, (delivery,))


def decode_xtext(text: str) -> str:
    """Undo xtext (RFC 3461 section 4): `+2B` is a plus sign. What is no escape stays as it is."""
    return _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def encode_utf8_address(address: str) -> str:
    """An address in printable ASCII: `\\x{...}` for whatever RFC 6533 section 3 does not allow as it is."""
    return _UTF8_ADDRESS_ESCAPED.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)


def _build_content(
    entry: Entry,
    results: Sequence[RecipientResult],
    action: str,
    hostname: str,
    queue_id: str,
    at: datetime,
    boundary: str,
) -> bytes:
    words = _explain(entry, results, action, hostname)
    words_are_ascii = all(line.isascii() for line in words)
    body = _encode(
        [
            "This is a delivery status report in MIME format.",
            "",
            f"--{boundary}",
            f"Content-Type: text/plain; charset={'us-ascii' if words_are_ascii else 'utf-8'}",
            *_encoding(words_are_ascii),
            "",
            *words,
            "",
            *_status_part(entry, results, action, hostname, at, boundary),
        ]
    )
    body += _returned(entry, action, boundary) + f"--{boundary}--\r\n".encode()
    header = [
        f"From: Mail delivery <postmaster@{hostname}>",
        f"To: <{_one_line(entry.envelope.sender)}>",
        f"Subject: {_SUBJECTS[action]}",
        f"Date: {format_datetime(at)}",
        f"Message-ID: <{queue_id}@{hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        *_encoding(body.isascii()),
        "",
    ]
    return _encode(header) + body


def _status_part(
    entry: Entry, results: Sequence[RecipientResult], action: str, hostname: str, at: datetime, boundary: str
) -> list[str]:
    """The part for programs."""
    utf8 = not entry.envelope.sender.isascii()
    kind = "global-delivery-status" if utf8 else "delivery-status"
    lines = [f"--{boundary}", f"Content-Type: message/{kind}", *_encoding(not utf8), ""]
    lines += _message_fields(entry, hostname)
    for result in results:
        lines += ["", *_recipient_fields(entry, result, action, at, utf8)]
    return [*lines, ""]


def _encoding(ascii_only: bool) -> list[str]:
    return [] if ascii_only else ["Content-Transfer-Encoding: 8bit"]


def _explain(entry: Entry, results: Sequence[RecipientResult], action: str, hostname: str) -> list[str]:
    """The part for people."""
    lines = [f"This is the mail relay {hostname}.", ""]
    lines += textwrap.wrap(_WORDS[action].format(until=format_datetime(entry.expires_at)), 76)
    for result in results:
        lines += ["", f"<{_one_line(result.recipient.address)}>"]
        if result.reply is not None:
            lines += textwrap.wrap(
                _one_line(str(result.reply)),
                76,
                initial_indent="    ",
                subsequent_indent="    ",
                break_long_words=False,
            )
    return lines


def _message_fields(entry: Entry, hostname: str) -> list[str]:
    fields = [f"Reporting-MTA: dns; {hostname}"]
    if entry.envelope.envid:
        fields.insert(0, f"Original-Envelope-Id: {_ascii(decode_xtext(entry.envelope.envid))}")
    return [*fields, f"Arrival-Date: {format_datetime(entry.received_at)}"]


def _recipient_fields(entry: Entry, result: RecipientResult, action: str, at: datetime, utf8: bool) -> list[str]:
    recipient, reply = result.recipient, result.reply
    fields = []
    if recipient.orcpt:
        kind, _, address = recipient.orcpt.partition(";")
        fields.append(f"Original-Recipient: {_ascii(kind)};{_address(kind, decode_xtext(address), utf8)}")
    kind = "rfc822" if recipient.address.isascii() else "utf-8"
    fields.append(f"Final-Recipient: {kind}; {_address(kind, recipient.address, utf8)}")
    fields.append(f"Action: {action}")
    fields.append(f"Status: {_status(result, action)}")
    if reply is not None:
        text = str(reply)
        fields.append(f"Diagnostic-Code: smtp; {_one_line(text) if utf8 else _ascii(text)}")
    fields.append(f"Last-Attempt-Date: {format_datetime(at)}")
    if action == "delayed":
        fields.append(f"Will-Retry-Until: {format_datetime(entry.expires_at)}")
    return fields


def _status(result: RecipientResult, action: str) -> str:
    if result.reply is None:
        return _STATUSES[action]
    return result.reply.status or f"{result.reply.code // 100}.0.0"


def _address(kind: str, address: str, utf8: bool) -> str:
    if utf8 or kind.lower() != "utf-8":
        return _one_line(address) if utf8 else _ascii(address)
    return encode_utf8_address(address) if not address.isascii() else _ascii(address)


def _returned(entry: Entry, action: str, boundary: str) -> bytes:
    """The third part: the whole message where RET=FULL asks for it and it is at hand, else its header.

    Both are dot-stuffed already, like the report around them. Spooled messages are too large to be sent back whole.
    """
    data, international = entry.data, entry.envelope.smtputf8
    if entry.envelope.ret == "FULL" and action == "failed" and data.inline is not None:
        kind, content = ("message/global" if international else "message/rfc822"), data.inline
    else:
        kind, content = ("message/global-headers" if international else "text/rfc822-headers"), data.header
        if not content.endswith(b"\r\n"):
            content = content[: content.rfind(b"\r\n") + 2]  # cut off inside a line: only whole ones
    if not content:
        return b""
    opening = [f"--{boundary}", f"Content-Type: {kind}", *_encoding(content.isascii()), ""]
    return _encode(opening) + content + b"\r\n"


def _one_line(text: str) -> str:
    """Text without control characters or line ends: nothing from outside can begin a field."""
    return _CONTROL.sub(" ", text).strip()


def _ascii(text: str) -> str:
    return _one_line(text).encode("ascii", "replace").decode()


def _encode(lines: Sequence[str]) -> bytes:
    """Dot-stuffed lines, none too long, each ended by CRLF."""
    return b"".join(_encode_line(line) for line in lines)


def _encode_line(line: str) -> bytes:
    encoded = line.encode("utf-8", "replace")
    if len(encoded) > LINE_BYTES_MAX:
        encoded = encoded[:LINE_BYTES_MAX].decode("utf-8", "ignore").encode()
    return (b"." if encoded.startswith(b".") else b"") + encoded + b"\r\n"
