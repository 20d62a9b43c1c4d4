"""No message goes in circles, whatever the relays believe (`loops.py` walks more graphs from the command line)."""

from __future__ import annotations

from tests.unit.router.loops import walk_graphs


def test_no_relay_is_entered_again_but_for_a_step_back() -> None:
    tally = walk_graphs(300, seed=1)
    assert tally.faults == []
    assert (tally.revisits, tally.repeats) == (0, 0)
    assert tally.transfers > 1000, "they did go somewhere"
    assert tally.steps_back > 100, "and into dead ends"
    assert tally.delivered > tally.walks / 2
