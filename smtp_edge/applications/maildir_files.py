"""One message on its way into a Maildir folder, step by step as the disk sees it. Blocking: for threads.

    look in new and cur -> tmp, write, fsync -> link into new -> fsync of new -> unlink tmp

The name is made of the message's key: whoever asks again, after a crash at whichever step, finds what is there or makes
the same name, and a name is linked once. What an earlier run has left in tmp is removed by the next try.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from datetime import datetime
from pathlib import Path

PARTS = ("tmp", "new", "cur")
_LOOKS_MAX = 3
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What link says where the file system has no hard links."""


def base_name(key: str, received_at: datetime) -> str:
    """Name of the message's file. It begins with the time, by which readers of Maildirs sort."""
    return f"{int(received_at.timestamp())}.{digest_of(key)}.smtpmesh"


def digest_of(key: str) -> str:
    """The part of the name that the message is found by; a relay that counts its age otherwise makes another time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def find(folder: Path, digest: str) -> Path | None:
    """The message, delivered earlier, whatever flags it has by now."""
    for part in (folder / "new", folder / "cur"):  # in the order in which mail moves
        for _ in range(_LOOKS_MAX):
            before = _changed(part)
            for name in _names(part):
                if name.split(".", 2)[1:2] == [digest]:
                    return part / name
            if _changed(part) == before:
                break  # else a file that was renamed meanwhile may have been missed
    return None


def remove_leftovers(folder: Path, digest: str) -> None:
    """What tries that ended halfway have left of the message in tmp. A try that goes on all the same fails."""
    for name in _names(folder / "tmp"):
        if name.split(".", 2)[1:2] == [digest]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / "tmp" / name)


def find_folder(mailbox: Path, name: str) -> Path | None:
    """The folder with this directory name; letters count as small if there is none that is written just so."""
    exact = mailbox / name
    if exact.is_dir():
        return exact
    alike = sorted(entry for entry in _names(mailbox) if entry[:1] == "." and entry.lower() == name.lower())
    return next((mailbox / entry for entry in alike if (mailbox / entry).is_dir()), None)


def used_bytes(mailbox: Path) -> int:
    """Of all messages in all folders."""
    folders = [mailbox, *(mailbox / name for name in _names(mailbox) if name[:1] == "." and name.strip("."))]
    return sum(_size(folder / part) for folder in folders for part in ("new", "cur"))


def make_folder(folder: Path, mode: int) -> None:
    """A folder that can take mail, its files of this mode; what is there is left as it is. OSError."""
    _make_directory(folder, mode)
    for part in PARTS:
        _make_directory(folder / part, mode)
    if folder.name[:1] == ".":  # Maildir++: so that it is known for a folder of something larger
        os.close(os.open(folder / "maildirfolder", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode))


class Incoming:
    """See the module. `mode` is the file's.

    The name in tmp is of one try alone: a try that was given up, and still hangs in a thread, can neither write into
    the file of the next one nor make it visible before it is whole.
    """

    def __init__(self, folder: Path, name: str, mode: int) -> None:
        self._folder, self._name, self._mode = folder, name, mode
        self._tmp = folder / "tmp" / f"{name}.{secrets.token_hex(8)}"
        self._file = -1
        self._given_up = False
        self._turn = threading.Lock()  # who gives up does not wait for a write that hangs

    def begin(self) -> None:
        """An empty file in tmp. OSError, also after `abort`: what hung before this step goes no further."""
        with self._turn:
            if self._given_up:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._tmp, flags, self._mode)
            os.fchmod(self._file, self._mode)

    def write(self, chunk: bytes) -> None:
        """Append. OSError."""
        with self._turn:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]

    def commit(self) -> None:
        """Visible, and on stable storage. OSError."""
        with self._turn:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            self._publish()
            sync(self._folder / "new")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._tmp)

    def abort(self) -> None:
        """Remove what is in tmp; nothing if it was committed."""
        with self._turn, contextlib.suppress(OSError):
            self._given_up = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            os.unlink(self._tmp)

    def _publish(self) -> None:
        target = self._folder / "new" / self._name
        try:
            os.link(self._tmp, target, follow_symlinks=False)
        except FileExistsError:
            return  # somebody else who was asked for the same message was faster
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(self._tmp, target)


def sync(folder: Path) -> None:
    """Names in a directory on stable storage."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _make_directory(path: Path, mode: int) -> None:
    wanted = mode | (mode & 0o444) >> 2
    try:
        os.mkdir(path, wanted)
    except FileExistsError:
        return
    os.chmod(path, wanted | stat.S_ISGID & os.stat(path).st_mode)
    sync(path.parent)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _changed(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(folder).st_mtime_ns
    return 0


def _size(folder: Path) -> int:
    total = 0
    for name in _names(folder):
        with contextlib.suppress(FileNotFoundError):  # its reader has moved or removed it
            total += os.stat(folder / name, follow_symlinks=False).st_size
    return total
