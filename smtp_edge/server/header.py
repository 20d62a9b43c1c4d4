"""The header block of mail data as it streams by: its first bytes, how long it is, how many fields. Pure.

A header ends at the first empty line (RFC 5322 section 2.1). Mail data without any field, or without an empty line, is
taken as it is: all of it counts as header then, and the bounds hold for it. Nothing is parsed or changed.
"""

from __future__ import annotations

import re

from smtp_edge.envelope import HEADER_KEPT_MAX

_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:", re.MULTILINE)


class HeaderScan:
    """See the module. `feed` costs nothing once the header is over."""

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept = bytearray()
        self._line = b""
        """What has come of the line that is not complete yet."""
        self.done = False
        self.size_bytes = 0
        self.fields_count = 0
        self.hops_count = 0

    @property
    def kept(self) -> bytes:
        """The block with its empty line, at most `HEADER_KEPT_MAX` bytes of it."""
        return bytes(self._kept)

    @property
    def too_large(self) -> bool:
        """Beyond `bytes_max`; nothing is counted any more."""
        return self.size_bytes > self._bytes_max

    def feed(self, chunk: bytes) -> None:
        """Mail data, in order."""
        if self.done:
            return
        lines = self._line + chunk
        end = self._find_end(lines)
        if end >= 0:
            self._take(lines[:end])
            self._line, self.done = b"", True
        else:
            cut = lines.rfind(b"\n") + 1
            if cut:
                self._take(lines[:cut])
            self._line = lines[cut:]
        if self.size_bytes + len(self._line) > self._bytes_max:
            self.size_bytes += len(self._line)
            self._line, self.done = b"", True

    def finish(self) -> None:
        """The mail data is over."""
        if self._line:
            self._take(self._line)
        self._line, self.done = b"", True

    def _find_end(self, lines: bytes) -> int:
        """Where the body begins in lines of which the first begins a line; -1 if not here."""
        if lines.startswith(b"\r\n"):
            return 2
        found = lines.find(b"\n\r\n")
        return found + 3 if found >= 0 else -1

    def _take(self, lines: bytes) -> None:
        """Complete lines."""
        self.size_bytes += len(lines)
        self._kept += lines[: HEADER_KEPT_MAX - len(self._kept)]
        names = _FIELD.findall(lines)
        self.fields_count += len(names)
        self.hops_count += [name.lower() for name in names].count(b"received")
