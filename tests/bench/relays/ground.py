"""Where relays are measured: a network and mounts of their own, a folder on disk and one in memory, a quiet machine.

The command starts itself again under unshare(1), once: loopback is then nobody else's, ports are fixed, and what is
mounted goes away with the last process. Needs root, for Postfix too, which changes users.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSIDE = "SMTPMESH_BENCH_INSIDE"
"""Set in the environment of the second start."""
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
CONGESTION_FAIR = "cubic"
"""For all alike: BBR paces what loopback would take at once, and then decides rates of large mail."""
QUIET_CORES = 0.35
"""Others may use so much of the machine while something is measured."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Queue(enum.StrEnum):
    """Where relays keep what they have promised."""

    DISK = "disk"
    MEMORY = "memory"


def enter() -> None:
    """Replace this process by itself in namespaces of its own; returns there. SystemExit says what is missing."""
    if INSIDE in os.environ:
        _prepare()
        return
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        sys.exit("relays are measured in namespaces of their own: needs root, unshare (util-linux) and ip (iproute2)")
    words = ["unshare", "--net", "--mount", "--propagation", "private"]
    if subprocess.run([*words, "true"], check=False).returncode != 0:
        sys.exit("namespaces are not allowed here")
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*words, *sys.orig_argv])


def _prepare() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with contextlib.suppress(OSError):
        CONGESTION_CONTROL.write_text(CONGESTION_FAIR)


@dataclass(frozen=True, slots=True)
class Ground:
    """Folders to work in."""

    disk: Path
    memory: Path

    def folder(self, queue: Queue) -> Path:
        """Where a relay's folder is made."""
        return self.disk if queue is Queue.DISK else self.memory


@contextlib.contextmanager
def folders(parent: Path | None = None) -> Iterator[Ground]:
    """Both, until the block ends; `parent` is on the disk that is meant, None = where temporary files are."""
    with tempfile.TemporaryDirectory(prefix="sm-relay-", dir=parent) as name:
        disk, memory = (Path(name) / queue.value for queue in Queue)
        for folder in (disk.parent, disk, memory):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)  # servers change users
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(memory)], check=True)
        try:
            yield Ground(disk, memory)
        finally:
            subprocess.run(["umount", "--lazy", str(memory)], check=False)


@dataclass(frozen=True, slots=True)
class Moment:
    """What the machine's processors have done so far."""

    at: float
    """Monotonic seconds."""
    busy_s: float
    """Of all processors together, without what is stolen."""
    stolen_s: float
    """That another guest of the host had."""


def read_moment() -> Moment:
    """Now."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, interrupts, soft, stolen = (int(field) / TICKS_PER_S for field in fields)
    return Moment(time.monotonic(), user + nice + system + interrupts + soft, stolen)


def wait_quiet(limit_s: float) -> float:
    """Wait until others leave the machine alone, at most so long; cores that they used in the last second."""
    deadline = time.monotonic() + limit_s
    while True:
        before = read_moment()
        time.sleep(1)
        after = read_moment()
        cores = (after.busy_s + after.stolen_s - before.busy_s - before.stolen_s) / (after.at - before.at)
        if cores <= QUIET_CORES or time.monotonic() >= deadline:
            return cores
