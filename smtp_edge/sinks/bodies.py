"""Bodies that sinks have written in place of the one that came: in memory if small, else in a spool file.

Line ends become CRLF, bare CR and LF too, the last line has one, and dots are doubled as they stream by: what is kept
is mail data like any other, but for BINARYMIME, which no new body is. `Scratch` belongs to one message between its
final dot and the reply; what it has kept goes with it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from smtp_edge.envelope import BodyType, MailData
from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.reading import read_spooled
from smtp_edge.stuffing import DotStuffing, Unstuff

CHUNK_BYTES = 64 * 1024
MEMORY_BYTES_MAX = 100 * 1024
"""A larger body goes to a file."""
BODY_BYTES_MAX = 1 << 30
"""A sink that writes without end is stopped here."""
_BARE = re.compile(rb"\r\n|\r|\n")
_STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n")

Source = bytes | Iterable[bytes] | AsyncIterable[bytes]
"""A body to be: bytes, or chunks of it."""


class Writer(Protocol):
    """A spool file that is being written (`smtp_edge.queue.spool.SpoolWriter`)."""

    def write(self, chunk: bytes) -> None:
        """Append."""
        ...

    async def commit(self, header: bytes) -> MailData:
        """Make it durable."""
        ...

    async def abort(self) -> None:
        """Remove it."""
        ...


class LineEnds:
    """Makes each line end CRLF, of text in chunks."""

    def __init__(self) -> None:
        self._cr = False
        self._last = b"\r\n"

    def feed(self, chunk: bytes) -> bytes:
        """What is certain so far."""
        text = b"\r" + chunk if self._cr else chunk
        self._cr = text.endswith(b"\r")
        text = _BARE.sub(b"\r\n", text[:-1] if self._cr else text)
        self._last = (self._last + text[-2:])[-2:]
        return text

    def finish(self) -> bytes:
        """The rest, with the line end that is missing."""
        return b"\r\n" if self._cr or self._last != b"\r\n" else b""


@dataclass(frozen=True, slots=True)
class NewBody:
    """A body that was written."""

    data: MailData
    """Of the body alone, dots doubled."""
    eight_bit: bool

    async def stuffed(self) -> AsyncGenerator[bytes, None]:
        """Dots doubled. MailDataLost."""
        if self.data.path is None:
            yield self.data.inline or b""
            return
        async for chunk in read_spooled(self.data, self.data.path, CHUNK_BYTES):
            yield chunk

    def declare(self, before: BodyType, header: bytes) -> BodyType:
        """The body type of the message that has it now. Binary mail stays so if its header is."""
        if before is BodyType.BINARY_MIME:
            return before if _STRAY.search(header) else BodyType.EIGHT_BIT_MIME
        return BodyType.EIGHT_BIT_MIME if self.eight_bit else before


async def unstuffed(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Dots as the author wrote them."""
    unstuff = Unstuff()
    async for chunk in chunks:
        yield unstuff.feed(chunk)
    yield unstuff.finish()


async def chunks_of(source: Source) -> AsyncIterator[bytes]:
    """A source in chunks; others have their turn in between."""
    if isinstance(source, AsyncIterable):
        async for chunk in source:
            yield chunk
        return
    if isinstance(source, bytes):
        view = memoryview(source)
        source = (bytes(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES))
    for chunk in source:
        yield chunk
        await asyncio.sleep(0)


class Scratch:
    """Where the new bodies of one message are until it is stored or refused."""

    def __init__(self, begin_file: Callable[[], Writer]) -> None:
        self._begin_file = begin_file
        self._kept: list[MailData] = []
        self._closed = False
        self.fault: StoreError | None = None
        """Ours, while a sink was writing: not that sink's failure."""

    async def keep(self, source: Source) -> NewBody:
        """Write a body. StoreError; ValueError for one without end; RuntimeError after the reply."""
        stuffing, ends, eight_bit = DotStuffing(), LineEnds(), False

        async def text() -> AsyncIterator[bytes]:
            nonlocal eight_bit
            async for chunk in chunks_of(source):
                out = stuffing.feed(ends.feed(chunk))
                eight_bit = eight_bit or not out.isascii()
                yield out
            yield stuffing.feed(ends.finish())

        data = await self.keep_raw(text())
        return NewBody(data, eight_bit)

    async def keep_raw(self, chunks: AsyncIterable[bytes], memory_bytes_max: int = MEMORY_BYTES_MAX) -> MailData:
        """Write bytes as they are. As `keep`."""
        if self._closed:
            raise RuntimeError("the message has had its reply: nothing of it can be changed")
        small, writer, size = bytearray(), None, 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise ValueError(f"a body of more than {BODY_BYTES_MAX} bytes")
                if writer is None and size > memory_bytes_max:
                    writer = self._begin_file()
                    writer.write(bytes(small))
                    small.clear()
                if writer is None:
                    small += chunk
                else:
                    writer.write(chunk)
            if writer is None:
                return MailData(size, inline=bytes(small))
            data, writer = await writer.commit(b""), None
        except StoreError as error:
            self.fault = error
            raise
        finally:
            if writer is not None:
                await writer.abort()
        self._kept.append(data)
        return data

    async def drop(self, data: MailData) -> None:
        """It is not needed any more."""
        if data.path is not None:
            await asyncio.to_thread(data.path.unlink, missing_ok=True)

    async def close(self) -> None:
        """Everything goes."""
        self._closed = True
        for data in self._kept:
            await self.drop(data)
