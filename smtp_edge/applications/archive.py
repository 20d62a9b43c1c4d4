"""The archive: a `data` sink that keeps a copy of mail: by a blind recipient, or as a file, durable before the 250.

    [[sink]]
    use = "archive"
    priority = 32000
    rule = "mail from=*@example.org"
    with = { recipient = "archive@vault.example.org", except_from = ["vault.example.org"] }

    [[sink]]
    use = "archive"
    with = { folder = "/var/lib/archive" }

`recipient`: one more gets the mail. Neither its sender nor the others see that, and no report about it is sent to
anybody. `folder`: a file `2026/11/25/231502.123456-IDENTITY.eml` (UTC), readable by its owner alone, is written,
synced and named before the client hears 250. It begins with the fields `Return-Path`, and `X-Envelope-To` for each
recipient that the binding's rule matched. The folder has to be there: one that is missing is a disk that is not
mounted. A file that cannot be written (no space, no folder, a disk that hangs) is a failure: the binding's
`on_failure`. `*.partial` are of a node that died, and may be removed.

`except_from`: mail with such a reverse-path is not archived (`*` stands for anything, without `@` it is a domain,
`<>` the null reverse-path): an archive that sends mail itself would archive that for ever. Mail from and to `recipient`
itself is never copied to it.

There is a copy of each message that was answered 250, and perhaps of others: what a later sink refuses, or a client
sends again, is in the folder too. Give it a priority behind those that refuse, and before one that signs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog

from smtp_edge.address import parse_mailbox
from smtp_edge.globs import NULL_SENDER, as_addresses, compile_globs
from smtp_edge.sinks.api import Message, Sink

log = structlog.get_logger()

LANES = 4
"""Threads that write: a disk that hangs holds these, and nothing else of the node."""
IDENTITY_BYTES = 8
PARTIAL = ".partial"

T = TypeVar("T")


class Archive(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(
        self,
        recipient: str = "",
        folder: str = "",
        except_from: Sequence[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if bool(recipient) == bool(folder):
            raise ValueError("say where to: recipient or folder, one of them")
        if isinstance(except_from, str) or not all(isinstance(pattern, str) and pattern for pattern in except_from):
            raise ValueError('except_from is a list of addresses or domains, as ["vault.example.org"]')
        if folder and not os.path.isabs(folder):
            raise ValueError(f"folder is an absolute path, not {folder!r}")
        try:
            self._recipient = parse_mailbox(recipient) if recipient else ""
        except ValueError as error:
            raise ValueError(f"recipient = {recipient!r} is no address: {error}") from None
        self._folder, self._now = Path(folder) if folder else None, now
        own = (self._recipient,) if self._recipient else ()
        self._except_from = compile_globs(as_addresses([pattern.lower() for pattern in (*except_from, *own)]))
        self._lanes: tuple[ThreadPoolExecutor, ...] = ()
        self._turn = itertools.count()

    async def start(self) -> None:
        """OSError if there is no such folder."""
        if self._folder is not None:
            if not await asyncio.to_thread(self._folder.is_dir):
                raise NotADirectoryError(f"{self._folder} is no folder")
            self._lanes = tuple(ThreadPoolExecutor(1, "archive") for _ in range(LANES))

    async def stop(self) -> None:
        """What is being written goes on to its end."""
        for lane in self._lanes:
            lane.shutdown(wait=False)

    async def data(self, message: Message) -> None:
        """Copy it. OSError."""
        sender = message.envelope.sender.lower() or NULL_SENDER
        if self._except_from is not None and self._except_from.fullmatch(sender):
            log.debug("archive.excepted", sender=sender)
        elif self._folder is None:
            message.add_recipient(self._recipient)
        else:
            await self._write(message, self._folder)

    async def _write(self, message: Message, folder: Path) -> None:
        at, lane = self._now(), self._lanes[next(self._turn) % LANES]
        name = f"{at:%H%M%S.%f}-{secrets.token_hex(IDENTITY_BYTES)}.eml"
        loop = asyncio.get_running_loop()

        async def run(step: Callable[[], T]) -> T:
            return await loop.run_in_executor(lane, step)

        copy = Copy(folder, f"{at:%Y}/{at:%m}/{at:%d}", name)
        try:
            await run(copy.create)
            await run(lambda: copy.write(envelope_fields(message)))
            async for chunk in message.content():
                await run(lambda piece=chunk: copy.write(piece))  # type: ignore[misc]
            await run(copy.commit)
        finally:
            lane.submit(copy.close)  # after what the lane still does for it, when nobody waits for that any more


class Copy:
    """A file that is being written; all of it in one thread. OSError."""

    def __init__(self, folder: Path, day: str, name: str) -> None:
        self._folder, self._day, self._name = folder, day, name
        self._partial = folder / day / (name + PARTIAL)
        self._number = -1

    def create(self) -> None:
        """The folders of its day, durable, and an empty file."""
        above = self._folder
        for part in self._day.split("/"):
            (above / part).mkdir(mode=0o700, exist_ok=True)
            _sync(above)  # also if it is there: whoever made it may not have come to that yet
            above = above / part
        self._number = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, chunk: bytes) -> None:
        """Append."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._number, rest) :]

    def commit(self) -> None:
        """From here it survives a power cut, under its name."""
        os.fsync(self._number)
        os.rename(self._partial, self._partial.with_name(self._name))
        _sync(self._partial.parent)

    def close(self) -> None:
        """Whatever became of it; what was not committed is removed."""
        if self._number >= 0:
            os.close(self._number)
            self._partial.unlink(missing_ok=True)


def envelope_fields(message: Message) -> bytes:
    """What the message itself does not say."""
    lines = [f"Return-Path: <{message.envelope.sender}>"]
    lines += [f"X-Envelope-To: {recipient.address}" for recipient in message.envelope.recipients]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
