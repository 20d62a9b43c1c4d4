"""The stream of replies on an open connection.

aiosmtplib connects and reads the greeting; then this protocol takes over the transport, because a pipelined group has
several replies under way and aiosmtplib drops those that nobody awaits yet. Replies are bounded and their texts cleaned
before anyone sees them: what a remote says goes into logs and reports.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from smtp_edge.reply import Reply

LINE_MAX = 4096
KNOWN_LINE_MAX = 32
"""Lines no longer than this are remembered with what they mean."""
REPLY_BYTES_MAX = 64 * 1024
REPLIES_WAITING_MAX = 2000
"""Replies that may have arrived unread: more than the largest pipelined group."""
TEXT_MAX = 1000
HELLO_TEXT_MAX = 16 * 1024
"""The answer to EHLO is read by us, not shown to people."""
OUT_OF_TURN = "the remote answered what was not asked yet"

_LINE = re.compile(rb"([2-5]\d\d)([ -]?)([^\r\n]*)\r?\n")
_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?: |$)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters, line and paragraph separators, and what turns the direction of writing on a terminal."""


class ConnectionLost(Exception):
    """The connection ended, or the remote sent what is no SMTP reply; `str()` is for the log."""


class ReplyStream(asyncio.Protocol):
    """Parses replies as they arrive and hands them out in order."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self.text_max = TEXT_MAX
        """Characters of a reply that are kept."""
        self._buffer = bytearray()
        self._lines: list[tuple[int, str]] = []
        self._reply_bytes = 0
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        transport.set_protocol(self)

    # -- protocol ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what is complete."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[: end + 1])
            del self._buffer[: end + 1]
            self._take_line(line)
        if len(self._buffer) > LINE_MAX:
            self._fail("the remote sent an endless line")
        self._wake()

    def _take_line(self, line: bytes) -> None:
        if len(line) <= KNOWN_LINE_MAX and not self._lines and len(self._replies) <= REPLIES_WAITING_MAX:
            known = _parse_short(line, self.text_max)
            if known is not None:
                self._replies.append(known)
                return
        match = _LINE.fullmatch(line)
        self._reply_bytes += len(line)
        if (
            match is None
            or len(line) > LINE_MAX
            or self._reply_bytes > REPLY_BYTES_MAX
            or len(self._replies) > REPLIES_WAITING_MAX
        ):
            self._fail("the remote sent what is no SMTP reply")
            return
        self._lines.append((int(match[1]), match[3].decode("utf-8", "replace")))
        if match[2] != b"-":
            self._replies.append(build_reply(self._lines, self.text_max))
            self._lines, self._reply_bytes = [], 0

    def eof_received(self) -> bool:
        """The remote closed."""
        self._lost = self._lost or "the remote closed the connection"
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._lost = self._lost or (f"connection lost: {exc}" if exc else "connection closed")
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        """The socket is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._writable.set()

    # -- use -----------------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Alive and in step: nothing unread, nothing half read."""
        return (
            self._lost is None
            and not self._transport.is_closing()
            and not (self._replies or self._lines or self._buffer)
        )

    def write(self, *parts: bytes | memoryview) -> None:
        """Send. ConnectionLost if the connection is known to be gone."""
        if self._lost is not None or self._transport.is_closing():
            raise ConnectionLost(self._lost or "connection closed")
        self._transport.writelines(parts)

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self._lost is not None:
            raise ConnectionLost(self._lost)

    def take_reply(self) -> Reply | None:
        """The next reply, if it is there: those of a group come together."""
        return self._replies.popleft() if self._replies else None

    async def read_reply(self) -> Reply:
        """The next reply. ConnectionLost if there will be none."""
        while not self._replies:
            if self._lost is not None:
                raise ConnectionLost(self._lost)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._replies.popleft()

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Go on under TLS. ConnectionLost if the remote (or somebody between) has said more than the reply to STARTTLS:

        whatever came in the clear must not be taken for an answer under TLS (RFC 3207 section 6, CVE-2011-0411).
        """
        if not self.usable:
            self._fail("something was sent in the clear after the reply to STARTTLS")
            raise ConnectionLost(self._lost or "")
        secured = await asyncio.get_running_loop().start_tls(self._transport, self, context, server_hostname=host)
        if secured is None:
            raise ConnectionLost("the connection ended in the handshake")
        self._transport = secured

    def info(self, name: str) -> Any:
        """`get_extra_info` of the transport."""
        return self._transport.get_extra_info(name)

    @property
    def waiting(self) -> bool:
        """A reply is there to be read."""
        return bool(self._replies)

    def close(self) -> None:
        """Close the connection."""
        self._lost = self._lost or "closed by ourselves"
        self._transport.close()

    def abort(self) -> None:
        """Close without flushing what is still to be written."""
        self._lost = self._lost or "closed by ourselves"
        self._transport.abort()

    def break_off(self, reason: str) -> None:
        """Whoever reads or drains is told that the connection is lost; nothing more is sent."""
        self._fail(reason)
        self._writable.set()
        self._wake()

    def _fail(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._buffer.clear()
        self._transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@lru_cache(maxsize=256)
def _parse_short(line: bytes, text_max: int) -> Reply | None:
    """A reply of one short line: a remote says the same few all the time. None for any other line."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] == b"-":
        return None
    return build_reply([(int(match[1]), match[3].decode("utf-8", "replace"))], text_max)


def build_reply(lines: Sequence[tuple[int, str]], text_max: int = TEXT_MAX) -> Reply:
    """A reply from its lines; the enhanced status code is taken from the front of each line (RFC 2034 section 4)."""
    code = lines[-1][0]
    status = ""
    texts: list[str] = []
    for _, line in lines:
        text = clean_text(line)
        match = _STATUS.match(text)
        if match is not None and match[1] == str(code)[0]:
            status = match.group().strip()
            text = text[match.end() :]
        texts.append(text)
    return Reply(code, "\n".join(texts)[:text_max], status)


def clean_text(text: str) -> str:
    """A remote's text without control characters, bounded."""
    return _CONTROL.sub("?", text)[:TEXT_MAX]


def as_transport(transport: asyncio.BaseTransport | None) -> asyncio.Transport:
    """The writable transport behind aiosmtplib's attribute. ConnectionLost if it is gone."""
    if transport is None or transport.is_closing():
        raise ConnectionLost("connection closed")
    return cast(asyncio.Transport, transport)
