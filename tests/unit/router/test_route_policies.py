"""Policies of routes: what they leave out before ranks are computed, and what they say of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeInfo, NodeRecord, Snapshot, TlsLevel, Version
from router.decision import ExitHop, Hop, Query, Verdict
from router.engine import RoutingEngine
from router.policy import DestinationClass, RouteRule, RouteTable
from router.replay import recompute
from router.settings import RouterSettings
from router.terms import NO_TERMS, Policy, Refusal, Terms
from router.whatif import Hypothesis
from tests.unit.router.test_engine import fail
from tests.unit.router.worlds import CLASS, host, node_id, peer

EU, US = Terms(("eu",)), Terms(("us",))
MIB = 1024 * 1024


def build(
    policy: Policy, *, tags: Sequence[str] = (), via: Sequence[str] = (), reserve: float = 0, **exits: Terms
) -> RoutingEngine:
    """Relay 1 with these own exits; the route names all of them, or `via`."""
    names = tuple(via or exits)
    rule = RouteRule(CLASS, ("*",), names, policy, tuple(exits.get(name, NO_TERMS) for name in names))
    return RoutingEngine(
        node_id=node_id(1),
        node_name="r1",
        table=RouteTable([rule]),
        exits=[ExitHop(host(name), name, terms=terms, reserve=reserve) for name, terms in exits.items()],
        settings=RouterSettings(),
        rng=random.Random(1),
        now=0.0,
        tags=tags,
    )


def relay(number: int, exit_name: str = "", terms: Terms = NO_TERMS, tags: Sequence[str] = ()) -> NodeRecord:
    """Another relay that measured an exit of the class, and links to relays 1 to 3."""
    links = [LinkState(peer(other).id, LinkStatus.UP, 1000, 1000, 50_000, 2000, 9) for other in (1, 2, 3)]
    if exit_name:
        told = (terms.tags, terms.tls, terms.size_bytes_max)
        links.append(LinkState(f"host:{exit_name}", LinkStatus.UP, 1000, 1000, 50_000, 2000, 9, 0, (CLASS,), *told))
    info = NodeInfo(f"r{number}", "g", "m", tags=tuple(tags))
    return NodeRecord(NodeId(node_id(number)), info, tuple(links), version=Version(1, 1), age_s=0.1)


def meet(engine: RoutingEngine, *others: NodeRecord) -> None:
    engine.apply(Snapshot("view", (relay(1), *others)), 0.0)


def ways(engine: RoutingEngine, class_id: str = CLASS) -> list[str]:
    """Where mail of the class may go at all."""
    decision = engine.decide(Query(class_id), 0.0)
    assert recompute(decision) == (decision.chosen, decision.rule)
    return sorted(item.hop.id for item in decision.candidates if item.serves)


def verdict(engine: RoutingEngine, hop: Hop, class_id: str = CLASS) -> tuple[Verdict, str]:
    candidates = engine.decide(Query(class_id), 0.0).candidates
    return next((item.verdict, item.reason) for item in candidates if item.hop == hop)


# -- one term at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "terms", "expected"),
    [
        (Policy(), Terms(("eu",), TlsLevel.NONE, 1), None),
        (Policy(require_tags=("eu",)), EU, None),
        (Policy(require_tags=("eu", "own")), EU, Refusal("require_tags eu own", "it lacks own")),
        (Policy(forbid_tags=("us",)), EU, None),
        (Policy(forbid_tags=("us", "eu")), EU, Refusal("forbid_tags us eu", "it has eu")),
        (Policy(tls_min=TlsLevel.ENCRYPTED), NO_TERMS, Refusal("tls_min encrypted", "it promises none")),
        (Policy(tls_min=TlsLevel.ENCRYPTED), Terms(tls=TlsLevel.VERIFIED), None),
        (
            Policy(tls_min=TlsLevel.VERIFIED),
            Terms(tls=TlsLevel.ENCRYPTED),
            Refusal("tls_min verified", "it promises encrypted"),
        ),
        (Policy(above_bytes=100), Terms(size_bytes_max=100), Refusal("size above 100 bytes", "it takes at most 100")),
        (Policy(above_bytes=100), Terms(size_bytes_max=101), None),
        (Policy(above_bytes=100), NO_TERMS, None),
    ],
)
def test_a_policy_judges_an_exit_by_what_it_promises(policy: Policy, terms: Terms, expected: Refusal | None) -> None:
    assert policy.refuse_exit(terms) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(tls_min=TlsLevel.VERIFIED, above_bytes=9), None),
        (Policy(require_tags=("eu",)), None),
        (Policy(require_tags=("us",)), Refusal("require_tags us", "it lacks us")),
        (Policy(forbid_tags=("eu",)), Refusal("forbid_tags eu", "it has eu")),
        (Policy(transit=False), Refusal("transit no", "it is another relay")),
    ],
)
def test_a_policy_judges_a_relay_by_its_tags(policy: Policy, expected: Refusal | None) -> None:
    assert policy.refuse_relay(("eu",)) == expected
    assert policy.judges_relays is (policy.require_tags + policy.forbid_tags != () or not policy.transit)


# -- before ranks ------------------------------------------------------------------------------------------------------


def test_an_exit_without_a_required_tag_is_outside_and_explain_names_the_rule() -> None:
    engine = build(Policy(require_tags=("eu",)), a=EU, b=US)
    assert ways(engine) == ["host:a"]
    assert verdict(engine, host("b")) == (Verdict.POLICY, "require_tags eu: it lacks eu")


def test_mail_passes_through_no_relay_without_a_required_tag() -> None:
    engine = build(Policy(require_tags=("eu",)), via=("a",))
    meet(engine, relay(2, "a", EU, ("eu",)), relay(3, "a", EU, ("us",)))
    assert ways(engine) == [peer(2).id]
    assert verdict(engine, peer(3)) == (Verdict.POLICY, "require_tags eu: it lacks eu")


def test_mail_that_clients_gave_to_a_relay_without_the_tag_leaves_by_what_has_it() -> None:
    engine = build(Policy(require_tags=("eu",)), tags=("us",), a=EU)
    meet(engine, relay(2, "a", EU, ("eu",)))
    assert ways(engine) == ["host:a", peer(2).id]


def test_a_relay_whose_exits_are_all_outside_leads_nowhere() -> None:
    engine = build(Policy(forbid_tags=("us",)), a=EU)
    meet(engine, relay(2, "b", US))
    assert ways(engine) == ["host:a"]
    assert verdict(engine, peer(2))[0] is Verdict.NO_PATH


def test_an_exit_of_an_older_node_promises_nothing() -> None:
    engine = build(Policy(tls_min=TlsLevel.VERIFIED), via=("a",))
    meet(engine, relay(2, "a"))
    assert ways(engine) == []
    meet(engine, relay(2, "a", Terms(tls=TlsLevel.VERIFIED)))
    assert ways(engine) == [peer(2).id]


def test_without_transit_mail_leaves_by_own_exits_or_waits() -> None:
    engine = build(Policy(transit=False), a=NO_TERMS)
    meet(engine, relay(2, "a"))
    assert ways(engine) == ["host:a"]
    fail(engine, host("a"), 0.0)
    decision = engine.decide(Query(CLASS), 0.0)
    assert (decision.chosen, decision.rule) == (None, "policy: transit no")
    assert recompute(decision) == (None, "policy: transit no")


def test_the_hold_names_every_rule_that_keeps_mail_from_a_way_that_is_there() -> None:
    engine = build(Policy(require_tags=("eu",), tls_min=TlsLevel.VERIFIED), a=US, b=EU)
    decision = engine.decide(Query(CLASS), 0.0)
    assert decision.rule == "policy: require_tags eu, tls_min verified"
    assert recompute(decision) == (None, decision.rule)


def test_the_policy_is_not_blamed_when_what_it_leaves_out_is_dead_too() -> None:
    engine = build(Policy(require_tags=("eu",)), a=EU, b=US)
    fail(engine, host("a"), 0.0)
    assert engine.decide(Query(CLASS), 0.0).rule == "policy: require_tags eu"
    fail(engine, host("b"), 0.0)
    assert engine.decide(Query(CLASS), 0.0).rule == "hold: no path"


def test_a_tag_that_another_relay_gets_opens_the_way() -> None:
    engine = build(Policy(require_tags=("eu",)), via=("a",))
    meet(engine, relay(2, "a", EU))
    assert engine.decide(Query(CLASS), 0.0).rule == "policy: require_tags eu"
    meet(engine, relay(2, "a", EU, ("eu",)))
    assert engine.decide(Query(CLASS), 0.0).chosen == peer(2)


def test_what_an_exit_serves_and_promises_is_advertised() -> None:
    engine = build(Policy(require_tags=("eu",)), a=Terms(("eu",), TlsLevel.VERIFIED, 7 * MIB), b=US)
    told = {link.hop: link for link in engine.links(0.0)}
    assert (told["host:a"].classes, told["host:b"].classes) == ((CLASS,), ())
    assert (told["host:a"].tags, told["host:a"].tls, told["host:a"].size_bytes_max) == (
        ("eu",),
        TlsLevel.VERIFIED,
        7 * MIB,
    )


def test_bound_and_what_if_keep_to_the_policy() -> None:
    engine = build(Policy(require_tags=("eu",)), a=EU, b=US)
    meet(engine, relay(2, "a", EU), relay(3, "b", US, ("eu",)))
    explanation = engine.explain(Query(CLASS), 0.0)
    assert explanation.paths == ("r1 -> host:a",)
    (answer,) = engine.what_if(Hypothesis(exits_down=frozenset({host("a")})), 0.0, load_mps=10, at=[node_id(1)])
    assert {item.hop for item in answer.now.exits} == {host("a")}
    assert answer.then.delivered_mps == 0
    assert answer.then.stranded == (node_id(1),)


def test_a_reserve_is_left_alone_by_plans_and_told_to_others() -> None:
    whole, half = build(Policy(), a=NO_TERMS), build(Policy(), a=NO_TERMS, reserve=0.5)
    assert half.links(0.0)[0].capacity_mmps == pytest.approx(whole.links(0.0)[0].capacity_mmps / 2, abs=1)
    assert half.explain(Query(CLASS), 0.0).bound_mps == pytest.approx(whole.explain(Query(CLASS), 0.0).bound_mps / 2)
    assert half.decide(Query(CLASS), 0.0).chosen == host("a")


# -- direct delivery ---------------------------------------------------------------------------------------------------


def test_a_domains_exchangers_have_the_tags_of_the_relay_that_delivers() -> None:
    engines = {}
    for tag in ("eu", "us"):
        rule = RouteRule(CLASS, ("*",), ("mx",), Policy(require_tags=("eu",)))
        engines[tag] = RoutingEngine(
            node_id=node_id(1),
            node_name="r1",
            table=RouteTable([rule]),
            exits=(),
            settings=RouterSettings(),
            rng=random.Random(1),
            now=0.0,
            tags=[tag],
        )
        direct = NodeRecord(NodeId(node_id(2)), NodeInfo("r2", "g", "m", direct_mx=True, tags=("eu",)), (), age_s=0.1)
        other = NodeRecord(NodeId(node_id(3)), NodeInfo("r3", "g", "m", direct_mx=True, tags=("us",)), (), age_s=0.1)
        engines[tag].apply(Snapshot("view", (direct, other)), 0.0)
    assert ways(engines["eu"], "mx:example.org") == ["mx:example.org", peer(2).id]
    assert ways(engines["us"], "mx:example.org") == [peer(2).id]


def test_the_floor_of_a_direct_route_is_kept_by_relays_with_the_same_routes() -> None:
    table = RouteTable([RouteRule(CLASS, ("*",), ("mx",), Policy(tls_min=TlsLevel.VERIFIED))])
    engine = RoutingEngine(
        node_id=node_id(1),
        node_name="r1",
        table=table,
        exits=(),
        settings=RouterSettings(),
        rng=random.Random(1),
        now=0.0,
    )
    seen = LinkState("mx:example.org", LinkStatus.UP, 1000, 1000, 1000, 10)

    def node(number: int, digest: str, *links: LinkState) -> NodeRecord:
        info = NodeInfo(f"r{number}", "g", "m", direct_mx=True, routes_digest=digest)
        return NodeRecord(NodeId(node_id(number)), info, links, age_s=0.1)

    same, other = table.digest(), RouteTable([RouteRule(CLASS, ("*",), ("mx",))]).digest()
    engine.apply(
        Snapshot("view", (node(2, same), node(3, other), node(4, same, seen), node(5, other, seen), node(6, ""))), 0.0
    )
    assert ways(engine, "mx:example.org") == ["mx:example.org", peer(2).id, peer(4).id]
    engine.apply(Snapshot("later", (node(2, other), node(4, same, seen))), 1.0)
    assert ways(engine, "mx:example.org") == ["mx:example.org", peer(4).id]
    engine.reconfigure([RouteRule(CLASS, ("*",), ("mx",), Policy(tls_min=TlsLevel.ENCRYPTED))], (), 2.0)
    assert ways(engine, "mx:example.org") == ["mx:example.org"]


# -- sizes -------------------------------------------------------------------------------------------------------------

SMALL, LARGE = Terms(size_bytes_max=MIB), Terms(size_bytes_max=5 * MIB)


def sizes(**exits: Terms) -> RouteTable:
    return RouteTable([RouteRule("r", ("*",), tuple(exits), Policy(), tuple(exits.values()))])


def class_of(table: RouteTable, size_bytes: int) -> DestinationClass:
    found = table.classify("example.org", size_bytes)
    assert found is not None
    return found


def test_larger_mail_is_a_class_of_its_own_without_the_exits_that_are_too_small() -> None:
    table = sizes(a=SMALL, b=LARGE, c=NO_TERMS)
    assert [class_of(table, size).class_id for size in (0, MIB, MIB + 1, 5 * MIB, 5 * MIB + 1)] == [
        "r", "r", f"r>{MIB}", f"r>{MIB}", f"r>{5 * MIB}",
    ]  # fmt: skip
    assert [item.class_id for item in table.classes()] == ["r", f"r>{MIB}", f"r>{5 * MIB}"]
    assert table.size_bytes_max() == 0


def test_a_route_whose_exits_take_all_has_one_class() -> None:
    assert [item.class_id for item in sizes(a=NO_TERMS, b=NO_TERMS).classes()] == ["r"]


def test_mail_that_no_exit_takes_is_told_apart() -> None:
    table = sizes(a=SMALL, b=LARGE)
    assert class_of(table, 5 * MIB + 1).too_large
    assert not class_of(table, 5 * MIB).too_large
    assert [item.class_id for item in table.classes()] == ["r", f"r>{MIB}"]
    assert table.size_bytes_max() == 5 * MIB


def test_the_limit_of_an_exit_that_the_policy_leaves_out_counts_for_nothing() -> None:
    rule = RouteRule("r", ("*",), ("a", "b"), Policy(require_tags=("eu",)), (Terms(("eu",), size_bytes_max=MIB), US))
    assert class_of(RouteTable([rule]), MIB + 1).too_large


def test_one_destination_without_a_limit_is_enough_to_take_large_mail() -> None:
    limited = RouteRule("r", ("a.example",), ("a",), Policy(), (SMALL,))
    assert RouteTable([limited]).size_bytes_max() == MIB
    assert RouteTable([limited, RouteRule("mx", ("*",), ("mx",))]).size_bytes_max() == 0


def test_large_mail_goes_where_it_fits_also_through_other_relays() -> None:
    engine = build(Policy(), a=SMALL, b=LARGE)
    large, huge = f"{CLASS}>{MIB}", f"{CLASS}>{5 * MIB}"
    meet(engine, relay(2, "a", SMALL))
    assert (ways(engine), ways(engine, large)) == (["host:a", "host:b", peer(2).id], ["host:b"])
    meet(engine, relay(2, "c"))
    assert ways(engine, large) == ["host:b", peer(2).id]
    assert verdict(engine, host("a"), large) == (
        Verdict.POLICY,
        f"size above {MIB} bytes: it takes at most {MIB}",
    )
    assert engine.is_too_large(huge)
    assert not engine.is_too_large(large)


def test_mail_stored_under_a_limit_that_is_no_more_still_finds_its_way() -> None:
    engine = build(Policy(), a=SMALL, b=LARGE)
    assert ways(engine, f"{CLASS}>{2 * MIB}") == ["host:b"]
    assert ways(engine, f"{CLASS}>9999999999999999999999") == []
    assert ways(engine, "gone>5") == []


def test_classes_of_a_policy_differ_in_the_digest_and_others_keep_theirs() -> None:
    plain = RouteTable([RouteRule("r", ("*",), ("a",))])
    assert plain.digest() == "8d2647775c184f0c"
    tables = [
        RouteTable([RouteRule("r", ("*",), ("a",), policy)])
        for policy in (
            Policy(require_tags=("eu",)),
            Policy(forbid_tags=("eu",)),
            Policy(tls_min=TlsLevel.VERIFIED),
            Policy(transit=False),
        )
    ]
    digests = {table.digest() for table in (plain, *tables, sizes(a=SMALL))}
    assert len(digests) == 6
