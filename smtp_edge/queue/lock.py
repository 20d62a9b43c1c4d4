"""One process for one queue directory: an exclusive lock that the kernel releases with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from smtp_edge.queue.store import StoreError

LOCK = "lock"


class DirectoryLock:
    """Held from `acquire` to `release`. The file stays: removing it would let two processes lock two files."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        self._number = -1

    def acquire(self, incarnation: str) -> None:
        """Take the lock; StoreError that names the holder if another process, or another store here, has it."""
        number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(number, 200).decode("ascii", "replace").partition(" ")[0] or "unknown"
            os.close(number)
            raise StoreError(
                f"{self._path.parent} is in use by process {holder}: two nodes cannot share a queue; "
                "stop the other one or give this one its own node.data_dir"
            ) from error
        self._number = number
        os.ftruncate(number, 0)
        os.write(number, f"{os.getpid()} {incarnation}\n".encode())

    def release(self) -> None:
        """Give it back; harmless without one."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1
