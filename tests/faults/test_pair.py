"""kill -9 at system calls of a relay that sends to a peer, and of the peer: between the two nothing is lost or doubled.

A few of every kind here; each one with `SMTPMESH_E2E_FULL=1`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.e2e.scene import FULL
from tests.faults.nursery import Nursery
from tests.faults.pair import Ground, Role, dry_run_pair, kill_one
from tests.faults.strace import Point, choose, find_points
from tests.faults.trial import FILES, NETWORK, Story, Trial, strike_all

pytestmark = pytest.mark.peer("strace")
CHOSEN = {FILES: 3, NETWORK: 2}


@pytest.mark.parametrize(("story", "victim"), list(itertools.product(CHOSEN, Role)), ids=lambda value: value.name)
async def test_a_relay_that_is_killed_doubles_nothing_at_its_peer(
    nursery: Nursery, tmp_path: Path, story: Story, victim: Role
) -> None:
    ground = Ground(tmp_path)
    await ground.make(nursery)
    points = find_points(await dry_run_pair(nursery, tmp_path / "dry", ground, story, victim))
    chosen = list(points) if FULL else choose(points, CHOSEN[story])

    async def strike(nursery: Nursery, folder: Path, story: Story, point: Point) -> Trial:
        return await kill_one(nursery, folder, ground, story, victim, point)

    trials = await strike_all(nursery, tmp_path, story, chosen, strike)
    assert [f"{trial.point}: {fault}" for trial in trials for fault in trial.faults] == []
    assert sum(trial.struck for trial in trials) >= len(trials) * 0.9 - 1
