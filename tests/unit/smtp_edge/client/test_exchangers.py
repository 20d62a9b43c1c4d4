"""Delivery to exchangers: servers on several loopback addresses, and a resolver that says what a test wants.

The pages of rules are `ways.py`, `tls_policy.py` and `dane.py`; here they are seen on the wire.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog.testing

from gossip.linkstate import TlsLevel
from router.decision import Hop, OutcomeKind
from router.policy import RouteRule, RouteTable
from router.terms import Policy as RoutePolicy
from smtp_edge.client.attempt import AttemptResult, Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.mta_sts import Mode, Policy
from smtp_edge.client.outbound import find_floor
from smtp_edge.client.shunned import SHUN_S, Shunned
from smtp_edge.client.tls_policy import Level
from smtp_edge.client.ways import Ways
from smtp_edge.envelope import BodyType, MailData
from smtp_edge.settings import MxSettings, OutboundSettings, TlsSettings
from tests.unit.smtp_edge.client.certificates import Pair, issue, row, server_context, tlsa
from tests.unit.smtp_edge.client.names import SERVFAIL, Table, names
from tests.unit.smtp_edge.client.servers import (
    DROP,
    HANG,
    KEYWORDS,
    Script,
    SmtpServer,
    smtp_server,
    smtp_servers,
)
from tests.unit.smtp_edge.client.test_delivery import EIGHT_BIT, PREFIX, job

DOMAIN = "example.test"
TWO = {
    "example.test MX": ["10 a.test.", "20 b.test."],
    "a.test A": ["127.0.0.1"],
    "b.test A": ["127.0.0.2"],
}
ACCEPTED = OutcomeKind.ACCEPTED


class Policies:
    """MTA-STS policies of a table."""

    def __init__(self, **policies: Policy) -> None:
        self.policies = policies

    async def find(self, domain: str) -> Policy | None:
        return self.policies.get(domain.partition(".")[0])


@dataclass
class Lab:
    """The client under test, and the port that all exchangers listen on."""

    client: DeliveryClient
    port: int
    table: Table
    ways: Ways

    async def send(self, domain: str = DOMAIN, **changes: object) -> AttemptResult:
        header = changes.pop("header", b"")
        what = job(**changes)  # type: ignore[arg-type]
        if header:
            what = replace(what, data=replace(what.data, header=header))
        return await self.client.attempt(self.target(domain), what)

    def target(self, domain: str = DOMAIN) -> Target:
        return Target(Hop.parse(f"mx:{domain}"), domain, self.port)


@asynccontextmanager
async def lab(
    records: dict[str, Sequence[str]],
    port: int,
    *,
    secure: set[str] | None = None,
    tls: Sequence[TlsSettings] = (),
    route_floor: Level = Level.NONE,
    policies: Policies | None = None,
    mx: MxSettings | None = None,
    outbound: OutboundSettings | None = None,
    attempt_timeout_s: float = 1,
) -> AsyncIterator[Lab]:
    table = Table({key.replace("PORT", str(port)): rows for key, rows in records.items()}, secure or set())
    async with names(table) as resolver:
        ways = Ways(
            resolver,
            settings=mx or MxSettings(port=port),
            tls=tls,
            policies=policies,
            own_names=("relay.test",),
            route_floor=lambda _: route_floor,
            now=time.monotonic,
            rng=random.Random(1),
        )
        client = DeliveryClient(
            hostname="relay.test",
            identity=None,
            connect_timeout_s=1,
            attempt_timeout_s=attempt_timeout_s,
            ways=ways,
            settings=outbound,
        )
        yield Lab(client, port, table, ways)
        await client.close()


def bodies(servers: Sequence[SmtpServer]) -> list[int]:
    return [len(server.seen.bodies) for server in servers]


# -- which exchanger ---------------------------------------------------------------------------------------------------


@pytest.mark.rfc("5321 5.1a")
async def test_the_best_exchanger_gets_the_mail() -> None:
    async with smtp_servers(Script(), Script()) as servers, lab(TWO, servers[0].port) as made:
        result = await made.send()
        assert (result.kind, bodies(servers)) == (ACCEPTED, [1, 0])
        assert result.remote == f"a.test[127.0.0.1]:{made.port}"


@pytest.mark.parametrize(
    "script",
    [
        Script(greeting=DROP),
        Script(greeting="421 4.3.2 busy"),
        Script(greeting="554 5.7.1 not here"),
        Script(greeting="220 relay.test ESMTP"),  # ourselves
        Script(ehlo="421 4.3.2 busy"),
        Script(mail="421 4.7.0 busy"),
        Script(mail="451 4.3.0 broken"),
        Script(mail=DROP),
        Script(rcpt=lambda line: DROP),
        Script(rcpt=lambda line: "421 4.3.2 closing"),
        Script(data="451 4.3.0 broken"),
        Script(final="421 4.3.2 closing"),
        Script(final="452 4.3.1 full"),
    ],
    ids=[
        "hangs up at once",
        "421 greeting",
        "554 greeting",
        "is ourselves",
        "421 to EHLO",
        "421 to MAIL",
        "451 to MAIL",
        "hangs up at MAIL",
        "hangs up at RCPT",
        "421 to RCPT",
        "451 to DATA",
        "421 after the dot",
        "452 after the dot",
    ],
)
@pytest.mark.rfc("5321 5.1g")
async def test_an_exchanger_in_trouble_is_passed_over_within_the_attempt(script: Script) -> None:
    async with smtp_servers(script, Script()) as servers, lab(TWO, servers[0].port) as made:
        result = await made.send()
        assert (result.kind, len(servers[1].seen.bodies)) == (ACCEPTED, 1)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(rcpt=lambda line: "450 4.2.0 greylisted"), OutcomeKind.MESSAGE_REFUSED),
        (Script(rcpt=lambda line: "550 5.1.1 who"), OutcomeKind.MESSAGE_REFUSED),
        (Script(final="554 5.6.0 spam"), OutcomeKind.MESSAGE_REFUSED),
        (Script(final=DROP), OutcomeKind.IN_DOUBT),
        (Script(final=HANG), OutcomeKind.IN_DOUBT),
    ],
)
async def test_what_is_about_the_message_or_in_doubt_goes_nowhere_else(script: Script, kind: OutcomeKind) -> None:
    async with smtp_servers(script, Script()) as servers, lab(TWO, servers[0].port) as made:
        assert (await made.send()).kind is kind
        assert servers[1].seen.connections == 0


@pytest.mark.rfc("5321 5.1d")
async def test_every_address_of_a_host_is_tried() -> None:
    records = {"example.test MX": ["10 a.test."], "a.test A": ["127.0.0.1", "127.0.0.2", "127.0.0.3"]}
    async with smtp_server(host="127.0.0.2") as server, lab(records, server.port) as made:
        for _ in range(4):
            assert (await made.send()).kind is ACCEPTED
            made.client.forget(made.target().hop)
        assert server.seen.connections == 4


def test_an_address_is_shunned_for_a_while_and_never_left_out() -> None:
    shunned = Shunned()
    shunned.note_failure("a", 100.0)
    assert shunned.order(["a", "b"], 101.0) == ["b", "a"]
    assert shunned.order(["a", "b"], 100.0 + SHUN_S) == ["a", "b"]
    shunned.note_session("a")
    assert shunned.order(["a", "b"], 101.0) == ["a", "b"]


async def test_the_number_of_addresses_that_are_called_is_bounded() -> None:
    records = {
        "example.test MX": ["10 a.test.", "20 b.test."],
        "a.test A": [f"127.0.1.{n}" for n in range(1, 9)],
        "b.test A": ["127.0.0.1"],
    }
    async with smtp_server() as server:
        for most, kind in ((3, OutcomeKind.CONNECT_FAILED), (9, ACCEPTED)):
            async with lab(records, server.port, mx=MxSettings(addresses_max=most)) as made:
                assert (await made.send()).kind is kind


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ({"example.test MX": ["10 a.test."], "other.test A": ["127.0.0.1"]}, "5.4.4"),
        ({"example.test TXT": ['"no mail"']}, "5.4.4"),
        ({"example.test MX": ["10 relay.test."]}, "5.4.6"),
        ({"example.test MX": ["0 ."]}, "5.1.10"),
        ({"other.test A": ["127.0.0.1"]}, "5.1.2"),
        ({"example.test MX": ["10 a.test.", "20 b.test."], "a.test": SERVFAIL}, None),
        ({"example.test MX": SERVFAIL}, None),
    ],
)
async def test_where_no_mail_can_go_it_bounces_if_dns_is_sure(
    records: dict[str, Sequence[str]], status: str | None
) -> None:
    async with lab(records, 1) as made:
        result = await made.send()
        probed = await made.client.probe(made.target())
    assert probed.kind is OutcomeKind.CONNECT_FAILED
    if status is None:
        assert (result.kind, result.replies) == (OutcomeKind.CONNECT_FAILED, ())
        assert "DNS" in result.reason
    else:
        assert result.kind is OutcomeKind.MESSAGE_REFUSED
        assert [reply.status for reply in result.replies if reply] == [status]
        assert result.own_reply


async def test_an_exchanger_that_cannot_take_the_message_is_passed_over_and_if_all_are_it_bounces() -> None:
    poor, rich = Script(keywords=()), Script()
    what = {"body": EIGHT_BIT, "body_type": BodyType.EIGHT_BIT_MIME}
    async with smtp_servers(poor, rich) as servers, lab(TWO, servers[0].port) as made:
        assert (await made.send(**what)).kind is ACCEPTED
        rich.keywords = ()
        made.client.forget(made.target().hop)
        result = await made.send(**what)
        assert [reply.status for reply in result.replies if reply] == ["5.6.3"]
        assert bodies(servers) == [0, 1]


async def test_a_host_that_cannot_be_reached_keeps_a_refusal_for_good_from_the_others_away() -> None:
    async with (
        smtp_server(Script(keywords=())) as server,
        lab({**TWO, "b.test A": ["127.0.1.1"]}, server.port) as made,
    ):
        result = await made.send(body=EIGHT_BIT, body_type=BodyType.EIGHT_BIT_MIME)
        assert (result.kind, result.replies) == (OutcomeKind.CONNECT_FAILED, ())


async def test_a_spool_file_that_breaks_off_halfway_goes_to_the_next_exchanger(tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 1_200_000
    path = tmp_path / "spooled"
    path.write_bytes(body)
    data = MailData(len(body), path=path, header=b"Subject: large\r\n\r\n")
    keywords = ("PIPELINING",)  # and a body that no socket buffer holds: the client sees the end before the final dot
    async with (
        smtp_servers(Script(body=DROP, keywords=keywords), Script(keywords=keywords)) as servers,
        lab(TWO, servers[0].port, attempt_timeout_s=120) as made,
    ):
        result = await made.client.attempt(made.target(), replace(job(), data=data))
        assert (result.kind, len(servers[1].seen.bodies[0])) == (ACCEPTED, len(body) + len(PREFIX))


async def test_address_literals_and_domains_without_mx() -> None:
    async with smtp_server() as server, lab({"bare.test A": ["127.0.0.1"]}, server.port) as made:
        assert (await made.send("bare.test")).remote.startswith("bare.test[127.0.0.1]")
        assert (await made.send("[127.0.0.1]")).remote.startswith("127.0.0.1[127.0.0.1]")


@pytest.mark.rfc("5321 5.1c")
async def test_where_there_are_exchangers_the_domain_itself_is_none() -> None:
    records = {"example.test MX": ["10 a.test."], "a.test A": ["127.0.0.2"], "example.test A": ["127.0.0.1"]}
    async with smtp_server() as server, lab(records, server.port) as made:
        assert (await made.send()).kind is OutcomeKind.CONNECT_FAILED
        assert server.seen.connections == 0


# -- TLS ---------------------------------------------------------------------------------------------------------------

STARTTLS = (*KEYWORDS, "STARTTLS")


@dataclass
class Keys:
    """An authority and the certificate of an exchanger, as servers and clients want them."""

    root: Pair
    leaf: Pair
    context: ssl.SSLContext
    ca: Path

    def script(self, **changes: object) -> Script:
        return replace(Script(keywords=STARTTLS, context=self.context), **changes)  # type: ignore[arg-type]

    def trusted(self, level: str = "opportunistic", **more: object) -> list[TlsSettings]:
        return [TlsSettings(domains=("*",), level=level, ca=self.ca, **more)]  # type: ignore[arg-type]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    root = issue("root", ca=True)
    leaf = issue("a.test", root, names=("a.test",))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(root.pem)
    return Keys(root, leaf, server_context(leaf.write(tmp_path / "a.pem", root)), ca)


def expect_refusal(result: AttemptResult, servers: Sequence[SmtpServer]) -> None:
    """Deferred with 4.7.5, and nothing but the handshake was said to anybody."""
    assert result.kind is OutcomeKind.TLS_FAILED
    assert result.reply is not None
    assert (result.reply.status, result.own_reply) == ("4.7.5", True)
    assert [server.seen.said("MAIL") for server in servers] == [[] for _ in servers]


@pytest.mark.parametrize(
    ("level", "route", "outcome"),
    [
        ("none", Level.ENCRYPTED, ""),
        ("opportunistic", Level.ENCRYPTED, ""),
        ("opportunistic", Level.VERIFIED, "verified"),
        ("encrypted", Level.VERIFIED, "verified"),
        ("verified", Level.ENCRYPTED, "verified"),
    ],
)
async def test_of_the_floors_of_route_and_domain_the_higher_one_counts(
    keys: Keys, level: str, route: Level, outcome: str
) -> None:
    async with (
        smtp_servers(keys.script()) as servers,
        lab(TWO, servers[0].port, tls=keys.trusted(level) if level != "none" else [], route_floor=route) as made,
    ):
        result = await made.send()
        assert result.kind is ACCEPTED
        assert result.tls.split(" ")[2:] == ([outcome] if outcome else [])
    async with smtp_servers(Script()) as servers, lab(TWO, servers[0].port, route_floor=route) as made:
        expect_refusal(await made.send(), servers)


def test_a_route_asks_only_for_its_own_domains() -> None:
    table = RouteTable(
        [
            RouteRule("strict", ("a.test",), ("mx",), RoutePolicy(tls_min=TlsLevel.VERIFIED)),
            RouteRule("host", ("b.test",), ("up",), RoutePolicy(tls_min=TlsLevel.VERIFIED)),
            RouteRule("rest", ("*",), ("mx",)),
        ]
    )
    asked = [find_floor(table, domain) for domain in ("a.test", "b.test", "c.test")]
    assert asked == [Level.VERIFIED, Level.NONE, Level.NONE]


@pytest.mark.parametrize(
    ("level", "offered", "sound", "outcome"),
    [
        ("none", True, True, "clear"),
        ("opportunistic", True, True, "tls"),
        ("opportunistic", True, False, "clear"),
        ("opportunistic", False, True, "clear"),
        ("encrypted", True, True, "tls"),
        ("encrypted", True, False, "deferred"),
        ("encrypted", False, True, "deferred"),
        ("verified", True, True, "verified"),
        ("verified", True, False, "deferred"),
        ("verified", False, True, "deferred"),
    ],
)
@pytest.mark.rfc("3207 4.1b")
async def test_floors(keys: Keys, level: str, offered: bool, sound: bool, outcome: str) -> None:
    script = keys.script(keywords=STARTTLS if offered else KEYWORDS)
    if not sound:
        script.context = None  # a 220, and then no handshake
    tls = [TlsSettings(domains=("*",), level=level, ca=keys.ca if level == "verified" else None)]  # type: ignore[arg-type]
    async with smtp_servers(script) as servers, lab(TWO, servers[0].port, tls=tls) as made:
        result = await made.send()
        if outcome == "deferred":
            expect_refusal(result, servers)
            return
        assert result.kind is ACCEPTED
        assert bool(result.tls) is (outcome != "clear")
        assert result.tls.endswith(" verified") is (outcome == "verified")


@pytest.mark.parametrize(
    ("names_wanted", "shown", "fits"),
    [
        ((), ("a.test",), True),
        ((), ("other.test",), False),
        (("partner.test",), ("partner.test",), True),
        (("partner.test",), ("a.test",), False),
        (("*.partner.test",), ("mail.partner.test",), True),
    ],
)
@pytest.mark.rfc("8461 4.2")
async def test_whom_a_verified_certificate_must_name(
    keys: Keys, tmp_path: Path, names_wanted: tuple[str, ...], shown: tuple[str, ...], fits: bool
) -> None:
    leaf = issue("x", keys.root, names=shown)
    script = keys.script(context=server_context(leaf.write(tmp_path / "x.pem")))
    tls = keys.trusted("verified", names=names_wanted)
    async with smtp_servers(script) as servers, lab(TWO, servers[0].port, tls=tls) as made:
        result = await made.send()
        if fits:
            assert result.kind is ACCEPTED
        else:
            expect_refusal(result, servers)


async def test_a_certificate_of_nobody_we_know_is_none(keys: Keys) -> None:
    tls = [TlsSettings(domains=("*",), level="verified")]
    async with smtp_servers(keys.script()) as servers, lab(TWO, servers[0].port, tls=tls) as made:
        result = await made.send()
        expect_refusal(result, servers)
        assert "certificate: " in result.reason


@pytest.mark.rfc("3207 6b")
async def test_what_is_said_in_the_clear_behind_the_starttls_reply_ends_the_session(keys: Keys) -> None:
    script = keys.script(starttls="220 2.0.0 go\r\n250 2.1.0 injected")
    for level, kind in (("encrypted", OutcomeKind.TLS_FAILED), ("opportunistic", ACCEPTED)):
        tls = [TlsSettings(domains=("*",), level=level)]  # type: ignore[arg-type]
        async with smtp_servers(script) as servers, lab(TWO, servers[0].port, tls=tls) as made:
            result = await made.send()
            assert (result.kind, result.tls) == (kind, "")
            assert servers[0].seen.connections == (2 if kind is ACCEPTED else 1)


@pytest.mark.rfc("3207 4.2c", "3207 4.2d")
async def test_extensions_are_asked_again_under_tls(keys: Keys) -> None:
    script = keys.script(keywords_tls=("SIZE 10",))
    records = {**TWO, "example.test MX": ["10 a.test."]}
    async with smtp_servers(script) as servers, lab(records, servers[0].port) as made:
        result = await made.send()
        assert [reply.status for reply in result.replies if reply] == ["5.3.4"]
        assert len(servers[0].seen.said("EHLO")) == 2


async def test_versions_are_bounded(keys: Keys) -> None:
    keys.context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = [TlsSettings(domains=("*",), level="encrypted")]
    for bounds, kind in (
        (OutboundSettings(), ACCEPTED),
        (OutboundSettings(tls_version_min="1.3"), OutcomeKind.TLS_FAILED),
        (OutboundSettings(tls_ciphers="ECDHE+CHACHA20"), ACCEPTED),
    ):
        async with (
            smtp_servers(keys.script()) as servers,
            lab(TWO, servers[0].port, tls=tls, outbound=bounds) as made,
        ):
            result = await made.send()
            assert result.kind is kind
            if bounds.tls_ciphers:
                assert "CHACHA20" in result.tls


# -- DANE --------------------------------------------------------------------------------------------------------------

ALL = {"test"}


def dane(record: str, **more: Sequence[str]) -> dict[str, Sequence[str]]:
    return {**TWO, "_PORT._tcp.a.test TLSA": [record], **more}


@pytest.mark.rfc("7672 2.2a")
async def test_a_host_with_tlsa_records_must_show_the_certificate_in_them(keys: Keys, tmp_path: Path) -> None:
    other = issue("a.test", keys.root, names=("a.test",))
    for record, checked in (
        (tlsa(keys.leaf, 3), "dane-ee"),
        (tlsa(keys.root, 2), "dane-ta"),
        (tlsa(other, 3), None),
        (tlsa(issue("x", ca=True), 2), None),
    ):
        async with (
            smtp_servers(keys.script()) as servers,
            lab({**dane(row(record)), "example.test MX": ["10 a.test."]}, servers[0].port, secure=ALL) as made,
        ):
            result = await made.send()
            if checked is None:
                expect_refusal(result, servers)
                assert "DANE" in result.reason
            else:
                assert (result.kind, result.tls.split()[-1]) == (ACCEPTED, checked)
                assert servers[0].seen.snis == ["a.test"]


@pytest.mark.rfc("7672 2.1.2")
async def test_a_host_that_fails_dane_is_passed_over_for_one_that_does_not(keys: Keys) -> None:
    other = tlsa(issue("x"), 3)
    async with (
        smtp_servers(keys.script(), Script()) as servers,
        lab(dane(row(other)), servers[0].port, secure=ALL) as made,
    ):
        assert (await made.send()).kind is ACCEPTED
        assert bodies(servers) == [0, 1]


@pytest.mark.parametrize(
    ("secure", "changes", "outcome"),
    [
        (ALL, {}, "dane"),
        ({"a.test"}, {}, "tls"),  # the list is not secure
        ({"example.test"}, {}, "tls"),  # the addresses are not
        (ALL, {"_PORT._tcp.a.test TLSA": []}, "tls"),
        (ALL, {"_PORT._tcp.a.test TLSA": SERVFAIL}, "nothing"),
        (ALL, {"_PORT._tcp.a.test TLSA": ["1 1 1 " + "00" * 32]}, "tls"),  # unusable: encrypted, nobody checked
        (ALL, {"a.test AAAA": SERVFAIL}, "dane"),
    ],
)
@pytest.mark.rfc("7672 2.1.1", "7672 2.2.1")
async def test_what_dnssec_vouches_for_decides(
    keys: Keys, secure: set[str], changes: dict[str, Sequence[str]], outcome: str
) -> None:
    records = {**dane(row(tlsa(keys.leaf, 3))), "example.test MX": ["10 a.test."], **changes}
    async with smtp_servers(keys.script()) as servers, lab(records, servers[0].port, secure=secure) as made:
        result = await made.send()
        if outcome == "nothing":
            expect_refusal(result, servers)
            assert servers[0].seen.connections == 0
            return
        assert result.kind is ACCEPTED
        assert result.tls.endswith("dane-ee") is (outcome == "dane")


@pytest.mark.parametrize("record", ["3 1 1 " + "00" * 32, "1 1 1 " + "00" * 32])
@pytest.mark.rfc("7672 2.2b")
async def test_with_tlsa_records_nothing_goes_out_in_the_clear(record: str) -> None:
    records = {**dane(record), "example.test MX": ["10 a.test."]}
    async with smtp_servers(Script()) as servers, lab(records, servers[0].port, secure=ALL) as made:
        expect_refusal(await made.send(), servers)


@pytest.mark.parametrize(
    ("records", "secure", "sni"),
    [
        # an alias, and records at its end
        ({"a.test CNAME": ["c.test."], "c.test A": ["127.0.0.1"], "_PORT._tcp.c.test TLSA": ["GOOD"]}, ALL, "c.test"),
        # an alias, and records only under the name in the MX record
        ({"a.test CNAME": ["c.test."], "c.test A": ["127.0.0.1"], "_PORT._tcp.a.test TLSA": ["GOOD"]}, ALL, "a.test"),
        # an alias that leads out of the secure zone
        (
            {"a.test CNAME": ["c.other."], "c.other A": ["127.0.0.1"], "_PORT._tcp.a.test TLSA": ["GOOD"]},
            ALL,
            "a.test",
        ),
        # no MX record at all
        ({"example.test A": ["127.0.0.1"], "_PORT._tcp.example.test TLSA": ["GOOD"]}, ALL, "example.test"),
        # the domain itself is an alias
        (
            {
                "example.test CNAME": ["real.test."],
                "real.test MX": ["10 a.test."],
                "a.test A": ["127.0.0.1"],
                "_PORT._tcp.a.test TLSA": ["GOOD"],
            },
            ALL,
            "a.test",
        ),
    ],
)
@pytest.mark.rfc("7672 2.2.3", "7672 8.1")
async def test_aliases(keys: Keys, records: dict[str, Sequence[str]], secure: set[str], sni: str) -> None:
    good = row(tlsa(keys.leaf, 3))
    every = {key: [good if text == "GOOD" else text for text in rows] for key, rows in records.items()}
    if not any(key.startswith("example.test") for key in every):
        every["example.test MX"] = ["10 a.test."]
    async with smtp_servers(keys.script()) as servers, lab(every, servers[0].port, secure=secure) as made:
        result = await made.send()
        assert result.tls.endswith("dane-ee"), result
        assert servers[0].seen.snis == [sni]


@pytest.mark.rfc("7672 3.2.2")
async def test_dane_ta_accepts_the_domain_of_the_recipient_as_a_name(keys: Keys, tmp_path: Path) -> None:
    leaf = issue("x", keys.root, names=("example.test",))
    script = keys.script(context=server_context(leaf.write(tmp_path / "x.pem", keys.root)))
    records = {**dane(row(tlsa(keys.root, 2))), "example.test MX": ["10 a.test."]}
    async with smtp_servers(script) as servers, lab(records, servers[0].port, secure=ALL) as made:
        assert (await made.send()).tls.endswith("dane-ta")


async def test_where_dane_is_demanded_a_host_without_records_gets_nothing(keys: Keys) -> None:
    tls = [TlsSettings(domains=("*",), level="dane")]
    async with smtp_servers(keys.script()) as servers, lab(TWO, servers[0].port, secure=ALL, tls=tls) as made:
        expect_refusal(await made.send(), servers)
    records = dane(row(tlsa(keys.leaf, 3)))
    async with smtp_servers(keys.script()) as servers, lab(records, servers[0].port, secure=ALL, tls=tls) as made:
        assert (await made.send()).tls.endswith("dane-ee")


async def test_dane_can_be_left_to_those_who_demand_it(keys: Keys) -> None:
    records = dane(row(tlsa(issue("x"), 3)))
    off = MxSettings(dane=False)
    async with smtp_servers(keys.script()) as servers, lab(records, servers[0].port, secure=ALL, mx=off) as made:
        assert (await made.send()).kind is ACCEPTED


async def test_a_smart_host_is_held_to_its_tlsa_records(keys: Keys) -> None:
    for record, kind in ((tlsa(keys.leaf, 3), ACCEPTED), (tlsa(issue("x"), 3), OutcomeKind.TLS_FAILED)):
        async with (
            smtp_servers(keys.script()) as servers,
            lab(dane(row(record)), servers[0].port, secure=ALL) as made,
        ):
            host = Target(Hop.parse("host:up"), "a.test", made.port, tls="dane")
            assert (await made.client.attempt(host, job())).kind is kind


# -- MTA-STS -----------------------------------------------------------------------------------------------------------


def policies(mode: Mode, *hosts: str) -> Policies:
    return Policies(example=Policy(mode, hosts or ("a.test",), 86400))


@pytest.mark.rfc("8461 4.2", "8461 5a")
async def test_an_enforced_policy_wants_a_listed_host_with_a_verified_certificate(keys: Keys, tmp_path: Path) -> None:
    wrong = server_context(issue("x", keys.root, names=("x.test",)).write(tmp_path / "x.pem"))
    for mode, hosts, script, fits in (
        (Mode.ENFORCE, ("a.test",), keys.script(), True),
        (Mode.ENFORCE, ("*.test",), keys.script(), True),
        (Mode.ENFORCE, ("other.test",), keys.script(), False),
        (Mode.ENFORCE, ("a.test",), keys.script(context=wrong), False),
        (Mode.ENFORCE, ("a.test",), keys.script(keywords=KEYWORDS), False),
        (Mode.NONE, ("other.test",), keys.script(context=wrong), True),
    ):
        async with (
            smtp_servers(script) as servers,
            lab(
                {**TWO, "example.test MX": ["10 a.test."]},
                servers[0].port,
                tls=keys.trusted(),
                policies=policies(mode, *hosts),
            ) as made,
        ):
            result = await made.send()
            if not fits:
                expect_refusal(result, servers)
                continue
            assert result.kind is ACCEPTED
            assert result.tls.endswith("verified mta-sts") is (mode is Mode.ENFORCE)


@pytest.mark.rfc("8461 5b")
async def test_a_policy_in_testing_lets_mail_pass_and_says_what_would_have_failed(keys: Keys) -> None:
    for script, events in ((keys.script(), 0), (keys.script(context=None, keywords=KEYWORDS), 1)):
        with structlog.testing.capture_logs() as logs:
            async with (
                smtp_servers(script) as servers,
                lab(TWO, servers[0].port, tls=keys.trusted(), policies=policies(Mode.TESTING)) as made,
            ):
                assert (await made.send()).kind is ACCEPTED
        found = [line for line in logs if line["event"] == "tls.fallback"]
        assert [line["source"] for line in found] == ["mta-sts testing"] * events


@pytest.mark.rfc("8461 2")
async def test_dane_takes_the_place_of_mta_sts(keys: Keys) -> None:
    for record, kind in ((tlsa(keys.leaf, 3), ACCEPTED), (tlsa(issue("x"), 3), OutcomeKind.TLS_FAILED)):
        records = {**dane(row(record)), "example.test MX": ["10 a.test."]}
        async with (
            smtp_servers(keys.script()) as servers,
            lab(
                records,
                servers[0].port,
                secure=ALL,
                tls=keys.trusted(),
                policies=policies(Mode.ENFORCE, "*.test"),
            ) as made,
        ):
            assert (await made.send()).kind is kind


# -- REQUIRETLS --------------------------------------------------------------------------------------------------------

PROMISES = (*STARTTLS, "REQUIRETLS")


@pytest.mark.rfc("8689 4.2.1b", "8689 4.2.1c")
async def test_mail_that_requires_tls_goes_to_hosts_that_promise_it_and_nowhere_else(keys: Keys) -> None:
    kept, promised = policies(Mode.ENFORCE, "*.test"), "MAIL FROM:<sue@example.net>"
    for script, refused in (
        (keys.script(keywords=PROMISES), ""),
        (keys.script(), "5.7.30"),
        (keys.script(keywords=("REQUIRETLS",)), "5.7.10"),
    ):
        async with (
            smtp_servers(script) as servers,
            lab({**TWO, "example.test MX": ["10 a.test."]}, servers[0].port, tls=keys.trusted(), policies=kept) as made,
        ):
            result = await made.send(requiretls=True)
            said = servers[0].seen.said("MAIL")
            if refused:
                assert result.kind is OutcomeKind.MESSAGE_REFUSED
                assert [reply.status for reply in result.replies if reply] == [refused]
                assert said == []
            else:
                assert result.kind is ACCEPTED
                assert said[0].startswith(promised)
                assert said[0].endswith(" REQUIRETLS")


@pytest.mark.rfc("8689 4.2.1a")
async def test_the_name_of_the_host_must_be_vouched_for(keys: Keys) -> None:
    records = {**TWO, "example.test MX": ["10 a.test."]}
    script = keys.script(keywords=PROMISES)
    async with smtp_servers(script) as servers, lab(records, servers[0].port, tls=keys.trusted()) as made:
        result = await made.send(requiretls=True)
        assert [reply.status for reply in result.replies if reply] == ["5.7.30"]
    async with smtp_servers(script) as servers, lab(records, servers[0].port, secure=ALL, tls=keys.trusted()) as made:
        assert (await made.send(requiretls=True)).kind is ACCEPTED


@pytest.mark.rfc("8689 4.2.1d")
async def test_a_host_that_is_down_makes_mail_that_requires_tls_wait(keys: Keys) -> None:
    async with smtp_servers(keys.script()) as servers:
        port = servers[0].port
        records = {**TWO, "b.test A": ["127.0.1.1"]}
        async with lab(records, port, tls=keys.trusted(), policies=policies(Mode.ENFORCE, "*.test")) as made:
            result = await made.send(requiretls=True)
            assert result.kind is OutcomeKind.CONNECT_FAILED


@pytest.mark.rfc("8689 5b")
async def test_a_report_is_sent_even_where_tls_cannot_be_required() -> None:
    async with smtp_servers(Script()) as servers, lab(TWO, servers[0].port) as made:
        assert (await made.send(sender="", requiretls=True)).kind is ACCEPTED


@pytest.mark.rfc("8689 4.2.2")
async def test_a_message_may_waive_the_policies_of_the_domain_but_its_connection_serves_no_other(keys: Keys) -> None:
    records = {**dane(row(tlsa(issue("x"), 3))), "example.test MX": ["10 a.test."]}
    async with smtp_servers(keys.script()) as servers, lab(records, servers[0].port, secure=ALL) as made:
        expect_refusal(await made.send(), servers)
        result = await made.send(header=b"Subject: x\r\nTLS-Required: No\r\n\r\n")
        assert result.kind is ACCEPTED
        assert (await made.send()).kind is OutcomeKind.TLS_FAILED


async def test_mail_that_requires_tls_takes_no_idle_connection_that_promises_less(keys: Keys) -> None:
    script = keys.script(keywords=PROMISES)
    async with smtp_servers(script) as servers, lab(TWO, servers[0].port, secure=ALL, tls=keys.trusted()) as made:
        await made.send()
        assert (await made.send(requiretls=True)).kind is ACCEPTED
        assert servers[0].seen.connections == 2
        assert (await made.send(requiretls=True)).kind is ACCEPTED
        assert servers[0].seen.connections == 2


async def test_the_reasons_of_all_hosts_are_told() -> None:
    records = {**TWO, "a.test A": SERVFAIL, "b.test A": ["127.0.1.1"]}
    async with lab(records, 1) as made:
        assert (await made.send()).reason == (
            "a.test: DNS: the resolver could not find out (SERVFAIL) for A of a.test; "
            "b.test[127.0.1.1]: connect: Connection refused"
        )


async def test_places_are_found_lazily() -> None:
    async with smtp_servers(Script(), Script()) as servers, lab(TWO, servers[0].port) as made:
        await made.send()
        await asyncio.sleep(0)
        assert not any("b.test" in question for question in made.table.asked)
