"""The Received trace field, and counting those that are there (RFC 5321 sections 4.4 and 6.3, RFC 3848)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime

from smtp_edge.envelope import Client, Recipient

HOPS_MAX = 50
"""Received fields at which a message counts as looping; the mesh's own trace stops it far earlier."""

_RECEIVED = re.compile(rb"^received:", re.IGNORECASE | re.MULTILINE)
_UNSAFE = re.compile(r"[^!-'*-:<-\[\]-~]")
"""Everything but visible ASCII without parentheses, semicolon and backslash: what may stand in the field unquoted."""
_TEXT_MAX = 255


def build_received(
    client: Client, *, hostname: str, queue_id: str, at: datetime, recipients: Sequence[Recipient], tls: str
) -> bytes:
    """The field that this relay puts before the message, folded, CRLF-terminated.

    What the client said about itself is reduced to visible ASCII. The recipient is named only when it is the only one,
    so that the field never reveals a blind copy.
    """
    address = f"IPv6:{client.address}" if ":" in client.address else client.address
    lines = [f"Received: from {_clean(client.helo) or 'unknown'} ([{_clean(address)}])"]
    if tls:
        lines.append(f"\t(using {_clean(tls, ' ')})")
    lines.append(f"\tby {_clean(hostname)} (smtpmesh) with {client.protocol} id {queue_id}")
    if len(recipients) == 1 and (only := recipients[0].address).isascii() and _clean(only) == only:
        lines.append(f"\tfor <{only}>")
    return ("\r\n".join(lines) + f";\r\n\t{format_datetime(at)}\r\n").encode("ascii")


def count_received(header: bytes) -> int:
    """Received fields in a header block."""
    return len(_RECEIVED.findall(header))


def protocol_word(*, extended: bool, tls: bool, authenticated: bool, utf8: bool) -> str:
    """The `with` word (RFC 3848, RFC 6531 section 4.3)."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if utf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


def _clean(text: str, also: str = "") -> str:
    return "".join(c if c in also else _UNSAFE.sub("?", c) for c in text[:_TEXT_MAX])
