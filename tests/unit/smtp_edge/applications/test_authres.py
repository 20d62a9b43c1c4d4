"""What needs no DNS of authres: body hashes as dkimpy has them, the field, who claims to be us, records of DMARC."""

from __future__ import annotations

import hashlib
import sys
import time

import dns.resolver
import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.authres.bodyhash import BodyHash, BodyKey
from smtp_edge.applications.authres.dmarc import BadRecord, Policy, find_policy, parse_record
from smtp_edge.applications.authres.judging import find_authors
from smtp_edge.applications.authres.lookups import LookupFailed, Lookups
from smtp_edge.applications.authres.results import Result, build_value, claims
from smtp_edge.applications.authres.signatures import find_body_keys, verify_arc, verify_dkim
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import SinkError
from smtp_edge.sinks.fields import Field, make_field, split_header

OURS = "mx.example.org"
PIECES = [b"a", b" ", b"\t", b"\r\n", b"  b", b"\r\n\r\n", b"word ", b"\t\r\n", b".\r\n"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join),
    st.integers(1, 5),
    st.booleans(),
    st.none() | st.integers(0, 20),
)
def test_a_body_has_the_hash_that_dkimpy_gives_it(body: bytes, step: int, relaxed: bool, length: int | None) -> None:
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"  # as mail data is; dkimpy keeps the blanks of a line without an end
    hashed = BodyHash(BodyKey(relaxed, length))
    for at in range(0, len(body), step):
        hashed.feed(body[at : at + step])
    canonical = (Relaxed if relaxed else Simple).canonicalize_body(body)
    assert hashed.finish() == hashlib.sha256(canonical[:length]).digest()
    assert hashed.size_bytes == len(canonical)


def test_a_flood_of_blanks_or_line_ends_costs_no_more_than_other_bytes() -> None:
    for relaxed in (True, False):
        for piece in (b" " * 65536, b"\r\n" * 32768, b"\t\r" * 32768):
            hashed = BodyHash(BodyKey(relaxed))
            for _ in range(100):
                hashed.feed(piece)
            assert len(hashed._tail) <= 2
            hashed.finish()


def test_the_field_quotes_what_strangers_chose() -> None:
    results = [
        Result("spf", "pass", (("smtp.mailfrom", "sue@example.net"),)),
        Result("dkim", "fail", (("header.d", "x;y dmarc=pass\r\nX: 1"), ("header.b", "ab/c=")), "no key"),
        Result("arc", "none"),
    ]
    value = build_value(OURS, results)
    assert value == (
        "mx.example.org;\r\n\tspf=pass smtp.mailfrom=sue@example.net;\r\n\t"
        'dkim=fail (no key) header.d="x;y dmarc=pass??X: 1" header.b="ab/c=";\r\n\tarc=none'
    )
    make_field("Authentication-Results", value)


@given(st.lists(st.text(max_size=300), max_size=12))
def test_any_values_make_one_field(values: list[str]) -> None:
    results = [Result("dkim", "fail", (("header.d", value), ("header.s", value))) for value in values]
    field = make_field("Authentication-Results", build_value(OURS, results))
    assert split_header(field.raw).fields == (field,)


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        ("mx.example.org; spf=pass", True),
        (" MX.Example.ORG 1; spf=pass", True),
        ("(a (b) ; c) mx.example.org (d); none", True),
        ('"mx.example.org"; none', True),
        ('"mx.example\\.org" 1; none', True),
        ("mx.example.org", True),
        ("(no end mx.example.org; spf=pass", True),
        ("mx.example.net; spf=pass smtp.mailfrom=mx.example.org", False),
        ("notmx.example.org; none", False),
        ("(mx.example.org) other.test; none", False),
        ("", False),
        (";", False),
    ],
)
def test_a_field_that_claims_to_be_ours_is_known(value: str, ours: bool) -> None:
    assert claims(value, OURS) is ours


@given(st.text(alphabet='mx.example.org ();"\\1', max_size=40))
def test_any_value_claims_or_does_not(value: str) -> None:
    assert claims(value, OURS) in (True, False)
    assert claims(f"{OURS};{value.replace('(', '').replace(chr(34), '').replace(chr(92), '')}", OURS)


@pytest.mark.parametrize(
    ("record", "policy"),
    [
        (b"v=DMARC1; p=reject", Policy("reject", "reject")),
        (b"v=DMARC1;p=Quarantine;sp=none;adkim=s;aspf=S;pct=20;", Policy("quarantine", "none", True, True, 20)),
        (b"v=DMARC1; p=none; adkim=x; pct=999; pct2=1; junk", Policy("none", "none", percent=100)),
        (b"v=DMARC1; p=reject; pct=-1", Policy("reject", "reject")),
        (b"v=DMARC1; p=what; rua=mailto:a@example.org", Policy()),
    ],
)
def test_a_record_is_read_and_what_means_nothing_is_passed_over(record: bytes, policy: Policy) -> None:
    assert parse_record(record) == policy


@given(st.binary(max_size=60))
def test_any_record_is_a_policy_or_bad(garbage: bytes) -> None:
    for record in (garbage, b"v=DMARC1; p=" + garbage):
        try:
            assert parse_record(record).policy in ("none", "quarantine", "reject")
        except BadRecord:
            pass


