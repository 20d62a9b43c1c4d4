"""Dots at the beginning of lines (RFC 5321 section 4.5.2): doubling, counting and undoubling, of data in chunks. Pure.

A line begins after CRLF and at the very start of mail data, also where a CRLF is cut in two by chunks.
"""

from __future__ import annotations


def find_dot(data: bytes, end: int | None = None) -> int:
    """Where the last CRLF with a dot behind it begins; -1: nowhere. That is the usual answer, and rfind is quick."""
    return data.rfind(b"\r\n.", 0, end)


class DotStuffing:
    """Doubles each dot that begins a line."""

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def feed(self, chunk: bytes) -> bytes:
        """The chunk, stuffed. A line begins after CRLF, also after one that two chunks share, and at the very start."""
        joined = self._tail + chunk
        skip = len(self._tail)
        self._tail = joined[-2:]
        return joined.replace(b"\r\n.", b"\r\n..")[skip:]


class DotCount:
    """Counts the dots that stuffing has added."""

    def __init__(self) -> None:
        self.count = 0
        self._tail = b"\r\n"

    def feed(self, chunk: bytes) -> None:
        """Mail data, in order."""
        self.count += self.peek(chunk)
        self._tail = (self._tail + chunk[-2:])[-2:]

    def peek(self, chunk: bytes) -> int:
        """How many are in a chunk that would come next."""
        within = chunk.count(b"\r\n.") if find_dot(chunk) >= 0 else 0
        return within + (self._tail + chunk[:2]).count(b"\r\n.")


class Unstuff:
    """Takes the leading dot from each line of data that comes in chunks (RFC 5321 section 4.5.2)."""

    def __init__(self) -> None:
        self._kept = b"\r\n"
        """A line end whose next byte is not known yet; the first one is only thought."""
        self._thought = 2

    def feed(self, chunk: bytes) -> bytes:
        """What is certain so far."""
        joined = self._kept + chunk
        keep = 2 if joined.endswith(b"\r\n") else int(joined.endswith(b"\r"))
        end = len(joined) - keep
        out, self._kept = joined[:end], joined[end:]
        return self._give(out)

    def finish(self) -> bytes:
        """The rest."""
        out, self._kept = self._kept, b""
        return self._give(out)

    def _give(self, out: bytes) -> bytes:
        out = out.replace(b"\r\n.", b"\r\n")
        skipped = min(self._thought, len(out))
        self._thought -= skipped
        return out[skipped:]
