"""Every term reaches the field of its name: all values differ, so that none can stand in for another."""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from gossip.linkstate import (
    ClassLoad,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    NodeRecord,
    SessionStatus,
    TlsLevel,
    Version,
)
from gossip.status import MemberState, MemberStatus
from router.decision import Candidate, Decision, EdgeState, Explanation, Hop, HopKind, RouteRow, Verdict
from smtp_edge.admin import convert
from tests.unit.smtp_edge.operator.views import STATS

CANDIDATE = Candidate(
    hop=Hop(HopKind.SMART_HOST, "up"),
    label="uplink",
    verdict=Verdict.NO_SLOT,
    gain=1.5,
    backlog_here=2,
    backlog_there=3,
    backlog_age_s=4.5,
    backlog_source="gossip",
    rank_here=5.5,
    rank_there=6.5,
    availability=0.25,
    reliability=0.5,
    capacity_mps=7.5,
    capacity_proven=True,
    latency_s=8.5,
    window=9,
    inflight=10,
    state=EdgeState.SUSPECT,
    share=0.75,
    cost=11,
    reason="full",
    plan_share=0.625,
)
SHOWN = {
    "hop": "host:up",
    "plan_share": 0.625,
    "label": "uplink",
    "verdict": "no-slot",
    "gain": 1.5,
    "backlog_here": "2",
    "backlog_there": "3",
    "backlog_age_s": 4.5,
    "backlog_source": "gossip",
    "rank_here": 5.5,
    "rank_there": 6.5,
    "availability": 0.25,
    "reliability": 0.5,
    "capacity_mps": 7.5,
    "capacity_proven": True,
    "latency_s": 8.5,
    "window": 9,
    "inflight": 10,
    "state": "suspect",
    "share": 0.75,
    "cost": 11,
    "reason": "full",
}
DECISION = Decision("default", CANDIDATE.hop, "planned share", (CANDIDATE,), "root", 0.0)


def shown(message: Message) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_a_candidate_keeps_every_term() -> None:
    assert shown(convert.convert_candidate(CANDIDATE)) == SHOWN


def test_what_is_not_known_of_a_candidate_stays_absent() -> None:
    values = {name: getattr(CANDIDATE, name) for name in CANDIDATE.__slots__}
    unknown = dict.fromkeys(("backlog_age_s", "rank_here", "rank_there", "latency_s", "plan_share"))
    message = convert.convert_candidate(Candidate(**{**values, **unknown}))
    assert not set(unknown).intersection(shown(message))


def test_a_row_keeps_rule_exits_and_backlog() -> None:
    row = RouteRow("default", ("host:up",), DECISION, 12)
    assert shown(convert.convert_row(row)) == {
        "class_id": "default",
        "exits": ["host:up"],
        "next_hops": [SHOWN],
        "rule": "planned share",
        "backlog": "12",
    }


def test_an_explanation_keeps_bound_bottleneck_and_paths() -> None:
    explanation = Explanation(DECISION, 13.5, ("a -> up",), ("a -> up", "a -> b -> up"))
    answer = shown(convert.convert_explanation("x@y.test", "everything", ("host:up",), explanation))
    assert answer.pop("route")["next_hops"] == [SHOWN]
    assert answer == {
        "address": "x@y.test",
        "class_id": "default",
        "matched_rule": "everything",
        "database_root": "root",
        "chosen": "host:up",
        "bound_mps": 13.5,
        "bottleneck": ["a -> up"],
        "paths": ["a -> up", "a -> b -> up"],
    }


def test_a_decision_to_hold_chooses_nothing() -> None:
    held = Decision("default", None, "hold: no path", (), "root", 0.0)
    assert convert.convert_explanation("x@y.test", "all", (), Explanation(held, 0.0, (), ())).chosen == ""


NODE = NodeRecord(
    NodeId("b" * 32),
    NodeInfo("relay-b", "192.0.2.2:1", "192.0.2.2:2", "east", "smtpmesh/9", True, True, True, True, "digest"),
    (),
    Load(14_000, 500, (ClassLoad("default", 15, 16),)),
    Version(17, 18),
    19.5,
)


MEMBER = MemberStatus(
    NODE.node_id, "relay-b", MemberState.SUSPECT, 20.5, (NodeId("c" * 32),), "silent", "abcd", False, 21, 22.5
)


