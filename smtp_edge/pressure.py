"""How much more this node can take: from its disk, its queue and its memory to headroom, and to "take nothing". Pure.

    headroom    of each of the three, 1000 down to 0 over its last quarter; the smallest counts
                disk      from 4 x queue.free_bytes_min down to queue.free_bytes_min free
                queue     from 3/4 of queue.entries_max up to all of it
                memory    from 3/4 of queue.memory_bytes_max up to all of it
                a disk that fails, or takes nothing, is none at all
    overloaded  from headroom 0 on, until it has been 200 for some seconds: 5, and twice as many after each relapse

While it is overloaded clients and peers are answered 452 at MAIL, and peers, who hear of it by gossip, send nothing.
Before that they send fewer messages at once: as much of their window as the headroom that they were told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FULL_PERMILLE = 1000
CLEAR_PERMILLE = 200
"""So much must be free again for mail to be taken again."""
STEP_PERMILLE = 100
"""Headroom is told in such steps, and a new one only when it has moved by as much: each costs everybody a record."""
CLEAR_FIRST_S, CLEAR_MAX_S = 5.0, 80.0
RELAPSE_S = 120.0
"""Who is overloaded again within this time waits twice as long before it takes mail again."""
SHRINKS_FROM = 0.75
"""Fill of the queue and of memory at which headroom begins to shrink."""
DISK_EASE = 4
"""Free space, as a multiple of the least, at which the disk leaves full headroom."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From [queue]; 0 bytes of memory: no limit."""

    free_bytes_min: int
    entries_max: int
    memory_bytes_max: int


@dataclass(frozen=True, slots=True)
class Readings:
    """What was measured."""

    free_bytes: int
    """On the file system of node.data_dir."""
    entries: int
    """Undelivered messages."""
    memory_bytes: int
    """Resident."""
    trouble: str = ""
    """Why the store takes nothing; empty: it does."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What follows."""

    headroom_permille: int = FULL_PERMILLE
    """As it is told to others."""
    overloaded: bool = False
    reason: str = ""
    """What there is least of; empty while there is plenty of everything."""

    def __str__(self) -> str:
        words = "takes no mail" if self.overloaded else f"headroom {self.headroom_permille / 10:.0f} %"
        return f"{words}: {self.reason}" if self.reason else words


NOTHING_READ, NO_PRESSURE = Readings(0, 0, 0), Pressure()


class Gauge:
    """From readings to pressure, with what it was before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pressure = NO_PRESSURE
        self._clear_s = CLEAR_FIRST_S
        self._clear_since: float | None = None
        self._ended_at = -math.inf

    def configure(self, limits: Limits) -> None:
        """Go by these from the next reading on."""
        self._limits = limits

    def read(self, readings: Readings, now: float) -> Pressure:
        """What follows from readings at `now` (monotonic seconds)."""
        headroom, reason = find_tightest(self._limits, readings)
        overloaded = self._judge(headroom, now)
        if overloaded and headroom and self._pressure.overloaded:
            reason = self._pressure.reason  # why it began; now it only has to last
        told = 0 if overloaded else self._step(headroom)
        self._pressure = Pressure(told, overloaded, reason if overloaded or headroom < FULL_PERMILLE else "")
        return self._pressure

    def _judge(self, headroom: int, now: float) -> bool:
        if not self._pressure.overloaded:
            if headroom:
                return False
            relapse = now - self._ended_at < RELAPSE_S
            self._clear_s = min(CLEAR_MAX_S, 2 * self._clear_s) if relapse else CLEAR_FIRST_S
            self._clear_since = None
            return True
        if headroom < CLEAR_PERMILLE:
            self._clear_since = None
            return True
        if self._clear_since is None:
            self._clear_since = now
        if now - self._clear_since < self._clear_s:
            return True
        self._ended_at = now
        return False

    def _step(self, headroom: int) -> int:
        told = self._pressure.headroom_permille
        if not self._pressure.overloaded and abs(headroom - told) < STEP_PERMILLE:
            return told
        return min(FULL_PERMILLE, STEP_PERMILLE * max(1, round(headroom / STEP_PERMILLE)))


def find_tightest(limits: Limits, readings: Readings) -> tuple[int, str]:
    """The smallest headroom in permille, and whose it is."""
    if readings.trouble:
        return 0, readings.trouble
    found = [(_of_disk(limits, readings), f"{_size(readings.free_bytes)} free on the disk of node.data_dir")]
    found.append((_of_fill(readings.entries, limits.entries_max), f"{readings.entries} undelivered messages"))
    if limits.memory_bytes_max:
        memory = _of_fill(readings.memory_bytes, limits.memory_bytes_max)
        found.append((memory, f"{_size(readings.memory_bytes)} of memory in use"))
    return min(found, key=lambda pair: pair[0])


def _of_disk(limits: Limits, readings: Readings) -> int:
    least = limits.free_bytes_min
    if not least:
        return FULL_PERMILLE if readings.free_bytes else 0
    return _clamp((readings.free_bytes - least) / ((DISK_EASE - 1) * least))


def _of_fill(used: int, most: int) -> int:
    return _clamp((most - used) / (most * (1 - SHRINKS_FROM)))


def _clamp(share: float) -> int:
    """In permille; what is left at all is not nothing."""
    return FULL_PERMILLE if share >= 1 else max(0, math.ceil(share * FULL_PERMILLE))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
