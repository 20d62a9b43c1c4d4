"""Disk space kept for the ends of what is under way.

A relay on a full disk can refuse mail, but not that a next hop has just answered: that must be written down, or the
next start sends the message again. So a file holds some space while there is plenty, and gives it up when a commit
finds none. What then still fits are settlements; new mail is refused until the file could be made again.
"""

from __future__ import annotations

import os
from pathlib import Path

RESERVE = "reserve"
RESERVE_BYTES_MAX = 8 * 1024 * 1024
"""Some hundred single settlements; then the log is emptied into the database, and it is there again."""
SHARE = 32
"""Of a small disk it is this part."""


class Reserve:
    """See the module. On the writer's thread."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / RESERVE

    def hold(self) -> None:
        """Take the space, if it is not taken. OSError says what the disk says; then nothing is held."""
        if self._path.exists():
            return
        disk = os.statvfs(self._path.parent)
        number = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(number, 0, min(RESERVE_BYTES_MAX, disk.f_blocks * disk.f_frsize // SHARE))
        except OSError:
            self.release()
            raise
        finally:
            os.close(number)

    def release(self) -> bool:
        """Give it up; False if there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
