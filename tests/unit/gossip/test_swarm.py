"""The swarm, a few seeds of it (`tests/unit/gossip/swarm.py` runs any number)."""

from __future__ import annotations

import pytest

from tests.unit.gossip.swarm import Swarm


@pytest.mark.parametrize("seed", range(24))
def test_random_faults_then_healing_end_with_equal_databases(seed: int) -> None:
    Swarm(seed).run()


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_replays_to_the_byte(seed: int) -> None:
    assert Swarm(seed).run() == Swarm(seed).run()
