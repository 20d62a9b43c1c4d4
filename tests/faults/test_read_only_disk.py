"""The file system itself gives up: ext4 meets an error and turns read-only under a relay that has mail.

A disk image is mounted by a loop device, and the kernel is told to find an error in it (`trigger_fs_error`). For root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nursery import Nursery
from tests.faults.trial import Trial, find_consequences, insist
from tests.faults.world import LETTERS, Process, SmartHost, submit

IMAGE_BYTES = 64 * 1024 * 1024
INLINE, SPOOLED, REFUSED, LATER = LETTERS


class Disk:
    """An image, and where it is mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image, self.path = image, path

    def make(self) -> None:
        """Empty, and mounted."""
        self._image.write_bytes(b"")
        os.truncate(self._image, IMAGE_BYTES)
        self.path.mkdir()
        run("mkfs.ext4", "-q", str(self._image))
        self.mount()

    def mount(self) -> None:
        """As after a boot."""
        run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def fail(self) -> None:
        """The kernel finds an error in it, and writes nothing more."""
        device = Path(run("findmnt", "-no", "SOURCE", str(self.path)).strip()).name
        assert device.startswith("loop")
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")

    def mend(self) -> None:
        """Unmounted, checked, mounted."""
        run("umount", str(self.path))
        subprocess.run(["e2fsck", "-p", str(self._image)], capture_output=True, check=False)  # 1: it was mended
        self.mount()

    def remove(self) -> None:
        """Whatever is left of it."""
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)


def run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "image", tmp_path / "disk")
    try:
        disk.make()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk image")
    try:
        yield disk
    finally:
        with contextlib.suppress(OSError):
            disk.remove()


async def test_a_file_system_that_turns_read_only_costs_4yz_answers_and_no_mail(
    nursery: Nursery, tmp_path: Path, disk: Disk
) -> None:
    trial, errors = Trial(None), tmp_path / "errors"
    away, host = SmartHost(), SmartHost()
    await away.start()
    away.close()
    life = await Process.start(nursery, disk.path / "queue", away, names="a", errors=errors)
    try:
        for letter in (INLINE, SPOOLED):
            trial.replies[letter.name] = await submit(life.port, letter)
            assert trial.replies[letter.name].startswith("250")
        disk.fail()
        for letter in (REFUSED, LATER):
            await insist(life, letter, trial.replies, trial.refusals, tries_max=2)
        assert {refusal[:1] for refusal in trial.refusals} == {"4"}
        assert len(trial.refusals) == 4
        assert life.alive
        assert await life.ask("stop") == "stopped"
        assert await life.wait() == 0
    finally:
        life.kill()
    disk.mend()
    await host.start()
    try:
        await find_consequences(nursery, disk.path, host, trial)
    finally:
        host.close()
    assert trial.faults == []
    assert trial.doubled == []
    assert trial.disk.states["inline"] | trial.disk.states["spooled"] <= {"queued", "claimed", "deferred"}
    assert {letter.name: host.taken[letter.name] for letter in LETTERS} == {letter.name: 1 for letter in LETTERS}
