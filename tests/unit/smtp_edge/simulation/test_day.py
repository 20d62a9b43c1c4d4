"""A short day of `bench routing_day`: whatever breaks, every message arrives once."""

from __future__ import annotations

import pytest

from tests.bench.routing_day import play


@pytest.mark.parametrize("seed", [2, 3], ids=["hosts", "relays and ways"])
def test_a_day_of_failures_loses_nothing_and_doubles_nothing_inside(seed: int) -> None:
    day = play(6, 0.6, seed)
    assert day.broken.total() >= 4
    assert day.accepted == day.delivered > 3000
    assert (day.lost, day.queued, day.doubled_inside, day.revisits) == (0, 0, 0, 0)
    assert day.doubled <= day.flying
