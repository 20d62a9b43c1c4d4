"""Spooled mail data on its way out: whole, or not at all.

A file that is gone, cannot be read or has not the size that was stored is nobody's mail: sending what is left of it and
a final dot would hand the next hop a mutilated message, and end our responsibility for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from smtp_edge.envelope import MailData


class MailDataLost(Exception):
    """Mail data that was stored cannot be read; `str()` says why. Our fault, never the next hop's."""


async def read_spooled(data: MailData, path: Path, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """The file's bytes in chunks. MailDataLost, perhaps only after the last chunk: send no final dot before the end."""
    left = data.size_bytes
    try:
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except OSError as error:
        raise MailDataLost(f"its mail data cannot be read: {path.name}: {error.strerror}") from error
    if left:
        damage = f"{path.name} has not the {data.size_bytes} bytes that were stored"
        raise MailDataLost(f"its mail data is damaged: {damage}")
