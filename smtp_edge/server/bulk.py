"""Reading mail data in bulk: up to CRLF.CRLF and nothing else (RFC 5321 section 4.1.1.4; CVE-2023-51764).

aiosmtpd takes one coroutine step for each line; here one step takes whatever has arrived. The data stays dot-stuffed. A
bare CR or LF never ends anything: it is refused, or made a CRLF with its dots stuffed again, so that no server behind
this one can read one message as two.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

END = LONE_DOT = b"\r\n.\r\n"
_BARE = re.compile(rb"(?:(?<!\r)\n|\r(?!\n))(\.?)")


class TooLarge(Exception):
    """The client went on far beyond the limit it was told; the connection is not worth keeping."""


@dataclass(slots=True)
class LineEnds:
    """Checks or repairs line ends of data that arrives in chunks. `bare` tells whether any was bare."""

    repair: bool
    bare: bool = False
    _carry: bytes = b""
    _tail: bytes = b"\r\n"
    """The last bytes given out: a repaired line end must not complete a lone dot begun in an earlier chunk."""

    def feed(self, chunk: bytes) -> bytes:
        """The chunk as it may be stored; a trailing line end is kept back until its other half is known."""
        return self._stuff(self._check(chunk)) if self.repair else self._check(chunk)

    def _check(self, chunk: bytes) -> bytes:
        if self._carry:
            chunk = self._carry + chunk
            self._carry = b""
        if chunk.endswith((b"\r", b"\n")) and not chunk.endswith(b"\r\n"):
            chunk, self._carry = chunk[:-1], chunk[-1:]
        pairs = chunk.count(b"\r\n")
        if pairs == chunk.count(b"\n") == chunk.count(b"\r"):
            return chunk
        self.bare = True
        return _BARE.sub(_as_crlf, chunk) if self.repair else chunk

    def finish(self) -> bytes:
        """What was kept back."""
        rest, self._carry = self._carry, b""
        if rest:
            self.bare = True
            return self._stuff(b"\r\n") if self.repair else rest
        return b""

    def _stuff(self, chunk: bytes) -> bytes:
        """A lone dot that came about by repair is stuffed again."""
        joined = self._tail + chunk
        while LONE_DOT in joined:
            joined = joined.replace(LONE_DOT, b"\r\n..\r\n")
        stuffed = joined[len(self._tail) :]
        self._tail = joined[-4:]
        return stuffed


def _as_crlf(match: re.Match[bytes]) -> bytes:
    return b"\r\n.." if match.group(1) else b"\r\n"


async def read_mail_data(reader: asyncio.StreamReader, *, drain_max: int) -> AsyncIterator[bytes]:
    """Chunks of mail data up to and including the CRLF before the final dot. TooLarge beyond `drain_max` bytes.

    asyncio.IncompleteReadError if the client leaves before the final dot.
    """
    # A CRLF in front makes a lone dot on the first line an ordinary end.
    reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]
    skip, total = 2, 0
    last = False
    while not last:
        try:
            chunk, last = (await reader.readuntil(END))[: 2 - len(END)], True
        except asyncio.LimitOverrunError as overrun:
            chunk = await reader.readexactly(overrun.consumed)
        chunk, skip = chunk[skip:], 0
        total += len(chunk)
        if total > drain_max:
            raise TooLarge
        if chunk:
            yield chunk
