"""DANE: both tables at the head of `smtp_edge.client.dane`, row by row, and chains of real certificates."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.client.dane import (
    DaneMismatch,
    DaneVerdict,
    Tlsa,
    TlsaLookup,
    choose_usable,
    judge,
    name_matches,
    verify_chain,
)
from tests.unit.smtp_edge.client.certificates import DAY, NOW, issue, tlsa

ROOT = issue("root", ca=True)
MIDDLE = issue("middle", ROOT, ca=True)
LEAF = issue("leaf", MIDDLE, names=("mx.example.org", "*.example.net"))
OTHER = issue("other", names=("mx.example.org",))
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]
NAMES = ("mx.example.org",)
GOOD = tlsa(LEAF, 3)
USELESS = replace(GOOD, usage=1)

NOT, SKIP, ENCRYPT, AUTH = (
    DaneVerdict.NOT_APPLICABLE,
    DaneVerdict.SKIP,
    DaneVerdict.ENCRYPT,
    DaneVerdict.AUTHENTICATE,
)


@pytest.mark.parametrize(
    ("list_secure", "addresses_secure", "lookup", "records", "verdict"),
    [
        (False, True, TlsaLookup.NOT_ASKED, (), NOT),
        (False, True, TlsaLookup.SECURE, (GOOD,), NOT),
        (True, False, TlsaLookup.NOT_ASKED, (), NOT),
        (True, True, TlsaLookup.FAILED, (), SKIP),
        (True, True, TlsaLookup.INSECURE, (), NOT),
        (True, True, TlsaLookup.SECURE, (), NOT),
        (True, True, TlsaLookup.SECURE, (USELESS,), ENCRYPT),
        (True, True, TlsaLookup.SECURE, (USELESS, GOOD), AUTH),
    ],
)
@pytest.mark.rfc("7672 2.1.2", "7672 2.2b")
def test_the_verdict_for_a_host(
    list_secure: bool, addresses_secure: bool, lookup: TlsaLookup, records: tuple[Tlsa, ...], verdict: DaneVerdict
) -> None:
    plan = judge(
        list_secure=list_secure,
        addresses_secure=addresses_secure,
        lookup=lookup,
        records=records,
        base="mx.example.org",
    )
    assert plan.verdict is verdict
    assert bool(plan.reason) is (verdict is SKIP)
    assert plan.records == ((GOOD,) if verdict is AUTH else ())


@pytest.mark.parametrize(
    ("record", "usable"),
    [
        (tlsa(LEAF, 3, 1, 1), True),
        (tlsa(LEAF, 3, 0, 2), True),
        (tlsa(LEAF, 3, 0, 0), True),
        (tlsa(LEAF, 3, 1, 0), True),
        (tlsa(ROOT, 2, 0, 1), True),
        (tlsa(LEAF, 0), False),
        (tlsa(LEAF, 1), False),
        (tlsa(LEAF, 255), False),
        (replace(GOOD, selector=2), False),
        (replace(GOOD, matching=3), False),
        (replace(GOOD, data=GOOD.data[:-1]), False),
        (replace(GOOD, matching=2), False),  # a digest of 32 octets is none of SHA-512
        (Tlsa(3, 0, 0, b"no certificate"), False),
        (Tlsa(3, 1, 0, b"no key"), False),
        (Tlsa(3, 1, 1, b""), False),
    ],
)
@pytest.mark.rfc("7672 3.1.3")
def test_records_that_can_be_used(record: Tlsa, usable: bool) -> None:
    assert choose_usable([record]) == ((record,) if usable else ())


@pytest.mark.rfc("7672 5")
def test_of_two_digests_the_stronger_counts() -> None:
    weak, strong, whole, elsewhere = tlsa(OTHER, 3, 1, 1), tlsa(LEAF, 3, 1, 2), tlsa(LEAF, 3, 1, 0), tlsa(ROOT, 2, 0, 1)
    assert choose_usable([weak, strong, whole, elsewhere]) == (strong, whole, elsewhere)


def test_the_number_of_records_is_bounded() -> None:
    assert len(choose_usable([replace(GOOD, data=n.to_bytes(32)) for n in range(1000)])) == 50


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize(("pair", "usage"), [(LEAF, 3), (MIDDLE, 2), (ROOT, 2)])
@pytest.mark.rfc("7672 2.2a")
def test_each_kind_of_record_accepts_its_certificate_and_no_other(
    pair: object, usage: int, selector: int, matching: int
) -> None:
    record = tlsa(pair, usage, selector, matching)  # type: ignore[arg-type]
    assert verify_chain(CHAIN, [record], NAMES, at=NOW) == ("dane-ee" if usage == 3 else "dane-ta")
    with pytest.raises(DaneMismatch):
        verify_chain([OTHER.der], [record], NAMES, at=NOW)


@pytest.mark.rfc("7672 3.1.1")
def test_dane_ee_looks_neither_at_names_nor_at_time() -> None:
    old = issue("old", names=("elsewhere.test",), begins=NOW - 3 * DAY, ends=NOW - DAY, usage=None)
    assert verify_chain([old.der], [tlsa(old, 3)], NAMES, at=NOW) == "dane-ee"


@pytest.mark.parametrize(
    ("chain", "names", "later", "why"),
    [
        (CHAIN, ("mail.example.com",), timedelta(), "does not name mail.example.com"),
        (CHAIN, NAMES, 2 * DAY, "expired"),
        (CHAIN, NAMES, -2 * DAY, "not valid yet"),
        ([LEAF.der], NAMES, timedelta(), "no authority"),
        ([LEAF.der, ROOT.der], NAMES, timedelta(), "no authority"),
        ([OTHER.der, ROOT.der], NAMES, timedelta(), "no authority"),
        ([], NAMES, timedelta(), "no certificate"),
        ([b"garbage", ROOT.der], NAMES, timedelta(), "cannot be read"),
    ],
)
@pytest.mark.rfc("7672 3.1.2")
def test_dane_ta_wants_a_chain_a_name_and_the_time(
    chain: list[bytes], names: tuple[str, ...], later: timedelta, why: str
) -> None:
    with pytest.raises(DaneMismatch, match=why):
        verify_chain(chain, [tlsa(ROOT, 2)], names, at=NOW + later)


@pytest.mark.rfc("7672 3.1.2")
def test_dane_ta_accepts_any_of_the_reference_names_and_a_chain_out_of_order() -> None:
    shuffled = [LEAF.der, ROOT.der, MIDDLE.der]
    assert verify_chain(shuffled, [tlsa(ROOT, 2)], ("x.test", "mx.example.net"), at=NOW) == "dane-ta"


def test_an_authority_that_stands_in_the_record_need_not_be_shown() -> None:
    assert verify_chain([LEAF.der, MIDDLE.der], [tlsa(ROOT, 2, 0, 0)], NAMES, at=NOW) == "dane-ta"


def test_an_ordinary_certificate_is_no_authority() -> None:
    forged = issue("forged", LEAF, names=NAMES)
    with pytest.raises(DaneMismatch, match="no authority"):
        verify_chain([forged.der, LEAF.der, MIDDLE.der], [tlsa(LEAF, 2)], NAMES, at=NOW)


def test_an_old_authority_without_key_usage_is_one() -> None:
    plain = issue("plain", ca=True, key_usage=False)
    leaf = issue("leaf", plain, names=NAMES, usage=None)
    assert verify_chain([leaf.der, plain.der], [tlsa(plain, 2)], NAMES, at=NOW) == "dane-ta"


def test_a_certificate_for_clients_is_none_for_servers() -> None:
    leaf = issue("leaf", ROOT, names=NAMES, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(DaneMismatch, match="not for servers"):
        verify_chain([leaf.der, ROOT.der], [tlsa(ROOT, 2)], NAMES, at=NOW)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("mx.example.org", "MX.example.org.", True),
        ("*.example.org", "mx.example.org", True),
        ("*.example.org", "a.mx.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.org", "example.org", False),
        ("*", "org", False),
        ("m*.example.org", "mx.example.org", False),
        ("mx.example.com", "mx.example.org", False),
    ],
)
def test_names(pattern: str, name: str, fits: bool) -> None:
    assert name_matches(pattern, name) is fits


@given(st.lists(st.binary(max_size=200), max_size=4), st.sampled_from([2, 3]), st.binary(min_size=32, max_size=32))
def test_garbage_only_ever_raises_our_error(chain: list[bytes], usage: int, data: bytes) -> None:
    with pytest.raises(DaneMismatch):
        verify_chain(chain, [Tlsa(usage, 1, 1, data)], NAMES, at=NOW)
