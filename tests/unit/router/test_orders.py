"""What the operator orders: drains of hops and of the relay itself, pins of classes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gossip.linkstate import LinkStatus, NodeInfo, Snapshot
from router.decision import Candidate, Decision, EdgeState, ExitHop, Hop, Outcome, OutcomeKind, Pin, Query, Verdict
from router.engine import RoutingEngine
from router.policy import RouteRule
from router.recording import Origin, Recorder, replay
from router.replay import recompute
from router.settings import RouterSettings
from router.terms import Policy
from router.whatif import Hypothesis
from tests.unit.router.loops import DivergentMesh, Tally
from tests.unit.router.test_engine import fail, succeed, with_peers
from tests.unit.router.worlds import CLASS, build_engine, host, link, node_id, peer, record


def ask(engine: RoutingEngine, now: float = 0.0, **query: object) -> Decision:
    """A decision whose record leads to the same."""
    decision = engine.decide(replace(Query(CLASS), **query), now)  # type: ignore[arg-type]
    assert recompute(decision) == (decision.chosen, decision.rule)
    return decision


def seen(decision: Decision, hop: Hop) -> Candidate:
    return next(item for item in decision.candidates if item.hop == hop)


def draining(*others: int) -> RoutingEngine:
    """Relay 1 drains; the others reach the exit that it has itself."""
    engine = with_peers(*(record(number, [link(host("a"))]) for number in others))
    engine.draining = True
    return engine


# -- a hop is drained --------------------------------------------------------------------------------------------------


def test_a_drained_hop_gets_nothing_new_and_others_are_told() -> None:
    engine = build_engine(1, ("a", "b"))
    succeed(engine, host("a"))
    changes = engine.drain_hop(host("a"), "ordered by root", 1.0)
    assert [(move.before, move.after) for move in changes.transitions] == [(EdgeState.UP, EdgeState.DRAINING)]
    assert changes.links_changed
    assert engine.links(1.0)[0].status is LinkStatus.DRAINING
    decision = ask(engine, 1.0)
    assert decision.chosen == host("b")
    assert seen(decision, host("a")).verdict is Verdict.DRAINING
    assert seen(decision, host("a")).reason == "it is being drained: ordered by root"


@pytest.mark.parametrize("kind", [OutcomeKind.ACCEPTED, OutcomeKind.TIMEOUT, OutcomeKind.CONNECT_FAILED])
def test_however_an_attempt_from_before_ends_the_drain_stays(kind: OutcomeKind) -> None:
    engine = build_engine(1)
    engine.begin(host("a"), CLASS, 0.0)
    engine.drain_hop(host("a"), "", 1.0)
    engine.record(Outcome(host("a"), kind, 0.0, 0.1), CLASS, 2.0)
    engine.on_timer(100.0)
    assert engine.probes_due(100.0) == ()
    assert engine.state_of(host("a")) is EdgeState.DRAINING


def test_after_the_drain_a_probe_finds_out_whether_the_hop_is_well() -> None:
    engine = build_engine(1)
    succeed(engine, host("a"))
    engine.drain_hop(host("a"), "", 1.0)
    engine.undrain_hop(host("a"), "ordered by root", 600.0)
    assert engine.state_of(host("a")) is EdgeState.HALF_OPEN
    assert engine.probes_due(600.1) == (host("a"),)
    for _ in range(3):
        engine.record(Outcome(host("a"), OutcomeKind.ACCEPTED, 600.1, 0.01, probe=True), "", 600.1)
    assert engine.state_of(host("a")) is EdgeState.UP
    assert seen(ask(engine, 600.2), host("a")).availability > 0.99


@pytest.mark.parametrize("order", ["drain_hop", "undrain_hop"])
def test_what_is_so_already_or_is_not_there_is_no_change(order: str) -> None:
    engine = build_engine(1)
    engine.drain_hop(host("a"), "", 0.0)
    if order == "undrain_hop":
        engine.undrain_hop(host("a"), "", 0.0)
    assert not getattr(engine, order)(host("a"), "", 1.0)
    assert not getattr(engine, order)(host("nobody"), "", 1.0)


def test_a_drain_is_no_reason_to_panic_about_the_exits_that_are_left() -> None:
    engine = build_engine(1, ("a", "b", "c", "d"))
    for name in ("a", "b"):
        engine.drain_hop(host(name), "", 0.0)
    engine.apply(Snapshot("view", (record(1), record(2, [link(host("d"), LinkStatus.DOWN)]))), 0.0)
    assert engine.state_of(host("d")) is EdgeState.SUSPECT
    engine.hear_backlog(node_id(2), {CLASS: 1000}, 0.1)
    for name in ("c", "c", "d"):
        engine.begin(host(name), CLASS, 0.1)
    assert ask(engine, 0.1).rule == "hold: no slot"


# -- this relay drains -------------------------------------------------------------------------------------------------


def test_a_relay_that_drains_uses_exits_first_and_then_any_peer_that_reaches_one() -> None:
    engine = draining(2)
    engine.hear_backlog(node_id(2), {CLASS: 5000}, 0.0)
    assert ask(engine).rule == "planned share"
    for _ in range(2):
        engine.begin(host("a"), CLASS, 0.0)
    decision = ask(engine)
    assert (decision.chosen, decision.rule) == (peer(2), "largest gain")
    assert seen(decision, peer(2)).gain < 0
    engine.draining = False
    assert ask(engine).rule == "hold: no slot"


def test_of_two_peers_it_takes_the_one_with_less_to_do() -> None:
    engine = draining(2, 3)
    engine.hear_backlog(node_id(2), {CLASS: 5000}, 0.0)
    engine.hear_backlog(node_id(3), {CLASS: 4000}, 0.0)
    assert ask(engine, avoid=(host("a"),)).chosen == peer(3)


def test_what_is_not_due_goes_to_peers_only() -> None:
    engine = draining(2)
    decision = ask(engine, peers_only=True)
    assert (decision.chosen, seen(decision, host("a")).verdict) == (peer(2), Verdict.NOT_DUE)
    assert ask(draining(), peers_only=True).rule == "hold: no path"


def test_what_is_not_due_may_go_back_to_the_relay_that_sent_it() -> None:
    engine = draining(2)
    assert ask(engine, peers_only=True, trace=(node_id(2),)).rule == "step back"
    assert ask(engine, trace=(node_id(2),)).chosen == host("a")
    assert ask(engine, peers_only=True, trace=(node_id(2),), avoid=(peer(2),)).rule == "hold: every way leads back"


def test_mail_that_visited_another_peer_is_not_sent_there_again() -> None:
    engine = draining(2, 3)
    trace = (node_id(3), node_id(2))
    assert ask(engine, peers_only=True, trace=trace).chosen == peer(2)
    assert ask(engine, peers_only=True, trace=(node_id(3), node_id(2)), avoid=(peer(2),)).chosen is None
    assert ask(engine, peers_only=True, trace=(node_id(2),)).chosen == peer(3)


def test_a_peer_that_drains_itself_gets_nothing() -> None:
    engine = draining()
    leaving = replace(record(2, [link(host("a"))]), info=NodeInfo("r2", "g", "m", draining=True))
    engine.apply(Snapshot("view", (record(1), leaving)), 0.0)
    assert ask(engine, peers_only=True).rule == "hold: no path"


def test_a_relay_that_drains_says_that_it_has_no_room() -> None:
    engine = draining(2)
    assert engine.load(0.0).headroom_permille == 0


# -- pins --------------------------------------------------------------------------------------------------------------


def test_all_mail_of_a_pinned_class_goes_by_one_hop_and_the_others_say_why_not() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=("a", "b"))
    assert engine.pin(CLASS, host("b"), 3600.0, 0.0).routes_changed
    for _ in range(2):
        decision = ask(engine)
        assert (decision.chosen, decision.rule) == (host("b"), "pinned")
        engine.begin(host("b"), CLASS, 0.0)
    decision = ask(engine)
    assert (decision.chosen, decision.rule) == (None, "hold: pinned, no slot")
    for hop in (host("a"), peer(2)):
        assert seen(decision, hop).verdict is Verdict.PINNED_ELSEWHERE
        assert seen(decision, hop).reason == "the class is pinned to host:b for 3600 s more"


def test_a_class_may_be_pinned_to_a_peer() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.pin(CLASS, peer(2), 10.0, 0.0)
    assert ask(engine).chosen == peer(2)
    assert ask(engine, peers_only=True).chosen == peer(2)


def test_pinned_mail_waits_while_its_hop_is_down() -> None:
    engine = build_engine(1, ("a", "b"))
    engine.pin(CLASS, host("a"), 100.0, 0.0)
    fail(engine, host("a"), 0.0)
    assert ask(engine).rule == "hold: pinned, its hop takes nothing"
    engine.drain_hop(host("a"), "", 0.0)
    assert ask(engine).rule == "hold: pinned, its hop takes nothing"
    assert ask(engine, 100.0).chosen == host("b")


@pytest.mark.parametrize(
    ("query", "rule"),
    [
        ({"avoid": (host("a"),)}, "hold: pinned, backing off"),
        ({"peers_only": True}, "hold: pinned to an exit, not due"),
        ({"prefer": peer(2)}, "in doubt: the same hop first"),
        ({"trace": (node_id(2),)}, "pinned"),
    ],
)
def test_a_pin_bends_no_other_rule(query: dict[str, object], rule: str) -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.pin(CLASS, host("a"), 10.0, 0.0)
    assert ask(engine, **query).rule == rule


def test_a_pin_leads_no_message_back_to_where_it_was() -> None:
    engine = with_peers(record(2, [link(host("a"))]))
    engine.pin(CLASS, peer(2), 10.0, 0.0)
    assert ask(engine, trace=(node_id(2),)).rule == "hold: pinned, its hop takes nothing"


def test_a_pin_ends_by_itself_and_held_mail_is_asked_for_again() -> None:
    engine = build_engine(1, ("a", "b"))
    engine.on_timer(0.0)
    engine.pin(CLASS, host("a"), 50.0, 0.0)
    assert engine.next_timer(0.0) == 50.0
    assert not engine.on_timer(49.0)
    over = engine.on_timer(50.0)
    assert (over.routes_changed, over.woken) == (True, (CLASS,))
    assert engine.pins == {}


def test_a_pin_that_is_taken_back_is_over_at_once() -> None:
    engine = build_engine(1, ("a", "b"))
    engine.pin(CLASS, host("b"), 50.0, 0.0)
    taken_back = engine.unpin(CLASS, 1.0)
    assert (taken_back.routes_changed, taken_back.woken) == (True, (CLASS,))
    assert not engine.unpin(CLASS, 1.0)
    assert ask(engine, 1.0).chosen == host("a")


def test_what_if_bound_and_paths_keep_to_the_pin() -> None:
    engine = build_engine(1, ("a", "b"))
    engine.pin(CLASS, host("b"), 50.0, 0.0)
    assert engine.explain(Query(CLASS), 0.0).paths == ("r1 -> host:b",)
    (answer,) = engine.what_if(Hypothesis(), 0.0, load_mps=5)
    assert [item.hop for item in answer.now.exits] == [host("b")]
    (answer,) = engine.what_if(Hypothesis(exits_down=frozenset({host("b")})), 0.0, load_mps=5)
    assert answer.then.stranded == (node_id(1),)


def test_a_relay_that_drains_gets_no_load_in_what_if() -> None:
    engine = draining(2)
    (answer,) = engine.what_if(Hypothesis(relays_down=frozenset({node_id(2)})), 0.0, load_mps=5)
    assert (answer.now.offered_mps, answer.then.offered_mps) == (5, 0)


def test_a_pin_that_makes_no_sense_is_named() -> None:
    engine = with_peers(record(2, [link(host("a"))]), hosts=("a", "b"), via=("a",))
    assert engine.find_pin_fault(CLASS, host("a"), 0.0) == ""
    assert engine.find_pin_fault(CLASS, peer(2), 0.0) == ""
    assert engine.find_pin_fault("nope", host("a"), 0.0) == "there is no class 'nope' here; there are: default"
    expected = "host:b is no exit of the class default here; there are: host:a"
    assert engine.find_pin_fault(CLASS, host("b"), 0.0) == expected
    assert engine.find_pin_fault(CLASS, peer(3), 0.0) == f"there is no peer:{node_id(3)} here"


def test_a_pin_may_not_break_the_policy_of_the_route() -> None:
    origin = Origin(
        node_id(1),
        "r1",
        (RouteRule(CLASS, ("*",), ("a",), Policy(forbid_tags=("us",), transit=False)),),
        (ExitHop(host("a"), "a"),),
        RouterSettings(),
        1,
        0.0,
    )
    engine = origin.build()
    engine.apply(Snapshot("view", (record(1), record(2, [link(host("a"))]))), 0.0)
    expected = f"the route's policy keeps default from {peer(2).id}: transit no: it is another relay"
    assert engine.find_pin_fault(CLASS, peer(2), 0.0) == expected


# -- explained and recorded --------------------------------------------------------------------------------------------


def test_the_terms_of_decisions_under_orders_lead_to_the_same_choice() -> None:
    decisions: list[Decision] = []
    for seed in range(60):
        mesh = DivergentMesh(random.Random(seed), decisions.append)
        for relay, engine in enumerate(mesh.engines):
            engine.draining = mesh.rng.random() < 0.4
            for name in mesh.attached[relay]:
                if mesh.rng.random() < 0.3:
                    engine.drain_hop(host(name), "", mesh.now)
            if mesh.rng.random() < 0.3:
                hop = mesh.rng.choice([item.hop for item in engine.decide(Query(CLASS), mesh.now).candidates])
                engine.pin(CLASS, hop, mesh.now + mesh.rng.choice((0.0, 2.0, 100.0)), mesh.now)
            for row in engine.decide(Query(CLASS), mesh.now).candidates:
                for _ in range(mesh.rng.choice((0, 0, 1, 2, 3))):
                    engine.begin(row.hop, CLASS, mesh.now)
            trace = tuple(node_id(n + 1) for n in range(mesh.count) if mesh.rng.random() < 0.3 and n != relay)
            queries = [Query(CLASS, trace, peers_only=early) for early in (True, False)]
            decisions += [engine.decide(query, mesh.now) for query in queries]
        for _ in range(2):
            mesh.walk(Tally())
    assert len(decisions) > 500
    for decision in decisions:
        assert recompute(decision) == (decision.chosen, decision.rule)
    rules = {decision.rule for decision in decisions}
    assert {"pinned", "hold: pinned, its hop takes nothing", "hold: pinned, no slot", "step back"} <= rules, rules
    assert {decision.draining for decision in decisions if decision.rule == "largest gain"} == {True, False}


def test_orders_are_recorded_and_replayed() -> None:
    exits = (ExitHop(host("a"), "a"), ExitHop(host("b"), "b"))
    recorder = Recorder(
        Origin(node_id(1), "r1", (RouteRule(CLASS, ("*",), ("a", "b")),), exits, RouterSettings(), 1, 0.0, ("eu",))
    )
    engine = recorder.engine
    engine.drain_hop(host("a"), "by root", 0.0)
    engine.decide(Query(CLASS), 0.1)
    engine.pin(CLASS, host("a"), 9.0, 0.2)
    engine.decide(Query(CLASS), 0.3)
    engine.unpin(CLASS, 0.4)
    engine.undrain_hop(host("a"), "by root", 0.5)
    engine.draining = True
    engine.decide(Query(CLASS, peers_only=True), 0.6)
    lines = list(recorder.lines())
    assert replay(lines) == (7, [])
    without = [line for line in lines if '"pin"' not in line]
    assert [item.method for item in replay(without)[1]] == ["decide", "unpin"]


def test_a_pin_is_a_value_of_the_decision() -> None:
    engine = build_engine(1)
    engine.pin(CLASS, host("a"), 5.0, 0.0)
    assert ask(engine, 4.9).pin == Pin(host("a"), 5.0)
    assert ask(engine, 5.0).pin is None