def test_a_policy_is_the_domain_s_own_or_of_its_organization() -> None:
    zone = {
        "_dmarc.example.org": [b"other", b"v=DMARC1; p=reject; sp=quarantine"],
        "_dmarc.own.example.org": [b"v=DMARC1; p=none"],
        "_dmarc.two.example.org": [b"v=DMARC1; p=none", b"v=DMARC1; p=reject"],
    }

    def find(domain: str) -> Policy | None:
        return find_policy(domain, lambda name: zone.get(name, []), lambda _: "example.org")

    assert find("example.org") == Policy("reject", "quarantine")
    assert find("sub.example.org") == Policy("quarantine", "quarantine")
    assert find("own.example.org") == Policy("none", "none")
    assert find("two.example.org") is None
    assert find_policy("a.test", lambda _: [], lambda _: "test") is None


def test_authors_are_all_domains_of_all_from_fields() -> None:
    values = ['"eve@trick.test" <a@One.test>, b@two.test', "c@one.test", "undisclosed:;", "x@b\u00fccher.test"]
    assert find_authors(values) == ("one.test", "two.test", "xn--bcher-kva.test")
    assert find_authors(["nobody"]) == ()


def nowhere() -> Lookups:
    return Lookups(dns.resolver.Resolver(configure=False), time.monotonic() - 1)


def test_when_the_time_is_up_nothing_is_asked() -> None:
    with pytest.raises(LookupFailed, match="time for this message is up"):
        nowhere().ask("example.org", "TXT")


def look_at(header: tuple[Field, ...]) -> tuple[str, str]:
    """Results of DKIM and ARC, for a body that is empty."""
    from smtp_edge.applications.authres.bodyhash import Hashed

    hashes = {}
    for key in find_body_keys(header):
        body = BodyHash(key)
        hashes[key] = Hashed(body.finish(), body.size_bytes)
    dkim = verify_dkim(header, hashes, nowhere())
    return dkim[0].result, verify_arc(header, hashes, nowhere())[0].result


NAMES = b"DKIM-Signature|DKIM-Signature |ARC-Seal|ARC-Message-Signature|From|X|ARC-Authentication-Results".split(b"|")
SIGNATURE = b"v=1; a=rsa-sha256; d=a.test; s=s; h=from; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=YWFh"
TAGS = [
    *b"i=1; |i=2;|cv=none; |cv=pass;|h=from:arc-seal;|b=|=;|\r\n |l=5;|c=relaxed/simple;|c=x/y/z;|s=..;".split(b"|"),
    SIGNATURE,
    b"d=\xff;",
    b"t=99999999999;",
]


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (SIGNATURE, "temperror"),
        (SIGNATURE.replace(b"h=from", b"h=to"), "permerror"),
        (SIGNATURE.replace(b"rsa-sha256", b"rsa-sha1"), "policy"),
        (SIGNATURE.replace(b"rsa-sha256", b"rsa-md5"), "neutral"),
        (SIGNATURE + b"; x=1", "fail"),
        (SIGNATURE.replace(b"d=a.test", b"d=" + b"a" * 70 + b".test"), "temperror"),
        (b"nonsense", "neutral"),
        (b"", "neutral"),
        (SIGNATURE + b" " * 200, "neutral"),
        (SIGNATURE.replace(b"h=from", b"h=from" + b":x" * 300), "neutral"),
        (SIGNATURE + b"; y=" + b"z" * 9000, "neutral"),
    ],
)
def test_a_signature_that_cannot_be_looked_at_is_told(value: bytes, result: str) -> None:
    header = (Field(b"From: a@a.test\r\n"), Field(b"DKIM-Signature: " + value + b"\r\n"))
    assert look_at(header) == (result, "none")
    assert look_at((*header, *[Field(b"X: y\r\n")] * 2000))[0] == "neutral"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.lists(
                st.sampled_from(TAGS),
                max_size=6,
            ).map(b"".join),
        ),
        max_size=6,
    )
)
def test_any_signatures_have_results(fields: list[tuple[bytes, bytes]]) -> None:
    header = tuple(Field(name + b": " + value + b"\r\n") for name, value in fields)
    dkim, arc = look_at(header)
    assert "pass" not in (dkim, arc)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dns_servers": ["nowhere"]}, "dns_servers: 'nowhere' is no address"),
        ({"dns_servers": ["127.0.0.1:0"]}, "is no address"),
        ({"dns_servers": "127.0.0.1"}, "dns_servers is a list"),
        ({"temperror": "burn"}, "temperror = 'burn' is none of: label, fail"),
        ({"header": "middle"}, "header = 'middle' is none of"),
        ({"authserv_id": "a b"}, "authserv_id = 'a b' is no name"),
        ({"timeout_s": 0}, "timeout_s is above 0"),
        ({"nonsense": 1}, "it takes: authserv_id"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SinkError, match=words):
        load_bindings([SinkSettings.model_validate({"use": "authres", "with": settings})])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("smtp_edge.applications.authres.judging")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "publicsuffixlist", None)
    with pytest.raises(SinkError, match=r"publicsuffixlist is not installed; pip install 'smtpmesh\[authres\]'"):
        load_bindings([SinkSettings.model_validate({"use": "authres", "with": {}})])
