"""Mailboxes on disk: a `deliver` sink that writes Maildir++, and refuses at `rcpt` whom it has no mailbox for.

    [[sink]]
    name = "mailbox"
    use = "maildir"
    rule = "rcpt to=*@example.org"
    with = { root = "/var/mail/vhosts", layout = "{domain}/{local}", create_folders = true }

    [[smart_host]]
    name = "mailbox"
    sink = "mailbox"

    [[route]]
    domains = ["example.org"]
    via = ["mailbox"]

A mailbox is a directory that an operator made (`mkdir -p /var/mail/vhosts/example.org/ann`, in small letters): who has
none is unknown, 550 5.1.1. The rule must name the addresses that are mailboxes here: any other one is told 550, too.
`ann+lists.python@` goes into the folder `.lists.python` of `ann` if it is there or `create_folders` is set, otherwise
into the inbox. A mailbox of that whole name comes first.

    root                    absolute; while it is not there mail waits. Below the mount point rather than the mount
                            point itself: an empty directory has no mailboxes
    layout                  path below root, of {local} and {domain}: "{domain}/{local}", "{local}/Maildir"
    delimiter               "+"; empty: no folders by address
    create_folders          false
    quota_bytes             0 = none; of all folders together, counted anew at each delivery. Messages that arrive at
                            the same instant may exceed it together
    over_quota              "tempfail": 452, tried again; "reject": 552. What is larger than a mailbox may be is 552
    mode                    "0600", or "0640" and "0660" for readers of another user; directories accordingly
    threads_max             4: what works on the disk at once; a disk that hangs stops these and nothing else

All files belong to the user that the node runs as: these are mailboxes of virtual users, for Dovecot under the same
user or group. A message is there exactly once, whole and on stable storage when the answer is given; a crash at any
step changes nothing of that, unless its reader moves or removes it before the node is up and asks again. Return-Path
and Delivered-To are added, lines end in CRLF as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar, TypeVarTuple, Unpack

import structlog

from smtp_edge.applications.maildir_files import (
    Incoming,
    base_name,
    digest_of,
    find,
    find_folder,
    make_folder,
    remove_leftovers,
    sync,
    used_bytes,
)
from smtp_edge.applications.maildir_names import Layout, folder_name
from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.reply import NO_SPACE, Reply
from smtp_edge.sinks.api import Delivery, Reject, Sink, TempFail, Verdict

log = structlog.get_logger()

WRITE_BYTES = 256 * 1024
"""Written in one go."""
MODES = {"0600": 0o600, "0640": 0o640, "0660": 0o660}
STORED = Reply(250, "stored", "2.0.0")
UNKNOWN = Reject("no such mailbox", 550, "5.1.1")
FULL_FOR_NOW = Reply(452, "the mailbox is full", "4.2.2")
FULL = Reply(552, "the mailbox is full", "5.2.2")
TOO_LARGE = Reply(552, "the message is larger than the mailbox may be", "5.2.3")
UNAVAILABLE = TempFail("the mail store is not available now", 451, "4.3.0")
ODD = Reply(451, "the mailbox is not in order", "4.2.0")
_BY_ERRNO = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: FULL_FOR_NOW,
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP), ODD),
}
"""What is one mailbox's fault says nothing against the others."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Maildir(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(
        self,
        root: str,
        layout: str = "{domain}/{local}",
        delimiter: str = "+",
        create_folders: bool = False,
        quota_bytes: int = 0,
        over_quota: Literal["tempfail", "reject"] = "tempfail",
        mode: str = "0600",
        threads_max: int = 4,
    ) -> None:
        if not Path(root).is_absolute():
            raise ValueError(f"root = {root!r} is no absolute path")
        if quota_bytes < 0 or threads_max < 1:
            raise ValueError("quota_bytes is at least 0, threads_max at least 1")
        if over_quota not in ("tempfail", "reject"):
            raise ValueError(f"over_quota = {over_quota!r} is none of: reject, tempfail")
        if mode not in MODES:
            raise ValueError(f"mode = {mode!r} is none of: {', '.join(MODES)}")
        self._root, self._layout = Path(root), Layout.parse(layout, delimiter)
        self._create_folders, self._mode = create_folders, MODES[mode]
        self._quota_bytes, self._full = quota_bytes, FULL if over_quota == "reject" else FULL_FOR_NOW
        self._threads = ThreadPoolExecutor(threads_max, "maildir")

    async def stop(self) -> None:
        """What hangs on its disk is not waited for."""
        self._threads.shutdown(wait=False)

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """Refuse who has no mailbox."""
        try:
            found = await self._run(self._find_mailbox, recipient.address)
        except OSError as error:
            _record_failure(recipient, error)
            return UNAVAILABLE
        return None if found else UNKNOWN

    async def deliver(self, delivery: Delivery) -> Sequence[Reply]:
        """A copy for each recipient. MailDataLost."""
        return [await self._deliver_to(delivery, recipient) for recipient in delivery.envelope.recipients]

    async def _deliver_to(self, delivery: Delivery, recipient: Recipient) -> Reply:
        try:
            found = await self._run(self._find_mailbox, recipient.address)
            return await self._store(delivery, recipient, *found) if found else UNKNOWN.reply
        except OSError as error:
            _record_failure(recipient, error)
            return _BY_ERRNO.get(error.errno or 0, UNAVAILABLE.reply)

    async def _store(self, delivery: Delivery, recipient: Recipient, mailbox: Path, folder: Path) -> Reply:
        key = delivery.key_of(recipient)
        if await self._run(_is_there, digest_of(key), mailbox, folder):
            return STORED
        if self._quota_bytes:
            if delivery.size_bytes > self._quota_bytes:
                return TOO_LARGE
            if await self._run(used_bytes, mailbox) + delivery.size_bytes > self._quota_bytes:
                return self._full
        incoming = Incoming(folder, base_name(key, delivery.received_at), self._mode)
        try:
            await self._run(self._begin, incoming, mailbox, folder)
            async with contextlib.aclosing(_pieces(delivery, recipient)) as pieces:
                async for piece in pieces:
                    await self._run(incoming.write, piece)
            await self._run(incoming.commit)
        except BaseException:
            self._threads.submit(incoming.abort)  # not awaited: a disk may hang
            raise
        return STORED

    def _begin(self, incoming: Incoming, mailbox: Path, folder: Path) -> None:
        make_folder(mailbox, self._mode)
        if folder != mailbox:
            make_folder(folder, self._mode)
        incoming.begin()

    def _find_mailbox(self, address: str) -> tuple[Path, Path] | None:
        """The mailbox of an address and the folder in it, which may be still to make. OSError, also without a root."""
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no root", str(self._root))
        for place in self._layout.places(address):
            mailbox = self._root.joinpath(*place.mailbox)
            if not mailbox.is_dir():
                continue
            name = folder_name(place.folder)
            folder = find_folder(mailbox, name) if name else None
            if name and not folder and self._create_folders:
                folder = mailbox / name
            return mailbox, folder or mailbox
        return None

    async def _run(self, step: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step, *arguments)


def _is_there(digest: str, mailbox: Path, folder: Path) -> bool:
    """Delivered before; also into the inbox, if its folder has been made since. Clears up after earlier tries."""
    places = dict.fromkeys((folder, mailbox))
    for place in places:
        remove_leftovers(place, digest)
    found = next(filter(None, (find(place, digest) for place in places)), None)
    if found:
        sync(found.parent)
    return bool(found)


async def _pieces(delivery: Delivery, recipient: Recipient) -> AsyncGenerator[bytes, None]:
    """The file, in pieces of about `WRITE_BYTES`. MailDataLost."""
    fields = f"Return-Path: <{delivery.envelope.sender}>\r\nDelivered-To: {recipient.address}\r\n"
    piece = [fields.encode("utf-8", "surrogateescape")]
    length = 0
    async for chunk in delivery.content():
        piece.append(chunk)
        length += len(chunk)
        if length >= WRITE_BYTES:
            yield b"".join(piece)
            piece, length = [], 0
    yield b"".join(piece)


def _record_failure(recipient: Recipient, error: OSError) -> None:
    log.warning("maildir.failed", recipient=recipient.address, path=error.filename, error=error.strerror or str(error))
