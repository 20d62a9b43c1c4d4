"""Mail data on its way out: by DATA as it is stored, dot-stuffed, or by BDAT without the stuffing (RFC 3030).

    DATA    prefix, mail data, `.`           in doubt from the write of the dot on
    BDAT    a chunk, its reply, ... the last in doubt from the write of the last chunk on

Spool files are streamed in constant memory. Each BDAT waits for its reply: so a refusal ends the transfer at once, and
no window has to be guessed.

The dot, or LAST, goes out only behind the whole message. A remote that answers before that is giving up, or lies: its
refusal counts, anything else does not, and the session is over, because what would be said next in it could be taken
for mail data. A spool file that cannot be read whole raises MailDataLost before the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from smtp_edge.client.attempt import Job
from smtp_edge.client.replies import OUT_OF_TURN, ConnectionLost, ReplyStream
from smtp_edge.envelope import MailData
from smtp_edge.queue.reading import read_spooled
from smtp_edge.reply import Reply
from smtp_edge.stuffing import Unstuff

CHUNK_BYTES = 256 * 1024


async def send_stuffed(stream: ReplyStream, job: Job, on_doubt: Callable[[], None]) -> Reply | None:
    """The mail data after a 354. `on_doubt` is called when the final dot is written.

    A refusal that came before, after which nothing was sent any more. ConnectionLost, also for what is no refusal.
    """
    data = job.data
    if data.path is None and data.size_bytes <= CHUNK_BYTES:
        if stream.waiting:
            return await _read_early(stream)
        stream.write(job.prefix, data.inline or b"", b".\r\n")
        on_doubt()
        await _drain_end(stream)
        return None
    try:
        stream.write(job.prefix)
        async with aclosing(_chunks(data)) as chunks:
            async for chunk in chunks:
                if stream.waiting:
                    return await _read_early(stream)
                stream.write(chunk)
                await stream.drain()
        if stream.waiting:
            return await _read_early(stream)
        stream.write(b".\r\n")
    except ConnectionLost:
        if stream.waiting:  # it said why
            return await _read_early(stream)
        raise
    on_doubt()
    await _drain_end(stream)
    return None


async def send_chunks(stream: ReplyStream, job: Job, on_doubt: Callable[[], None]) -> Reply | None:
    """The mail data by BDAT. A reply if a chunk before the last was refused: nothing more was sent then."""
    waiting = job.prefix
    async with aclosing(_unstuffed(job.data)) as chunks:
        async for chunk in chunks:
            if waiting and len(waiting) + len(chunk) > CHUNK_BYTES:
                refused = await _send_chunk(stream, waiting)
                if refused is not None:
                    return refused
                waiting = b""
            waiting += chunk
    if stream.waiting:
        return await _read_early(stream)
    stream.write(f"BDAT {len(waiting)} LAST\r\n".encode(), waiting)
    on_doubt()
    await _drain_end(stream)
    return None


async def _send_chunk(stream: ReplyStream, chunk: bytes) -> Reply | None:
    """One chunk that is not the last; the reply if it is a refusal."""
    if stream.waiting:
        return await _read_early(stream)
    stream.write(f"BDAT {len(chunk)}\r\n".encode(), chunk)
    reply = await stream.read_reply()
    return None if reply.positive else reply


async def _drain_end(stream: ReplyStream) -> None:
    """Behind the end of a message only the reply counts, and it may have come before the connection was lost."""
    with suppress(ConnectionLost):
        await stream.drain()


async def _read_early(stream: ReplyStream) -> Reply:
    """What a remote says before it has the message: a refusal, else ConnectionLost; the session is over."""
    reply = await stream.read_reply()
    stream.abort()
    if reply.transient or reply.permanent:
        return reply
    raise ConnectionLost(OUT_OF_TURN)


async def _chunks(data: MailData) -> AsyncGenerator[bytes | memoryview, None]:
    """As it is stored. MailDataLost."""
    if data.path is None:
        whole = memoryview(data.inline or b"")
        for start in range(0, len(whole), CHUNK_BYTES):
            yield whole[start : start + CHUNK_BYTES]
        return
    async with aclosing(read_spooled(data, data.path, CHUNK_BYTES)) as chunks:
        async for chunk in chunks:
            yield chunk


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
