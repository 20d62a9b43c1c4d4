"""The swarm, a few seeds of it (`tests/unit/gossip/swarm.py` runs any number)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.unit.gossip.swarm import Swarm


@pytest.mark.parametrize("seed", range(24))
def test_random_faults_then_healing_end_with_equal_databases(seed: int) -> None:
    Swarm(seed).run()


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_replays_to_the_byte(seed: int) -> None:
    assert Swarm(seed).run() == Swarm(seed).run()


def test_a_seed_replays_to_the_byte_in_another_process() -> None:
    told = set()
    for hash_seed in ("1", "2"):
        words = [sys.executable, "-m", "tests.unit.gossip.swarm", "--seeds", "5", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=environment)
        told.add(re.search("trace [0-9a-f]{32}", found.stdout)[0])  # type: ignore[index]
    assert len(told) == 1
