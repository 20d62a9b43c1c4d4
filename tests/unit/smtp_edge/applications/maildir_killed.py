"""kill -9 at each system call by which `maildir` writes a message: a program that forks one child for each.

    python -m tests.unit.smtp_edge.applications.maildir_killed FOLDER

Prints a line of JSON for each run: at which step it was killed, what a reader saw then, and after it was asked again.
Every other time the reader has moved the file from new to cur in between, as IMAP servers do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from smtp_edge.applications import maildir_files
from smtp_edge.applications.maildir import Maildir
from tests.unit.smtp_edge.applications.store_contract import codes, spooled_delivery

STEPS = ("open", "fchmod", "write", "fsync", "close", "link", "unlink", "mkdir", "chmod", "listdir", "stat")
STEPS_MAX = 200
SIZE_BYTES = 700_000
ADDRESS = "ann+lists@box.test"


class Deadly:
    """`os`, but the call number `last` is not made: the process is killed instead, or within its write."""

    def __init__(self, last: int, *, half: bool) -> None:
        self._last, self._half, self._count = last, half, 0
        self._steps = ("write",) if half else STEPS

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._steps:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self._count += 1
            if self._count == self._last:
                if self._half:
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                print(name, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call


def ask(root: Path, last: int, *, half: bool) -> tuple[int, str]:
    """In a child: its exit status and what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        maildir_files.os = Deadly(last, half=half)  # type: ignore[assignment]
        print(json.dumps(asyncio.run(deliver(root))), flush=True)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    return os.waitpid(child, 0)[1], text.strip()


async def deliver(root: Path) -> list[int]:
    """Ask for the same message once more."""
    sink = Maildir(str(root), create_folders=True)
    return await codes(sink, await spooled_delivery(root.with_suffix(".mail"), SIZE_BYTES, ADDRESS))


def see(mailbox: Path, text: bytes) -> list[str]:
    """What is visible in any folder."""
    found = [path.read_bytes() for part in ("new", "cur") for path in sorted(mailbox.rglob(f"{part}/*"))]
    return ["whole" if mail.endswith(text) and b"\r\nReceived: " in mail else "part" for mail in found]


def run(root: Path, last: int, *, half: bool) -> dict[str, object] | None:
    """One kill and what follows; None if there are no more steps."""
    mailbox = root / "box.test" / "ann"
    mailbox.mkdir(parents=True)
    status, step = ask(root, last, half=half)
    if status == 0:
        return None
    text = root.with_suffix(".mail").read_bytes()
    seen = see(mailbox, text)
    if last % 2:
        for path in list(mailbox.rglob("new/*")):
            path.rename(path.parents[1] / "cur" / f"{path.name}:2,S")
    _, answer = ask(root, 0, half=False)
    return {
        "step": f"half a {step}" if half else step,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "seen": seen,
        "codes": json.loads(answer),
        "after": see(mailbox, text),
        "tmp": [path.name for path in mailbox.rglob("tmp/*")],
    }


def main(folder: Path) -> None:
    """All steps, and all writes by half."""
    for half in (False, True):
        for last in range(1, STEPS_MAX):
            found = run(folder / f"{last}{'h' * half}", last, half=half)
            if found is None:
                break
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
