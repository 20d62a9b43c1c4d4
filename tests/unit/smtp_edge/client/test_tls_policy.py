"""What a session must be secured by: the tables at the head of `smtp_edge.client.tls_policy`, row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge.client.dane import NOT_APPLICABLE, DanePlan, DaneVerdict, Tlsa
from smtp_edge.client.mta_sts import Mode, Policy
from smtp_edge.client.tls_policy import Floor, LeftOut, Level, TlsDemand, Wish, plan_tls, wish_of
from smtp_edge.client.ways import FloorTable
from smtp_edge.envelope import Envelope
from smtp_edge.settings import TlsSettings

HOST, BASE = "mx.example.org", "base.example.org"
RECORD = Tlsa(3, 1, 1, bytes(32))
SKIP = DanePlan(DaneVerdict.SKIP, base=BASE, reason="cannot be looked up")
ENCRYPT = DanePlan(DaneVerdict.ENCRYPT, base=BASE)
AUTH = DanePlan(DaneVerdict.AUTHENTICATE, (RECORD,), BASE)
LISTED, ELSEWHERE = (HOST,), ("other.example.org",)
NONE, MAY, ENC, VER, DANE = Level.NONE, Level.OPPORTUNISTIC, Level.ENCRYPTED, Level.VERIFIED, Level.DANE
OUT = None


def policy(mode: Mode, hosts: tuple[str, ...] = LISTED) -> Policy:
    return Policy(mode, hosts, 86400)


ENFORCE, FOREIGN = policy(Mode.ENFORCE), policy(Mode.ENFORCE, ELSEWHERE)
TESTING, OFF = policy(Mode.TESTING), policy(Mode.NONE)


@pytest.mark.parametrize(
    ("floor", "dane", "sts", "tried"),
    [
        # the operator alone
        (NONE, NOT_APPLICABLE, None, [NONE]),
        (MAY, NOT_APPLICABLE, None, [MAY, NONE]),
        (ENC, NOT_APPLICABLE, None, [ENC]),
        (VER, NOT_APPLICABLE, None, [VER]),
        (DANE, NOT_APPLICABLE, None, OUT),
        # DANE, which takes the place of MTA-STS
        (MAY, AUTH, None, [DANE]),
        (MAY, AUTH, FOREIGN, [DANE]),
        (VER, AUTH, None, [DANE]),
        (DANE, AUTH, None, [DANE]),
        (MAY, ENCRYPT, None, [ENC]),
        (VER, ENCRYPT, None, [VER]),
        (DANE, ENCRYPT, None, OUT),
        (MAY, SKIP, None, OUT),
        (MAY, SKIP, ENFORCE, OUT),
        # MTA-STS
        (MAY, NOT_APPLICABLE, ENFORCE, [VER]),
        (ENC, NOT_APPLICABLE, ENFORCE, [VER]),
        (VER, NOT_APPLICABLE, ENFORCE, [VER]),
        (MAY, NOT_APPLICABLE, FOREIGN, OUT),
        (VER, NOT_APPLICABLE, FOREIGN, OUT),
        (MAY, NOT_APPLICABLE, TESTING, [VER, MAY, NONE]),
        (ENC, NOT_APPLICABLE, TESTING, [VER, ENC]),
        (MAY, NOT_APPLICABLE, OFF, [MAY, NONE]),
        # an operator who has turned TLS off for a domain
        (NONE, AUTH, ENFORCE, [NONE]),
        (NONE, SKIP, FOREIGN, [NONE]),
    ],
)
def test_what_is_tried(floor: Level, dane: DanePlan, sts: Policy | None, tried: list[Level] | None) -> None:
    plan = plan_tls(Floor(floor), HOST, dane=dane, policy=sts, reference_names=(BASE,))
    if tried is None:
        assert isinstance(plan, LeftOut)
        assert plan.reason
        return
    assert isinstance(plan, tuple)
    assert [demand.level for demand in plan] == tried
    for demand in plan:
        if demand.level is DANE:
            assert (demand.host, demand.names, demand.tlsa) == (BASE, (BASE,), (RECORD,))
        elif demand.level is not NONE:
            assert demand.host == HOST


@pytest.mark.parametrize(
    ("floor", "dane", "sts", "trusted", "tried"),
    [
        (MAY, NOT_APPLICABLE, None, False, OUT),
        (MAY, NOT_APPLICABLE, None, True, [VER]),
        (MAY, NOT_APPLICABLE, ENFORCE, False, [VER]),
        (MAY, NOT_APPLICABLE, TESTING, False, [VER]),
        (MAY, NOT_APPLICABLE, FOREIGN, True, OUT),
        (MAY, NOT_APPLICABLE, OFF, False, OUT),
        (MAY, AUTH, None, True, [DANE]),
        (MAY, ENCRYPT, None, True, [VER]),
        (MAY, ENCRYPT, None, False, OUT),
        (NONE, NOT_APPLICABLE, None, True, [VER]),
    ],
)
@pytest.mark.rfc("8689 4.2.1b")
def test_requiretls_wants_a_verified_session_with_a_host_whose_name_is_vouched_for(
    floor: Level, dane: DanePlan, sts: Policy | None, trusted: bool, tried: list[Level] | None
) -> None:
    plan = plan_tls(Floor(floor), HOST, dane=dane, policy=sts, name_trusted=trusted, wish=Wish.REQUIRE)
    assert (None if isinstance(plan, LeftOut) else [demand.level for demand in plan]) == tried


@pytest.mark.parametrize(
    ("floor", "dane", "sts", "tried"),
    [
        (MAY, SKIP, None, [MAY, NONE]),
        (MAY, AUTH, None, [MAY, NONE]),
        (MAY, NOT_APPLICABLE, FOREIGN, [MAY, NONE]),
        (VER, NOT_APPLICABLE, None, [VER]),
        (ENC, AUTH, ENFORCE, [ENC]),
        (DANE, AUTH, None, [DANE]),
        (DANE, NOT_APPLICABLE, None, OUT),
    ],
)
@pytest.mark.rfc("8689 4.2.2")
def test_tls_required_no_sets_the_domains_policies_aside_but_not_the_operators(
    floor: Level, dane: DanePlan, sts: Policy | None, tried: list[Level] | None
) -> None:
    plan = plan_tls(Floor(floor), HOST, dane=dane, policy=sts, wish=Wish.RELAX)
    assert (None if isinstance(plan, LeftOut) else [demand.level for demand in plan]) == tried


def test_the_operators_names_and_authority_are_those_of_the_demand() -> None:
    floor = Floor(VER, ("mail.partner.test",), Path("ca.pem"))
    assert plan_tls(floor, HOST) == (TlsDemand(VER, HOST, ("mail.partner.test",), Path("ca.pem")),)
    assert plan_tls(floor, HOST, wish=Wish.REQUIRE) == (
        TlsDemand(VER, HOST, ("mail.partner.test",), Path("ca.pem"), source="requiretls"),
    )


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (b"Subject: x\r\n\r\n", Wish.NOTHING),
        (b"TLS-Required: No\r\n\r\n", Wish.RELAX),
        (b"Subject: x\r\ntls-required:no \r\n\r\n", Wish.RELAX),
        (b"TLS-Required:\r\n No\r\n\r\n", Wish.RELAX),
        (b"TLS-Required: Yes\r\n\r\n", Wish.NOTHING),
        (b"X-TLS-Required: No\r\n\r\n", Wish.NOTHING),
        (b"Subject: a\r\n TLS-Required: No\r\n\r\n", Wish.NOTHING),
    ],
)
def test_the_header_field(header: bytes, wish: Wish) -> None:
    assert wish_of(Envelope("sue@example.net", ()), header) is wish


@pytest.mark.rfc("8689 4.1")
def test_requiretls_overrides_the_field_and_is_only_a_wish_for_a_report() -> None:
    header = b"TLS-Required: No\r\n\r\n"
    assert wish_of(Envelope("sue@example.net", (), requiretls=True), header) is Wish.REQUIRE
    assert wish_of(Envelope("", (), requiretls=True), header) is Wish.NOTHING


def test_the_first_table_that_names_a_domain_counts() -> None:
    table = FloorTable(
        [
            TlsSettings(domains=("a.test", "*.b.test"), level="verified"),
            TlsSettings(domains=("*.test",), level="encrypted"),
            TlsSettings(domains=("b.test",), level="none"),
        ]
    )
    domains = ("a.test", "x.b.test", "x.y.b.test", "b.test", "c.test", "example.org")
    assert [table.find(domain).level for domain in domains] == [VER, VER, VER, ENC, ENC, MAY]
    assert FloorTable([TlsSettings(domains=("*",), level="none")]).find("x").level is NONE
