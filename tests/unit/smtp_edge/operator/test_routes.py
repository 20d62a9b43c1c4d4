"""From the configuration to classes, exits and what listeners may promise."""

from __future__ import annotations

import pytest

from gossip.linkstate import TlsLevel
from router.decision import Hop
from router.terms import Policy, Terms
from smtp_edge.admin.address import find_advertised
from smtp_edge.routes import TRACE_ROOM_BYTES, build_exits, build_table, find_classes, limit_sizes
from smtp_edge.settings import ListenerSettings, NodeSettings, RouteSettings, Settings, SmartHostSettings


def settings(**hosts: dict[str, object]) -> Settings:
    return Settings(
        node=NodeSettings(name="a"),
        listener=(ListenerSettings(size_bytes_max=200_000),),
        smart_host=tuple(
            SmartHostSettings.model_validate({"name": name, "host": "x", **rest}) for name, rest in hosts.items()
        ),
        route=(
            RouteSettings(
                name="r", via=tuple(hosts), require_tags=("eu",), forbid_tags=("us",), tls_min="verified", transit=False
            ),
            RouteSettings(name="direct", domains=("direct.test",), via=("mx",)),
        ),
    )


@pytest.mark.parametrize(
    ("tls", "level"),
    [
        ("none", TlsLevel.NONE),
        ("opportunistic", TlsLevel.NONE),
        ("starttls", TlsLevel.VERIFIED),
        ("implicit", TlsLevel.VERIFIED),
    ],
)
def test_an_exit_promises_what_its_connections_cannot_do_without(tls: str, level: TlsLevel) -> None:
    (exit_hop,) = build_exits(settings(a={"tls": tls, "tags": ["eu", "a"], "size_bytes_max": 70_000, "reserve": 0.5}))
    assert exit_hop.terms == Terms(("a", "eu"), level, 70_000)
    assert exit_hop.reserve == 0.5


def test_a_route_becomes_a_rule_with_its_policy_and_what_its_hosts_are() -> None:
    rule, direct = build_table(settings(a={"tags": ["eu"]}, b={})).rules
    assert rule.policy == Policy(("eu",), ("us",), TlsLevel.VERIFIED, False)
    assert rule.terms == (Terms(("eu",)), Terms())
    assert (direct.policy, direct.direct) == (Policy(), True)


def test_a_hop_that_is_back_wakes_large_and_small_mail_of_its_routes() -> None:
    table = build_table(settings(a={}, b={}))
    waiting = ["r", "r>70000", "rr", "mx:direct.test"]
    assert find_classes(table, Hop.parse("host:a"), waiting) == ("r", "r>70000")
    assert find_classes(table, Hop.parse("host:z"), waiting) == ()
    assert find_classes(table, Hop.parse("mx:other.test"), waiting) == ("mx:other.test",)
    assert find_classes(table, Hop.parse("peer:" + "a" * 32), waiting) == tuple(waiting)


def test_no_listener_takes_what_no_exit_takes() -> None:
    good = {"tags": ["eu"], "tls": "starttls"}
    limited = settings(a={**good, "size_bytes_max": 100_000})
    (unlimited,) = limit_sizes(limited.listener, build_table(limited))
    assert unlimited.size_bytes_max == 200_000  # direct delivery takes any size
    only = limited.model_copy(update={"route": limited.route[:1]})
    (listener,) = limit_sizes(only.listener, build_table(only))
    assert listener.size_bytes_max == 100_000 - TRACE_ROOM_BYTES


@pytest.mark.parametrize(
    ("listen", "advertise", "expected"),
    [
        ("unix:admin.sock", "", ""),
        ("127.0.0.1:7947", "", ""),
        ("192.0.2.1:7947", "", "192.0.2.1:7947"),
        ("0.0.0.0:7947", "", ""),
        ("[::]:7947", "", ""),
        ("0.0.0.0:7947", "relay.example:7947", "relay.example:7947"),
    ],
)
def test_an_admin_service_is_told_to_others_only_where_they_can_reach_it(
    listen: str, advertise: str, expected: str
) -> None:
    assert find_advertised(listen, advertise) == expected
