"""XCLIENT and XFORWARD: what trusted filters and proxies say of a client that they stand in front of. Pure.

    XCLIENT NAME=mail.example.org ADDR=192.0.2.7 HELO=mail.example.org     the session goes on as if that client called
    XFORWARD ADDR=192.0.2.7 IDENT=4XyZ SOURCE=REMOTE                       for the log and the Received field only

Attribute values are xtext (RFC 3461 section 4); `[UNAVAILABLE]` and `[TEMPUNAVAIL]` say that nothing is known. The
semantics are those of Postfix's XCLIENT_README and XFORWARD_README: only between transactions, unknown attributes are
errors, XCLIENT begins the session anew (220), and XFORWARD holds until the next transaction is over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from smtp_edge.address import SyntaxFault
from smtp_edge.networks import parse_address

VALUE_MAX = 255
ATTRIBUTES_MAX = 16
UNKNOWN = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
XCLIENT_NAMES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
XFORWARD_NAMES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")

_PAIR = re.compile(r"([A-Za-z]+)=([!-*,-<>-~]*(?:\+[0-9A-Fa-f]{2}[!-*,-<>-~]*)*)")
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Override:
    """XCLIENT: what is to be believed instead of what we see. None = not said; empty = unknown."""

    name: str | None = None
    address: str | None = None
    port: int | None = None
    helo: str | None = None
    extended: bool | None = None
    """PROTO: ESMTP or SMTP."""
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Forwarded:
    """XFORWARD: the client of the server before the filter. Empty = unknown."""

    name: str = ""
    address: str = ""
    port: str = ""
    protocol: str = ""
    helo: str = ""
    ident: str = ""
    """Queue id there."""
    source: str = ""
    """LOCAL or REMOTE."""

    def __str__(self) -> str:
        """For the log and the Received field: `helo name [address] ident`, what there is of it."""
        address = f"[{self.address}]" if self.address else ""
        return " ".join(word for word in (self.helo, self.name, address, self.ident, self.source) if word)


def parse_xclient(argument: str) -> Override:
    """SyntaxFault for anything that is not understood: a client that lies must not be half believed."""
    given = _parse_attributes(argument, XCLIENT_NAMES)
    login = given.get("LOGIN")
    if login is not None and not login.isprintable():
        raise SyntaxFault("bad LOGIN")
    return Override(
        name=_host(given, "NAME"),
        address=_address(given),
        port=_port(given, "PORT"),
        helo=_visible(given, "HELO"),
        extended=_extended(given),
        user=login,
    )


def parse_xforward(argument: str, before: Forwarded) -> Forwarded:
    """`before` with what is said now. SyntaxFault."""
    given = _parse_attributes(argument, XFORWARD_NAMES)
    source = given.get("SOURCE", before.source).upper()
    if source not in ("", "LOCAL", "REMOTE"):
        raise SyntaxFault("bad SOURCE")
    said = {
        "name": _host(given, "NAME"),
        "address": _address(given),
        "helo": _visible(given, "HELO"),
        "protocol": _visible(given, "PROTO"),
        "ident": _visible(given, "IDENT"),
        "source": source,
    }
    port = _port(given, "PORT")
    if port is not None:
        said["port"] = str(port or "")
    return replace(before, **{key: value for key, value in said.items() if value is not None})


def _parse_attributes(argument: str, known: tuple[str, ...]) -> dict[str, str]:
    words = argument.split()
    if not words or len(words) > ATTRIBUTES_MAX:
        raise SyntaxFault("syntax: attribute=value ...")
    found: dict[str, str] = {}
    for word in words:
        match = _PAIR.fullmatch(word)
        name = match[1].upper() if match else ""
        if match is None or name not in known or name in found:
            raise SyntaxFault("bad attribute")
        value = decode_xtext(match[2])
        if len(value) > VALUE_MAX:
            raise SyntaxFault("an attribute is too long")
        found[name] = "" if value.upper() in UNKNOWN else value
    return found


def decode_xtext(text: str) -> str:
    """xtext as UTF-8. SyntaxFault for what is none."""
    raw = _HEX.sub(lambda match: chr(int(match[1], 16)), text)
    try:
        return raw.encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise SyntaxFault("an attribute is not UTF-8") from error


def _host(given: dict[str, str], key: str) -> str | None:
    value = given.get(key)
    if value and not _HOST.fullmatch(value):
        raise SyntaxFault(f"bad {key}")
    return value


def _visible(given: dict[str, str], key: str) -> str | None:
    value = given.get(key)
    if value and not _VISIBLE.fullmatch(value):
        raise SyntaxFault(f"bad {key}")
    return value


def _address(given: dict[str, str]) -> str | None:
    value = given.get("ADDR")
    if not value:
        return value
    prefixed = value[:5].upper() == "IPV6:"
    parsed = parse_address(value[5:] if prefixed else value)
    if parsed is None or "%" in value:
        raise SyntaxFault("bad ADDR")
    return str(parsed)


def _port(given: dict[str, str], key: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if value and not (value.isascii() and value.isdigit() and int(value) <= 65535):
        raise SyntaxFault(f"bad {key}")
    return int(value or 0)


def _extended(given: dict[str, str]) -> bool | None:
    value = given.get("PROTO")
    if value is None or value == "":
        return None
    if value.upper() not in ("SMTP", "ESMTP"):
        raise SyntaxFault("bad PROTO")
    return value.upper() == "ESMTP"
