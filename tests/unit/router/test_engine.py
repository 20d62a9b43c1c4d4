"""Single decisions: every rule, every verdict, every hold."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.linkstate import ClassLoad, LinkStatus, Load, NodeRecord, Snapshot
from router.decision import Decision, EdgeState, Hop, Outcome, OutcomeKind, Query, Verdict
from router.engine import RoutingEngine
from tests.unit.router.worlds import CLASS, build_engine, host, link, node_id, peer, record


def verdicts(decision: Decision) -> dict[str, Verdict]:
    return {candidate.hop.name[:4]: candidate.verdict for candidate in decision.candidates}


def fail(engine: RoutingEngine, hop: Hop, now: float = 0.0) -> None:
    engine.begin(hop, CLASS, now)
    engine.record(Outcome(hop, OutcomeKind.CONNECT_FAILED, now, reason="refused"), CLASS, now)


def succeed(engine: RoutingEngine, hop: Hop, now: float = 0.0, latency_s: float = 0.005) -> None:
    engine.begin(hop, CLASS, now)
    engine.record(Outcome(hop, OutcomeKind.ACCEPTED, now, latency_s), CLASS, now)


def with_peers(
    *records: NodeRecord, hosts: tuple[str, ...] = ("a",), via: tuple[str, ...] | None = None
) -> RoutingEngine:
    engine = build_engine(1, hosts, via=via)
    engine.apply(Snapshot("root", (record(1), *records)), 0.0)
    return engine


def test_an_unknown_exit_is_used_at_once() -> None:
    decision = build_engine(1).decide(Query(CLASS), 0.0)
    assert (decision.chosen, decision.rule) == (host("a"), "planned share")


def test_a_refused_connection_closes_the_exit_and_every_candidate_says_why() -> None:
    engine = build_engine(1, ("a", "b"), via=("a",))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS), 0.5)
    assert (decision.chosen, decision.rule) == (None, "hold: no path")
    assert verdicts(decision) == {"a": Verdict.EDGE_DOWN, "b": Verdict.POLICY}
    assert all(candidate.reason for candidate in decision.candidates)


def test_a_dead_exit_is_gone_round_through_a_peer() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS), 0.5)
    assert (decision.chosen, decision.rule) == (peer(2), "largest gain")


def test_no_peer_is_chosen_that_reaches_the_exit_only_through_us() -> None:
    engine = with_peers(record(2, [link(peer(1))]))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS), 0.5)
    assert decision.chosen is None
    assert verdicts(decision)["2222"] is Verdict.NO_PATH


def test_a_dead_exit_that_is_tried_in_vain_is_no_reason_for_new_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    fail(engine, host("a"))
    engine.decide(Query(CLASS), 0.1)
    made = []
    monkeypatch.setattr("router.engine.compute_ranks", lambda *_, **__: made.append(1) or {node_id(2): 1.0})
    for now in (10.0, 20.0, 30.0):
        assert engine.on_timer(now).transitions, "it is on trial"
        fail(engine, host("a"), now)
        assert engine.decide(Query(CLASS), now).chosen == peer(2)
    assert not made
    engine.on_timer(40.0)
    engine.record(Outcome(host("a"), OutcomeKind.ACCEPTED, 40.0, 0.005, probe=True), CLASS, 40.0)
    assert engine.decide(Query(CLASS), 40.0).chosen == host("a")
    assert made, "it opened"


def test_the_trace_is_never_entered_again() -> None:
    engine = with_peers(record(2, [link(host("a"))]), record(3, [link(host("a"))]))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS, trace=(node_id(2),)), 0.5)
    assert decision.chosen == peer(3)
    assert verdicts(decision)["2222"] is Verdict.IN_TRACE


def test_a_dead_end_steps_back_to_the_relay_that_first_sent_the_message_here() -> None:
    engine = with_peers(record(2, [link(host("a"))]), record(3, [link(host("a"))]))
    fail(engine, host("a"))
    query = Query(CLASS, trace=(node_id(2), node_id(1), node_id(3)))
    decision = engine.decide(query, 0.5)
    assert (decision.chosen, decision.rule) == (peer(2), "step back")


def test_what_began_here_is_held_in_a_dead_end() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS, trace=(node_id(1), node_id(2))), 0.5)
    assert (decision.chosen, decision.rule) == (None, "hold: every way leads back")


def test_a_peer_without_transit_is_not_used() -> None:
    engine = with_peers(record(2, [link(host("a"))], no_transit=True))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS), 0.5)
    assert decision.chosen is None
    assert verdicts(decision)["2222"] is Verdict.NO_TRANSIT


def test_a_hop_in_doubt_comes_first() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    decision = engine.decide(Query(CLASS, prefer=peer(2)), 0.0)
    assert (decision.chosen, decision.rule) == (peer(2), "in doubt: the same hop first")


def test_a_full_window_holds_and_says_so() -> None:
    engine = build_engine(1)
    engine.begin(host("a"), CLASS, 0.0)
    engine.begin(host("a"), CLASS, 0.0)
    decision = engine.decide(Query(CLASS), 0.0)
    assert (decision.chosen, decision.rule) == (None, "hold: no slot")
    assert verdicts(decision)["a"] is Verdict.NO_SLOT


def test_a_hop_that_backs_off_for_this_message_is_not_tried() -> None:
    decision = build_engine(1).decide(Query(CLASS, avoid=(host("a"),)), 0.0)
    assert (decision.chosen, decision.rule) == (None, "hold: backing off")
    assert verdicts(decision)["a"] is Verdict.BACKING_OFF


def test_a_deeper_backlog_there_is_no_gain() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    fail(engine, host("a"))
    engine.hear_backlog(node_id(2), {CLASS: 500}, 0.4)
    decision = engine.decide(Query(CLASS), 0.5)
    assert (decision.chosen, decision.rule) == (None, "hold: no gain")


def test_gossip_tells_backlogs_and_acknowledgements_are_fresher() -> None:
    load = Load(classes=(ClassLoad(CLASS, 70, 1),))
    there = NodeRecord(record(2).node_id, record(2).info, (link(host("a")),), load, age_s=1.0)
    engine = with_peers(there)
    engine.hear_backlog(node_id(2), {CLASS: 5}, 0.0)
    (candidate,) = [c for c in engine.decide(Query(CLASS), 0.0).candidates if c.hop == peer(2)]
    assert (candidate.backlog_there, candidate.backlog_source) == (5, "acknowledgement")


def test_a_lost_gossip_session_closes_the_peer_at_once_and_a_new_one_opens_it() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    succeed(engine, peer(2))
    succeed(engine, host("a"))
    changes = engine.peer_session(node_id(2), False, 1.0)
    assert [(t.before, t.after) for t in changes.transitions] == [(EdgeState.UP, EdgeState.DOWN)]
    changes = engine.peer_session(node_id(2), True, 2.0)
    assert changes.transitions[0].after is EdgeState.HALF_OPEN
    assert engine.probes_due(2.0) == (peer(2),)


def test_trials_after_a_failure_open_the_hop_again_and_say_so() -> None:
    engine = build_engine(1)
    fail(engine, host("a"))
    assert engine.next_timer(0.1) is not None
    assert engine.on_timer(1.5).transitions[0].after is EdgeState.HALF_OPEN
    opened = []
    now = 1.5
    for _ in range(3):
        assert engine.probes_due(now) == (host("a"),)
        changes = engine.record(Outcome(host("a"), OutcomeKind.ACCEPTED, now, 0.01, probe=True), "", now)
        opened.append(changes.opened)
        now += 0.5
    assert opened == [(host("a"),), (), (host("a"),)]
    assert engine.decide(Query(CLASS), now).chosen == host("a")


def test_most_others_reporting_an_exit_down_makes_us_look_once() -> None:
    engine = build_engine(1)
    succeed(engine, host("a"))
    down = [record(n, [link(host("a"), LinkStatus.DOWN)]) for n in (2, 3)]
    first = engine.apply(Snapshot("r", (record(1), *down)), 1.0)
    assert [t.after for t in first.transitions] == [EdgeState.SUSPECT]
    succeed(engine, host("a"), 1.5)
    assert engine.apply(Snapshot("r", (record(1), *down)), 2.0).transitions == ()


def test_another_relay_that_finds_an_exit_up_again_makes_us_try_it_at_once() -> None:
    engine = build_engine(1)
    down, up = (record(2, [link(host("a"), status)]) for status in (LinkStatus.DOWN, LinkStatus.UP))
    fail(engine, host("a"), 10.0)
    engine.apply(Snapshot("1", (record(1), down)), 10.1)
    changes = engine.apply(Snapshot("2", (record(1), up)), 10.2)
    assert [t.after for t in changes.transitions] == [EdgeState.HALF_OPEN]


def test_a_relay_that_has_not_noticed_yet_is_no_reason_to_try_a_dead_exit() -> None:
    engine = build_engine(1)
    unaware = Snapshot("1", (record(1), record(2, [link(host("a"))])))
    engine.apply(unaware, 9.0)
    fail(engine, host("a"), 10.0)
    assert engine.apply(unaware, 10.1).transitions == ()


def test_a_refused_message_is_no_fault_of_the_hop() -> None:
    engine = build_engine(1)
    for _ in range(20):
        engine.begin(host("a"), CLASS, 0.0)
        engine.record(Outcome(host("a"), OutcomeKind.MESSAGE_REFUSED, 0.0), CLASS, 0.0)
    (candidate,) = engine.decide(Query(CLASS), 0.0).candidates
    assert candidate.state is EdgeState.UP
    assert candidate.reliability > 0.9


def test_direct_delivery_gets_an_edge_for_each_domain() -> None:
    engine = build_engine(1, (), direct=True)
    decision = engine.decide(Query("mx:example.org"), 0.0)
    assert decision.chosen == Hop.parse("mx:example.org")


def test_a_node_without_direct_delivery_uses_a_peer_that_has_it() -> None:
    engine = build_engine(1)
    engine.apply(Snapshot("r", (record(1), record(2, direct_mx=True))), 0.0)
    assert engine.decide(Query("mx:example.org"), 0.0).chosen == peer(2)


def test_rows_name_every_class_and_the_view() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    (row,) = engine.rows(0.0)
    assert (row.class_id, row.exits, row.decision.view) == (CLASS, ("host:a",), "root")
    assert {candidate.hop for candidate in row.decision.candidates} == {host("a"), peer(2)}


def test_explain_knows_bound_bottleneck_and_paths() -> None:
    engine = with_peers(record(2, [link(host("b"), capacity_mmps=30_000)]), hosts=("a",), via=("a", "b"))
    for now in range(3):
        succeed(engine, host("a"), float(now))
    explanation = engine.explain(Query(CLASS), 3.0)
    assert explanation.bound_mps > 0
    assert "r1 -> host:a" in explanation.paths
    assert "r1 -> r2 -> host:b" in explanation.paths
    assert explanation.bottleneck


def test_links_tell_classes_of_exits_and_none_of_peers() -> None:
    engine = with_peers(record(2))
    found = {state.hop: state.classes for state in engine.links(0.0)}
    assert found == {"host:a": (CLASS,), f"peer:{node_id(2)}": ()}


def test_load_tells_what_waits() -> None:
    engine = build_engine(1)
    engine.set_backlog(CLASS, 7, 3.2)
    assert engine.load(0.0) == Load(classes=(ClassLoad(CLASS, 7, 3),))


def test_a_vanished_peer_is_no_candidate() -> None:
    engine = with_peers(record(2))
    engine.apply(Snapshot("r", (record(1),)), 1.0)
    assert [candidate.hop for candidate in engine.decide(Query(CLASS), 1.0).candidates] == [host("a")]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32))
def test_no_message_visits_a_relay_twice_on_random_meshes_with_differing_views(count: int, seed: int) -> None:
    """But for a step back, which ends where it began; every walk ends."""
    rng = random.Random(seed)
    exits = [n for n in range(1, count + 1) if rng.random() < 0.4]
    engines = {n: build_engine(n, ("a",) if n in exits else (), via=("a",)) for n in range(1, count + 1)}
    for n, engine in engines.items():
        view = [
            record(
                m,
                [link(peer(k)) for k in engines if k != m and rng.random() < 0.6]
                + ([link(host("a"))] if rng.random() < 0.5 else []),
            )
            for m in engines
            if m == n or rng.random() < 0.8
        ]
        engine.apply(Snapshot(f"view of {n}", tuple(view)), 0.0)
        if n in exits and rng.random() < 0.7:
            fail(engine, host("a"))
    here = rng.choice(list(engines))
    trace: tuple[str, ...] = ()
    for _ in range(2 * count):
        chosen, rule = engines[here].pick(Query(CLASS, trace), 0.5)
        if chosen is None or chosen.kind.value != "peer":
            return
        trace = (*trace, node_id(here))
        there = next(n for n in engines if node_id(n) == chosen.name)
        assert rule == "step back" or node_id(there) not in trace
        here = there
    pytest.fail(f"the walk did not end: {trace}")
