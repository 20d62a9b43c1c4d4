"""A server behind a relay that writes down the number of each message, and when, before it answers 250.

    python -m tests.bench.relays.receiver --port 2600 --notes FILE

It shares no code with the relay, keeps no mail, and is fast: of SMTP it knows what a relay says to a smart host. A line
is in the kernel when its 250 goes out, so that kill -9 loses none. Lines: number, monotonic seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time

from tests.bench.relays.sender import NUMBER_DIGITS, NUMBER_FIELD

ENDING = b"\r\n.\r\n"
BACKLOG = 500
HEADER_MAX = 65536
"""The number is looked for so far."""
STRANGER = b"-1"
"""What is noted of a message without one: a delivery status notification, say."""


class Conversation(asyncio.Protocol):
    """One session."""

    def __init__(self, notes: int) -> None:
        self._notes = notes
        self._buffer = bytearray()
        self._searched = 0
        self._in_data = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 receiver.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        replies: list[bytes] = []
        while self._take_text(replies) if self._in_data else self._take_line(replies):
            pass
        if replies:
            self._transport.write(b"".join(replies))

    def _take_line(self, replies: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        verb = bytes(self._buffer[:4]).upper()
        del self._buffer[: end + 2]
        match verb:
            case b"EHLO":
                replies.append(b"250-receiver.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250 8BITMIME\r\n")
            case b"DATA":
                replies.append(b"354 go on\r\n")
                self._in_data, self._searched = True, 0
            case b"QUIT":
                replies.append(b"221 2.0.0 bye\r\n")
            case _:
                replies.append(b"250 2.0.0 ok\r\n")
        return True

    def _take_text(self, replies: list[bytes]) -> bool:
        end = self._buffer.find(ENDING, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(ENDING))
            return False
        field = self._buffer.find(NUMBER_FIELD, 0, HEADER_MAX)
        at = field + len(NUMBER_FIELD)
        number = bytes(self._buffer[at : at + NUMBER_DIGITS]) if field >= 0 else STRANGER
        os.write(self._notes, b"%s %.6f\n" % (number, time.monotonic()))
        del self._buffer[: end + len(ENDING)]
        self._in_data = False
        replies.append(b"250 2.0.0 written\r\n")
        return True


async def serve(port: int, notes: int) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    server = await loop.create_server(lambda: Conversation(notes), "127.0.0.1", port, backlog=BACKLOG)
    await over.wait()
    server.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--notes", required=True)
    arguments = parser.parse_args()
    notes = os.open(arguments.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, notes))


if __name__ == "__main__":
    main()