def test_a_node_keeps_what_it_says_of_itself_and_how_it_is_seen() -> None:
    session = SessionStatus(NODE.node_id, "192.0.2.2:1", True, 1, 1)
    names = {"c" * 32: "relay-c"}
    message = convert.convert_node(NODE, MEMBER, session=session, routes_digest="digest", sinks_digest="", names=names)
    assert shown(message) == {
        "node_id": "b" * 32,
        "name": "relay-b",
        "zone": "east",
        "gossip_address": "192.0.2.2:1",
        "mesh_address": "192.0.2.2:2",
        "software": "smtpmesh/9",
        "session": True,
        "age_s": 19.5,
        "version": "17.18",
        "draining": True,
        "overloaded": True,
        "no_transit": True,
        "routes_digest": "digest",
        "backlogs": [{"class_id": "default", "count": "15", "oldest_s": 16.0}],
        "accept_capacity_mps": 14.0,
        "state": "suspect",
        "since_s": 20.5,
        "sources": [{"node_id": "c" * 32, "name": "relay-c"}],
        "reason": "silent",
        "root": "abcd",
        "in_sync": False,
        "lag_s": 0.021,
        "round_trip_s": 0.0225,
    }


def test_what_no_session_tells_of_a_node_stays_absent() -> None:
    member = MemberStatus(NODE.node_id, "relay-b", MemberState.REACHABLE, 1)
    message = convert.convert_node(NODE, member, session=None, routes_digest="digest", sinks_digest="", names={})
    assert not {"in_sync", "lag_s", "round_trip_s", "root", "session"} & set(shown(message))


def test_sources_are_in_the_order_of_their_names() -> None:
    member = dataclasses.replace(MEMBER, sources=(NodeId("c" * 32), NodeId("d" * 32)))
    names = {"c" * 32: "relay-z", "d" * 32: "relay-y"}
    message = convert.convert_node(NODE, member, session=None, routes_digest="digest", sinks_digest="", names=names)
    assert [source.name for source in message.sources] == ["relay-y", "relay-z"]


def test_a_source_that_left_is_named_by_its_id_alone() -> None:
    message = convert.convert_node(NODE, MEMBER, session=None, routes_digest="digest", sinks_digest="", names={})
    assert shown(message)["sources"] == [{"node_id": "c" * 32}]


def test_the_own_node_has_no_age() -> None:
    own = MemberStatus(NODE.node_id, "relay-b", MemberState.SELF, 1)
    message = convert.convert_node(NODE, own, session=None, routes_digest="other", sinks_digest="other", names={})
    assert (message.self, message.age_s, message.session) == (True, 0.0, False)
    assert (message.routes_differ, message.sinks_differ) == (True, True)


def test_the_stats_of_gossip_keep_every_field() -> None:
    answer = shown(convert.convert_stats(STATS))
    expected = dataclasses.asdict(STATS)
    assert set(answer) == set(expected)
    assert {name: numbers(value) for name, value in answer.items()} == expected


def numbers(value: Any) -> Any:
    """64-bit numbers are texts in protobuf's JSON."""
    if isinstance(value, dict):
        return {key: int(item) for key, item in value.items()}
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def test_a_link_keeps_every_score_in_the_units_of_its_name() -> None:
    promised = (("eu", "x"), TlsLevel.VERIFIED, 70_000)
    classes = ("default", "other")
    link = LinkState("peer:" + "c" * 32, LinkStatus.HALF_OPEN, 900, 800, 7_500, 6_000, 5, 4, classes, *promised)
    assert shown(convert.convert_link(NODE, link, {"c" * 32: "relay-c"})) == {
        "origin": "b" * 32,
        "origin_name": "relay-b",
        "hop": "peer:" + "c" * 32,
        "hop_label": "relay-c",
        "state": "half-open",
        "availability": 0.9,
        "reliability": 0.8,
        "capacity_mps": 7.5,
        "latency_s": 0.006,
        "samples": 5,
        "cost": 4,
        "classes": ["default", "other"],
        "age_s": 19.5,
        "tags": ["eu", "x"],
        "tls": "verified",
        "size_bytes_max": "70000",
    }


def test_every_state_of_a_link_has_a_word() -> None:
    assert set(convert.STATES) == {int(status) for status in LinkStatus}
    assert set(convert.STATES.values()) == {state.value for state in EdgeState}
