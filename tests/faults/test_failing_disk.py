"""Every call to the disk fails once: the client hears 4yz, nothing is lost, nothing is doubled, and when the disk is
well again the relay is, too, by itself. A few of every kind here; each one with each error with `SMTPMESH_E2E_FULL=1`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.scene import FULL
from tests.faults.nursery import Nursery
from tests.faults.strace import Call, Point, choose, find_points, read_calls
from tests.faults.trial import (
    FILES,
    FIRST_START,
    NETWORK,
    READS,
    Story,
    Trial,
    dry_run,
    fail_at,
    fail_for_good,
    insist,
    strike_all,
)
from tests.faults.world import LETTERS, Process, SmartHost

pytestmark = pytest.mark.peer("strace")
GROWING = frozenset({"openat", "write", "pwrite64", "mkdir", "rename", "fdatasync", "fsync"})
"""Calls that can meet a full disk or a quota."""
CASES = [
    (FIRST_START, "EIO", 2),
    (FILES, "EIO", 5),
    (FILES, "ENOSPC", 2),
    (FILES, "EDQUOT", 2),
    (FILES, "EROFS", 1),
    (READS, "EIO", 2),
]


async def find_wanted(nursery: Nursery, folder: Path, story: Story, error: str) -> dict[Point, Call]:
    dry = folder / "dry"
    dry.mkdir()
    points = find_points(await dry_run(nursery, dry, story))
    return {point: call for point, call in points.items() if error == "EIO" or point.call in GROWING}


def faults(trials: list[Trial]) -> list[str]:
    return [f"{trial.point}: {fault}" for trial in trials for fault in trial.faults]


@pytest.mark.parametrize(("story", "error", "count"), CASES, ids=lambda value: getattr(value, "name", str(value)))
async def test_a_call_that_fails_once_costs_a_4yz_at_most(
    nursery: Nursery, tmp_path: Path, story: Story, error: str, count: int
) -> None:
    points = await find_wanted(nursery, tmp_path, story, error)
    chosen = list(points) if FULL else choose(points, count)
    trials = await strike_all(nursery, tmp_path, story, chosen, lambda *where: fail_at(*where, error))
    assert faults(trials) == []
    assert [trial.doubled for trial in trials if trial.doubled] == []
    assert {refusal[:1] for trial in trials for refusal in trial.refusals} <= {"4"}
    assert sum(trial.struck for trial in trials) >= len(trials) * 0.9 - 1, "a call more or less from run to run"


@pytest.mark.parametrize(("call", "count"), [("fdatasync", 3), ("fsync", 1), ("pwrite64", 1)])
async def test_a_disk_that_fails_for_good_and_a_kill_lose_nothing(
    nursery: Nursery, tmp_path: Path, call: str, count: int
) -> None:
    """What a failed sync left in the log may come back with the next start: then its file must be there as well."""
    story = FILES if FULL else Story("spooled", FILES.calls, LETTERS[1:2])
    points = [point for point in await find_wanted(nursery, tmp_path, story, "EIO") if point.call == call]
    chosen = points if FULL else points[:count]
    trials = await strike_all(nursery, tmp_path, story, chosen, lambda *where: fail_for_good(*where, "EIO"))
    assert faults(trials) == []


async def test_no_sync_is_repeated_and_believed_after_it_failed(nursery: Nursery, tmp_path: Path) -> None:
    """Between a failed sync and the next promise: all that counts is copied, the copy is synced, the log is cut."""
    both = Story("both", (*FILES.calls, *NETWORK.calls), LETTERS[:1])
    host = SmartHost()
    await host.start()
    tracer = both.tracer(tmp_path, Point("fdatasync", 1), "EIO")
    refusals: list[str] = []
    life = await Process.start(nursery, tmp_path / "queue", host, names="a", errors=tmp_path / "errors")
    await life.ask("stop")
    life = await Process.start(nursery, tmp_path / "queue", host, names="b", tracer=tracer, errors=tmp_path / "errors")
    try:
        await insist(life, LETTERS[0], {}, refusals)
        await life.ask("stop")
    finally:
        life.kill()
        host.close()
    calls = read_calls(tmp_path / "log")
    failed = next(number for number, call in enumerate(calls) if call.injected)
    promised = next(number for number, call in enumerate(calls) if "250 2.0.0 Ok: queued" in call.text)
    between = [(call.name, call.subject) for call in calls[failed:promised]]
    assert refusals
    assert calls[failed].subject == "queue.db-wal"
    cut = between.index(("ftruncate", "queue.db-wal"))
    assert ("pwrite64", "queue.db-wal") not in between[1:cut]
    assert ("pwrite64", "queue.db-wal") in between[cut:]
    assert ("fdatasync", "queue.db-wal") in between[cut:]
