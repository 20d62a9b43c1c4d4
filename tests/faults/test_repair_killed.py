"""kill -9 at system calls of a repair: nothing is thrown away, and the next repair ends with what this one would have.

A few of every kind here; each one with `SMTPMESH_E2E_FULL=1`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from smtp_edge.queue.directory import find_ready
from smtp_edge.queue.repair import check, repair
from smtp_edge.queue.store import StoreError
from tests.e2e.scene import FULL
from tests.faults.strace import FILE_CALLS, Point, build_command, choose, find_points, read_calls
from tests.unit.smtp_edge.queue.builders import AT
from tests.unit.smtp_edge.queue.test_repair import fill, leaves, read, wreck
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store

pytestmark = pytest.mark.peer("strace")
CHILD = """
import sys
from pathlib import Path
from smtp_edge.queue.repair import repair
from tests.unit.smtp_edge.queue.builders import AT
repair(Path(sys.argv[1]), class_of=lambda domain: domain.partition(".")[0], at=AT)
"""
CHOSEN = 6


def run_traced(queue: Path, log: Path, point: Point | None = None) -> int:
    """A repair in a process of its own; its exit code, negative for a signal."""
    traced = build_command(log, FILE_CALLS, point=point)
    command = [*traced, sys.executable, "-B", "-c", CHILD, str(queue)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode


def find_old(queue: Path) -> list[bytes]:
    """The damaged database, wherever it is."""
    return [file.read_bytes() for file in (queue / "queue.db", *queue.glob("damaged-*/queue.db")) if file.exists()]


async def test_a_repair_that_is_killed_is_done_by_the_next_one(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    states = await fill(damaged)
    wreck(damaged, leaves(damaged, "delivery")[0])
    (damaged / "spool" / "stray").write_bytes(b"whose?")
    old = (damaged / "queue.db").read_bytes()
    shutil.copytree(damaged, tmp_path / "dry")
    assert run_traced(tmp_path / "dry", tmp_path / "log") == 0
    calls = find_points(read_calls(tmp_path / "log"))
    points = {point: call for point, call in calls.items() if str(tmp_path) in call.text}
    expected = await read(tmp_path / "dry")
    assert set(expected) >= {name for name, state in states.items() if state != "relayed"}
    struck = 0
    for number, point in enumerate(points if FULL else choose(points, CHOSEN)):
        queue = tmp_path / str(number)
        shutil.copytree(damaged, queue)
        struck += run_traced(queue, tmp_path / "log", point) == -signal.SIGKILL
        assert old in find_old(queue)
        if find_ready(queue) is not None:
            with pytest.raises(StoreError, match="was cut off"):
                await build_store(queue).open()
        repair(queue, class_of=lambda domain: domain.partition(".")[0], at=AT + timedelta(seconds=1))
        assert check(queue) == []
        assert await read(queue) == expected, point
        assert old in find_old(queue)
        assert len(list(queue.glob("damaged-*/spool/stray"))) == 1
        shutil.rmtree(queue)
    assert struck >= (len(points) if FULL else CHOSEN) * 0.9 - 1
