"""Hashes of a body for signatures (RFC 6376 sections 3.4.3 to 3.4.5), in constant memory, whatever the body is like.

`simple` leaves a body as it is but for empty lines at its end; `relaxed` also makes one space of blanks, and none of
those at the end of a line. A length (`l=`) counts what is hashed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_BLANKS = re.compile(rb"[ \t]+")
_ENDS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class BodyKey:
    """Which hash."""

    relaxed: bool
    length: int | None = None
    """Octets that are hashed; None = all."""


class BodyHash:
    """SHA-256 of a body that comes in pieces."""

    def __init__(self, key: BodyKey) -> None:
        self._key, self._digest = key, hashlib.sha256()
        self._tail = b""
        """The end of what came, whose meaning depends on what follows: a blank, a CR, both."""
        self._line_ends = 0
        """Held back: they count if something follows."""
        self.size_bytes = 0
        """What there was to hash, beyond a length too."""

    def feed(self, piece: bytes) -> None:
        """What comes next."""
        text = self._tail + piece
        if self._key.relaxed:
            text = _BLANKS.sub(b" ", text).replace(b" \r\n", b"\r\n")
        kept = len(text) - text.endswith(b"\r")
        if self._key.relaxed:
            kept -= text.endswith(b" ", 0, kept)
        self._tail = text[kept:]
        end = kept
        while text.endswith(b"\r\n", 0, end):
            end -= 2
        if end:
            self._hash_line_ends()
            self._hash(text[:end])
        self._line_ends += (kept - end) // 2

    def finish(self) -> bytes:
        """The hash. Once."""
        rest = self._tail.replace(b" ", b"") if self._key.relaxed else self._tail
        if rest:
            self._hash_line_ends()
            self._hash(rest)
        if self.size_bytes or not self._key.relaxed:
            self._hash(b"\r\n")
        return self._digest.digest()

    def _hash_line_ends(self) -> None:
        while self._line_ends:
            count = min(self._line_ends, _ENDS_AT_ONCE)
            self._hash(b"\r\n" * count)
            self._line_ends -= count

    def _hash(self, text: bytes) -> None:
        if self._key.length is None:
            self._digest.update(text)
        elif self.size_bytes < self._key.length:
            self._digest.update(text[: self._key.length - self.size_bytes])
        self.size_bytes += len(text)


@dataclass(frozen=True, slots=True)
class Hashed:
    """A body's hash."""

    digest: bytes
    size_bytes: int
    """Of the body, canonical."""
