"""The forwarding rule at work: shares, failures and transfers in the small world."""

from __future__ import annotations

import pytest

from router.decision import EdgeState, Query
from tests.unit.router.worlds import CLASS, World

RATES = {"a": 20.0, "b": 40.0, "c": 80.0}
ALL = ("a", "b", "c")


def three_relays(load_mps: float, *, until: float = 40, seed: int = 1) -> World:
    world = World([ALL, ALL, ALL], RATES, seed=seed)
    for relay in range(3):
        world.offer(relay, load_mps / 3, until=until)
    return world


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shares_find_the_capacities_without_configured_weights(seed: int) -> None:
    world = three_relays(126, seed=seed)
    world.run(40)
    shares = world.shares(5, 40)
    assert shares["a"] == pytest.approx(1 / 7, abs=0.03)
    assert shares["b"] == pytest.approx(2 / 7, abs=0.04)
    assert shares["c"] == pytest.approx(4 / 7, abs=0.05)


def test_nothing_starves_at_nine_tenths_of_the_capacity() -> None:
    world = three_relays(126)
    world.run(45)
    assert world.throughput(5, 40) == pytest.approx(126, rel=0.08)
    assert world.waiting() == 0


def test_low_load_needs_no_transfers() -> None:
    world = three_relays(30)
    world.run(45)
    assert world.transfers == 0
    assert world.waiting() == 0


def test_overload_is_not_passed_to_and_fro() -> None:
    world = three_relays(200)
    world.run(40)
    assert world.transfers < 0.05 * len(world.delivered)
    assert world.throughput(10, 40) == pytest.approx(140, rel=0.05)


def test_a_dead_host_is_left_by_every_relay_and_taken_up_again() -> None:
    world = three_relays(55, until=60)
    world.at(20, lambda: world.dead.add("c"))
    world.at(30, lambda: world.dead.discard("c"))
    world.run(65)
    tries = [when for when, _, hop in world.attempts if hop.name == "c" and 20 <= when < 30]
    assert [when for when in tries if when > 20.2] == []
    closed = [when for when, _, change in world.transitions if change.after is EdgeState.DOWN and when < 30]
    assert len([when for when in closed if when < 20.2]) == 3
    opened = [when for when, _, change in world.transitions if change.after is EdgeState.UP and when > 30]
    assert len(opened) == 3
    assert max(opened) < 36
    assert world.slots_taken() == 0
    assert world.shares(21, 30)["c"] == 0
    assert world.shares(45, 60)["c"] > 0.15
    assert world.waiting() == 0


def test_a_relay_without_living_exits_sends_through_its_peers() -> None:
    world = World([("a",), ("b",)], {"a": 50.0, "b": 50.0})
    world.dead.add("a")
    world.offer(0, 20, until=20)
    world.run(25)
    assert world.waiting() == 0
    assert world.shares(0, 25)["b"] == 1
    assert world.revisits == 0


def test_a_lopsided_load_uses_the_exits_of_the_other_relays() -> None:
    world = World([("a",), ("b",), ("c",)], {"a": 30.0, "b": 30.0, "c": 30.0})
    world.offer(0, 80, until=40)
    world.run(60)
    assert world.throughput(15, 40) > 70
    assert world.waiting() == 0
    assert world.revisits == 0


def test_hosts_of_which_each_relay_reaches_some_fill_up_in_proportion() -> None:
    world = World([("a", "c"), ("b", "c"), ("a", "b")], RATES)
    for relay in range(3):
        world.offer(relay, 150 / 3, until=40)
    world.run(40)
    assert world.throughput(10, 40) == pytest.approx(140, rel=0.05)
    shares = world.shares(10, 40)
    assert shares["a"] == pytest.approx(1 / 7, abs=0.02)
    assert shares["c"] == pytest.approx(4 / 7, abs=0.03)
    assert world.revisits == 0


def test_a_host_that_turns_slow_and_faulty_gets_little_and_comes_back() -> None:
    world = three_relays(60, until=90)
    world.at(20, lambda: world.rates.update(c=8.0))
    world.at(20, lambda: world.errors.update(c=0.5))
    world.at(40, lambda: world.rates.update(c=80.0))
    world.at(40, lambda: world.errors.clear())
    world.run(95)
    assert world.shares(25, 40)["c"] < 0.15
    assert world.shares(70, 90)["c"] > 0.15
    assert world.waiting() == 0
    assert world.slots_taken() == 0


def test_a_single_fast_host_is_filled_within_seconds() -> None:
    world = World([("c",)], {"c": 80.0})
    world.offer(0, 200, until=10)
    world.run(10)
    assert world.throughput(2, 10) == pytest.approx(80, rel=0.03)
    assert world.engines[0].decide(Query(CLASS), world.now).candidates[0].window >= 3


def test_held_mail_goes_when_the_engine_says_that_something_changed() -> None:
    """Nothing else asks again: no gossip, no fresh mail, no sweep."""
    world = World([("a",)], {"a": 50.0}, gossips=False)
    world.dead.add("a")
    world.offer(0, 20, until=4)
    world.at(10, lambda: world.dead.discard("a"))
    world.run(20)
    assert world.waiting() == 0
    assert min(when for when, _, _ in world.delivered) > 10


def test_equal_seeds_give_equal_stories() -> None:
    first, second = three_relays(100, until=10), three_relays(100, until=10)
    first.run(12)
    second.run(12)
    assert first.attempts == second.attempts


def test_a_slow_host_gets_little() -> None:
    world = World([("fast", "slow")], {"fast": 60.0, "slow": 2.0})
    world.offer(0, 50, until=40)
    world.run(50)
    assert world.shares(10, 40)["slow"] < 0.08
    assert world.waiting() == 0
