"""Spooled mail data on its way out: from memory, from the disk, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from smtp_edge.envelope import MailData
from smtp_edge.queue.reading import MailDataLost, read_spooled

CONTENT = os.urandom(100_000)


def spooled(folder: Path, size_bytes: int = len(CONTENT)) -> MailData:
    path = folder / "file"
    path.write_bytes(CONTENT)
    return MailData(size_bytes, path=path)


async def read(data: MailData) -> list[bytes]:
    assert data.path is not None
    return [chunk async for chunk in read_spooled(data, data.path, 30_000)]


@pytest.mark.parametrize("number", [0, errno.EAGAIN, errno.EOPNOTSUPP])
async def test_every_byte_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(os, "preadv", fail)
    chunks = await read(spooled(tmp_path))
    assert b"".join(chunks) == CONTENT
    assert max(map(len, chunks)) <= 30_000


@pytest.mark.parametrize("size_bytes", [len(CONTENT) - 1, len(CONTENT) + 1])
async def test_another_size_than_was_stored_is_damage(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(MailDataLost, match="damaged"):
        await read(spooled(tmp_path, size_bytes))


async def test_a_file_that_shrinks_while_it_is_read_is_damage(tmp_path: Path) -> None:
    data = spooled(tmp_path)
    assert data.path is not None
    chunks = read_spooled(data, data.path, 30_000)
    await anext(chunks)
    os.truncate(data.path, 40_000)
    with pytest.raises(MailDataLost, match="damaged"):
        async for _ in chunks:
            pass


async def test_a_disk_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(MailDataLost, match="Input/output error"):
        await read(spooled(tmp_path))
    with pytest.raises(MailDataLost, match="No such file"):
        await read(MailData(1, path=tmp_path / "nowhere"))
