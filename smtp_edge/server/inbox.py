"""What a client has sent and nobody has read: lines on demand, or everything at once as it comes.

Bounded: past `PAUSE_BYTES` the socket is read no more until somebody takes something. While mail data is `pour`ed it
goes straight from the socket to its taker, without a buffer and without waking a task for each segment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PAUSE_BYTES = 128 * 1024
PARTIAL_BYTES = 2048
"""Of a line that is not complete: past it the reader looks whether it is too long already."""
TURN_BYTES = 256 * 1024
"""Mail data taken in a row; then others get their turn. uvloop reads on from one socket for 32 segments of 64 KiB, so
that a few clients with much to say would stop everybody else for tenths of a second."""
OVERLONG_BYTES_MAX = 16 * 1024
"""So much beyond its bound a line may be, and still be answered; past it the session is not worth keeping."""

Taker = Callable[[bytes], bytes | None]
"""Takes bytes; None for "go on", else what it does not want."""

Quick = Callable[[bytes], tuple[int, bool]]
"""Looks at bytes; how many it has dealt with, and False if the reader may go on waiting."""


class EndlessLine(Exception):
    """A line without end."""


class Inbox:
    """See the module. One reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = bytearray()
        self._searched = 0
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Taker | None = None
        self._error: Exception | None = None
        self._ended = self._paused = False
        self._turn_bytes = 0
        self.transport: asyncio.Transport | None = None
        self.quick: Quick | None = None
        """Looks at what has come before the reader is woken."""

    def __len__(self) -> int:
        """Bytes that nobody has read."""
        return len(self._buffer)

    # -- from the socket -----------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        if self._taker is not None:
            self._offer(data)
            self._turn_bytes += len(data)
            if self._turn_bytes > TURN_BYTES and self.transport is not None:
                self._rest(self.transport)
            return
        buffer, wanted = self._buffer, True
        if self.quick is not None and buffer and b"\n" not in data:  # more of a line in drops: nothing to answer yet
            wanted = len(buffer) > PARTIAL_BYTES
        elif self.quick is not None:
            if buffer:
                data = bytes(buffer) + data
                buffer.clear()
                self._searched = 0
            done, wanted = self.quick(data)
            data = data[done:]
        if data:
            buffer += data
            if len(buffer) > PAUSE_BYTES and not self._paused and self.transport is not None:
                self._paused = True
                self.transport.pause_reading()
        if wanted:
            self._wake()

    def feed_eof(self) -> None:
        """No more will come; what is there can still be read."""
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Whoever waits, now or later, gets the error: the connection is lost, or the client too slow."""
        self._error = self._error or error
        self._wake()

    # -- to the reader -------------------------------------------------------------------------------------------------

    def take_line(self, bytes_max: int) -> bytes | None:
        """A line with its LF; None if there is no whole one. EndlessLine if there will never be one."""
        buffer = self._buffer
        if not buffer:
            return None
        end = buffer.find(b"\n", self._searched) + 1
        if not end:
            self._searched = len(buffer)
            if self._searched > bytes_max + OVERLONG_BYTES_MAX:
                raise EndlessLine
            return None
        line = bytes(buffer[:end])
        del buffer[:end]
        self._searched = 0
        if self._paused:
            self._resume()
        return line

    async def more(self) -> None:
        """Wait until something has come. ConnectionError at the end, or what `fail` said."""
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ConnectionResetError("the client has left")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    async def pour(self, taker: Taker) -> None:
        """Give everything to the taker, beginning with what is there, until it has had enough. Errors as `more`.

        What the taker raises is raised here.
        """
        data, self._buffer, self._searched = bytes(self._buffer), bytearray(), 0
        self._resume()
        self._taker = taker
        if data:
            self._offer(data)
        try:
            while self._taker is not None:
                await self.more()
        finally:
            self._taker = None
        if self._error is not None:
            raise self._error

    async def drop(self, bytes_max: int) -> None:
        """Take and forget so much, whatever failed before. Errors as `more`."""
        self._error, left = None, bytes_max

        def take(data: bytes) -> bytes | None:
            nonlocal left
            left -= len(data)
            return None if left > 0 else b""

        await self.pour(take)

    def clear(self) -> None:
        """Forget what is there."""
        self._buffer.clear()
        self._searched = 0

    # -- private -------------------------------------------------------------------------------------------------------

    def _offer(self, data: bytes) -> None:
        assert self._taker is not None
        try:
            rest = self._taker(data)
        except Exception as error:
            self._taker = None
            self.fail(error)
            return
        if rest is not None:
            self._taker = None
            self._buffer += rest
            self._wake()

    def _rest(self, transport: asyncio.Transport) -> None:
        """Read on in the next turn of the loop."""
        self._turn_bytes = 0
        if not self._paused and not transport.is_closing():
            self._paused = True
            transport.pause_reading()
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._paused and self.transport is not None and len(self._buffer) <= PAUSE_BYTES:
            self._paused = False
            self.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
