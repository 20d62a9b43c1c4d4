"""The shell around `pressure.py`: measures twice a second, refuses mail that there is no room for, tells a change.

Linux says how much memory the process has and may have; elsewhere memory is not watched.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from smtp_edge.pressure import NO_PRESSURE, NOTHING_READ, Gauge, Limits, Pressure, Readings
from smtp_edge.reply import NO_SPACE, Reply
from smtp_edge.settings import QueueSettings

log = structlog.get_logger()

SAMPLE_S = 0.5
MEMORY_SHARE = 0.9
"""Of what the machine or the control group allows, where queue.memory_bytes_max is 0."""
NO_ROOM = NO_SPACE
_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Room:
    """See the module. `entries`: undelivered messages; `trouble`: why the store takes nothing, empty if it does.

    `workers`: processes of this node, which share the machine's memory.
    """

    def __init__(
        self,
        settings: QueueSettings,
        data_dir: Path,
        *,
        workers: int = 1,
        entries: Callable[[], int],
        trouble: Callable[[], str],
        on_change: Callable[[Pressure], None],
        now: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._limits = build_limits(settings, workers)
        self._gauge = Gauge(self._limits)
        self._data_dir, self._entries, self._trouble = data_dir, entries, trouble
        self._on_change, self._now = on_change, now
        self.pressure, self.readings = NO_PRESSURE, NOTHING_READ

    def configure(self, settings: QueueSettings) -> None:
        """Go by these from the next measurement on."""
        self._limits = build_limits(settings, self._workers)
        self._gauge.configure(self._limits)

    def refuse(self, size_bytes: int) -> Reply | None:
        """At MAIL: what could not be stored. From memory: the per-message path comes by here."""
        if self.pressure.overloaded or self.readings.free_bytes - size_bytes < self._limits.free_bytes_min:
            return NO_ROOM
        return None

    async def run(self) -> None:
        """Measure; ends by cancellation."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            await self.measure()

    async def measure(self) -> None:
        """Once. A disk that cannot even be asked is in trouble."""
        try:
            free_bytes, memory_bytes = await asyncio.to_thread(self._read)
            trouble = self._trouble()
        except OSError as error:
            free_bytes, memory_bytes, trouble = 0, 0, f"node.data_dir: {error.strerror}"
        self.readings = Readings(free_bytes, self._entries(), memory_bytes, trouble)
        before, self.pressure = self.pressure, self._gauge.read(self.readings, self._now())
        if self.pressure.overloaded != before.overloaded:
            level = log.error if self.pressure.overloaded else log.warning
            level("node.overloaded" if self.pressure.overloaded else "node.has_room", reason=self.pressure.reason)
        if (self.pressure.overloaded, self.pressure.headroom_permille) != (before.overloaded, before.headroom_permille):
            self._on_change(self.pressure)

    def _read(self) -> tuple[int, int]:
        found = os.statvfs(self._data_dir)
        return found.f_bavail * found.f_frsize, read_memory()


def build_limits(settings: QueueSettings, workers: int = 1) -> Limits:
    """What there is room for in one of so many processes."""
    memory_bytes_max = settings.memory_bytes_max or int(MEMORY_SHARE * find_memory_limit() / workers)
    return Limits(settings.free_bytes_min, settings.entries_max, memory_bytes_max)


def read_memory() -> int:
    """Resident bytes of this process; 0 where the kernel does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def find_memory_limit() -> int:
    """What this process may have at most; 0 if that is not known."""
    found = []
    for path in _GROUP_LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    try:
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(1024 * int(line.split()[1]))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    return min(found, default=0)
