"""A connection to a filter: packets out, answers in. Whoever asks bounds the time.

Whatever is wrong with the filter or the network is a `MilterError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from smtp_edge.applications.milter.answers import decode, decode_length
from smtp_edge.applications.milter.wire import LENGTH_BYTES, Answer, Command, MilterError, encode

Address = tuple[str, int] | str
"""(host, port), or the path of a socket."""
_INET = re.compile(r"inet6?:(?:(?P<port>\d{1,5})@(?P<host>.+)|(?P<first>.+):(?P<last>\d{1,5}))")


def parse_address(text: str) -> Address:
    """`inet:PORT@HOST`, `inet6:PORT@HOST`, `inet:HOST:PORT` (as Postfix has it), `unix:/PATH`, `local:/PATH`.

    ValueError.
    """
    kind, _, path = text.partition(":")
    if kind in ("unix", "local") and path.startswith("/"):
        return path
    found = _INET.fullmatch(text)
    if found is not None and 0 < (port := int(found["port"] or found["last"])) < 65536:
        return (found["host"] or found["first"]).strip("[]"), port
    raise ValueError(f"address = {text!r} is none of inet:PORT@HOST, inet6:PORT@HOST, inet:HOST:PORT, unix:/PATH")


class Connection:
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, packets: bytes) -> None:
        """MilterError."""
        try:
            self._writer.write(packets)
            await self._writer.drain()
        except OSError as error:
            raise MilterError(f"the filter is gone: {error.strerror or error}") from error

    async def receive(self) -> Answer:
        """The next answer. MilterError."""
        try:
            length = decode_length(await self._reader.readexactly(LENGTH_BYTES))
            return decode(await self._reader.readexactly(length))
        except asyncio.IncompleteReadError:
            raise MilterError("the filter hung up") from None
        except OSError as error:
            raise MilterError(f"the filter is gone: {error.strerror or error}") from error


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[Connection]:
    """Left without an error it says QUIT, otherwise it is cut. MilterError."""
    try:
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        raise MilterError(f"the filter cannot be reached: {error.strerror or error}") from error
    try:
        yield Connection(reader, writer)
        writer.write(encode(Command.QUIT))
        writer.close()
    except BaseException:
        writer.transport.abort()
        raise
