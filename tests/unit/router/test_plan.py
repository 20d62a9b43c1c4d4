"""The joint plan: what it is a function of, that it is a flow, that it is a good one, and how mail follows it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx
import pytest

from gossip.linkstate import ClassLoad, LinkState, Load, NodeRecord, Snapshot
from router.decision import Decision, Hop, HopKind, Outcome, OutcomeKind, Query
from router.engine import RoutingEngine
from router.plan import KNEE, Plan, complete, solve
from router.planning import ClassPlan, Planning
from router.policy import DestinationClass
from router.problem import SINK, TRIFLE_MPS, UNLIMITED, Commodity, Link, Problem, build_problem
from router.terms import Policy
from router.topology import Arc
from tests.unit.router.test_engine import succeed
from tests.unit.router.worlds import CLASS, build_engine, host, link, node_id, peer, record

Flows = Mapping[tuple[str, str], float]


def problem(links: Sequence[tuple[str, str, float]], demand: Mapping[str, float]) -> Problem:
    """One class that may use every link."""
    made = tuple(Link(tail, head, mps, 0.05) for tail, head, mps in links)
    return Problem(made, (Commodity(CLASS, tuple(range(len(made))), tuple(sorted(demand.items()))),))


def flows_of(asked: Problem) -> Flows:
    return complete(asked).flows[CLASS]


# -- the solution ------------------------------------------------------------------------------------------------------


def test_little_mail_takes_the_shortest_way() -> None:
    links = [("r", "host:a", 100), ("r", "s", 100), ("s", "host:a", 100), ("host:a", SINK, 100)]
    assert flows_of(problem(links, {"r": 1})) == {("r", "host:a"): 1}


def test_two_equal_ways_get_the_same() -> None:
    links = [("r", "s", 10), ("r", "t", 10), ("s", "host:a", 50), ("t", "host:a", 50), ("host:a", SINK, 50)]
    found = flows_of(problem(links, {"r": 16}))
    assert found["r", "s"] == pytest.approx(8, rel=0.01)
    assert found["r", "t"] == pytest.approx(8, rel=0.01)


def test_more_than_all_ways_carry_spreads_over_all() -> None:
    links = [("r", "host:a", 10), ("r", "host:b", 30), ("host:a", SINK, 10), ("host:b", SINK, 30)]
    found = flows_of(problem(links, {"r": 80}))
    assert found["r", "host:a"] + found["r", "host:b"] == pytest.approx(80)
    assert found["r", "host:a"] > 12
    assert found["r", "host:b"] > 36


def test_what_reaches_no_exit_is_not_planned() -> None:
    links = [("r", "host:a", 10), ("host:a", SINK, 10), ("s", "t", 10)]
    assert flows_of(problem(links, {"r": 5, "s": 5})) == {("r", "host:a"): 5}


def test_classes_share_a_narrow_way_and_the_one_with_another_way_takes_it() -> None:
    links = (
        Link("r", "host:a", 10, 0.05),
        Link("host:a", SINK, 10, 0),
        Link("r", "host:b", 10, 0.05),
        Link("host:b", SINK, 10, 0),
    )
    demand = (("r", 7.0),)
    plan = complete(Problem(links, (Commodity("bound", (0, 1), demand), Commodity("free", (0, 1, 2, 3), demand))))
    assert plan.flows["bound"] == {("r", "host:a"): 7}
    assert plan.flows["free"]["r", "host:b"] > 6


def random_problem(seed: int, load: float) -> tuple[Problem, float]:
    """A mesh with a demand that is a share of what a max-flow carries in these proportions, and that maximum."""
    rng = random.Random(seed)
    relays = [f"r{number}" for number in range(rng.randint(3, 12))]
    links = {(one, rng.choice(relays)): rng.uniform(4, 60) for one in relays for _ in range(3)}
    for number in range(3):
        links[rng.choice(relays), f"host:{number}"] = 80
        links[f"host:{number}", SINK] = rng.uniform(10, 60)
    wanted = {relay: rng.uniform(0.5, 1.5) for relay in rng.sample(relays, 3)}
    named = [(tail, head, mps) for (tail, head), mps in sorted(links.items()) if tail != head]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_weighted_edges_from(named, weight="capacity")
    low, high = 0.0, 200.0
    for _ in range(40):
        middle = (low + high) / 2
        for relay, share in wanted.items():
            graph.add_edge("+", relay, capacity=share * middle)
        low, high = (
            (middle, high)
            if nx.maximum_flow_value(graph, "+", SINK) > (1 - 1e-9) * middle * sum(wanted.values())
            else (low, middle)
        )
    return problem(named, {relay: load * low * share for relay, share in wanted.items()}), low


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_conserves_mail_has_no_circles_and_keeps_below_the_capacities(seed: int) -> None:
    asked, most = random_problem(seed, 0.9)
    if most < 1:
        return
    found = flows_of(asked)
    capacity = {(item.tail, item.head): item.capacity_mps for item in asked.links}
    assert max(mps / capacity[way] for way, mps in found.items()) < KNEE + 0.02
    assert nx.is_directed_acyclic_graph(nx.DiGraph(list(found)))
    demand = dict(asked.commodities[0].demand)
    for relay in {item.tail for item in asked.links if item.tail.startswith("r")}:
        arriving = demand.get(relay, 0.0) + sum(mps for (_, head), mps in found.items() if head == relay)
        leaving = sum(mps for (tail, _), mps in found.items() if tail == relay)
        assert leaving == pytest.approx(arriving, abs=10 * TRIFLE_MPS), relay


def test_equal_problems_have_equal_plans_and_the_digest_tells_others_apart() -> None:
    one, _ = random_problem(3, 0.9)
    other, _ = random_problem(3, 0.8)
    assert repr(complete(one).flows) == repr(complete(one).flows)
    assert one.digest == random_problem(3, 0.9)[0].digest
    assert one.digest != other.digest


def test_work_is_done_class_by_class() -> None:
    asked, _ = random_problem(5, 0.9)
    two = replace(asked, commodities=(asked.commodities[0], replace(asked.commodities[0], class_id="other")))
    assert sum(1 for _ in solve(two, sweeps=3)) == 2 * 3 + 2
    assert sum(1 for _ in solve(two, sweeps=1000)) < 2 * 100, "it settles"


# -- the problem -------------------------------------------------------------------------------------------------------


def arc(origin: int, hop: Hop, mps: float = 10) -> Arc:
    return Arc(node_id(origin), hop, 1.0, round(1000 * mps), (CLASS,) if hop.kind is HopKind.SMART_HOST else ())


def loaded(number: int, *classes: ClassLoad, links: Sequence[LinkState] = ()) -> NodeRecord:
    return replace(record(number, links), load=Load(classes=classes))


def capacity(made: Problem, tail: str, head: str) -> float:
    return next(item.capacity_mps for item in made.links if (item.tail, item.head) == (tail, head))


def test_an_exit_takes_what_all_measured_there_and_one_relay_may_give_it_all() -> None:
    arcs = [arc(1, host("a"), 10), arc(2, host("a"), 30)]
    made = build_problem({CLASS: arcs}, [loaded(1, ClassLoad(CLASS, 0, 0, 5_000))])
    assert capacity(made, "host:a", SINK) == pytest.approx(40, rel=0.06)
    assert capacity(made, node_id(1), "host:a") == UNLIMITED
    assert flows_of(build_problem({CLASS: arcs}, [loaded(1, ClassLoad(CLASS, 0, 0, 30_000))])) == {
        (node_id(1), "host:a"): pytest.approx(31.5, rel=0.1)
    }


@pytest.mark.parametrize(
    ("ingress_mmps", "backlog", "wanted"),
    [(20_000, 0, 21), (20_000, 60, 21), (20_000, 160, 31), (20_000, 10_000, 46), (0, 40, 2), (0, 20, 0)],
    ids=["arrivals", "a queue that breathes", "to drain", "a deep one, bounded", "a backlog alone", "hardly any"],
)
def test_demand_is_what_arrives_and_what_has_to_drain(ingress_mmps: int, backlog: int, wanted: float) -> None:
    made = build_problem({CLASS: [arc(1, host("a"))]}, [loaded(1, ClassLoad(CLASS, backlog, 0, ingress_mmps))])
    found = [mps for item in made.commodities for _, mps in item.demand]
    assert sum(found) == pytest.approx(wanted, rel=0.1)


def test_small_changes_and_another_order_make_no_new_problem() -> None:
    arcs = [arc(1, host("a"), 10.8), arc(1, peer(2), 19.2), arc(2, host("a"), 30.4)]
    nodes = [loaded(1, ClassLoad(CLASS, 3, 0, 20_000)), loaded(2, ClassLoad(CLASS, 3, 0, 20_000))]
    trembling = [replace(item, capacity_mmps=round(item.capacity_mmps * 1.01)) for item in reversed(arcs)]
    assert build_problem({CLASS: arcs}, nodes) == build_problem({CLASS: trembling}, reversed(nodes))


def test_too_many_classes_are_planned_as_far_as_the_time_goes_the_largest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.problem.WORK_MAX", 2)
    arcs = [arc(1, host("a"))]
    rates = {"small": 1_000, "large": 9_000, "middle": 5_000}
    node = loaded(1, *(ClassLoad(name, 0, 0, rate) for name, rate in rates.items()))
    made = build_problem(dict.fromkeys(rates, arcs), [node])
    assert [item.class_id for item in made.commodities] == ["large", "middle"]


# -- keeping it --------------------------------------------------------------------------------------------------------

CLASSES = {CLASS: DestinationClass(CLASS, ("host:a",))}


def view(ingress_mmps: int = 20_000) -> Snapshot:
    """Relay 1 has no exit; 2 and 3 have one of 10 and 30 messages a second."""
    return Snapshot(
        f"view {ingress_mmps}",
        (
            loaded(1, ClassLoad(CLASS, 0, 0, ingress_mmps), links=[link(peer(2)), link(peer(3))]),
            loaded(2, links=[link(host("a"), capacity_mmps=10_000)]),
            loaded(3, links=[link(host("b"), capacity_mmps=30_000)]),
        ),
    )


def finish(planning: Planning, snapshot: Snapshot, now: float) -> int:
    """Steps that a plan took."""
    steps = 0
    while planning.begin(snapshot, CLASSES, now):
        planning.step(now)
        steps += 1
    return steps


def test_every_relay_comes_to_the_same_plan() -> None:
    plans = []
    for number in (1, 2, 3):
        planning = Planning(node_id(number))
        finish(planning, view(), 0.0)
        plans.append(planning.plan)
    assert isinstance(plans[0], Plan)
    assert repr(plans[0]) == repr(plans[1]) == repr(plans[2])


def test_a_plan_is_made_once_a_second_and_only_of_something_new() -> None:
    planning, first = Planning(node_id(1)), view()
    assert finish(planning, first, 0.0) > 4
    assert finish(planning, first, 5.0) == 0, "nothing is new"
    assert finish(planning, view(), 5.5) > 0, "another snapshot"
    assert planning.made == 1, "of the same problem"
    assert finish(planning, view(90_000), 6.0) == 0, "too soon"
    assert finish(planning, view(90_000), 6.5) > 4
    assert planning.made == 2


def test_a_cluster_that_is_too_large_or_alone_goes_without() -> None:
    planning = Planning(node_id(1))
    finish(planning, view(), 0.0)
    assert planning.of_class(CLASS) is not None
    planning.relays_max = 2
    assert finish(planning, view(), 2.0) == 0
    assert planning.of_class(CLASS) is None
    assert finish(planning, Snapshot("alone", view().nodes[:1]), 4.0) == 0


def test_single_domains_are_not_planned() -> None:
    planning, node = Planning(node_id(1)), loaded(1, ClassLoad("mx:example.org", 900, 0, 9_000), links=[link(peer(2))])
    classes = {"mx:example.org": DestinationClass("mx:example.org", ("mx:example.org",))}
    snapshot = Snapshot("direct", (node, record(2)))
    while planning.begin(snapshot, classes, 0.0):
        planning.step(0.0)
    assert planning.of_class("mx:example.org") is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), {node_id(2), node_id(3)}),
        (Policy(require_tags=("eu",)), {node_id(3)}),
        (Policy(forbid_tags=("eu",)), {node_id(2)}),
        (Policy(transit=False), set()),
    ],
)
def test_a_plan_keeps_to_the_policy_of_the_class(policy: Policy, expected: set[str]) -> None:
    first, second, third = view().nodes
    links = tuple(replace(item, tags=("eu",)) for item in third.links)
    third = replace(third, info=replace(third.info, tags=("eu",)), links=links)
    planning = Planning(node_id(1))
    snapshot = Snapshot("tagged", (first, second, third))
    while planning.begin(snapshot, {CLASS: DestinationClass(CLASS, ("host:a",), policy)}, 0.0):
        planning.step(0.0)
    found = planning.of_class(CLASS)
    assert (set(found.peers) if found is not None else set()) == expected


def test_shares_that_move_are_counted() -> None:
    planning = Planning(node_id(1))
    finish(planning, view(2_000), 0.0)
    finish(planning, view(35_000), 2.0)
    assert planning.churn == 2


def test_what_was_sent_fades_and_strides_follow_the_shares() -> None:
    plan = ClassPlan(0.25, {"p": 0.75})
    sent = Counter[str]()
    for number in range(400):
        name = "exits" if plan.stride_of_exits() < plan.stride_of("p") else "p"
        plan.note(None if name == "exits" else "p", number / 20)
        sent[name] += 1
    assert sent["p"] / 400 == pytest.approx(0.75, abs=0.02)
    assert plan.sent_exits + plan.sent["p"] < 120, "five seconds' worth"
    plan.note("p", 1e6)
    assert plan.sent["p"] == pytest.approx(1, abs=0.1)
    assert plan.stride_of("nobody") == float("inf")


# -- following it ------------------------------------------------------------------------------------------------------


def planned_engine() -> RoutingEngine:
    """Relay 1 of `view`, with everything up."""
    engine = build_engine(1, (), via=("a", "b"))
    engine.apply(view(), 0.0)
    for number in (2, 3):
        succeed(engine, peer(number), 0.0)
    engine.set_backlog(CLASS, 20)
    while engine.begin_plan(0.0):
        engine.plan_step(0.0)
    return engine


def ask(engine: RoutingEngine, **query: object) -> Decision:
    return engine.decide(Query(CLASS, **query), 1.0)  # type: ignore[arg-type]


def test_peers_of_the_plan_take_their_shares_in_turn() -> None:
    engine, chosen = planned_engine(), Counter[Hop]()
    for _ in range(40):
        decision = ask(engine)
        assert decision.rule == "planned share of a relay"
        assert decision.chosen is not None
        chosen[decision.chosen] += 1
        engine.begin(decision.chosen, CLASS, 1.0)
        engine.record(Outcome(decision.chosen, OutcomeKind.ACCEPTED, 1.0, 0.01), CLASS, 1.0)
    plan = engine.planning.of_class(CLASS)
    assert plan is not None
    assert chosen[peer(3)] / 40 == pytest.approx(plan.peers[node_id(3)], abs=0.05)
    assert plan.peers[node_id(3)] > 0.6


def test_a_planned_peer_that_is_full_or_was_visited_is_passed_over() -> None:
    engine = planned_engine()
    assert ask(engine, trace=(node_id(3),)).chosen == peer(2)
    engine.hear_backlog(node_id(3), {CLASS: 500}, 1.0)
    assert ask(engine).chosen == peer(2)
    engine.hear_backlog(node_id(2), {CLASS: 500}, 1.0)
    assert ask(engine).chosen is None


def test_an_explanation_shows_the_planned_shares() -> None:
    found = {item.hop: item for item in ask(planned_engine()).candidates}
    assert found[peer(3)].plan_share == pytest.approx(1 - (found[peer(2)].plan_share or 0))
    assert "plan is further behind" in found[peer(2)].reason
