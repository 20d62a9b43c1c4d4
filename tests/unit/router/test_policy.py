"""Destinations to classes."""

from __future__ import annotations

import pytest

from router import policy
from router.decision import Hop, HopKind
from router.policy import DestinationClass, RouteRule, RouteTable

TABLE = RouteTable(
    [
        RouteRule("partner", ("partner.example", "*.partner.example"), ("b", "a")),
        RouteRule("late", ("partner.example",), ("z",)),
        RouteRule("direct", ("mx.example",), ("mx",)),
        RouteRule("rest", ("*",), ("a",)),
        RouteRule("never", ("*",), ("z",)),
    ]
)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("partner.example", DestinationClass("partner", ("host:a", "host:b"))),
        ("deep.er.partner.example", DestinationClass("partner", ("host:a", "host:b"))),
        ("mx.example", DestinationClass("mx:mx.example", ("mx:mx.example",))),
        ("notpartner.example", DestinationClass("rest", ("host:a",))),
        ("localhost", DestinationClass("rest", ("host:a",))),
    ],
)
def test_the_first_matching_rule_gives_the_class(domain: str, expected: DestinationClass) -> None:
    assert TABLE.classify(domain) == expected
    assert TABLE.classify(domain) == expected  # from memory


def test_a_domain_below_a_suffix_only_is_not_the_suffix() -> None:
    table = RouteTable([RouteRule("below", ("*.example.org",), ("a",))])
    assert table.classify("example.org") is None
    assert table.classify("a.example.org") is not None


def test_people_are_told_the_rule() -> None:
    found = TABLE.find_rule("partner.example")
    assert found is not None
    assert found.name == "partner"
    assert RouteTable([]).find_rule("partner.example") is None


def test_strangers_domains_cannot_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "CLASS_CACHE_MAX", 10)
    for number in range(100):
        assert TABLE.classify(f"d{number}.example") is not None
    assert len(TABLE._cache) <= 10


def test_rules_that_differ_have_different_digests() -> None:
    other = RouteTable([RouteRule("rest", ("*",), ("b",))])
    assert len(TABLE.digest()) == 16
    assert TABLE.digest() != other.digest()


def test_hop_ids_are_read_back() -> None:
    hop = Hop(HopKind.SMART_HOST, "a")
    assert Hop.parse(hop.id) == hop


@pytest.mark.parametrize("text", ["", "host", "host:", "unknown:x"])
def test_other_text_is_no_hop_id(text: str) -> None:
    with pytest.raises(ValueError):
        Hop.parse(text)
