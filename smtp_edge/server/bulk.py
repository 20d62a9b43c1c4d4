"""Mail data by DATA, in bulk: up to CRLF.CRLF and nothing else (RFC 5321 section 4.1.1.4; CVE-2023-51764).

aiosmtpd takes one coroutine step for each line; here a step takes whatever has arrived. The data stays dot-stuffed. A
bare CR or LF never ends anything: it is refused, or made a CRLF with its dots stuffed again, so that no server behind
this one can read one message as two.

Large segments are looked through by numpy where it is installed (the extra `speed`); what is found is the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smtp_edge.stuffing import find_dot

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

END = LONE_DOT = b"\r\n.\r\n"
HELD_MAX = len(END) - 1
"""Bytes kept back, because they may be the beginning of the end."""
VECTOR_BYTES_MIN = 8 * 1024
"""Below it counting is quicker."""
_BARE = re.compile(rb"(?:(?<!\r)\n|\r(?!\n))(\.?)")
_BARE_RAW = re.compile(rb"(?:(?<!\r)\n|\r(?!\n))")


class DataReader:
    """Cuts mail data out of a stream: bytes in, mail data out, and what follows the final dot."""

    def __init__(self) -> None:
        # A CRLF in front makes a lone dot on the first line an ordinary end.
        self._held, self._skip = b"\r\n", 2
        self.rest: bytes | None = None
        """What came behind the end, once it is there."""

    def feed(self, chunk: bytes) -> bytes:
        """More bytes; the mail data among them, up to and including the CRLF before the final dot."""
        joined = self._held + chunk
        end = _find_end(joined)
        if end >= 0:
            self.rest = joined[end + len(END) :]
            data, self._held = joined[: end + 2], b""
        else:
            cut = max(0, len(joined) - HELD_MAX)
            data, self._held = joined[:cut], joined[cut:]
        if self._skip and data:
            skipped, self._skip = min(self._skip, len(data)), max(0, self._skip - len(data))
            return data[skipped:]
        return data


@dataclass(slots=True)
class LineEnds:
    """Checks or repairs line ends of data that arrives in chunks. `bare` tells whether any was bare.

    `stuffed`: dots are doubled in the data (DATA); a repair keeps it so. Else they are not yet (BDAT).
    """

    repair: bool
    stuffed: bool = True
    bare: bool = False
    _carry: bytes = b""
    _tail: bytes = b"\r\n"
    """The last bytes given out: a repaired line end must not complete a lone dot begun in an earlier chunk."""

    def feed(self, chunk: bytes) -> bytes:
        """The chunk as it may be stored; a trailing line end is kept back until its other half is known."""
        return self._stuff(self._check(chunk)) if self.repair and self.stuffed else self._check(chunk)

    def _check(self, chunk: bytes) -> bytes:
        if self._carry:
            chunk = self._carry + chunk
            self._carry = b""
        if chunk.endswith((b"\r", b"\n")) and not chunk.endswith(b"\r\n"):
            chunk, self._carry = chunk[:-1], chunk[-1:]
        if not has_bare(chunk):
            return chunk
        self.bare = True
        if not self.repair:
            return chunk
        return _BARE.sub(_as_crlf, chunk) if self.stuffed else _BARE_RAW.sub(b"\r\n", chunk)

    def finish(self) -> bytes:
        """What was kept back."""
        rest, self._carry = self._carry, b""
        if not rest:
            return b""
        self.bare = True
        if not self.repair:
            return rest
        return self._stuff(b"\r\n") if self.stuffed else b"\r\n"

    def _stuff(self, chunk: bytes) -> bytes:
        """A lone dot that came about by repair is stuffed again."""
        joined = self._tail + chunk
        while LONE_DOT in joined:
            joined = joined.replace(LONE_DOT, b"\r\n..\r\n")
        stuffed = joined[len(self._tail) :]
        self._tail = joined[-4:]
        return stuffed


def has_bare(chunk: bytes) -> bool:
    """Some CR or LF stands alone. The chunk ends in neither half of a CRLF."""
    if numpy is None or len(chunk) < VECTOR_BYTES_MIN:
        rest = b"".join(chunk.split(b"\r\n"))
        return b"\n" in rest or b"\r" in rest
    octets = numpy.frombuffer(chunk, numpy.uint8)
    feeds = numpy.flatnonzero(octets == 10)
    if numpy.count_nonzero(octets == 13) != feeds.size:
        return True
    return bool(feeds.size and (feeds[0] == 0 or not (octets[feeds - 1] == 13).all()))


def _find_end(joined: bytes) -> int:
    """Where the first end begins; -1: nowhere. Most segments have no line that begins with a dot, or only the last."""
    last = find_dot(joined)
    if last < 0:
        return -1
    if find_dot(joined, last) >= 0:
        return joined.find(END)
    return last if joined.startswith(END, last) else -1


def _as_crlf(match: re.Match[bytes]) -> bytes:
    return b"\r\n.." if match.group(1) else b"\r\n"
