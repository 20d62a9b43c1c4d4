"""authres in real sessions while its DNS is stopped, down or mad; and ARC chains, odd keys and several authors.

smtplib -> relay A (sink authres) -> keeper;  authres asks Unbound, or what stands in its place
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from smtp_edge.applications.authres.sink import AuthRes
from smtp_edge.applications.dkim import DKIM
from smtp_edge.envelope import Client
from smtp_edge.sinks.testing import Outcome, ask
from tests.e2e import nameservers
from tests.e2e.nameservers import Nameservers
from tests.e2e.one_relay import POLICIES, check_policy, one_relay, send, wait_kept

pytestmark = [
    pytest.mark.peer("knotd", "unbound"),
    pytest.mark.skipif(bool(nameservers.missing()), reason=nameservers.missing() or "both are there"),
]

SINK = """
[[sink]]
use = "authres"
timeout = "10s"
on_failure = "{policy}"
with = {{ authserv_id = "mx.here.test", dns_servers = ["127.0.0.1:{port}"], timeout_s = 2, temperror = "{temperror}" }}
"""
MAIL = b"From: Sue <sue@%s>\r\nTo: ann@here.test\r\nSubject: hello\r\n\r\nhello  \r\n"
KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
DER = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
SEED = ed25519.Ed25519PrivateKey.generate()
POINT = base64.b64encode(SEED.public_key().public_bytes_raw()).decode()
FORGED = b"Authentication-Results: mx.here.test; dmarc=pass\r\n"


def text(name: str, record: str) -> str:
    """A TXT row, in strings of 200 octets."""
    return f"{name} TXT " + " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))


def start_zone(folder: Path) -> Nameservers:
    made = Nameservers(folder)
    made.add(
        "plain.test",
        text("@", "v=spf1 ip4:192.0.2.1 ip4:127.0.0.1 -all"),
        text("s._domainkey", "v=DKIM1; p=" + base64.b64encode(DER).decode()),
        text("ed._domainkey", f"v=DKIM1; k=ed25519; p={POINT}"),
        text("bad._domainkey", "v=DKIM1; k=rsa; p=nonsense!"),
        text("revoked._domainkey", "v=DKIM1; p="),
        text("exact._domainkey", "v=DKIM1; t=s; p=" + base64.b64encode(DER).decode()),
        text("_dmarc", "v=DMARC1; p=reject"),
        text("_dmarc.odd", "v=DMARC1; p=sometimes"),
        text("_dmarc.half", "v=DMARC1; p=reject; pct=50"),
        text("_dmarc.lax", "v=DMARC1; p=none"),
    )
    return made


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameservers]:
    with start_zone(tmp_path_factory.mktemp("dns")) as made:
        yield made


async def judge(servers: Nameservers, mail: bytes, address: str = "198.51.100.9", **settings: object) -> Outcome:
    sink = AuthRes("mx.here.test", [f"127.0.0.1:{servers.port}"], timeout_s=10, **settings)  # type: ignore[arg-type]
    client = Client(address, helo="client.test", listener="smtp")
    return await ask(sink, mail, sender="sue@plain.test", client=client)


def results(content: bytes) -> dict[str, str]:
    """method -> result, of our field."""
    (field,) = re.findall(rb"Authentication-Results: mx\.here\.test;.*?\r\n(?=\S)", content, re.DOTALL)
    return dict(re.findall(r"(?<![.\w])(spf|dkim|dmarc|arc)=(\w+)", field.decode()))


def signed(domain: bytes = b"lax.plain.test", selector: bytes = b"s", **more: object) -> bytes:
    mail = MAIL % domain
    return bytes(dkim.sign(mail, selector, b"plain.test", PEM, include_headers=[b"from", b"subject"], **more)) + mail


# -- what signatures and records are called ----------------------------------------------------------------------------


async def test_signatures_are_called_what_they_are(servers: Nameservers) -> None:
    ed = MAIL % b"lax.plain.test"
    seed = base64.b64encode(SEED.private_bytes_raw())
    ed = bytes(dkim.sign(ed, b"ed", b"plain.test", seed, signature_algorithm=b"ed25519-sha256")) + ed
    found = {
        "ed25519": ed,
        "simple": signed(canonicalize=(b"simple", b"simple")),
        "whole length": signed(length=True),
        "more than the length": signed(length=True) + b"more\r\n",
        "bad key": signed(selector=b"bad"),
        "revoked": signed(selector=b"revoked"),
        "exact": signed(selector=b"exact"),
        "not exact": signed(selector=b"exact", identity=b"@sub.plain.test"),
        "sha1": signed(signature_algorithm=b"rsa-sha1"),
        "header": signed().replace(b"Subject: hello", b"Subject: hullo"),
        "two authors": b"From: eve@e.test\r\n" + signed(),
    }
    said = {what: results((await judge(servers, mail)).content)["dkim"] for what, mail in found.items()}
    assert said == {
        "ed25519": "pass",
        "simple": "pass",
        "whole length": "pass",
        "more than the length": "policy",
        "bad key": "permerror",
        "revoked": "permerror",
        "exact": "pass",
        "not exact": "permerror",
        "sha1": "policy",
        "header": "fail",
        "two authors": "fail",
    }


async def test_what_our_own_signer_signs_passes(servers: Nameservers, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(PEM)
    mail = (await ask(DKIM("plain.test", "s", str(tmp_path / "key.pem")), MAIL % b"plain.test")).content
    outcome = await judge(servers, mail, enforce=True)
    assert results(outcome.content) == {"spf": "fail", "dkim": "pass", "dmarc": "pass", "arc": "none"}


async def test_a_record_of_garbage_is_permerror_and_a_bogus_zone_temperror(servers: Nameservers) -> None:
    assert results((await judge(servers, MAIL % b"odd.plain.test")).content)["dmarc"] == "permerror"
    assert results((await judge(servers, MAIL % b"broken.test")).content)["dmarc"] == "temperror"
    assert results((await judge(servers, MAIL % b"signed.test")).content)["dmarc"] == "none"


async def test_a_share_of_what_fails_is_refused(servers: Nameservers) -> None:
    mail = MAIL % b"half.plain.test"
    assert (await judge(servers, mail, enforce=True, chance=lambda: 0.6)).reply == ""
    assert (await judge(servers, mail, enforce=True, chance=lambda: 0.4)).reply.startswith("550 5.7.1")


async def test_a_second_author_does_not_hide_the_first(servers: Nameservers) -> None:
    for first in (b"From: x@signed.test\r\n", b"From: <a@signed.test>, b@plain.test\r\n"):
        outcome = await judge(servers, first + MAIL % b"plain.test", enforce=True)
        assert outcome.reply == "550 5.7.1 refused by the DMARC policy of plain.test"
    many = b"From: " + b", ".join(b"a@d%d.signed.test" % number for number in range(11)) + b"\r\n\r\nx\r\n"
    assert (await judge(servers, many, enforce=True)).reply == "550 5.6.0 too many authors"


def sealed(mail: bytes) -> bytes:
    """By a list that says that it came by authentic ways."""
    mail = b"Authentication-Results: lists.test; dkim=pass; arc=none\r\n" + mail
    return b"".join(dkim.arc_sign(mail, b"s", b"plain.test", PEM, b"lists.test")) + mail


async def test_a_chain_that_is_trusted_lets_changed_mail_through(servers: Nameservers) -> None:
    mail = sealed(MAIL % b"plain.test")
    told = results((await judge(servers, mail)).content)
    assert told == {"spf": "fail", "dkim": "none", "dmarc": "fail", "arc": "pass"}
    assert (await judge(servers, mail, enforce=True, arc_trusted=["Plain.test"])).reply == ""
    assert (await judge(servers, mail, enforce=True, arc_trusted=["other.test"])).reply.startswith("550 5.7.1")
    for changed in (
        mail.replace(b"hello  \r\n", b"hullo\r\n"),
        mail.replace(b"cv=none", b"cv=pass"),
        mail.replace(b"ARC-Seal", b"X-Seal"),
    ):
        assert changed != mail
        assert results((await judge(servers, changed)).content)["arc"] == "fail"
        assert (await judge(servers, changed, enforce=True, arc_trusted=["plain.test"])).reply.startswith("550")


# -- a DNS that fails, in real sessions --------------------------------------------------------------------------------


@contextlib.contextmanager
def mad(port: int) -> Iterator[None]:
    """Garbage to whoever asks at this port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        server.settimeout(0.1)
        over = threading.Event()

        def lie() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    question, asker = server.recvfrom(4096)
                    server.sendto(question[:2] + os.urandom(60), asker)

        liar = threading.Thread(target=lie)
        liar.start()
        try:
            yield
        finally:
            over.set()
            liar.join()


