"""A relay under floods: limits hold, memory is bounded, nothing is left behind, and somebody else's mail is taken.

The short form of `python3 deploy/run.py bench edge_floods`, whose attacks these are, with fewer clients.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.bench.edge_floods import FLOODS, Field
from tests.e2e.scene import FULL

SHARE = 0.5 if FULL else 0.05
SECONDS = 4.0 if FULL else 0.6
IDLE_S = 0.4
ALONE_S = 0.1


def test_floods_are_told_so_and_others_are_served(folder: Path) -> None:
    ground = Field(folder, IDLE_S)
    with ground.open():
        for flood in FLOODS:
            smaller = replace(flood, connections=max(2, int(flood.connections * SHARE)))
            outcome = ground.suffer(smaller, SECONDS * (2 if flood.slow else 1), ALONE_S)
            assert outcome.faults() == [], smaller
