"""One own edge, and the set of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.linkstate import LinkStatus
from router import adjacency
from router.adjacency import Adjacency
from router.decision import EdgeState, ExitHop, Hop, HopKind, Outcome, OutcomeKind
from router.edge import Edge, build_edge
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings

A = Hop(HopKind.SMART_HOST, "a")
OK, REFUSED, TIMEOUT = OutcomeKind.ACCEPTED, OutcomeKind.CONNECT_FAILED, OutcomeKind.TIMEOUT


def build(hop: Hop = A, window_max: int = 20) -> Edge:
    return build_edge(
        hop, hop.name, cost=0, window_max=window_max, settings=RouterSettings(), rng=random.Random(1), now=0.0
    )


def end(edge: Edge, kind: OutcomeKind, now: float, *, began: float | None = None, latency_s: float = 0.01) -> None:
    before = edge.breaker.state
    edge.record(Outcome(edge.hop, kind, now if began is None else began, latency_s), now)
    if edge.breaker.state is not before:
        edge.note_state(now)


def test_every_begun_transaction_takes_a_slot_until_its_end() -> None:
    edge = build()
    edge.begin(0)
    edge.begin(0)
    assert edge.free_slots(0) == 0
    end(edge, OK, 0.1)
    end(edge, TIMEOUT, 0.2)
    assert edge.inflight == 0


@given(st.lists(st.tuples(st.sampled_from(list(OutcomeKind)), st.booleans(), st.floats(0, 20)), max_size=120))
def test_whatever_happens_the_numbers_stay_within_bounds(story: list[tuple[OutcomeKind, bool, float]]) -> None:
    edge, now = build(), 0.0
    for kind, begins, pause in story:
        now += pause
        if begins:
            edge.begin(now)
        else:
            end(edge, kind, now, began=now - pause, latency_s=pause)
        if edge.breaker.on_timer(now):
            edge.note_state(now)
        state = edge.link_state((), now)
        assert edge.inflight >= 0
        assert 1 <= edge.window.size <= 20
        assert 0 <= state.availability_permille <= 1000
        assert 0 <= state.reliability_permille <= 1000
        assert state.capacity_mmps >= 0
        assert 1 <= edge.weight(now) <= 20
        assert edge.plan_weight(now) > 0
        assert 0 < edge.latency.ease(0.02) <= 1


def test_an_attempt_from_before_the_outage_does_not_close_the_edge_again() -> None:
    edge = build()
    end(edge, REFUSED, 1)
    edge.breaker.on_timer(3)
    edge.note_state(3)
    end(edge, OK, 3.1)
    end(edge, TIMEOUT, 3.2, began=0.5)
    states = [edge.breaker.state]
    assert edge.window.size == 2
    end(edge, TIMEOUT, 3.3, began=3.2)
    assert [*states, edge.breaker.state] == [EdgeState.HALF_OPEN, EdgeState.DOWN]


def test_a_late_success_of_a_dead_edge_starts_a_trial() -> None:
    edge = build()
    end(edge, REFUSED, 1)
    end(edge, OK, 1.2, began=0.5)
    assert edge.breaker.state is EdgeState.HALF_OPEN


def test_a_probe_takes_the_one_slot_of_a_trial() -> None:
    edge = build()
    end(edge, REFUSED, 1)
    edge.breaker.on_timer(3)
    assert edge.free_slots(3) == 1
    edge.probing = True
    assert edge.free_slots(3) == 0


def test_a_trial_is_told_to_nobody_until_it_is_over() -> None:
    edge = build()
    end(edge, REFUSED, 1)
    told = [edge.link_state((), 3)]
    edge.breaker.on_timer(3)
    edge.note_state(3)
    told.append(edge.link_state((), 3))
    end(edge, OK, 3)
    assert edge.breaker.state is EdgeState.HALF_OPEN
    told.append(edge.link_state((), 3))
    assert {(link.status, link.capacity_mmps) for link in told} == {(LinkStatus.DOWN, 0)}
    end(edge, OK, 3)
    end(edge, OK, 3)
    assert edge.link_state((), 3).status is LinkStatus.UP


def test_one_slot_on_trial_is_no_proof_of_the_capacity() -> None:
    edge = build()
    edge.breaker.suspect("reported", 0)
    for second in range(5):
        edge.begin(second)
        edge.capacity.observe_accepted(second + 0.5)
    assert not edge.capacity.proven(6)


def test_a_window_that_still_grows_is_no_proof_of_the_capacity() -> None:
    edge = build()
    end(edge, OK, 0)
    for second in range(1, 5):
        edge.begin(second)
        edge.begin(second)
        edge.capacity.observe_accepted(second + 0.5)
        edge.inflight = 1
    assert not edge.capacity.proven(6)


def test_the_weight_does_not_flutter_between_two_levels() -> None:
    edge, levels = build(), []
    edge.reliability.successes, edge.reliability.failures = 100.0, 0.0
    for failures in (11.0, 13.0, 12.0, 14.0, 12.0, 30.0, 12.0):
        edge.reliability.failures = failures
        levels.append(edge.weight(0.0))
    assert levels == [1, 1, 1, 1, 1, 1.25, 1.25]


def test_queueing_at_a_host_moves_its_share_gently() -> None:
    edge = build()
    edge.latency.observe(0.05, 0)
    before = edge.plan_weight(0)
    for second in range(1, 60):
        edge.latency.observe(0.5, second)
    assert 0.5 * before < edge.plan_weight(60) < 0.7 * before


def test_small_changes_of_a_capacity_are_no_news() -> None:
    edge = build()
    edge.capacity.known_until = 1e9
    keys = []
    for edge.capacity.known_mps in (40.0, 45.0, 38.0, 80.0, 75.0):
        keys.append(edge.advert_key(1))
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]


def test_draining_takes_nothing_new_and_ends_with_a_trial() -> None:
    edge = build()
    breaker = edge.breaker
    assert breaker.drain("by hand", 1) == "by hand"
    assert breaker.drain("again", 1) is None
    assert edge.free_slots(1) == 0
    assert breaker.record(REFUSED, "", 2) is None
    assert breaker.lose("session lost", 2) is None
    assert breaker.undrain("by hand", 3)
    assert breaker.undrain("again", 3) is None
    assert breaker.state is EdgeState.HALF_OPEN


def build_adjacency() -> Adjacency:
    return Adjacency(RouteTable([RouteRule("x", ("*",), ("mx",))]), (), RouterSettings(), random.Random(1), 0.0)


def test_idle_edges_to_domains_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjacency, "DIRECT_EDGES_MAX", 3)
    edges = build_adjacency()
    edges.add_direct("busy.example", 0)[0].begin(0)
    edges.add_direct("b.example", 0)
    edges.add_direct("c.example", 0)
    _, forgotten = edges.add_direct("d.example", 0)
    assert sorted(hop.name for hop in forgotten) == ["b.example", "c.example"]
    assert sorted(edge.hop.name for edge in edges.all()) == ["busy.example", "d.example"]


def test_only_the_last_used_domains_are_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjacency, "DIRECT_ADVERTISED_MAX", 2)
    edges = build_adjacency()
    for second, domain in enumerate(("old.example", "z.example", "a.example")):
        edges.add_direct(domain, second)
    assert [(state.hop, state.classes) for state in edges.links(5)] == [
        ("mx:a.example", ("mx:a.example",)),
        ("mx:z.example", ("mx:z.example",)),
    ]


def test_exchangers_of_domains_are_never_probed() -> None:
    edges = build_adjacency()
    edge, _ = edges.add_direct("a.example", 0)
    edge.breaker.record(REFUSED, "", 0)
    edge.breaker.on_timer(5)
    assert edges.take_probes(1000) == ()
    assert not edge.awaits_probe


def test_news_of_an_edge_that_is_gone_changes_nothing() -> None:
    edges = build_adjacency()
    assert not edges.record(Outcome(A, OK, 0), 0)
    assert not edges.note_session("f" * 32, True, 0)
    assert edges.next_timer() is None


# -- silence and single messages ---------------------------------------------------------------------------------------


def stall_world() -> tuple[Adjacency, Edge]:
    rules = RouteTable([RouteRule("r", ("*",), ("a",))])
    world = Adjacency(rules, [ExitHop(A, "a")], RouterSettings(), random.Random(1), 0.0)
    edge = world.get(A)
    assert edge is not None
    for moment in range(3):
        edge.begin(moment)
        world.record(Outcome(A, OK, moment, 0.01), moment + 0.01)
    assert edge.breaker.state is EdgeState.UP
    return world, edge


def test_silence_from_what_is_in_flight_is_suspected_and_probed() -> None:
    world, edge = stall_world()
    edge.begin(10.0)
    assert world.next_timer() == pytest.approx(11.0)
    assert not world.on_timer(10.9)[0]
    (change,) = world.on_timer(11.0)[0]
    assert (change.after, edge.free_slots(11.0)) == (EdgeState.SUSPECT, 0)
    assert "nothing came back for 1.0 s from 1 in flight" in change.reason
    assert world.take_probes(11.0) == (A,)
    (change,) = world.record(Outcome(A, REFUSED, 11.0, probe=True), 11.5).transitions
    assert change.after is EdgeState.DOWN


def test_a_probe_that_finds_the_hop_well_buys_time_and_an_answer_ends_the_matter() -> None:
    world, edge = stall_world()
    edge.begin(10.0)
    world.on_timer(11.0)
    world.take_probes(11.0)
    world.record(Outcome(A, OK, 11.0, 0.01, probe=True), 11.1)
    assert edge.breaker.state is EdgeState.UP
    assert edge.stall_at() == pytest.approx(11.1 + 2.0)
    world.record(Outcome(A, OK, 10.0, 2.0), 12.0)
    assert (edge.stall_at(), edge.patience) == (None, 1.0)


def test_large_mail_and_slow_hops_have_their_time() -> None:
    _, edge = stall_world()
    edge.begin(10.0, 1_250_000)
    assert edge.stall_at() == pytest.approx(10 + 1 + 10), "at a megabit a second"
    edge.record(Outcome(A, OK, 10.0, 4.0, size_bytes=1_250_000), 14.0)
    edge.begin(20.0)
    assert edge.stall_at() == pytest.approx(20 + 40), "ten of its latencies"


def test_strangers_are_not_suspected_for_their_silence() -> None:
    edge = build(Hop(HopKind.MX, "example.org"))
    edge.begin(0)
    assert edge.stall_at() is None


def test_one_message_that_fails_again_and_again_does_not_take_its_hop_down() -> None:
    edge = build()
    for moment in range(20):
        edge.begin(moment)
        edge.record(Outcome(A, OutcomeKind.DISCONNECTED, moment, message="poison"), moment + 0.1)
    assert edge.breaker.state is EdgeState.UNKNOWN
    for moment in range(20, 25):
        edge.begin(moment)
        edge.record(Outcome(A, OutcomeKind.DISCONNECTED, moment, message=f"m{moment}"), moment + 0.1)
    assert edge.breaker.state is EdgeState.DOWN


@pytest.mark.parametrize(
    ("loss", "suspected", "down"), [(0.0, 3, 5), (0.15, 4, 7), (0.5, 9, 15)], ids=["sound", "lossy", "hardly works"]
)
def test_as_many_failures_in_a_row_are_suspicious_as_chance_does_not_bring(
    loss: float, suspected: int, down: int
) -> None:
    edge, rng = build(), random.Random(1)
    for _ in range(2000):
        edge.reliability.observe(rng.random() >= loss, 0.0)
    states = []
    for number in range(1, 20):
        end(edge, OutcomeKind.DISCONNECTED, float(number) / 10)
        states.append(edge.breaker.state)
    assert states.index(EdgeState.SUSPECT) + 1 == suspected
    assert states.index(EdgeState.DOWN) + 1 == down


def test_a_lossy_way_is_not_closed_by_chance() -> None:
    edge, rng, states = build(), random.Random(1), set[EdgeState]()
    for number in range(20_000):
        end(edge, OK if rng.random() >= 0.15 else OutcomeKind.DISCONNECTED, number / 30)
        states.add(edge.breaker.state)
    assert EdgeState.DOWN not in states
