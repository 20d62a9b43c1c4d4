"""The shell around it: what it measures, refuses and tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge import room as room_module
from smtp_edge.pressure import Pressure
from smtp_edge.room import NO_ROOM, Room, find_memory_limit, read_memory
from smtp_edge.settings import QueueSettings


class Surroundings:
    def __init__(self) -> None:
        self.entries, self.trouble, self.now = 0, "", 0.0
        self.told: list[Pressure] = []

    def build(self, folder: Path, **settings: int) -> Room:
        return Room(
            QueueSettings(**settings),
            folder,
            entries=lambda: self.entries,
            trouble=lambda: self.trouble,
            on_change=self.told.append,
            now=lambda: self.now,
        )


async def test_it_takes_mail_while_there_is_room_for_it(tmp_path: Path) -> None:
    room = Surroundings().build(tmp_path)
    await room.measure()
    assert room.readings.free_bytes > 0
    assert room.readings.memory_bytes > 10 * 2**20
    assert room.refuse(1000) is None
    assert room.refuse(2**60) == NO_ROOM


async def test_a_queue_that_is_full_refuses_and_tells_once(tmp_path: Path) -> None:
    around = Surroundings()
    room = around.build(tmp_path, entries_max=10)
    around.entries = 10
    await room.measure()
    await room.measure()
    assert room.refuse(0) == NO_ROOM
    assert around.told == [Pressure(0, True, "10 undelivered messages")]
    around.entries, around.now = 0, 100.0
    await room.measure()
    around.now = 110.0
    await room.measure()
    assert room.refuse(0) is None
    assert around.told[1:] == [Pressure()]


async def test_a_store_in_trouble_refuses(tmp_path: Path) -> None:
    around = Surroundings()
    room = around.build(tmp_path)
    around.trouble = "the queue's disk fails"
    await room.measure()
    assert room.refuse(0) == NO_ROOM
    assert around.told[0].reason == "the queue's disk fails"


async def test_memory_beyond_its_bound_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "read_memory", lambda: 300 * 2**20)
    room = Surroundings().build(tmp_path, memory_bytes_max=256 * 2**20)
    await room.measure()
    assert room.pressure == Pressure(0, True, "300 MiB of memory in use")


async def test_a_disk_that_cannot_be_asked_is_in_trouble(tmp_path: Path) -> None:
    room = Surroundings().build(tmp_path / "gone")
    await room.measure()
    assert room.pressure.overloaded
    assert room.pressure.reason == "node.data_dir: No such file or directory"


def test_the_kernel_says_what_there_is_and_what_is_used() -> None:
    assert 0 < read_memory() < find_memory_limit()
