"""A message as sinks see it: its header to edit, its bytes as a stream, and what is written in the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtp_edge.envelope import HEADER_KEPT_MAX, Client, Envelope, MailData, Recipient
from smtp_edge.queue.spool import Spool
from smtp_edge.server.header import HeaderScan
from smtp_edge.sinks.message import Content, Message, rewrite
from smtp_edge.stuffing import DotStuffing, Unstuff

ENVELOPE = Envelope("sue@example.net", (Recipient("ann@example.org"),))
MAIL = b"Received: a\r\nSubject: one\r\nX-A: 1\r\nSUBJECT: two\r\n\r\nHello\r\n.dot\r\n..\r\n"


def inline(text: bytes) -> MailData:
    """As an intake would have it."""
    stuffed = DotStuffing().feed(text)
    scan = HeaderScan(bytes_max=1 << 24)
    scan.feed(stuffed)
    scan.finish()
    return MailData(len(stuffed), inline=stuffed, header=scan.kept)


async def spooled(text: bytes, directory: Path) -> MailData:
    data = inline(text)
    assert data.inline is not None
    writer = Spool(directory).begin()
    writer.write(data.inline)
    return await writer.commit(data.header)


async def read(message: Message) -> bytes:
    return b"".join([chunk async for chunk in message.content()])


async def load(data: MailData) -> Message:
    content = await Content.load(data)
    return Message(Client("192.0.2.1"), ENVELOPE, content, content.header.fields)


def unstuffed(data: MailData) -> bytes:
    stuffed = data.inline if data.inline is not None else data.path.read_bytes() if data.path else b""
    unstuff = Unstuff()
    return unstuff.feed(stuffed) + unstuff.finish()


async def test_headers_are_read_without_case_and_in_order() -> None:
    message = await load(inline(MAIL))
    assert "subject" in message.headers
    assert "x-b" not in message.headers
    assert message.headers.get("Subject") == "one"
    assert message.headers.get("X-B", "none") == "none"
    assert message.headers.all("subject") == ["one", "two"]
    assert [name for name, _ in message.headers] == ["Received", "Subject", "X-A", "SUBJECT"]
    assert len(message.headers) == 4


async def test_edits_do_what_they_say() -> None:
    message = await load(inline(MAIL))
    assert not message.edited
    message.add_header("X-Top", "t")
    message.add_header("X-Last", "l", last=True)
    message.set_header("subject", "three")
    message.set_header("X-New", "n")
    assert message.remove_header("x-a") == 1
    assert message.remove_header("x-a") == 0
    assert message.edited
    header = b"X-Top: t\r\nReceived: a\r\nsubject: three\r\nX-Last: l\r\nX-New: n\r\n\r\n"
    assert await read(message) == header + MAIL.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "mail", [MAIL, b"", b"\r\n", b"no header\r\n", b".\r\n", b"A: b\r\n", b"A: b\r\n.c: d\r\n\r\n.\r\n"]
)
@pytest.mark.parametrize("file", [False, True])
async def test_a_message_that_nobody_edits_reads_as_it_came(tmp_path: Path, mail: bytes, file: bool) -> None:
    data = await spooled(mail, tmp_path) if file else inline(mail)
    assert await read(await load(data)) == mail
    assert b"".join([chunk async for chunk in (await load(data)).body()]) in mail


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([b"A: b\r\n", b".X: y\r\n", b" more\r\n", b"\r\n", b".\r\n", b"..z\r\n", b"text\r\n"]),
        max_size=9,
    ),
    st.booleans(),
)
async def test_what_is_written_is_what_was_read(tmp_path: Path, lines: list[bytes], file: bool) -> None:
    mail = b"".join(lines)
    data = await spooled(mail, tmp_path) if file else inline(mail)
    content = await Content.load(data)
    message = Message(Client("192.0.2.1"), ENVELOPE, content, content.header.fields)
    message.add_header("X-Seen", "yes")
    written = await rewrite(content, message.fields, Spool(tmp_path).begin)
    assert unstuffed(written) == await read(message)
    assert written.header == DotStuffing().feed(b"".join(field.raw for field in message.fields) + b"\r\n")
    stored = written.inline if written.inline is not None else written.path.read_bytes() if written.path else b""
    assert written.size_bytes == len(stored)
    assert (written.path is None) is not file


async def test_a_header_longer_than_what_is_kept_of_it_is_read_whole(tmp_path: Path) -> None:
    mail = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 900) for number in range(200)) + b"\r\nbody\r\n"
    data = await spooled(mail, tmp_path)
    assert len(data.header) == HEADER_KEPT_MAX
    message = await load(data)
    assert len(message.headers) == 200
    message.add_header("X-Seen", "yes")
    assert await read(message) == b"X-Seen: yes\r\n" + mail


async def test_a_file_that_shrank_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    data = dataclasses.replace(await spooled(MAIL * 100, tmp_path), size_bytes=10**6)
    content = await Content.load(data)
    with pytest.raises(Exception, match="damaged"):
        await rewrite(content, (), Spool(tmp_path).begin)
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []
