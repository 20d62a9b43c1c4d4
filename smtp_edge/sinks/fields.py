"""Header fields of a message as raw bytes: told apart, read, made. Pure; nothing is decoded or folded anew.

A header ends at the first empty line, or where a line is neither a field nor the continuation of one (mail without a
header begins with its body). What is not edited keeps every byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_TOKEN = re.compile(r"[!-9;-~]+")
_VALUE = re.compile(r"[^\r\n\0]*(?:\r\n[ \t][^\r\n\0]*)*")
LINE_BYTES_MAX = 998
"""RFC 5322 section 2.1.1, without the CRLF."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field with its continuation lines and its last CRLF."""

    raw: bytes

    @property
    def name(self) -> str:
        """As it is written."""
        return self.raw.partition(b":")[0].rstrip(b" \t").decode("ascii")

    @property
    def value(self) -> str:
        """Without the line ends, and the blanks at both ends; bytes that are no UTF-8 as surrogates."""
        text = self.raw.partition(b":")[2].decode("utf-8", "surrogateescape")
        return text.replace("\r\n", "").strip(" \t\n")

    def is_named(self, name: str) -> bool:
        """Case does not matter."""
        return self.name.lower() == name.lower()


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a message, and how long it is with the empty line that ends it."""

    fields: tuple[Field, ...]
    length: int
    """Bytes of the text that it was split from: where the body begins."""


def split_header(text: bytes) -> Header:
    """The header at the beginning of mail data, dots undoubled."""
    fields: list[bytes] = []
    at = 0
    while at < len(text):
        end = text.find(b"\n", at) + 1 or len(text)
        line = text[at:end]
        if line in (b"\r\n", b"\n"):
            return Header(tuple(map(Field, fields)), end)
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] += line
        elif _NAME.match(line):
            fields.append(line)
        else:
            break
        at = end
    return Header(tuple(map(Field, fields)), at)


def make_field(name: str, value: str) -> Field:
    """A field. ValueError for a name or value that would end the line, or a line that is too long."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header field")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value of {name} has a line end without a blank after it, or a NUL")
    raw = f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")
    if any(len(line) > LINE_BYTES_MAX for line in raw.split(b"\r\n")):
        raise ValueError(f"a line of {name} is longer than {LINE_BYTES_MAX} bytes; fold it with CRLF and a blank")
    return Field(raw)


def join_header(fields: tuple[Field, ...]) -> bytes:
    """Header and empty line."""
    return b"".join(field.raw if field.raw.endswith(b"\n") else field.raw + b"\r\n" for field in fields) + b"\r\n"
