"""Text of a report: lines that nothing from outside can break, addresses in ASCII and beyond (RFC 3461, RFC 6533)."""

from __future__ import annotations

import re
from collections.abc import Sequence

LINE_BYTES_MAX = 900
"""Stays below the 998 of RFC 5322 whatever a remote said."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_UTF8_ADDRESS_ESCAPED = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
"""What is not QCHAR of RFC 6533 section 3."""


def one_line(text: str) -> str:
    """Text without control characters or line ends: nothing from outside can begin a field."""
    return _CONTROL.sub(" ", text).strip()


def to_ascii(text: str) -> str:
    """One line with `?` for whatever is beyond ASCII."""
    return one_line(text).encode("ascii", "replace").decode()


def decode_xtext(text: str) -> str:
    """Undo xtext (RFC 3461 section 4): `+2B` is a plus sign. What is no escape stays as it is."""
    return _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def encode_utf8_address(address: str) -> str:
    """An address in printable ASCII: `\\x{...}` for whatever RFC 6533 section 3 does not allow as it is."""
    return _UTF8_ADDRESS_ESCAPED.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)


def spell_address(kind: str, address: str, utf8: bool) -> str:
    """An address of a type (`rfc822`, `utf-8`) as it may stand in a report, which may itself be UTF-8 or not."""
    if utf8 or kind.lower() != "utf-8":
        return one_line(address) if utf8 else to_ascii(address)
    return encode_utf8_address(address) if not address.isascii() else to_ascii(address)


def declare_encoding(ascii_only: bool) -> list[str]:
    """The MIME field that a part needs."""
    return [] if ascii_only else ["Content-Transfer-Encoding: 8bit"]


def encode_lines(lines: Sequence[str]) -> bytes:
    """Dot-stuffed lines, none too long, each ended by CRLF."""
    return b"".join(_encode_line(line) for line in lines)


def _encode_line(line: str) -> bytes:
    encoded = line.encode("utf-8", "replace")
    if len(encoded) > LINE_BYTES_MAX:
        encoded = encoded[:LINE_BYTES_MAX].decode("utf-8", "ignore").encode()
    return (b"." if encoded.startswith(b".") else b"") + encoded + b"\r\n"
