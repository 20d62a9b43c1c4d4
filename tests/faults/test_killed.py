"""kill -9 at system calls of a message's life: received inline and spooled, stored, sent, settled, reported, deferred,
tried again, pruned. A few of every kind here; each one with `SMTPMESH_E2E_FULL=1`, or `deploy/run.py bench crash`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.scene import FULL
from tests.faults.nursery import Nursery
from tests.faults.promise import NONE, count_rows, read_table
from tests.faults.strace import Call, choose, find_points
from tests.faults.trial import FILES, FIRST_START, NETWORK, PASSING, Story, dry_run, kill_at, strike_all
from tests.faults.world import LETTERS

pytestmark = pytest.mark.peer("strace")
CHOSEN = {FIRST_START: 3, FILES: 8, NETWORK: 4, PASSING: 6}


@pytest.mark.parametrize("story", CHOSEN, ids=lambda story: story.name)
async def test_killed_at_a_system_call_nothing_is_lost_and_doubled_only_where_nobody_could_know(
    nursery: Nursery, tmp_path: Path, story: Story
) -> None:
    dry = tmp_path / "dry"
    dry.mkdir()
    points = find_points(await dry_run(nursery, dry, story))
    chosen = list(points) if FULL else choose(points, CHOSEN[story])
    trials = await strike_all(nursery, tmp_path, story, chosen, kill_at)
    assert [f"{trial.point}: {fault}" for trial in trials for fault in trial.faults] == []
    assert sum(trial.struck for trial in trials) >= len(trials) * 0.9 - 1  # a thread may do a call more or less
    counts, unknown = count_rows(trials)
    assert unknown == []
    if FULL and story is PASSING:
        assert counts["passed"]
    if FULL and story is FILES:
        assert [row for row, count in counts.items() if not count] == ["passed"]


def test_in_no_row_of_the_table_a_promise_is_kept_by_nobody() -> None:
    table = read_table()
    promised = {standing for standing in table if standing.client == "250"}
    waiting = {"queued", "claimed", "deferred"}
    assert len(set(table.values())) == 14
    assert [one for one in promised if one.hop == NONE and not {one.entry, one.report} & waiting] == []


async def test_the_answer_goes_out_after_everything_that_it_promises_is_synced(
    nursery: Nursery, tmp_path: Path
) -> None:
    """The order of the calls is the proof that a power cut would find: a kill leaves the page cache as it is."""
    both = Story("both", (*FILES.calls, *NETWORK.calls), LETTERS[:2])
    calls = await dry_run(nursery, tmp_path, both)
    answers = [number for number, call in enumerate(calls) if "250 2.0.0 Ok: queued" in call.text]
    assert len(answers) == 2
    inline, spooled = calls[: answers[0]], calls[answers[0] + 1 : answers[1]]
    assert last(inline, "fdatasync", "queue.db-wal") > last(inline, "pwrite64", "queue.db-wal") > -1
    steps = [
        last(spooled, "write", "incoming/a1"),
        last(spooled, "rename", "incoming/a1"),
        last(spooled, "fsync", "/spool/a1"),
        last(spooled, "fsync", "/spool>"),
        first(spooled, "pwrite64", "queue.db-wal", after=last(spooled, "fsync", "/spool>")),
        last(spooled, "fdatasync", "queue.db-wal"),
    ]
    assert -1 not in steps
    assert steps == sorted(steps)


def last(calls: list[Call], name: str, text: str) -> int:
    """Where the last such call stands; -1: nowhere."""
    return max((n for n, call in enumerate(calls) if call.name == name and text in call.text), default=-1)


def first(calls: list[Call], name: str, text: str, *, after: int) -> int:
    """Where the first such call after a place stands."""
    found = (n for n, call in enumerate(calls) if call.name == name and text in call.text and n > after)
    return next(found, -1)
