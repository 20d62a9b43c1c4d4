"""Mail exchangers: the table at the head of `smtp_edge.client.mx`, the order, and the answers of a DNS server."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest

from smtp_edge.client.mx import HOSTS_MAX, NoExchanger, find_exchangers, order_exchangers, parse_literal
from smtp_edge.client.resolver import LookupFailed, Resolver, interleave
from smtp_edge.settings import DnsSettings
from tests.unit.smtp_edge.client.names import BARE_NXDOMAIN, NXDOMAIN, SERVFAIL, SILENT, Table, names

RNG = random.Random(1)


@pytest.mark.rfc("5321 5.1a")
def test_preference_decides() -> None:
    assert order_exchangers([(20, "b."), (10, "A.")], "example.org", RNG) == ["a", "b"]


@pytest.mark.rfc("5321 5.1b")
def test_equal_preferences_are_shuffled() -> None:
    records = [(10, "a."), (10, "b."), (10, "c."), (20, "d.")]
    orders = {tuple(order_exchangers(records, "x", random.Random(seed))) for seed in range(50)}
    assert len(orders) == 6
    assert all(order[-1] == "d" for order in orders)


def test_a_host_that_is_named_twice_is_tried_once_at_its_best_preference() -> None:
    assert order_exchangers([(30, "a."), (10, "a."), (20, "b.")], "x", RNG) == ["a", "b"]


@pytest.mark.rfc("5321 5.1c")
def test_no_record_means_the_domain_itself() -> None:
    assert order_exchangers([], "example.org", RNG) == ["example.org"]


def test_the_number_tried_is_bounded() -> None:
    assert len(order_exchangers([(n, f"h{n}.") for n in range(100)], "x", RNG)) == HOSTS_MAX


@pytest.mark.parametrize(
    ("records", "own", "left"),
    [
        ([(10, "a."), (20, "me."), (30, "c.")], "me", ["a"]),
        ([(10, "a."), (20, "me."), (20, "b.")], "me", ["a"]),  # of its own preference, too
        ([(10, "me."), (20, "b.")], "me", "5.4.6"),
        ([], "example.org", "5.4.6"),
        ([(0, ".")], "me", "5.1.10"),
        ([(0, "."), (10, "a.")], "me", ["a"]),  # no null MX beside others (RFC 7505 section 3)
        ([(10, "a b."), (10, "\\027x."), (20, "ok.")], "me", ["ok"]),
        ([(10, "-\\000.")], "me", "5.4.4"),
    ],
)
@pytest.mark.rfc("5321 5.1e", "7505 3")
def test_own_names_null_mx_and_impossible_names(
    records: list[tuple[int, str]], own: str, left: list[str] | str
) -> None:
    if isinstance(left, list):
        assert order_exchangers(records, "example.org", RNG, own_names={own}) == left
        return
    with pytest.raises(NoExchanger) as caught:
        order_exchangers(records, "example.org", RNG, own_names={own})
    assert caught.value.reply is not None
    assert (caught.value.reply.code // 100, caught.value.reply.status) == (5, left)


@pytest.mark.parametrize(
    ("literal", "address"),
    [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:DB8::1]", "2001:db8::1"), ("[2001:db8::1]", None), ("[x]", None)],
)
def test_address_literals(literal: str, address: str | None) -> None:
    if address is not None:
        assert parse_literal(literal) == address
        return
    with pytest.raises(NoExchanger) as caught:
        parse_literal(literal)
    assert caught.value.reply is not None
    assert caught.value.reply.status == "5.1.2"


RECORDS = {
    "good.test MX": ["10 a.test.", "20 b.test."],
    "null.test MX": ["0 ."],
    "bare.test A": ["192.0.2.1"],
    "gone.test": NXDOMAIN,
    "doubtful.test": BARE_NXDOMAIN,
    "broken.test": SERVFAIL,
    "silent.test": SILENT,
    "alias.test CNAME": ["good.test."],
    "lost.test CNAME": ["gone.test."],
    "xn--bcher-kva.test MX": ["10 a.test."],
}


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("good.test", ["a.test", "b.test"]),
        ("alias.test", ["a.test", "b.test"]),
        ("bare.test", ["bare.test"]),
        ("b\xfccher.test", ["a.test"]),
        ("[192.0.2.1]", ["192.0.2.1"]),
        ("null.test", "5.1.10"),
        ("gone.test", "5.1.2"),
        ("lost.test", "5.1.2"),
        ("doubtful.test", ""),
        ("broken.test", ""),
        ("silent.test", ""),
        ("a..test", ""),
    ],
)
@pytest.mark.rfc("5321 5.1f", "6531 3.2b", "7505 3")
async def test_what_dns_says(domain: str, expected: list[str] | str) -> None:
    async with names(Table(RECORDS)) as resolver:
        if isinstance(expected, list):
            assert list((await find_exchangers(domain, resolver, RNG)).hosts) == expected
            return
        with pytest.raises(NoExchanger) as caught:
            await find_exchangers(domain, resolver, RNG)
        assert (caught.value.reply.status if caught.value.reply else "") == expected
        assert str(caught.value)


async def test_a_bare_nxdomain_is_believed_from_a_resolver_that_knows_the_root() -> None:
    async with names(Table({**RECORDS, ". NS": ["a.root-servers.net."]})) as resolver:
        assert (await resolver.lookup("doubtful.test", "MX")).certain
    async with names(Table(RECORDS)) as resolver:
        assert not (await resolver.lookup("doubtful.test", "MX")).certain


@pytest.mark.rfc("7672 2.1.1")
async def test_an_answer_is_secure_only_from_a_resolver_that_may_be_believed() -> None:
    table = Table(RECORDS, secure={"good.test"})
    async with names(table) as resolver:
        assert (await resolver.lookup("good.test", "MX")).secure
        assert not (await resolver.lookup("bare.test", "A")).secure
    async with names(table, trust_ad=False) as resolver:
        assert not (await resolver.lookup("good.test", "MX")).secure


async def test_answers_are_remembered_as_long_as_they_say() -> None:
    table = Table(RECORDS)
    async with names(table) as resolver:
        for _ in range(3):
            await resolver.lookup("good.test", "MX")
            await resolver.lookup("gone.test", "MX")
        assert sorted(table.asked) == ["gone.test MX", "good.test MX"]


async def test_addresses_of_both_families_in_turn_and_never_those_that_are_refused() -> None:
    table = Table(
        {
            "host.test A": ["192.0.2.1", "192.0.2.2", "127.0.0.1"],
            "host.test AAAA": ["2001:db8::1", "::ffff:127.0.0.1"],
            "half.test A": ["192.0.2.3"],
            "half.test AAAA": SERVFAIL,
            "local.test A": ["127.0.0.1"],
            "broken.test": SERVFAIL,
        }
    )
    async with names(table) as plain:
        resolver = Resolver(plain._settings, refuse_networks=[ip_network("127.0.0.0/8")], rng=random.Random(1))
        found = await resolver.addresses("host.test")
        assert found.addresses[0] == "2001:db8::1"
        assert sorted(found.addresses[1:]) == ["192.0.2.1", "192.0.2.2"]
        assert found.refused == 2
        assert (await resolver.addresses("half.test")).addresses == ("192.0.2.3",)
        assert (await resolver.addresses("local.test")).addresses == ()
        with pytest.raises(LookupFailed):
            await resolver.addresses("broken.test")
        with pytest.raises(NoExchanger):
            await find_exchangers("[127.0.0.1]", resolver, RNG)


def test_families_take_turns() -> None:
    assert interleave([["6a", "6b", "6c"], ["4a"]]) == ["6a", "4a", "6b", "6c"]


@pytest.mark.rfc("5321 5.1f")
async def test_a_resolver_that_nobody_reaches_is_a_reason_to_wait() -> None:
    resolver = Resolver(DnsSettings(servers=("127.0.0.1:1",), timeout_s=0.3))
    with pytest.raises(LookupFailed):
        await resolver.lookup("good.test", "MX")
