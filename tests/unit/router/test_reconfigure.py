"""Other routes, exits and tags while the engine works: what was measured stays, what is no more takes nothing."""

from __future__ import annotations

import random

import pytest

from router.decision import EdgeState, ExitHop, Hop, HopKind, Outcome, OutcomeKind, Query
from router.engine import RoutingEngine
from router.policy import RouteRule
from router.recording import Origin, Recorder, replay
from router.settings import RouterSettings
from router.terms import Terms
from tests.unit.router.worlds import CLASS, build_engine, host

A, B, C = host("a"), host("b"), host("c")
MX = Hop(HopKind.MX, "example.org")


def route(*via: str, name: str = CLASS) -> RouteRule:
    return RouteRule(name, ("*",), via)


def exits(*names: str) -> list[ExitHop]:
    return [ExitHop(host(name), name) for name in names]


def deliver(
    engine: RoutingEngine, hop: Hop, *, now: float, began: float, kind: OutcomeKind = OutcomeKind.ACCEPTED
) -> None:
    engine.record(Outcome(hop, kind, began, 0.01), CLASS, now)


@pytest.fixture
def engine() -> RoutingEngine:
    """Of which the exits `a` and `b` are known to be well."""
    engine = build_engine(1, ("a", "b"))
    for hop in (A, B):
        engine.begin(hop, CLASS, 0.0)
        deliver(engine, hop, now=0.1, began=0.0)
    return engine


def test_an_exit_that_left_takes_nothing_and_a_new_one_does(engine: RoutingEngine) -> None:
    engine.reconfigure([route("c")], exits("c"), 1.0)
    assert engine.pick(Query(CLASS), 1.0)[0] == C
    assert [link.hop for link in engine.links(1.0)] == ["host:c"]


def test_an_exit_that_stays_keeps_what_was_measured(engine: RoutingEngine) -> None:
    engine.reconfigure([route("a", "c")], exits("a", "c"), 1.0)
    assert (engine.state_of(A), engine.state_of(C)) == (EdgeState.UP, EdgeState.UNKNOWN)
    assert {link.hop: link.samples for link in engine.links(1.0)} == {"host:a": 1, "host:c": 0}


def test_an_exit_that_is_another_machine_begins_anew(engine: RoutingEngine) -> None:
    engine.begin(A, CLASS, 0.9)
    engine.reconfigure([route("a", "b")], exits("a", "b"), 1.0, anew={A})
    assert engine.state_of(A) is EdgeState.UNKNOWN
    deliver(engine, A, now=1.2, began=0.9, kind=OutcomeKind.CONNECT_FAILED)  # of the machine before
    assert engine.state_of(A) is EdgeState.UNKNOWN
    assert {link.hop: link.samples for link in engine.links(1.2)} == {"host:a": 0, "host:b": 1}


def test_what_the_operator_says_of_an_exit_counts_at_once(engine: RoutingEngine) -> None:
    small = ExitHop(A, "a", cost=7, window_max=1, terms=Terms(("eu",), size_bytes_max=70_000), reserve=0.5)
    engine.reconfigure([route("a")], [small], 1.0)
    (link,) = engine.links(1.0)
    assert (link.cost, link.tags, link.size_bytes_max) == (7, ("eu",), 70_000)
    engine.begin(A, CLASS, 1.0)
    assert engine.pick(Query(CLASS), 1.0)[0] is None


def test_the_end_of_an_attempt_on_an_exit_that_left_is_no_news(engine: RoutingEngine) -> None:
    engine.begin(B, CLASS, 0.9)
    engine.reconfigure([route("a")], exits("a"), 1.0)
    deliver(engine, B, now=1.1, began=0.9, kind=OutcomeKind.CONNECT_FAILED)
    assert engine.state_of(B) is None


def test_classes_with_a_new_exit_are_woken(engine: RoutingEngine) -> None:
    rules = [RouteRule("partner", ("example.org",), ("c",)), route("a", "b")]
    assert engine.reconfigure(rules, exits("a", "b", "c"), 1.0).woken == ("partner",)
    assert engine.reconfigure(rules, exits("a", "b", "c"), 2.0).woken == ()


def test_a_class_that_is_no_more_holds_its_mail(engine: RoutingEngine) -> None:
    engine.reconfigure([route("a", name="other")], exits("a"), 1.0)
    assert engine.pick(Query(CLASS), 1.0)[0] is None
    assert engine.pick(Query("other"), 1.0)[0] == A


def test_direct_delivery_ends_with_its_route() -> None:
    engine = build_engine(1, (), direct=True)
    assert engine.pick(Query("mx:example.org"), 0.0)[0] == MX
    engine.reconfigure([route("a")], exits("a"), 1.0)
    assert engine.pick(Query("mx:example.org"), 1.0)[0] is None
    engine.reconfigure([route("mx")], [], 2.0)
    assert engine.pick(Query("mx:example.org"), 2.0)[0] == MX


def test_a_recording_with_a_reload_replays_to_the_same_answers() -> None:
    origin = Origin("1" * 32, "r1", (route("a"),), tuple(exits("a")), RouterSettings(), 1, 0.0)
    recorder = Recorder(origin)
    recorder.engine.pick(Query(CLASS), 0.5)
    recorder.engine.reconfigure([route("b", "c")], exits("b", "c"), 1.0, tags=("eu",), anew=(C,))
    rng = random.Random(3)
    for number in range(50):
        hop, _ = recorder.engine.pick(Query(CLASS), 1.0 + number)
        if hop is not None:
            recorder.engine.begin(hop, CLASS, 1.0 + number)
            deliver(recorder.engine, hop, now=1.0 + number + rng.random(), began=1.0 + number)
    count, differences = replay(recorder.lines())
    assert (count > 100, differences) == (True, [])
