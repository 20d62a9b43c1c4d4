"""The forwarding rule in trouble: trials, panic, draining, limits, and what only gossip knows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.linkstate import LinkStatus, Load, NodeInfo, NodeRecord, Snapshot
from router import engine as engine_module
from router.decision import Candidate, Decision, EdgeState, Hop, Outcome, OutcomeKind, Query, Verdict
from router.engine import RoutingEngine
from router.settings import RouterSettings
from tests.unit.router.test_engine import fail, succeed, with_peers
from tests.unit.router.worlds import CLASS, build_engine, host, link, node_id, peer, record

DOWN = LinkStatus.DOWN


def candidate(decision: Decision, hop: Hop) -> Candidate:
    return next(found for found in decision.candidates if found.hop == hop)


def back_on_trial(engine: RoutingEngine, hop: Hop, now: float) -> None:
    fail(engine, hop, now - 2)
    assert [change.after for change in engine.on_timer(now).transitions] == [EdgeState.HALF_OPEN]


def probe(engine: RoutingEngine, hop: Hop, now: float, kind: OutcomeKind = OutcomeKind.ACCEPTED) -> None:
    engine.record(Outcome(hop, kind, now, 0.01, probe=True), "", now)


# -- trials ------------------------------------------------------------------------------------------------------------


def test_an_exit_on_trial_waits_for_its_probe_while_another_takes_the_mail() -> None:
    engine = build_engine(1, ("a", "b"))
    back_on_trial(engine, host("a"), 2)
    decision = engine.decide(Query(CLASS), 2)
    assert decision.chosen == host("b")
    assert candidate(decision, host("a")).verdict is Verdict.NO_SLOT
    assert "probe" in candidate(decision, host("a")).reason


def test_a_peer_takes_the_mail_before_an_exit_on_trial_does() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    back_on_trial(engine, host("a"), 2)
    assert engine.decide(Query(CLASS), 2).chosen == peer(2)


def test_a_message_is_the_trial_when_nothing_else_would_take_it() -> None:
    engine = build_engine(1)
    back_on_trial(engine, host("a"), 2)
    assert engine.decide(Query(CLASS), 2).rule == "trial"
    assert engine.decide(Query(CLASS, avoid=(host("a"),)), 2).rule == "hold: backing off"
    assert engine.probes_due(2) == (host("a"),)
    assert engine.decide(Query(CLASS), 2).rule == "hold: no slot"


def test_after_one_good_probe_the_exit_takes_one_message_at_a_time() -> None:
    engine = build_engine(1, ("a", "b"), via=("a",))
    back_on_trial(engine, host("a"), 2)
    assert candidate(engine.decide(Query(CLASS), 2), host("a")).rank_here is None
    probe(engine, host("a"), 2.1)
    decision = engine.decide(Query(CLASS), 2.2)
    assert (decision.rule, candidate(decision, host("a")).rank_here) == ("planned share", 1)
    engine.begin(host("a"), CLASS, 2.2)
    assert engine.decide(Query(CLASS), 2.2).chosen is None


def test_a_recovered_exit_is_trusted_with_a_tenth_at_first() -> None:
    engine = build_engine(1, ("a", "b"))
    succeed(engine, host("b"))
    back_on_trial(engine, host("a"), 2)
    for now in (2.1, 2.5, 2.9):
        probe(engine, host("a"), now)
    found = candidate(engine.decide(Query(CLASS), 3), host("a"))
    assert found.state is EdgeState.UP
    assert found.share == pytest.approx(1 / 11, abs=0.02)


def test_a_peer_on_trial_gets_no_mail_before_its_probe() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=(), via=("a",))
    engine.peer_session(node_id(2), False, 1)
    engine.peer_session(node_id(2), True, 2)
    assert engine.decide(Query(CLASS), 2).chosen is None
    assert engine.probes_due(2) == (peer(2),)
    probe(engine, peer(2), 2.1)
    assert engine.decide(Query(CLASS), 2.1).chosen == peer(2)


def test_the_trial_of_a_domain_is_a_message() -> None:
    engine = build_engine(1, (), direct=True)
    hop = Hop.parse("mx:example.org")
    assert engine.decide(Query("mx:example.org"), 0).chosen == hop
    back_on_trial(engine, hop, 2)
    assert engine.decide(Query("mx:example.org"), 2).chosen == hop


def test_every_change_that_may_free_held_mail_says_so() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.on_timer(0)
    fail(engine, host("a"), 0)
    assert engine.on_timer(2).routes_changed
    assert engine.record(Outcome(host("a"), OutcomeKind.ACCEPTED, 2, probe=True), "", 2).opened == (host("a"),)
    assert engine.peer_session(node_id(2), False, 3).routes_changed
    assert engine.peer_session(node_id(2), True, 3).routes_changed
    assert engine.apply(Snapshot("s", (record(1), record(2), record(3))), 3).links_changed


def test_a_reliability_that_fell_changes_the_routes() -> None:
    engine = build_engine(1)
    succeed(engine, host("a"))
    engine.on_timer(0.1)
    assert not engine.on_timer(0.2)
    assert engine.decide(Query(CLASS), 0.2).candidates[0].rank_here == 1
    for number in range(12):
        engine.begin(host("a"), CLASS, 0.3)
        kind = OutcomeKind.ACCEPTED if number % 2 else OutcomeKind.HOP_TEMPFAIL
        engine.record(Outcome(host("a"), kind, 0.3, 0.01), CLASS, 0.3)
    assert engine.decide(Query(CLASS), 0.4).candidates[0].rank_here == 1
    assert engine.on_timer(0.4).routes_changed
    assert engine.decide(Query(CLASS), 0.4).candidates[0].rank_here == 1.75


# -- panic -------------------------------------------------------------------------------------------------------------


def test_when_most_exits_are_in_trouble_suspicion_is_ignored() -> None:
    engine = build_engine(1, ("a", "b", "c"))
    for name in ("a", "b"):
        fail(engine, host(name))
    for _ in range(3):
        engine.begin(host("c"), CLASS, 0)
        engine.record(Outcome(host("c"), OutcomeKind.TIMEOUT, 0), CLASS, 0)
    for _ in range(2):
        succeed(engine, host("c"), 0.1)
    suspect = [record(n, [link(host("c"), DOWN)]) for n in (2, 3)]
    engine.apply(Snapshot("r", (record(1), *suspect)), 0.2)
    started = 0
    while (chosen := engine.decide(Query(CLASS), 0.2).chosen) is not None and chosen == host("c"):
        engine.begin(chosen, CLASS, 0.2)
        started += 1
    assert candidate(engine.decide(Query(CLASS), 0.2), host("c")).state is EdgeState.SUSPECT
    assert started > 1
    assert engine.decide(Query(CLASS, avoid=(host("c"),)), 0.2).chosen is None


def test_one_suspect_among_sound_exits_gets_one_message_at_a_time() -> None:
    engine = build_engine(1, ("a", "b"), via=("a", "b"))
    engine.apply(Snapshot("r", (record(1), *(record(n, [link(host("a"), DOWN)]) for n in (2, 3)))), 0)
    engine.begin(host("a"), CLASS, 0)
    engine.begin(host("b"), CLASS, 0)
    engine.begin(host("b"), CLASS, 0)
    assert engine.decide(Query(CLASS), 0).rule == "hold: no slot"


# -- peers -------------------------------------------------------------------------------------------------------------


def test_a_relay_that_drains_gives_its_mail_away() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.set_backlog(CLASS, 8)
    engine.begin(host("a"), CLASS, 0)
    engine.begin(host("a"), CLASS, 0)
    assert engine.decide(Query(CLASS), 0).rule == "hold: no slot"
    engine.draining = True
    assert engine.decide(Query(CLASS), 0).chosen == peer(2)
    assert (engine.draining, engine.load(0).headroom_permille) == (True, 0)


def test_a_deep_backlog_goes_sideways_only_when_the_peer_is_clearly_emptier() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.begin(host("a"), CLASS, 0)
    engine.begin(host("a"), CLASS, 0)
    engine.set_backlog(CLASS, 100)
    engine.hear_backlog(node_id(2), {CLASS: 70}, 0)
    assert engine.decide(Query(CLASS), 0).chosen is None
    engine.hear_backlog(node_id(2), {CLASS: 50}, 0)
    assert engine.decide(Query(CLASS), 0).chosen == peer(2)


@pytest.mark.parametrize(
    "info",
    [
        NodeInfo("r2", "g", "m", overloaded=True),
        NodeInfo("r2", "g", "m", draining=True),
        NodeInfo("r2", "g", "m", no_transit=True),
    ],
)
def test_a_peer_that_takes_nothing_is_named_and_not_used(info: NodeInfo) -> None:
    engine = with_peers(NodeRecord(record(2).node_id, info, (link(host("a")),), age_s=0.1))
    fail(engine, host("a"))
    decision = engine.decide(Query(CLASS), 0.1)
    assert decision.chosen is None
    assert candidate(decision, peer(2)).verdict is Verdict.NO_TRANSIT


def with_headroom(permille: int) -> RoutingEngine:
    load = Load(headroom_permille=permille)
    engine = with_peers(replace(record(2, [link(host("a"))]), load=load))
    fail(engine, host("a"))
    return engine


def test_a_peer_without_headroom_gets_nothing_but_what_it_may_have_already() -> None:
    engine = with_headroom(0)
    decision = engine.decide(Query(CLASS), 0.1)
    assert decision.chosen is None
    assert candidate(decision, peer(2)).reason == "it has no room for more: its disk, its queue or its memory is full"
    assert engine.decide(Query(CLASS, prefer=peer(2)), 0.1).chosen == peer(2)


@pytest.mark.parametrize(("permille", "at_once"), [(1000, 2), (600, 2), (500, 1), (100, 1)])
def test_a_peer_with_little_headroom_gets_that_part_of_its_window(permille: int, at_once: int) -> None:
    engine = with_headroom(permille)
    began = 0
    while engine.decide(Query(CLASS), 0.1).chosen == peer(2):
        engine.begin(peer(2), CLASS, 0.1)
        began += 1
    assert began == at_once


def test_a_busy_peer_is_waited_for_and_a_peer_that_failed_is_left_alone() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=(), via=("a",))
    assert engine.decide(Query(CLASS, avoid=(peer(2),)), 0).rule == "hold: backing off"
    engine.begin(peer(2), CLASS, 0)
    engine.begin(peer(2), CLASS, 0)
    assert engine.decide(Query(CLASS), 0).rule == "hold: no slot"


def test_equal_gains_go_to_the_lowest_id_and_the_other_hears_why() -> None:
    records = [record(n, [link(host("a"))]) for n in (3, 2)]
    engine = with_peers(*records, hosts=(), via=("a",))
    decision = engine.decide(Query(CLASS), 0)
    assert decision.chosen == peer(2)
    assert candidate(decision, peer(3)).reason == "another relay has the larger gain"


def test_transfers_of_one_message_are_bounded() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=(), via=("a",))
    trace = tuple(f"{number:032x}" for number in range(4))
    decision = engine.decide(Query(CLASS, trace), 0)
    assert decision.rule == "hold: too many transfers"
    assert candidate(decision, peer(2)).verdict is Verdict.POLICY


def test_gossip_alone_turns_mail_away_from_a_peer_whose_exits_died() -> None:
    engine = with_peers(record(2, [link(host("a"))]), record(3, [link(host("b"))]), hosts=(), via=("a", "b"))
    assert engine.decide(Query(CLASS), 0).chosen == peer(2)
    engine.apply(Snapshot("s", (record(1), record(2, [link(host("a"), DOWN)]), record(3, [link(host("b"))]))), 1)
    decision = engine.decide(Query(CLASS), 1)
    assert decision.chosen == peer(3)
    assert candidate(decision, peer(2)).verdict is Verdict.NO_PATH


def test_a_peer_that_needs_us_to_reach_an_exit_gets_nothing_however_deep_our_backlog() -> None:
    engine = with_peers(record(2, [link(peer(1))]))
    engine.set_backlog(CLASS, 1000)
    engine.begin(host("a"), CLASS, 0)
    engine.begin(host("a"), CLASS, 0)
    assert engine.decide(Query(CLASS), 0).rule == "hold: no slot"


def test_a_peer_that_others_reach_an_exit_through_is_two_steps_away() -> None:
    engine = with_peers(record(2, [link(peer(3))]), record(3, [link(host("a"))]), hosts=(), via=("a",))
    ranks = {found.hop.name[0]: found.rank_there for found in engine.decide(Query(CLASS), 0).candidates}
    assert ranks == {"2": 2, "3": 1}


def test_a_step_back_waits_for_a_slot_and_a_message_from_elsewhere_steps_to_its_sender() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    fail(engine, host("a"))
    query = Query(CLASS, trace=(node_id(2),))
    assert engine.decide(query, 0.1).rule == "step back"
    assert engine.decide(Query(CLASS, (node_id(2),), (peer(2),)), 0.1).rule == "hold: every way leads back"


def test_a_message_that_every_nearer_relay_had_makes_a_detour_instead_of_waiting_for_ever() -> None:
    """Relay 2 has the exit and sent it here, in a moment when it was cut off; relay 4 is further, by way of 3."""
    engine = with_peers(
        record(2, [link(host("a"))]), record(3, [link(host("a"))]), record(4, [link(peer(3))]), hosts=(), via=("a",)
    )
    engine.set_backlog(CLASS, 1)
    assert engine.decide(Query(CLASS, (node_id(2),)), 0).chosen == peer(3), "as near as that: no detour"
    seen = Query(CLASS, (node_id(3), node_id(2)))
    decision = engine.decide(seen, 0)
    assert (decision.chosen, decision.rule) == (peer(4), "detour")
    assert candidate(decision, peer(4)).gain <= 0
    assert engine.decide(Query(CLASS), 0).chosen == peer(2)
    assert engine.decide(replace(seen, avoid=(peer(4),)), 0).rule == "hold: backing off"
    engine.begin(peer(4), CLASS, 0)
    engine.begin(peer(4), CLASS, 0)
    assert engine.decide(seen, 0).rule == "hold: no slot"


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_reasons_say_since_when_why_and_until_when() -> None:
    engine = build_engine(1, ("a", "b"))
    fail(engine, host("a"), 10)
    reason = candidate(engine.decide(Query(CLASS), 10.5), host("a")).reason
    assert reason.startswith("down for 0.5 s (refused), next trial in 0.")


def test_the_winner_is_named_to_the_losers() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=("a", "b"))
    engine.set_backlog(CLASS, 100)
    decision = engine.decide(Query(CLASS), 0)
    assert decision.chosen == host("a")
    assert candidate(decision, host("b")).reason == "another exit is further behind its share"
    assert candidate(decision, peer(2)).reason == "an exit comes first"
    doubt = engine.decide(Query(CLASS, prefer=host("b")), 0)
    assert candidate(doubt, host("a")).reason == "another hop may have the message already"


def test_a_hop_in_doubt_that_is_down_is_not_used() -> None:
    engine = build_engine(1, ("a", "b"))
    fail(engine, host("b"))
    assert engine.decide(Query(CLASS, prefer=host("b")), 0.1).chosen == host("a")


def test_a_drained_exit_says_so() -> None:
    engine = build_engine(1, ("a", "b"))
    edge = engine._adjacency.get(host("a"))
    assert edge is not None
    edge.breaker.drain("maintenance", 0)
    found = candidate(engine.decide(Query(CLASS), 0), host("a"))
    assert (found.verdict, found.reason) == (Verdict.DRAINING, "it is being drained: maintenance")


def test_terms_of_a_peer_say_who_told_its_backlog_and_when() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.hear_backlog(node_id(2), {CLASS: 5}, 1)
    found = candidate(engine.decide(Query(CLASS), 1.5), peer(2))
    assert (found.backlog_there, found.backlog_source, found.backlog_age_s) == (5, "acknowledgement", 0.5)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_direct_classes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CLASSES_MAX", 5)
    engine = build_engine(1, (), direct=True)
    engine.set_backlog("mx:waiting.example", 1)
    engine.ensure_class("mx:waiting.example")
    for number in range(20):
        engine.decide(Query(f"mx:d{number}.example"), 0)
    names = [row.class_id for row in engine.rows(0)]
    assert "mx:waiting.example" in names
    assert len(names) <= 5
    for number in range(20):
        engine.decide(Query(f"unroutable:d{number}.example"), 0)
    assert len(engine._views) <= 5


def test_a_domain_whose_edge_was_forgotten_gets_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.adjacency.DIRECT_EDGES_MAX", 2)
    engine = build_engine(1, (), direct=True)
    for number in (1, 2, 3, 1):
        query = Query(f"mx:d{number}.example")
        chosen = engine.decide(query, 0).chosen
        assert chosen == Hop.parse(query.class_id)
        assert engine._adjacency.get(chosen) is not None


def test_a_class_that_nobody_knows_is_held() -> None:
    assert build_engine(1).decide(Query("unroutable:x"), 0).rule == "hold: no path"


def test_a_hop_of_a_users_sink_is_measured_too() -> None:
    engine = build_engine(1)
    succeed(engine, Hop.parse("mx:chosen.example"))
    assert "mx:chosen.example" in {state.hop for state in engine.links(0)}


def test_a_peer_that_leaves_in_mid_transaction_is_kept_until_its_end() -> None:
    engine = with_peers(record(2, [link(host("a"))], age_s=0), hosts=(), via=("a",))
    engine.begin(peer(2), CLASS, 0)
    engine.apply(Snapshot("s", (record(1),)), 1)
    assert {state.hop for state in engine.links(1)} == {peer(2).id}
    engine.record(Outcome(peer(2), OutcomeKind.DISCONNECTED, 0), CLASS, 2)
    engine.apply(Snapshot("t", (record(1),)), 3)
    assert engine.links(3) == ()
    assert engine.load(3) == Load()


def test_a_new_edge_is_looked_at_before_mail_has_to_find_out() -> None:
    engine = with_peers(record(2))
    assert engine.probes_due(0.1) == ()
    assert engine.probes_due(0.5) == (host("a"), peer(2))
    probe(engine, host("a"), 0.6)
    assert candidate(engine.decide(Query(CLASS), 0.7), host("a")).state is EdgeState.UP


def test_an_idle_exit_is_probed_now_and_then_and_an_idle_peer_is_not() -> None:
    engine = with_peers(record(2))
    succeed(engine, host("a"))
    succeed(engine, peer(2))
    assert engine.probes_due(59) == ()
    assert engine.probes_due(60) == (host("a"),)
    assert engine.probes_due(200) == ()  # still being probed
    probe(engine, host("a"), 201)
    assert engine.probes_due(261) == (host("a"),)


def test_reports_that_are_old_or_unsure_count_for_nothing() -> None:
    engine = build_engine(1)
    old = [record(n, [link(host("a"), DOWN)], age_s=6) for n in (2, 3)]
    unsure = [record(n, [link(host("a"), LinkStatus.UNKNOWN)]) for n in (4, 5)]
    assert engine.apply(Snapshot("r", (record(1), *old, *unsure)), 0).transitions == ()


def test_the_next_timer_is_the_end_of_the_shortest_pause() -> None:
    engine = build_engine(1, ("a", "b"))
    assert engine.next_timer(0) is None
    fail(engine, host("a"), 0)
    fail(engine, host("b"), 0.5)
    assert engine.next_timer(0.5) == pytest.approx(0.8, abs=0.17)
    engine.on_timer(1.1)
    assert engine.next_timer(1.1) == pytest.approx(1.1, abs=0.17)  # the trial's probe


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32))
def test_walks_end_within_twice_the_relays_however_views_differ(count: int, seed: int) -> None:
    """Views and states change at random between any two steps of the message."""
    rng = random.Random(seed)
    engines = {n: build_engine(n, ("a",), via=("a",), settings=RouterSettings()) for n in range(1, count + 1)}
    names = {node_id(n): n for n in engines}
    trace: tuple[str, ...] = ()
    here, transfers, now = 1, 0, 0.0
    for _ in range(6 * count):
        now += rng.random() * 3
        records = [
            record(m, [link(peer(k)) for k in engines if k != m] + [link(host("a"), rng.choice(list(LinkStatus)))])
            for m in engines
            if m == here or rng.random() < 0.9
        ]
        engines[here].apply(Snapshot(f"at {now}", tuple(records)), now)
        if rng.random() < 0.8:
            fail(engines[here], host("a"), now)
        decision = engines[here].decide(Query(CLASS, trace), now)
        assert (decision.chosen is None) == decision.rule.startswith("hold: ")
        if decision.chosen is not None and decision.chosen.kind.value == "peer":
            assert decision.rule == "step back" or decision.chosen.name not in trace
            assert candidate(decision, decision.chosen).verdict is Verdict.CHOSEN
            trace, here, transfers = (*trace, node_id(here)), names[decision.chosen.name], transfers + 1
    assert transfers <= 2 * (count - 1)
