"""authres against a real DNS (Knot behind Unbound) and signatures of dkimpy: what each kind of mail is called, and what
a DNS that is away means."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import cast

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from smtp_edge.applications.authres.sink import AuthRes
from smtp_edge.envelope import Client
from smtp_edge.sinks.api import NodeServices
from smtp_edge.sinks.chain import Binding
from smtp_edge.sinks.testing import Outcome, ask
from tests.e2e import nameservers
from tests.e2e.nameservers import Nameservers

pytestmark = [
    pytest.mark.peer("knotd", "unbound"),
    pytest.mark.skipif(bool(nameservers.missing()), reason=nameservers.missing() or "both are there"),
]

MAIL = "From: Sue <sue@{domain}>\r\nTo: ann@here.test\r\nSubject: hello\r\n\r\nhello  \r\n"
KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
PUBLIC = base64.b64encode(
    KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
).decode()


class Node:
    hostname = "mx.here.test"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameservers]:
    made = Nameservers(tmp_path_factory.mktemp("dns"))
    key = f"v=DKIM1; p={PUBLIC}"
    pieces = " ".join(f'"{key[at : at + 200]}"' for at in range(0, len(key), 200))
    made.add(
        "plain.test",
        '@ TXT "v=spf1 ip4:192.0.2.1 ~all"',
        f"s._domainkey TXT {pieces}",
        '_dmarc TXT "v=DMARC1; p=reject"',
        'hard TXT "v=spf1 -all"',
        '_dmarc.hard TXT "v=DMARC1; p=reject; aspf=s; adkim=s"',
        'odd TXT "v=spf1 nonsense:x -all"',
        '_dmarc.odd TXT "v=DMARC1; p=sometimes"',
        'lax TXT "v=spf1 ?all"',
        '_dmarc.lax TXT "v=DMARC1; p=none"',
    )
    with made:
        yield made


@pytest.fixture
def sink(servers: Nameservers) -> AuthRes:
    made = AuthRes(dns_servers=[f"127.0.0.1:{servers.port}"], timeout_s=5, enforce=True)
    made.node = cast("NodeServices", Node())
    return made


async def judge(sink: AuthRes, mail: bytes, sender: str, address: str = "192.0.2.1", **binding: str) -> Outcome:
    bound = [Binding("authres", sink, timeout_s=20, **binding)]  # type: ignore[arg-type]
    return await ask(bound, mail, sender=sender, client=Client(address, helo="client.test", listener="smtp"))


def results(outcome: Outcome) -> dict[str, str]:
    """method -> result, of the field on top."""
    field = outcome.content.partition(b"\r\nFrom:")[0].decode()
    assert field.startswith("Authentication-Results: mx.here.test;")
    return dict(re.findall(r"(?<![.\w])(spf|dkim|dmarc|arc)=(\w+)", field))


def signed(domain: str, of: str = "plain.test", selector: bytes = b"s") -> bytes:
    mail = MAIL.format(domain=domain).encode()
    return bytes(dkim.sign(mail, selector, of.encode(), PEM, include_headers=[b"from", b"subject"])) + mail


async def test_a_signed_mail_of_an_allowed_host_passes(sink: AuthRes) -> None:
    outcome = await judge(sink, signed("plain.test"), "sue@plain.test")
    assert results(outcome) == {"spf": "pass", "dkim": "pass", "dmarc": "pass", "arc": "none"}


async def test_alignment_is_relaxed_or_strict_as_the_domain_wants(sink: AuthRes) -> None:
    relaxed = await judge(sink, signed("lax.plain.test"), "sue@signed.test", "198.51.100.9")
    assert results(relaxed) == {"spf": "none", "dkim": "pass", "dmarc": "pass", "arc": "none"}
    strict = await judge(sink, signed("hard.plain.test"), "sue@plain.test")
    assert strict.reply == "550 5.7.1 refused by the DMARC policy of hard.plain.test"


async def test_who_is_not_allowed_fails_softly_or_hard(sink: AuthRes) -> None:
    soft = await judge(sink, MAIL.format(domain="lax.plain.test").encode(), "sue@plain.test", "198.51.100.9")
    assert results(soft) == {"spf": "softfail", "dkim": "none", "dmarc": "fail", "arc": "none"}
    forged = await judge(sink, MAIL.format(domain="plain.test").encode(), "sue@plain.test", "198.51.100.9")
    assert forged.reply.startswith("550 5.7.1 refused by the DMARC policy")


async def test_a_changed_body_and_a_missing_key_do_not_pass(sink: AuthRes) -> None:
    changed = await judge(sink, signed("lax.plain.test").replace(b"hello  ", b"hullo"), "sue@lax.plain.test")
    assert results(changed)["dkim"] == "fail"
    keyless = await judge(sink, signed("lax.plain.test", selector=b"gone"), "sue@lax.plain.test")
    assert results(keyless)["dkim"] in ("permerror", "neutral")


async def test_records_that_are_garbage_are_permanent_errors(sink: AuthRes) -> None:
    outcome = await judge(sink, MAIL.format(domain="odd.plain.test").encode(), "sue@odd.plain.test")
    assert results(outcome)["spf"] == "permerror"


async def test_a_field_that_claims_to_be_ours_is_removed_and_others_stay(sink: AuthRes) -> None:
    forged = b"Authentication-Results: MX.here.test; dkim=pass\r\nAuthentication-Results: mx.other.test; dkim=fail\r\n"
    outcome = await judge(sink, forged + signed("plain.test"), "sue@plain.test")
    assert outcome.content.count(b"MX.here.test") == 0
    assert outcome.content.count(b"mx.other.test; dkim=fail") == 1


@pytest.mark.parametrize(
    ("policy", "reply", "held"), [("tempfail", "451", 0), ("accept", "", 0), ("quarantine", "", 1)]
)
async def test_a_dns_that_is_away_is_told_or_means_what_the_binding_says(
    servers: Nameservers, policy: str, reply: str, held: int
) -> None:
    nobody = AuthRes(dns_servers=["127.0.0.1:9"], timeout_s=1, temperror="fail")
    nobody.node = cast("NodeServices", Node())
    outcome = await judge(nobody, signed("plain.test"), "sue@plain.test", on_failure=policy)
    assert outcome.reply.startswith(reply)
    assert bool(outcome.reply) is bool(reply)
    assert len(outcome.held) == held
    told = AuthRes(dns_servers=["127.0.0.1:9"], timeout_s=1)
    told.node = cast("NodeServices", Node())
    assert results(await judge(told, signed("plain.test"), "sue@plain.test")) == {
        "spf": "temperror",
        "dkim": "temperror",
        "dmarc": "temperror",
        "arc": "none",
    }
