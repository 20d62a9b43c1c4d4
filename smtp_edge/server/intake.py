"""Mail data on its way in: to memory, and to a spool file once it is larger than its bound or memory is short.

Mail that may pass without being stored stays in memory beyond what a row of the queue takes (`kept_bytes_max`): written
to a file and read back, one of 512 KiB costs three quarters more. What it takes counts until nobody has it any more.

Size, lines, header and line ends are judged while the data streams by; after a refusal the rest is only counted, so
that the client gets its proper reply at the end. Nothing is decoded, and only line ends are changed (`bare_newlines`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from smtp_edge.envelope import MailData
from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.reply import LOCAL_ERROR, NO_SPACE, Reply
from smtp_edge.server.bulk import LineEnds
from smtp_edge.server.chunks import Conversion
from smtp_edge.server.header import HeaderScan
from smtp_edge.server.pressure import Memory
from smtp_edge.stuffing import DotCount

log = structlog.get_logger()

TOO_LARGE = Reply(552, "message exceeds the size limit", "5.3.4")
BARE_NEWLINE = Reply(550, "bare CR or LF in mail data", "5.6.0")
LINE_TOO_LONG = Reply(554, "a line of the message is too long", "5.6.0")
HEADER_TOO_LARGE = Reply(552, "the header is too large", "5.3.4")
TOO_MANY_FIELDS = Reply(552, "the header has too many fields", "5.3.4")
LOOPING = Reply(554, "too many hops, this message is looping", "5.4.6")
PARTS_MAX = 64


class SpoolWriter(Protocol):
    """Where a large body goes (`smtp_edge.queue.spool.SpoolWriter`)."""

    size_bytes: int

    def write(self, chunk: bytes) -> None:
        """Append."""
        ...

    async def commit(self, header: bytes) -> MailData:
        """Make it durable."""
        ...

    async def abort(self) -> None:
        """Remove it."""
        ...


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """Bounds of a listener."""

    size_bytes_max: int
    inline_bytes_max: int
    """Larger mail data is stored in a spool file."""
    bare_newlines: Literal["refuse", "normalise"] = "refuse"
    line_bytes_max: int = 0
    """0 = any."""
    header_bytes_max: int = 16 * 1024 * 1024
    header_fields_max: int = 1_000_000
    hops_max: int = 50
    kept_bytes_max: int = 0
    """Up to here it becomes a spool file when it has to be stored, not before; 0 = `inline_bytes_max`."""

    def conversion(self) -> Conversion:
        """For mail data by DATA."""
        return LineEnds(repair=self.bare_newlines == "normalise")


class Intake:
    """One message on its way in. End it with `finish` or `abort`, then `close` when its data is the queue's."""

    def __init__(
        self,
        options: IntakeOptions,
        begin_spool: Callable[[], SpoolWriter],
        memory: Memory,
        conversion: Conversion | None = None,
    ) -> None:
        self._options, self._begin_spool, self._memory = options, begin_spool, memory
        self._conversion = conversion or options.conversion()
        self._header = HeaderScan(bytes_max=options.header_bytes_max)
        self._parts: list[bytes] = []
        self._taken_bytes = 0
        self._large = False
        """What was taken is of the share for large mail."""
        self._size_bytes = 0
        self._dots: DotCount | None = None
        """Of a message that goes to a file."""
        self._line_bytes = 0
        self._writer: SpoolWriter | None = None
        self.refusal: Reply | None = None

    def feed(self, chunk: bytes) -> None:
        """Take a chunk; after a refusal it only counts."""
        self._take(self._conversion.feed(chunk))

    def refuse(self, refusal: Reply) -> None:
        """Whatever comes, this is the answer to it."""
        self.refusal = self.refusal or refusal
        self._drop_parts()

    async def finish(self) -> MailData | Reply:
        """The complete data, durable if it is a file; or why it is refused."""
        self._take(self._conversion.finish())
        self._header.finish()
        self.refusal = self.refusal or self._judge_whole()
        if self.refusal is not None:
            await self.abort()
            return self.refusal
        header = self._header.kept
        if self._writer is None:
            return self._hand_over(MailData(self._size_bytes, inline=b"".join(self._parts), header=header))
        writer, self._writer = self._writer, None  # from here the file is not ours to remove: an entry may name it
        try:
            return await writer.commit(header)
        except StoreError as error:
            return _refuse(error)

    def _hand_over(self, data: MailData) -> MailData:
        """Large data outlives its intake, for as long as the next hop lets it wait."""
        if self._size_bytes > self._options.inline_bytes_max:
            weakref.finalize(data, self._memory.give_back_large, self._taken_bytes).atexit = False
            self._taken_bytes = 0
        return data

    async def abort(self) -> None:
        """Forget it all."""
        self._drop_parts()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.abort()

    def close(self) -> None:
        """Its data is in other hands, or gone: the memory counts for others."""
        self._drop_parts()

    # -- judging -------------------------------------------------------------------------------------------------------

    def _take(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._size_bytes += len(chunk)
        if self.refusal is None:
            self._header.feed(chunk)
            self.refusal = self._judge(chunk)
        if self.refusal is not None:
            self._drop_parts()
            return
        try:
            self._keep(chunk)
        except StoreError as error:
            self.refuse(_refuse(error))

    def _judge(self, chunk: bytes) -> Reply | None:
        options = self._options
        if self._size_bytes > options.size_bytes_max and self._exceeds(chunk):
            return TOO_LARGE
        if self._header.too_large:
            return HEADER_TOO_LARGE
        if options.line_bytes_max and self._overlong(chunk):
            return LINE_TOO_LONG
        return None

    def _judge_whole(self) -> Reply | None:
        if self._conversion.bare and self._options.bare_newlines == "refuse":
            return BARE_NEWLINE
        if self._header.fields_count > self._options.header_fields_max:
            return TOO_MANY_FIELDS
        return LOOPING if self._header.hops_count >= self._options.hops_max else None

    def _exceeds(self, chunk: bytes) -> bool:
        """Doubled dots do not count (RFC 1870 section 6); they are only looked for in mail that is large."""
        dots = self._dots or DotCount()
        if self._dots is None:
            for part in self._parts:
                dots.feed(part)
        dots_count = dots.count + dots.peek(chunk)
        return self._size_bytes - dots_count > self._options.size_bytes_max

    def _overlong(self, chunk: bytes) -> bool:
        """A line is longer than allowed, with its CRLF."""
        first, *others = chunk.split(b"\n")
        if self._line_bytes + len(first) + bool(others) > self._options.line_bytes_max:
            return True
        self._line_bytes = len(others[-1]) if others else self._line_bytes + len(first)
        return any(len(line) >= self._options.line_bytes_max for line in others)

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _keep(self, chunk: bytes) -> None:
        if self._writer is None:
            if self._find_room(len(chunk)):
                self._parts.append(chunk)
                if len(self._parts) > PARTS_MAX:  # a client of tiny segments must not make the list cost more than they
                    self._parts = [b"".join(self._parts)]
                return
            self._begin_file()
        assert self._writer is not None
        assert self._dots is not None
        self._dots.feed(chunk)
        self._writer.write(chunk)

    def _find_room(self, size_bytes: int) -> bool:
        """In memory, for so much more."""
        options, memory = self._options, self._memory
        if self._size_bytes <= options.inline_bytes_max:
            found = memory.take(size_bytes)
        elif self._size_bytes > options.kept_bytes_max:
            return False
        elif self._large:
            found = memory.take_large(size_bytes)
        else:
            found = self._large = memory.take_large(self._taken_bytes + size_bytes)
            memory.give_back(self._taken_bytes if found else 0)
        self._taken_bytes += size_bytes if found else 0
        return found

    def _begin_file(self) -> None:
        self._writer, self._dots = self._begin_spool(), DotCount()
        for part in self._parts:
            self._dots.feed(part)
            self._writer.write(part)
        self._drop_parts()

    def _drop_parts(self) -> None:
        self._parts.clear()
        give_back = self._memory.give_back_large if self._large else self._memory.give_back
        give_back(self._taken_bytes)
        self._taken_bytes = 0


def _refuse(error: StoreError) -> Reply:
    log.error("spool.failed", reason=str(error))
    return NO_SPACE if isinstance(error, StoreFull) else LOCAL_ERROR
