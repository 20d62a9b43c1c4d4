"""Mail data on its way out: by DATA as it is stored, dot-stuffed, or by BDAT without the stuffing (RFC 3030).

    DATA    prefix, mail data, `.`           in doubt from the write of the dot on
    BDAT    a chunk, its reply, ... the last in doubt from the write of the last chunk on

Spool files are streamed in constant memory; one that cannot be read whole raises MailDataLost before the end. Each BDAT
waits for its reply: so a refusal ends the transfer at once, and no window has to be guessed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from smtp_edge.client.attempt import Job
from smtp_edge.client.replies import ReplyStream
from smtp_edge.envelope import MailData
from smtp_edge.queue.reading import read_spooled
from smtp_edge.reply import Reply

CHUNK_BYTES = 256 * 1024


async def send_stuffed(stream: ReplyStream, job: Job, on_doubt: Callable[[], None]) -> None:
    """The mail data after a 354. `on_doubt` is called just before the final dot is written."""
    data = job.data
    if data.path is None:
        on_doubt()
        stream.write(job.prefix, data.inline or b"", b".\r\n")
        await stream.drain()
        return
    stream.write(job.prefix)
    async with aclosing(read_spooled(data, data.path, CHUNK_BYTES)) as chunks:
        async for chunk in chunks:
            stream.write(chunk)
            await stream.drain()
            if stream.waiting:  # a remote that answers before the end is giving up: read why
                break
    on_doubt()
    stream.write(b".\r\n")
    await stream.drain()


async def send_chunks(stream: ReplyStream, job: Job, on_doubt: Callable[[], None]) -> Reply | None:
    """The mail data by BDAT. A reply if a chunk before the last was refused: nothing more was sent then."""
    waiting = job.prefix
    async for chunk in _unstuffed(job.data):
        if waiting and len(waiting) + len(chunk) > CHUNK_BYTES:
            stream.write(f"BDAT {len(waiting)}\r\n".encode(), waiting)
            await stream.drain()
            reply = await stream.read_reply()
            if not reply.positive:
                return reply
            waiting = b""
        waiting += chunk
    on_doubt()
    stream.write(f"BDAT {len(waiting)} LAST\r\n".encode(), waiting)
    await stream.drain()
    return None


async def _unstuffed(data: MailData) -> AsyncGenerator[bytes, None]:
    if data.path is None:
        inline = data.inline or b""
        if inline.startswith(b".") or b"\r\n." in inline:
            inline = (b"\r\n" + inline).replace(b"\r\n.", b"\r\n")[2:]
        yield inline
        return
    unstuff = Unstuff()
    async with aclosing(read_spooled(data, data.path, CHUNK_BYTES)) as chunks:
        async for chunk in chunks:
            yield unstuff.feed(chunk)
    yield unstuff.finish()


class Unstuff:
    """Takes the leading dot from each line of data that comes in chunks (RFC 5321 section 4.5.2)."""

    def __init__(self) -> None:
        self._kept = b"\r\n"
        """A line end whose next byte is not known yet; the first one is only thought."""
        self._thought = 2

    def feed(self, chunk: bytes) -> bytes:
        """What is certain so far."""
        joined = self._kept + chunk
        keep = 2 if joined.endswith(b"\r\n") else int(joined.endswith(b"\r"))
        end = len(joined) - keep
        out, self._kept = joined[:end], joined[end:]
        return self._give(out)

    def finish(self) -> bytes:
        """The rest."""
        out, self._kept = self._kept, b""
        return self._give(out)

    def _give(self, out: bytes) -> bytes:
        out = out.replace(b"\r\n.", b"\r\n")
        skipped = min(self._thought, len(out))
        self._thought -= skipped
        return out[skipped:]
