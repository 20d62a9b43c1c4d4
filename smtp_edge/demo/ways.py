"""Ways between the demo's relays that can be cut: each is a port on loopback that leads to another.

A cut closes what is open and whatever is opened; nothing is left for the relays but to wait. In a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

CHUNK_BYTES = 256 * 1024
START_S = 10.0


class Ways:
    """All of them; `close` when done."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self, port: int, target: int) -> None:
        """From one port to another. OSError."""

        async def serve() -> None:
            await asyncio.start_server(lambda reader, writer: self._forward(reader, writer, target), "127.0.0.1", port)

        asyncio.run_coroutine_threadsafe(serve(), self._loop).result(START_S)

    def cut(self) -> None:
        """Nothing passes any more."""
        self._loop.call_soon_threadsafe(self._break)

    def heal(self) -> None:
        """New connections pass again."""
        self._cut = False

    def close(self) -> None:
        """For good."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)

    def _break(self) -> None:
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            self._open -= {writer, back}
            writer.transport.abort()
            back.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until it ends, and its end too."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
