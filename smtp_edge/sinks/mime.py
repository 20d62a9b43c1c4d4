"""MIME as far as sinks need it (RFC 2045, RFC 2046): what a body is, and its parts as they stream by. Pure.

Nothing is decoded, and nothing is lost: the raw bytes of all tokens that a `Walker` gives are what it was fed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from smtp_edge.sinks.fields import Field, split_header

DEPTH_MAX = 20
"""Multiparts in multiparts; what is deeper is left as it is."""
PART_HEADER_BYTES_MAX = 64 * 1024
DELIMITER_BYTES_MAX = 200
"""A boundary has 70 characters at most (RFC 2046 section 5.1.1); blanks may follow."""
_COMMENT = re.compile(r"\([^()]*\)")
_PARAMETER = re.compile(r";\s*([^\s=;\"]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s]*))", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MediaType:
    """A Content-Type or Content-Disposition, told apart."""

    kind: str
    """`type/subtype` in lower case; empty if there is none."""
    parameters: dict[str, str]
    """Names in lower case."""

    def get(self, name: str) -> str:
        """A parameter, or nothing."""
        return self.parameters.get(name, "")


def parse_media_type(value: str) -> MediaType:
    """Of a field's value. Whatever it is: what makes no sense is left out."""
    kind, _, rest = value.partition(";")
    parameters: dict[str, str] = {}
    for name, quoted, bare in _PARAMETER.findall(";" + rest):
        parameters.setdefault(name.lower(), _ESCAPE.sub(r"\1", quoted) if quoted else bare)
    return MediaType(_COMMENT.sub("", kind).strip().lower(), parameters)


def find_value(fields: Sequence[Field], name: str) -> str:
    """Of the first field of that name; empty if there is none."""
    return next((field.value for field in fields if field.is_named(name)), "")


def media_type_of(fields: Sequence[Field]) -> MediaType:
    """Of a message or part; text/plain where nothing is said (RFC 2045 section 5.2)."""
    found = parse_media_type(find_value(fields, "content-type"))
    return found if found.kind else MediaType("text/plain", found.parameters)


def is_content(field: Field) -> bool:
    """It describes the body, not the message (RFC 2045 section 9)."""
    return field.raw[:8].lower() == b"content-"


