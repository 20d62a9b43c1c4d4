"""MAIL and RCPT as a remote understands them, and what a remote cannot take. Pure.

    the message            the hop lacks          then
    8BITMIME, truly 8-bit  8BITMIME               5.6.3: nothing here re-encodes bodies, that would break signatures
    8BITMIME, all ASCII    8BITMIME               sent as 7-bit
    BINARYMIME             BINARYMIME, CHUNKING   5.6.1
    SMTPUTF8, beyond ASCII SMTPUTF8               5.6.7
    SMTPUTF8, all ASCII    SMTPUTF8               sent without
    larger than SIZE       -                      5.3.4
    REQUIRETLS             REQUIRETLS             5.7.30
    REQUIRETLS             a verified session     5.7.10
    DSN parameters         DSN                    left out; success is reported by us (`relayed`)

A refusal of this table is our own (`AttemptResult.unable`): another hop may take the message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from smtp_edge.client.attempt import Job
from smtp_edge.client.connecting import Connection
from smtp_edge.envelope import NOTIFY_DEFAULT, BodyType, MailData, Notify, Recipient
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.reply import Reply
from smtp_edge.stuffing import DotCount
from smtp_edge.transfer import build_parameters

TOO_LARGE = Reply(552, "message is larger than the next hop takes", "5.3.4")
NO_EIGHT_BIT = Reply(554, "the next hop does not take 8-bit mail", "5.6.3")
NO_BINARY = Reply(554, "the next hop does not take binary mail", "5.6.1")
NO_UTF8 = Reply(553, "the next hop does not take internationalised addresses", "5.6.7")
NO_REQUIRETLS = Reply(554, "the sender requires TLS all the way, which the next hop does not promise", "5.7.30")
NO_TLS = Reply(554, "the sender requires TLS all the way, and no session with the next hop can be secured", "5.7.10")
SCAN_BYTES = 256 * 1024
SIZE_DIGITS_MAX = 20
"""RFC 1870 section 4."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")


def unable(connection: Connection, job: Job) -> Reply | None:
    """Why the remote cannot take this message whatever we say; None if it can (`needs_scan` may have a say)."""
    envelope, extensions = job.envelope, connection.extensions
    if envelope.smtputf8 and "smtputf8" not in extensions and not _is_ascii(job):
        return NO_UTF8
    if envelope.body_type is BodyType.BINARY_MIME and not ("binarymime" in extensions and "chunking" in extensions):
        return NO_BINARY
    if envelope.requiretls and envelope.sender:
        if not connection.verified:
            return NO_TLS
        if "requiretls" not in extensions:
            return NO_REQUIRETLS
    return None


def needs_scan(connection: Connection, job: Job) -> bool:
    """True if all of the mail data must be read to know whether the remote takes it (`scan`)."""
    eight_bit = job.envelope.body_type is BodyType.EIGHT_BIT_MIME and "8bitmime" not in connection.extensions
    return eight_bit or 0 < size_limit(connection) < size_of(job)


def scan(connection: Connection, job: Job) -> Reply | None:
    """Why the remote cannot take what is in the mail data, which is read, from its file if need be; None if it can.

    Doubled dots do not count against SIZE (RFC 1870 section 6).
    """
    dots, seven_bit = DotCount(), True
    for chunk in _chunks(job.data):
        dots.feed(chunk)
        seven_bit = seven_bit and chunk.isascii()
    if 0 < size_limit(connection) < size_of(job) - dots.count:
        return TOO_LARGE
    eight_bit = job.envelope.body_type is BodyType.EIGHT_BIT_MIME and not seven_bit
    return NO_EIGHT_BIT if eight_bit and "8bitmime" not in connection.extensions else None


def _chunks(data: MailData) -> Iterator[bytes]:
    if data.path is None:
        yield data.inline or b""
        return
    try:
        with data.path.open("rb") as file:
            while chunk := file.read(SCAN_BYTES):
                yield chunk
    except OSError as error:
        raise MailDataLost(f"its mail data cannot be read: {data.path.name}: {error.strerror}") from error


def size_limit(connection: Connection) -> int:
    """The largest message that the remote says to take; 0 = it does not say."""
    limit = connection.extensions.get("size", "").strip()
    return int(limit) if limit.isascii() and limit.isdigit() and len(limit) <= SIZE_DIGITS_MAX else 0


def uses_bdat(connection: Connection, job: Job) -> bool:
    """Send the data by BDAT: where it must be, or where it saves the round trip of DATA.

    With PIPELINING, DATA travels with the recipients and BDAT saves nothing, but must be unstuffed.
    """
    extensions = connection.extensions
    if job.envelope.body_type is BodyType.BINARY_MIME:
        return True
    return "chunking" in extensions and "pipelining" not in extensions


def build_mail(connection: Connection, job: Job) -> str:
    """The MAIL command with the parameters that the remote understands."""
    envelope, extensions = job.envelope, connection.extensions
    words = [f"MAIL FROM:<{envelope.sender}>"]
    if "size" in extensions:
        words.append(f"SIZE={size_of(job)}")
    if envelope.body_type is not BodyType.SEVEN_BIT and envelope.body_type.value.lower() in extensions:
        words.append(f"BODY={envelope.body_type.value}")
    if envelope.smtputf8 and "smtputf8" in extensions:
        words.append("SMTPUTF8")
    if "dsn" in extensions:
        words += [f"RET={envelope.ret}"] if envelope.ret else []
        words += [f"ENVID={envelope.envid}"] if envelope.envid else []
    if envelope.requiretls and "requiretls" in extensions:
        words.append("REQUIRETLS")
    if job.transfer is not None and "xsmtpmesh" in extensions:
        words += build_parameters(job.transfer, extensions["xsmtpmesh"])
    return " ".join(words)


def build_rcpt(connection: Connection, recipient: Recipient, *, utf8: bool = False) -> str:
    """The RCPT command; `utf8`: MAIL said SMTPUTF8."""
    words = [f"RCPT TO:<{recipient.address}>"]
    if "dsn" in connection.extensions:
        if recipient.notify is not NOTIFY_DEFAULT:
            words.append(f"NOTIFY={notify_words(recipient.notify)}")
        if recipient.orcpt:
            words.append(f"ORCPT={recipient.orcpt if utf8 else _escape(recipient.orcpt)}")
    return " ".join(words)


def notify_words(notify: Notify) -> str:
    """The value of NOTIFY."""
    words = [flag.name or "" for flag in (Notify.SUCCESS, Notify.FAILURE, Notify.DELAY) if flag in notify]
    return ",".join(words) or "NEVER"


def size_of(job: Job) -> int:
    """Octets on the wire, doubled dots and all: an estimate, from above."""
    return len(job.prefix) + job.data.size_bytes


def _escape(orcpt: str) -> str:
    """An original recipient for a session without SMTPUTF8 (RFC 6533 section 3: `\\x{HEX}`)."""
    return _BEYOND_ASCII.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", orcpt)


def _is_ascii(job: Job) -> bool:
    envelope = job.envelope
    addresses = [envelope.sender, *(recipient.address for recipient in envelope.recipients)]
    return all(address.isascii() for address in addresses) and job.data.header.isascii()
