"""Who told what of a backlog, and which counts."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from gossip.linkstate import ClassLoad, Load
from router import backlog
from router.backlog import Backlogs, Heard

B = "b" * 32


def gossiped(count: int) -> Load:
    return Load(classes=(ClassLoad("x", count, 0),))


def test_an_acknowledgement_counts_before_gossip_for_two_seconds() -> None:
    backlogs = Backlogs(2)
    backlogs.hear_acknowledgement(B, {"x": 5}, 10)
    backlogs.hear_gossip(B, gossiped(70), 10.2)
    assert backlogs.there(B, "x", 11.9) == Heard(5, 10, "acknowledgement")
    assert backlogs.there(B, "x", 12.1) == Heard(70, 10.2, "gossip")


def test_a_load_that_must_have_been_measured_later_counts_before_an_acknowledgement() -> None:
    """Else the last messages of a burst wait for a relay that has been empty for long."""
    backlogs = Backlogs(2)
    backlogs.hear_acknowledgement(B, {"x": 43}, 10)
    backlogs.hear_gossip(B, Load(), 10.4)
    assert backlogs.there(B, "x", 10.5).count == 0
    backlogs.hear_acknowledgement(B, {"x": 7}, 10.6)
    assert backlogs.there(B, "x", 10.7).count == 7
    backlogs.forget(B)
    backlogs.hear_acknowledgement(B, {"x": 7}, 10.6)
    assert backlogs.there(B, "x", 10.7).count == 7


def test_an_old_acknowledgement_gives_way_to_a_load_that_has_not_changed_since() -> None:
    """The neighbour drained between two of its advertisements, which said the same: nothing new will come."""
    backlogs = Backlogs(2)
    backlogs.hear_gossip(B, Load(), 3)
    backlogs.hear_acknowledgement(B, {"x": 16}, 10)
    assert backlogs.there(B, "x", 11).count == 16
    assert backlogs.there(B, "x", 13).count == 0


def test_a_class_that_a_load_no_longer_names_has_nothing_waiting() -> None:
    backlogs = Backlogs(2)
    backlogs.hear_gossip(B, gossiped(70), 1)
    backlogs.hear_gossip(B, Load(), 2)
    assert backlogs.there(B, "x", 2) == Heard(0, None, "unknown")


def test_a_neighbour_that_left_is_forgotten() -> None:
    backlogs = Backlogs(2)
    backlogs.hear_gossip(B, gossiped(70), 1)
    backlogs.forget(B)
    backlogs.forget("c" * 32)
    assert backlogs.there(B, "x", 1).count == 0


def test_the_memory_of_one_neighbour_is_bounded_and_keeps_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "HEARD_CLASSES_MAX", 3)
    backlogs = Backlogs(20)
    for number in range(10):
        backlogs.hear_acknowledgement(B, {f"class {number}": number}, number)
    assert [backlogs.there(B, f"class {number}", 9).count for number in range(10)] == [0] * 7 + [7, 8, 9]


def test_a_negative_figure_is_nothing() -> None:
    backlogs = Backlogs(2)
    backlogs.hear_acknowledgement(B, {"x": -4}, 0)
    assert backlogs.there(B, "x", 1).count == 0


def test_own_classes_without_mail_are_not_advertised() -> None:
    backlogs = Backlogs(2)
    backlogs.set_own("x", 3, 1.9)
    backlogs.set_own("a", 1, 0)
    backlogs.set_own("x", 0, 0)
    backlogs.set_own("never", 0, 0)
    assert backlogs.load() == (ClassLoad("a", 1, 0),)
    assert backlogs.here("x") == 0


def told(backlogs: Backlogs) -> float:
    return sum(entry.ingress_mmps for entry in backlogs.load()) / 1000


def arrive(backlogs: Backlogs, since: int, until: int, rate_mps: float, rng: random.Random) -> list[float]:
    """Random arrivals for some seconds, and what is told at the end of each."""
    seen = []
    for second in range(since, until):
        gaps = itertools.accumulate(rng.expovariate(rate_mps) for _ in range(int(10 * rate_mps) + 20))
        backlogs.note_arrivals({"x": sum(gap < 1 for gap in gaps)}, second + 1)
        seen.append(told(backlogs))
    return seen


@pytest.mark.parametrize("rate_mps", [2, 10, 40])
def test_a_constant_load_is_told_as_constant(rate_mps: float) -> None:
    for seed in range(10):
        backlogs = Backlogs(2)
        backlogs.note_arrivals({}, 0)
        seen = arrive(backlogs, 0, 120, rate_mps, random.Random(seed))
        assert sum(one != other for one, other in itertools.pairwise(seen[20:])) <= 6
        assert statistics.fmean(seen[20:]) == pytest.approx(rate_mps, rel=0.4)


@pytest.mark.parametrize(("before", "after"), [(10, 30), (30, 10), (5, 0.001)])
def test_a_load_that_changes_is_told_within_seconds(before: float, after: float) -> None:
    backlogs = Backlogs(2)
    backlogs.note_arrivals({}, 0)
    rng = random.Random(1)
    arrive(backlogs, 0, 60, before, rng)
    seen = arrive(backlogs, 60, 70, after, rng)
    assert abs(seen[-1] - after) < 0.45 * abs(before - after)


def test_one_message_after_a_long_silence_is_no_load() -> None:
    backlogs = Backlogs(2)
    for second in range(300):
        backlogs.note_arrivals({}, second)
    backlogs.note_arrivals({"x": 1}, 300)
    assert backlogs.load() == ()


def test_what_hardly_anything_comes_of_is_not_told_and_then_forgotten() -> None:
    backlogs = Backlogs(2)
    backlogs.note_arrivals({}, 0)
    backlogs.note_arrivals({"x": 1}, 1)
    assert told(backlogs) == 1
    for second in range(2, 200):
        backlogs.note_arrivals({}, second)
    assert backlogs.load() == ()
