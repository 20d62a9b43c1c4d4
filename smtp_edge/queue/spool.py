"""Spool files: mail data too large for a database row.

    begin    an unnamed-to-anybody file in `spool/incoming`
    write    grows it, in constant memory
    commit   rename into `spool`: it is whole
    abort    removes it

    make_durable   fsync of the file and of `spool`: from here the bytes survive a power cut

The store makes a file durable before it commits an entry that names it, and only then: mail that the next hop takes
at once (cutthrough.py) needs no sync. A whole file belongs to nobody until such an entry is committed. A crash in
between leaves an orphan, which the store removes when it opens; the reverse, an entry without its file, cannot come
from a crash.

`write` is synchronous: it fills the page cache and costs microseconds for each chunk, whereas a thread hop for each
chunk would cost more than the copy. What may wait for the disk (`commit`, `abort`, `discard`) runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from pathlib import Path
from typing import BinaryIO

from smtp_edge.envelope import HEADER_KEPT_MAX, MailData
from smtp_edge.queue.errors import StoreError, StoreFull
from smtp_edge.queue.faults import FULL_ERRORS

SPOOL = "spool"
INCOMING = "incoming"
TRIAL = "trial"
BUFFER_BYTES = 32 * 1024
"""Segments that are larger are written without being copied once more."""
TRIAL_BYTES = 256 * 1024
"""As much must go for a disk to count as well again; more than a commit, so that a quota is noticed, too."""


class Spool:
    """The spool files of one queue directory (shared with the store that is open on it)."""

    def __init__(self, directory: Path) -> None:
        self.path = directory.absolute() / SPOOL
        self._incoming = self.path / INCOMING

    def begin(self) -> SpoolWriter:
        """A new file for a message that is arriving. StoreFull or StoreError if it cannot be created."""
        name = uuid.uuid4().hex
        try:
            create_directories(self.path.parent)
            return SpoolWriter(self._incoming / name, self.path / name)
        except OSError as error:
            raise translate_os_error(error, self._incoming) from error

    async def discard(self, data: MailData) -> None:
        """Remove the file of mail data that was not stored; does nothing for inline data or a file already gone."""
        if data.path is not None:
            await asyncio.to_thread(_unlink, data.path)


class SpoolWriter:
    """One file that is being written. End it with `commit` or `abort`; a writer that is dropped leaves an orphan."""

    def __init__(self, incoming: Path, final: Path) -> None:
        self._incoming, self._final = incoming, final
        self.size_bytes = 0
        self._file: BinaryIO = incoming.open("xb", buffering=BUFFER_BYTES)

    def write(self, chunk: bytes) -> None:
        """Append dot-stuffed mail data. StoreFull or StoreError; then `abort` is all that is left to do."""
        try:
            self._file.write(chunk)
        except OSError as error:
            raise translate_os_error(error, self._incoming) from error
        self.size_bytes += len(chunk)

    async def commit(self, header: bytes) -> MailData:
        """Whole, under its final name. StoreFull or StoreError: nothing is left behind."""
        try:
            await asyncio.to_thread(self._commit)
        except OSError as error:
            await self.abort()
            raise translate_os_error(error, self._incoming) from error
        return MailData(self.size_bytes, path=self._final, header=header[:HEADER_KEPT_MAX])

    async def abort(self) -> None:
        """Remove what was written; harmless when repeated."""
        await asyncio.to_thread(self._abort)

    def _commit(self) -> None:
        self._file.close()
        self._incoming.rename(self._final)

    def _abort(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        _unlink(self._incoming)
        _unlink(self._final)


async def write_whole(directory: Path, data: MailData) -> MailData:
    """Mail data that is in memory, as a file that is whole. StoreFull or StoreError: nothing is left behind."""
    writer = Spool(directory).begin()
    try:
        writer.write(data.inline or b"")
    except StoreError:
        await writer.abort()
        raise
    return await writer.commit(data.header)


def read_whole(data: MailData, bytes_max: int) -> bytes | None:
    """All of some mail data, dot-stuffed; None if it is larger than that, or its file cannot be read."""
    if data.size_bytes > bytes_max:
        return None
    if data.path is None:
        return data.inline
    try:
        return data.path.read_bytes()
    except OSError:
        return None


def create_directories(directory: Path) -> None:
    """Create a queue directory and what belongs in it; nobody else may look inside."""
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    for path in (directory, directory / SPOOL, directory / SPOOL / INCOMING):
        path.mkdir(mode=0o700, exist_ok=True)


def remove_orphans(directory: Path, known: set[str]) -> int:
    """Remove spool files that no entry names, and all that never finished; returns how many."""
    spool = directory.absolute() / SPOOL
    orphans = [file for file in spool.glob("*") if file.is_file() and file.name not in known]
    orphans += (spool / INCOMING).glob("*")
    for file in orphans:
        file.unlink(missing_ok=True)
    return len(orphans)


def try_disk(directory: Path) -> None:
    """Write a file, sync it and remove it: OSError says what the disk says."""
    path = directory / SPOOL / INCOMING / TRIAL
    try:
        with path.open("wb") as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        _unlink(path)


def make_durable(path: Path) -> None:
    """Have a whole file and its name on stable storage. StoreFull or StoreError."""
    try:
        sync(path)
        sync_directory(path.parent)
    except OSError as error:
        raise translate_os_error(error, path) from error


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names created in it survive a power cut."""
    sync(path, os.O_DIRECTORY)


def sync(path: Path, flags: int = 0) -> None:
    """fsync what stands there, by whomever it was written."""
    number = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def translate_os_error(error: OSError, path: Path) -> StoreError:
    """The store's error for an OSError on a path."""
    kind = StoreFull if error.errno in FULL_ERRORS else StoreError
    return kind(f"{path}: {error.strerror or error}")


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
