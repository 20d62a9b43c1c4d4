"""Transfers to peers that were begun and whose end is not recorded: who may have a message when this process dies.

A peer knows a transfer that it took and answers its repeat with success; another peer would take the message a second
time. So the hop is noted before the first byte goes out, in a file beside the database: one line, one write, no sync.
The lines outlive the process (after kill -9 the kernel has what was written), not the machine: after a loss of power
the end of the list may be missing, and a message may be doubled as if nothing had been noted.

    QUEUE_ID COPY peer:NODE_ID      begun
    QUEUE_ID COPY -                 over, and the peer does not have it

At the next start, a delivery that was under way counts as in doubt with the hop that was noted last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from smtp_edge.queue.entry import Key

FILE = "offers"
WITHDRAWN = "-"
LENGTH_MAX = 1 << 20
"""Bytes; then the file is written anew, with what is open."""


class Offers:
    """One event loop. A disk that refuses a line costs the note, never the mail."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` None: in memory only."""
        self._path = path
        self._open: dict[Key, str] = {}
        self._file: int | None = None
        self._length = 0

    def read(self) -> Mapping[Key, str]:
        """What an earlier process left open, by key."""
        if self._path is None:
            return dict(self._open)
        try:
            return parse(self._path.read_text(encoding="ascii", errors="replace").splitlines())
        except OSError:
            return {}

    def restart(self) -> None:
        """What was open is known to the queue now: begin an empty list."""
        self._open = {}
        self._rewrite()

    def note(self, key: Key, hop: str) -> None:
        """A transfer begins."""
        self._open[key] = hop
        self._write(_line(key, hop))

    def withdraw(self, key: Key) -> None:
        """It ended, and the hop does not have the message."""
        if self._open.pop(key, None) is not None:
            self._write(_line(key, WITHDRAWN))

    def forget(self, keys: Iterable[Key]) -> None:
        """Their ends are recorded."""
        for key in keys:
            self._open.pop(key, None)

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        if self._length + len(line) > LENGTH_MAX:
            self._rewrite()
            return
        with contextlib.suppress(OSError):
            self._length += os.write(self._file, line)

    def _rewrite(self) -> None:
        if self._path is None:
            return
        self.close()
        fresh = self._path.with_suffix(".new")
        text = b"".join(_line(key, hop) for key, hop in self._open.items())
        try:
            self._file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._length = os.write(self._file, text)
            fresh.replace(self._path)
        except OSError:
            self.close()


def parse(lines: Iterable[str]) -> dict[Key, str]:
    """What is open after these lines; the torn and the senseless are passed over."""
    found: dict[Key, str] = {}
    for line in lines:
        words = line.split(" ")
        if len(words) != 3 or not words[1].isdecimal():
            continue
        key = words[0], int(words[1])
        if words[2] == WITHDRAWN:
            found.pop(key, None)
        else:
            found[key] = words[2]
    return found


def _line(key: Key, hop: str) -> bytes:
    return f"{key[0]} {key[1]} {hop}\n".encode("ascii", "replace")