def through_three_faults(folder: Path, policy: str, temperror: str) -> None:
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(start_zone(folder / "dns"))
        settings = SINK.format(policy=policy, port=servers.port, temperror=temperror)
        relay, keeper = stack.enter_context(one_relay(folder / "c", settings))
        mail = FORGED + signed(b"plain.test")
        assert send(relay, mail, sender="sue@plain.test")[0] == 250
        whole = {"spf": "pass", "dkim": "pass", "dmarc": "pass", "arc": "none"}
        assert results(wait_kept(keeper, 1)[0].data) == whole
        unbound = servers._unbound
        assert unbound is not None
        unbound.send_signal(signal.SIGSTOP)
        replies = [send(relay, mail, sender="sue@plain.test")]
        unbound.send_signal(signal.SIGCONT)
        unbound.kill()
        unbound.wait(10)
        replies.append(send(relay, mail, sender="sue@plain.test"))
        with mad(servers.port):
            replies.append(send(relay, mail, sender="sue@plain.test"))
        if temperror == "label":
            assert [code for code, _ in replies] == [250] * 3
            for kept in wait_kept(keeper, 4)[1:]:
                assert set(results(kept.data).values()) == {"temperror", "none"}
            return
        check_policy(relay, keeper, policy, replies, well=1)
        assert sum(b"spf=" in kept.data for kept in keeper.messages) == 1, "nothing is said of what was not looked at"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dns_that_is_stopped_down_or_mad_means_what_the_binding_says(folder: Path, policy: str) -> None:
    through_three_faults(folder, policy, "fail")


def test_a_dns_that_is_stopped_down_or_mad_is_told_in_the_field(folder: Path) -> None:
    through_three_faults(folder, "tempfail", "label")
