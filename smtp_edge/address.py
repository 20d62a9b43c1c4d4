"""Mailboxes: what may stand between angle brackets (RFC 5321 sections 4.1.2 and 4.1.3, RFC 6531). Pure.

Addresses are kept as they were written: the local part belongs to its host (RFC 5321 section 2.4).
"""

from __future__ import annotations

import ipaddress
import re

LOCAL_PART_MAX = 64
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*"')
LABEL = r"[A-Za-z0-9\x80-\U0010ffff](?:[A-Za-z0-9_\x80-\U0010ffff-]*[A-Za-z0-9\x80-\U0010ffff])?"
_DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*\.?")


class SyntaxFault(ValueError):
    """The argument does not follow the grammar. `status` is the enhanced status code; `str()` is generic."""

    def __init__(self, text: str, status: str = "5.5.4", *, code: int = 501) -> None:
        super().__init__(text)
        self.status, self.code = status, code


def parse_mailbox(text: str) -> str:
    """Check `local@domain` (or the bare `postmaster`); returns it with the domain's final dot removed."""
    if text.lower() == "postmaster":
        return text
    local = _QUOTED.match(text) if text.startswith('"') else _DOT_STRING.match(text)
    if local is None or text[local.end() : local.end() + 1] != "@":
        raise SyntaxFault("bad address syntax", "5.1.3")
    if len(local.group().encode()) > LOCAL_PART_MAX:
        raise SyntaxFault("the local part is too long", "5.1.3")
    domain = text[local.end() + 1 :]
    if not (_is_literal(domain) or (_DOMAIN.fullmatch(domain) and len(domain.encode()) <= 255)):
        raise SyntaxFault("bad domain syntax", "5.1.2")
    return f"{local.group()}@{domain.removesuffix('.')}"


def _is_literal(domain: str) -> bool:
    if not (domain.startswith("[") and domain.endswith("]")):
        return False
    inner = domain[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError:
        return False
    return True
