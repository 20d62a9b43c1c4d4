"""The forwarding rule at work: shares, failures and transfers in the small world."""

from __future__ import annotations

import pytest

from tests.unit.router.worlds import World

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
    assert len([when for when in tries if when > 21]) == 0
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


def test_a_slow_host_gets_little() -> None:
    world = World([("fast", "slow")], {"fast": 60.0, "slow": 2.0})
    world.offer(0, 50, until=40)
    world.run(50)
    assert world.shares(10, 40)["slow"] < 0.08
    assert world.waiting() == 0
