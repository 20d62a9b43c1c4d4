"""One question to clamd: is there malware in these bytes? (clamd(8), command INSTREAM)

    -> zINSTREAM\\0   <length><chunk> ... <0>
    <- stream: OK\\0  |  stream: NAME FOUND\\0  |  ... ERROR\\0

A stream beyond clamd's StreamMaxLength is answered with an ERROR in the middle, and the connection is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

ANSWER_BYTES_MAX = 4096
_FOUND = re.compile(r"stream: (?P<name>[ -~]{1,200}) FOUND")
_TOO_LARGE = "INSTREAM size limit exceeded"
_ENCRYPTED = "Heuristics.Encrypted."
"""What clamd finds with AlertEncrypted in archives and documents that it cannot open."""


class ClamdError(Exception):
    """It gave no answer that says anything of the message."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What clamd says."""

    malware: str = ""
    """Its name; empty = none was found."""
    unscanned: str = ""
    """Why not all of it was looked at; empty = it was."""


def parse_address(text: str) -> tuple[str, int] | str:
    """`unix:/path` or host:port. ValueError."""
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise ValueError(f"{text!r} is neither unix:/path nor host:port")
    return host.strip("[]"), int(port)


async def scan(address: tuple[str, int] | str, chunks: AsyncIterable[bytes]) -> Scan:
    """Ask about a stream. ClamdError; whoever asks bounds the time."""
    loop = asyncio.get_running_loop()
    try:
        asked = await _connect(loop, address)
    except OSError as error:
        raise ClamdError(f"clamd cannot be reached: {error.strerror or error}") from error
    with asked:
        with contextlib.suppress(ConnectionError):  # it has heard enough: what it said of that is still to be read
            await _send(loop, asked, chunks)
        return parse_answer(await _read(loop, asked))


async def _connect(loop: asyncio.AbstractEventLoop, address: tuple[str, int] | str) -> socket.socket:
    """A socket of our own: a stream of asyncio's forgets what was received when a write fails."""
    family: int = socket.AF_UNIX
    where: Any = address
    if not isinstance(address, str):
        family, _, _, _, where = (await loop.getaddrinfo(*address, type=socket.SOCK_STREAM))[0]
    asked = socket.socket(family, socket.SOCK_STREAM)
    asked.setblocking(False)
    try:
        await loop.sock_connect(asked, where)
    except BaseException:
        asked.close()
        raise
    return asked


async def _send(loop: asyncio.AbstractEventLoop, asked: socket.socket, chunks: AsyncIterable[bytes]) -> None:
    await loop.sock_sendall(asked, b"zINSTREAM\0")
    async for chunk in chunks:
        if chunk:  # a chunk of no bytes is the end
            await loop.sock_sendall(asked, struct.pack(">I", len(chunk)) + chunk)
    await loop.sock_sendall(asked, struct.pack(">I", 0))


async def _read(loop: asyncio.AbstractEventLoop, asked: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while b"\0" not in answer and len(answer) < ANSWER_BYTES_MAX:
            piece = await loop.sock_recv(asked, ANSWER_BYTES_MAX)
            if not piece:
                break
            answer += piece
    return answer


def parse_answer(answer: bytes) -> Scan:
    """ClamdError for what is none."""
    text = answer.rstrip(b"\0\r\n").decode("ascii", "replace")
    if text == "stream: OK":
        return Scan()
    found = _FOUND.fullmatch(text)
    if found is not None:
        name = found["name"]
        return Scan(unscanned=f"encrypted ({name})") if name.startswith(_ENCRYPTED) else Scan(malware=name)
    if text.startswith(_TOO_LARGE):
        return Scan(unscanned="larger than clamd's StreamMaxLength")
    raise ClamdError(f"clamd answered {text[:80]!r}" if text else "clamd hung up without an answer")
