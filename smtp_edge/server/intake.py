"""Mail data on its way in: to memory, and to a spool file once it is larger than the inline bound.

Size and line ends are judged while the data streams by; after a refusal the rest is only counted, so that the client
gets its proper reply after the final dot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from smtp_edge.envelope import HEADER_KEPT_MAX, MailData
from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.reply import Reply
from smtp_edge.server.bulk import LineEnds

log = structlog.get_logger()

NO_SPACE = Reply(452, "insufficient system storage", "4.3.1")
LOCAL_ERROR = Reply(451, "local error in processing", "4.3.0")
TOO_LARGE = Reply(552, "message exceeds the size limit", "5.3.4")
BARE_NEWLINE = Reply(550, "bare CR or LF in mail data", "5.6.0")


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
    """Larger mail data goes to a spool file."""
    bare_newlines: Literal["refuse", "normalise"] = "refuse"


class Intake:
    """Mail data on its way in: to memory, and to a spool file once it is larger than the inline bound."""

    def __init__(self, options: IntakeOptions, begin_spool: Callable[[], SpoolWriter]) -> None:
        self._options, self._begin_spool = options, begin_spool
        self._ends = LineEnds(repair=options.bare_newlines == "normalise")
        self._parts: list[bytes] = []
        self._inline_bytes = 0
        self._header = bytearray()
        self._header_done = False
        self._size_bytes = 0
        self._writer: SpoolWriter | None = None
        self._refusal: Reply | None = None

    def feed(self, chunk: bytes) -> None:
        """Take a chunk; after a refusal it only counts."""
        self._take(self._ends.feed(chunk))

    async def finish(self) -> MailData | Reply:
        """The complete data, durable if it is a file; or why it is refused."""
        self._take(self._ends.finish())
        if self._ends.bare and self._options.bare_newlines == "refuse":
            self._refusal = self._refusal or BARE_NEWLINE
        if self._refusal is not None:
            await self.abort()
            return self._refusal
        header = bytes(self._header)
        if self._writer is None:
            return MailData(self._size_bytes, inline=b"".join(self._parts), header=header)
        try:
            return await self._writer.commit(header)
        except StoreError as error:
            return self._refuse(error)

    async def abort(self) -> None:
        """Forget it all."""
        self._parts.clear()
        if self._writer is not None:
            await self._writer.abort()

    def _take(self, chunk: bytes) -> None:
        self._size_bytes += len(chunk)
        if self._size_bytes > self._options.size_bytes_max:
            self._refusal = self._refusal or TOO_LARGE
        if self._refusal is not None:
            self._parts.clear()
            return
        if not self._header_done:
            self._collect_header(chunk)
        try:
            self._keep(chunk)
        except StoreError as error:
            self._refusal = self._refuse(error)

    def _keep(self, chunk: bytes) -> None:
        if self._writer is None and self._size_bytes > self._options.inline_bytes_max:
            self._writer = self._begin_spool()
            for part in self._parts:
                self._writer.write(part)
            self._parts.clear()
        if self._writer is None:
            self._parts.append(chunk)
        else:
            self._writer.write(chunk)

    def _collect_header(self, chunk: bytes) -> None:
        start = max(0, len(self._header) - 3)
        self._header += chunk[: HEADER_KEPT_MAX - len(self._header)]
        end = 2 if self._header.startswith(b"\r\n") else self._header.find(b"\r\n\r\n", start) + 4
        if end >= 4 or self._header.startswith(b"\r\n"):
            del self._header[end:]
            self._header_done = True
        elif len(self._header) >= HEADER_KEPT_MAX:
            self._header_done = True

    @staticmethod
    def _refuse(error: StoreError) -> Reply:
        log.error("spool.failed", reason=str(error))
        return NO_SPACE if isinstance(error, StoreFull) else LOCAL_ERROR
