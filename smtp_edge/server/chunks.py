"""Mail data by BDAT (RFC 3030): octets by count instead of lines up to a dot, made into what the store keeps.

    text      line ends are checked or repaired as for DATA (bulk.py), then dots are stuffed; a last line without CRLF
              gets one, because DATA could not carry it otherwise
    binary    dots are stuffed after CRLF and nothing else is touched: to undo it gives the octets that were sent

What stands in a chunk never ends anything: CRLF.CRLF inside is a line with a dot, and is stuffed like any other.
"""

from __future__ import annotations

from typing import Protocol

from smtp_edge.server.bulk import LineEnds
from smtp_edge.stuffing import DotStuffing


class Conversion(Protocol):
    """Octets as the client sent them to octets as the store keeps them."""

    @property
    def bare(self) -> bool:
        """A bare CR or LF was among them."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Some more; what may be stored of them now."""
        ...

    def finish(self) -> bytes:
        """The end; what was kept back."""
        ...


class TextChunks:
    """7-bit and 8-bit text."""

    def __init__(self, *, repair: bool) -> None:
        self._ends, self._dots = LineEnds(repair=repair, stuffed=False), DotStuffing()
        self._last = b""

    @property
    def bare(self) -> bool:
        """See Conversion."""
        return self._ends.bare

    def feed(self, chunk: bytes) -> bytes:
        """See Conversion."""
        return self._give(self._ends.feed(chunk))

    def finish(self) -> bytes:
        """See Conversion. The last line is completed."""
        rest = self._give(self._ends.finish())
        return rest if self._last in (b"", b"\r\n") else rest + b"\r\n"

    def _give(self, text: bytes) -> bytes:
        self._last = (self._last + text[-2:])[-2:]
        return self._dots.feed(text)


class BinaryChunks:
    """BODY=BINARYMIME: anything at all."""

    def __init__(self) -> None:
        self._dots = DotStuffing()

    @property
    def bare(self) -> bool:
        """Never one too many."""
        return False

    def feed(self, chunk: bytes) -> bytes:
        """See Conversion."""
        return self._dots.feed(chunk)

    def finish(self) -> bytes:
        """See Conversion."""
        return b""
