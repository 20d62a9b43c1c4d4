"""The Received trace field (RFC 5321 section 4.4, RFC 3848). Those that are there already: `server/header.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from smtp_edge.envelope import NOT_FORWARDED, Client, Recipient

_UNSAFE = re.compile(r"[^!-'*-:<-\[\]-~]")
"""Everything but visible ASCII without parentheses, semicolon and backslash: what may stand in the field unquoted."""
_UNSAFE_BUT_BLANK = re.compile(r"[^ !-'*-:<-\[\]-~]")
_TEXT_MAX = 255


def build_received(
    client: Client, *, hostname: str, queue_id: str, at: datetime, recipients: Sequence[Recipient], tls: str
) -> bytes:
    """The field that this relay puts before the message, folded, CRLF-terminated.

    What the client said about itself is reduced to visible ASCII. The recipient is named only when it is the only one,
    so that the field never reveals a blind copy.
    """
    address = f"IPv6:{client.address}" if ":" in client.address else client.address
    name = f"{_clean(client.name)} " if client.name else ""
    lines = [f"Received: from {_clean(client.helo) or 'unknown'} ({name}[{_clean(address)}])"]
    if tls:
        lines.append(f"\t(using {_clean(tls, _UNSAFE_BUT_BLANK)})")
    if client.forwarded is not NOT_FORWARDED and (forwarded := str(client.forwarded)):
        lines.append(f"\t(forwarded for {_clean(forwarded, _UNSAFE_BUT_BLANK)})")
    lines.append(f"\tby {_clean(hostname)} (smtpmesh) with {client.protocol} id {queue_id}")
    if len(recipients) == 1 and (only := recipients[0].address).isascii() and _clean(only) == only:
        lines.append(f"\tfor <{only}>")
    return ("\r\n".join(lines) + f";\r\n\t{_date(at.replace(microsecond=0))}\r\n").encode("ascii")


@lru_cache(maxsize=8)
def _date(at: datetime) -> str:
    """RFC 5322 section 3.3; the same for all mail of a second."""
    return format_datetime(at)


def protocol_word(*, extended: bool, tls: bool, authenticated: bool, utf8: bool) -> str:
    """The `with` word (RFC 3848, RFC 6531 section 4.3)."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if utf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


def _clean(text: str, unsafe: re.Pattern[str] = _UNSAFE) -> str:
    return unsafe.sub("?", text[:_TEXT_MAX])