def content_of(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Those that describe the body."""
    return tuple(field for field in fields if is_content(field))


def with_content(fields: tuple[Field, ...], content: Sequence[Field]) -> tuple[Field, ...]:
    """The fields of a message with others that describe its body, where the first of those stood."""
    at = next((number for number, field in enumerate(fields) if is_content(field)), len(fields))
    before, after = fields[:at], tuple(field for field in fields[at:] if not is_content(field))
    version = () if any(field.is_named("mime-version") for field in fields) else (Field(b"MIME-Version: 1.0\r\n"),)
    return (*before, *version, *content, *after)


class Kind(enum.Enum):
    """Of tokens."""

    RAW = enum.auto()
    """Delimiters, preambles, headers of multiparts."""
    HEAD = enum.auto()
    """Header of a part that is no multipart, with its empty line."""
    BODY = enum.auto()
    """Some of its body."""
    END = enum.auto()
    """Of its body; has no bytes."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a multipart."""

    kind: Kind
    raw: bytes = b""
    fields: tuple[Field, ...] = ()
    """Of a HEAD."""
    inside: tuple[tuple[str, int], ...] = ()
    """Of a HEAD: the multiparts around it, outermost first, as (type, number)."""


@dataclass(slots=True)
class _Level:
    boundary: bytes
    kind: str
    number: int


class Walker:
    """The parts of a multipart's body that comes in chunks, dots undoubled."""

    def __init__(
        self,
        media_type: MediaType,
        *,
        depth_max: int = DEPTH_MAX,
        opaque: Sequence[str] = ("multipart/signed", "multipart/encrypted", "multipart/report"),
    ) -> None:
        """`opaque`: multiparts inside that count as one part each."""
        self._depth_max, self._opaque, self._count = depth_max, opaque, 0
        self._levels: list[_Level] = []
        self._boundaries: set[bytes] = set()
        """All that were open at some time."""
        self._text = b""
        self._in_header = self._in_part = False
        self._at_line = True
        """`_text` begins where a line begins, though no CRLF is in front of it."""
        self._open(media_type)

    def feed(self, chunk: bytes) -> list[Token]:
        """What is certain so far."""
        self._text += chunk
        return self._take(last=False)

    def finish(self) -> list[Token]:
        """The rest."""
        tokens = self._take(last=True)
        if self._in_header:
            tokens += self._end_header(len(self._text))
        if self._text:
            tokens.append(self._piece(self._text))
            self._text = b""
        if self._in_part:
            tokens.append(Token(Kind.END))
            self._in_part = False
        return tokens

    def is_cut_by(self, text: bytes) -> bool:
        """True if text has a line that would be a delimiter of a multipart so far: it cannot be the body of a part."""
        lines = (line[2:].rstrip(b" \t") for line in text.split(b"\r\n") if line.startswith(b"--"))
        return any(line in self._boundaries or line.removesuffix(b"--") in self._boundaries for line in lines)

    def _take(self, *, last: bool) -> list[Token]:
        tokens: list[Token] = []
        while True:
            step = self._step_header(last) if self._in_header else self._step_body(last)
            if step is None:
                return tokens
            tokens += step

    # -- headers of parts ----------------------------------------------------------------------------------------------

    def _step_header(self, last: bool) -> list[Token] | None:
        """All of it at once; None if more is needed."""
        at = 0
        while (end := self._text.find(b"\r\n", at)) >= 0:
            line = self._text[at:end]
            if not line:
                return self._end_header(end + 2)
            if self._match(line) is not None:
                return self._end_header(at)
            at = end + 2
        if len(self._text) > PART_HEADER_BYTES_MAX:
            return self._end_header(0)
        if last and self._match(self._text[at:]) is not None:
            return self._end_header(at)
        return None

    def _end_header(self, length: int) -> list[Token]:
        raw, self._text = self._text[:length], self._text[length:]
        self._in_header, self._at_line = False, True
        fields = split_header(raw).fields
        media_type = media_type_of(fields)
        inside = tuple((level.kind, level.number) for level in self._levels)
        if media_type.kind not in self._opaque and self._open(media_type):
            return [Token(Kind.RAW, raw)]
        self._in_part = True
        return [Token(Kind.HEAD, raw, fields, inside)]

    def _open(self, media_type: MediaType) -> bool:
        """It is a multipart that is looked into."""
        boundary = media_type.get("boundary").rstrip(" ")
        if not media_type.kind.startswith("multipart/") or not boundary or len(self._levels) >= self._depth_max:
            return False
        self._count += 1
        self._levels.append(_Level(boundary.encode("utf-8", "surrogateescape"), media_type.kind, self._count))
        self._boundaries.add(self._levels[-1].boundary)
        return True

    # -- bodies --------------------------------------------------------------------------------------------------------

    def _step_body(self, last: bool) -> list[Token] | None:
        """Up to and with the next delimiter, or what can be none."""
        at = 0
        while (found := self._find_dashes(at)) is not None:
            begin, dashes = found
            end = self._text.find(b"\r\n", dashes)
            if end < 0 and not last and len(self._text) - dashes <= DELIMITER_BYTES_MAX:
                return self._give(begin) or None
            line = self._text[dashes : end if end >= 0 else len(self._text)]
            match = self._match(line)
            if match is not None:
                return self._give(begin) + self._delimit(*match, end + 2 - begin if end >= 0 else len(self._text))
            at = dashes + 1
        if last:
            return None
        return self._give(max(0, len(self._text) - 3)) or None

    def _find_dashes(self, at: int) -> tuple[int, int] | None:
        """Where the next line with two dashes begins: with the CRLF before it, and without."""
        if at == 0 and self._at_line and self._text.startswith(b"--"):
            return 0, 0
        found = self._text.find(b"\r\n--", at)
        return None if found < 0 else (found, found + 2)

    def _give(self, length: int) -> list[Token]:
        if self._at_line and length == 0:
            return []
        piece, self._text = self._text[:length], self._text[length:]
        self._at_line = False
        return [self._piece(piece)] if piece else []

    def _piece(self, raw: bytes) -> Token:
        return Token(Kind.BODY if self._in_part else Kind.RAW, raw)

    def _match(self, line: bytes) -> tuple[int, bool] | None:
        """The level whose delimiter this line is, and whether it is the last one."""
        if not line.startswith(b"--") or len(line) > DELIMITER_BYTES_MAX:
            return None
        name = line[2:].rstrip(b" \t")
        for number in range(len(self._levels) - 1, -1, -1):
            boundary = self._levels[number].boundary
            if name == boundary:
                return number, False
            if name == boundary + b"--":
                return number, True
        return None

    def _delimit(self, number: int, closes: bool, length: int) -> list[Token]:
        tokens = [Token(Kind.END)] if self._in_part else []
        raw, self._text = self._text[:length], self._text[length:]
        del self._levels[number + (0 if closes else 1) :]
        self._in_part, self._in_header, self._at_line = False, not closes, True
        return [*tokens, Token(Kind.RAW, raw)]
