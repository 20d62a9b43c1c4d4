"""Processor time of a relay with all its processes, those that have ended included, and an end for all of them.

A control group of its own counts it (cgroup v1 `cpuacct` or v2). Where none can be made, the sum over the process tree
does: it misses processes whose parents did not wait for them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path("/sys/fs/cgroup")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROUNDS_MAX = 50
ROUND_S = 0.1
_numbers = itertools.count(1)


class Account(Protocol):
    """See the module."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, so that it runs on this account."""

    def spent_s(self, pid: int) -> float:
        """Processor seconds so far; `pid` is the process that the command became."""

    def close(self, pid: int) -> None:
        """Kill what is left of it."""


class ControlGroup:
    """Counted by the kernel."""

    def __init__(self, parent: Path) -> None:
        """OSError if no group can be made there."""
        self._folder = parent / f"smtpmesh-bench-{os.getpid()}-{next(_numbers)}"
        self._folder.mkdir()
        self._processes = self._folder / "cgroup.procs"

    def wrap(self, command: Sequence[str]) -> list[str]:
        """A shell enters the group and becomes the command."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._processes), *command]

    def spent_s(self, pid: int) -> float:
        """As the kernel says."""
        nanoseconds = self._folder / "cpuacct.usage"
        if nanoseconds.exists():
            return int(nanoseconds.read_text()) / 1e9
        usage = re.search(r"usage_usec (\d+)", (self._folder / "cpu.stat").read_text())
        return int(usage[1]) / 1e6 if usage else 0.0

    def close(self, pid: int) -> None:
        """All that is in the group, until nothing is."""
        for _ in range(ROUNDS_MAX):
            left = self._processes.read_text().split()
            if not left:
                break
            for word in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)
            time.sleep(ROUND_S)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Tree:
    """Summed up over a process and its descendants."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """As it is."""
        return list(command)

    def spent_s(self, pid: int) -> float:
        """Own time and that of children who were waited for."""
        return sum(_used_s(member) for member in descendants(pid))

    def close(self, pid: int) -> None:
        """All descendants that there are."""
        for member in descendants(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)


def open_account() -> Account:
    """The best that this machine has."""
    for parent in (ROOT / "cpuacct", ROOT):
        if (parent / "cgroup.procs").exists():
            with contextlib.suppress(OSError):
                return ControlGroup(parent)
    return Tree()


def descendants(pid: int) -> list[int]:
    """A process and all below it, as far as they live."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(_fields(path)[1])
    found = [pid] if pid in parents else []
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def is_alive(pid: int) -> bool:
    """It runs, or some of its threads do: what they have open is closed with the last of them."""
    with contextlib.suppress(OSError):
        return _fields(Path(f"/proc/{pid}/stat"))[0] != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


def _used_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        return sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[11:15])) / TICKS_PER_S
    return 0.0


def own_s(pid: int) -> float:
    """Processor seconds of one living process alone."""
    return sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[11:13])) / TICKS_PER_S


def _fields(path: Path) -> list[str]:
    """Of a process, after its name, which may hold anything: state, parent, ..."""
    return path.read_text().rpartition(")")[2].split()
