"""Spooled mail data on its way out: whole, or not at all.

A file that is gone, cannot be read or has not the size that was stored is nobody's mail: sending what is left of it and
a final dot would hand the next hop a mutilated message, and end our responsibility for the rest.

What was written a moment ago is in the page cache, and is taken from there without a thread; only what is not waits for
the disk in one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from smtp_edge.envelope import MailData


class MailDataLost(Exception):
    """Mail data that was stored cannot be read; `str()` says why. Our fault, never the next hop's."""


async def read_spooled(data: MailData, path: Path, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """The file's bytes in chunks. MailDataLost, perhaps only after the last chunk: send no final dot before the end."""
    try:
        with path.open("rb", buffering=0) as file:
            number, at = file.fileno(), 0
            whole = os.fstat(number).st_size == data.size_bytes
            while whole and at < data.size_bytes:
                size = min(chunk_bytes, data.size_bytes - at)
                chunk = _read_cached(number, size, at) or await asyncio.to_thread(os.pread, number, size, at)
                at += len(chunk)
                whole = bool(chunk)
                if chunk:
                    yield chunk
    except OSError as error:
        raise MailDataLost(f"its mail data cannot be read: {path.name}: {error.strerror}") from error
    if not whole:
        damage = f"{path.name} has not the {data.size_bytes} bytes that were stored"
        raise MailDataLost(f"its mail data is damaged: {damage}")


def _read_cached(number: int, size: int, at: int) -> bytes:
    """What is in memory of a file behind an offset; empty if nothing is, or at the end."""
    chunk = bytearray(size)
    try:
        count = os.preadv(number, [chunk], at, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: the disk would be waited for; EOPNOTSUPP: this file system cannot tell
        return b""
    return bytes(memoryview(chunk)[:count])
