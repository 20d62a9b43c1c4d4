"""The rule as a fluid: nothing comes from nowhere, no exit takes more than it can."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from router.decision import Hop, HopKind
from router.topology import Arc
from router.whatif import Forecast, Hypothesis, exit_capacities, forecast

NOTHING = Hypothesis()


def host(name: str) -> Hop:
    return Hop(HopKind.SMART_HOST, name)


def arc(origin: str, hop: Hop, mps: float = 0) -> Arc:
    return Arc(origin, hop, 1.0, round(1000 * mps), ())


def mesh(*relays: str) -> list[Arc]:
    return [arc(one, Hop(HopKind.PEER, other), 10) for one in relays for other in relays if one != other]


def given(found: Forecast, name: str) -> float:
    return sum(item.delivered_mps for item in found.exits if item.hop == host(name))


def test_own_exits_share_by_capacity_and_what_is_too_much_goes_to_peers_with_room() -> None:
    arcs = [*mesh("a", "b"), arc("a", host("s1"), 10), arc("a", host("s2"), 30), arc("b", host("s3"), 100)]
    little = forecast(arcs, {"a": 20}, NOTHING)
    assert (given(little, "s1"), given(little, "s2"), little.transfers) == (pytest.approx(5), pytest.approx(15), ())
    much = forecast(arcs, {"a": 100}, NOTHING)
    assert (given(much, "s1"), given(much, "s2"), given(much, "s3")) == pytest.approx((10, 30, 60))
    assert much.transfers == (("a", "b", pytest.approx(60)),)
    assert much.share(host("s3")) == pytest.approx(0.6)
    assert much.waiting_mps == pytest.approx(0)


def test_an_exit_gives_to_those_who_are_left_what_it_gave_to_all() -> None:
    arcs = [*mesh("a", "b"), arc("a", host("s"), 10), arc("b", host("s"), 30)]
    then = forecast(arcs, {"a": 50, "b": 50}, Hypothesis(relays_down=frozenset({"b"})))
    assert (then.offered_mps, then.delivered_mps, then.bound_mps) == pytest.approx((50, 40, 40))
    assert then.waiting_mps == pytest.approx(10)


def test_an_exit_takes_what_it_was_seen_to_take_and_one_not_used_yet_what_is_hoped_for() -> None:
    one, other = (replace(arc(relay, host("s"), 30), sustained_mmps=9_000) for relay in ("a", "b"))
    assert exit_capacities([one, other, arc("a", host("new"), 10)]) == {host("s"): 18, host("new"): 10}


def test_relays_without_a_way_out_are_stranded() -> None:
    arcs = [*mesh("a", "b"), arc("a", host("s"), 10)]
    assert forecast(arcs, {"a": 1, "b": 1}, NOTHING).stranded == ()
    assert forecast(arcs, {"a": 1, "b": 1}, Hypothesis(relays_down=frozenset({"a"}))).stranded == ("b",)
    assert forecast(arcs, {"a": 1, "b": 1}, Hypothesis(exits_down=frozenset({host("s")}))).stranded == ("a", "b")
    assert forecast(arcs, {"a": 1, "b": 1}, NOTHING, no_transit=frozenset({"a"})).stranded == ("b",)
    assert forecast(arcs, {"b": 1}, NOTHING, no_transit=frozenset({"a"})).delivered_mps == 0


@pytest.mark.parametrize("seed", range(60))
def test_in_any_mesh_mail_is_conserved_and_no_exit_takes_more_than_it_can(seed: int) -> None:
    rng = random.Random(seed)
    relays = [f"r{number}" for number in range(rng.randint(1, 6))]
    hosts = [f"h{number}" for number in range(rng.randint(1, 4))]
    arcs = [item for item in mesh(*relays) if rng.random() < 0.8]
    arcs += [arc(relay, host(name), rng.randint(1, 50)) for relay in relays for name in hosts if rng.random() < 0.5]
    demand = {relay: float(rng.randint(0, 60)) for relay in relays}
    changes = Hypothesis(
        relays_down=frozenset(relay for relay in relays if rng.random() < 0.2),
        exits_down=frozenset(host(name) for name in hosts if rng.random() < 0.2),
        factors={host(name): rng.random() for name in hosts if rng.random() < 0.3},
    )
    found = forecast(arcs, demand, changes)
    assert found.delivered_mps <= min(found.offered_mps, found.bound_mps) + 0.01
    assert found.delivered_mps == pytest.approx(sum(item.delivered_mps for item in found.exits))
    room = exit_capacities(arcs)
    for item in found.exits:
        assert item.hop not in changes.exits_down
        assert item.delivered_mps <= room[item.hop] * changes.factors.get(item.hop, 1.0) + 0.01
    assert not {relay for move in found.transfers for relay in move[:2]} & changes.relays_down
    shuffled = sorted(arcs, key=lambda item: rng.random())
    again = forecast(shuffled, dict(reversed(demand.items())), changes)
    assert again.delivered_mps == pytest.approx(found.delivered_mps, abs=0.01)
