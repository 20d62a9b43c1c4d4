"""Signatures that somebody else's code verifies: Debian's dkimpy, with our key in place of the DNS."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtp_edge.applications.dkim import DKIM, find_domain, hash_body
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import SinkError
from smtp_edge.sinks.testing import ask
from tests.conftest import find_command

MAIL = (
    b"Received: x\r\nFrom: Sue <sue@example.org>\r\nTo: ann@a.test,\r\n\tbob@b.test\r\n"
    b"Subject:  a   long\r\n subject \r\nDate: x\r\n\r\nHello  \r\n.dot\r\n\r\n\tworld\t\t!\r\n\r\n\r\n"
)
VERIFY = """
import sys, dkim
text = sys.stdin.buffer.read()
record = sys.argv[1].encode()
sys.exit(0 if dkim.verify(text, dnsfunc=lambda name, timeout=5: record) else 1)
"""
Key = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def write(directory: Path, key: Key | ec.EllipticCurvePrivateKey) -> Path:
    path = directory / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def record_of(key: Key) -> str:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "v=DKIM1; k=ed25519; p=" + base64.b64encode(key.public_key().public_bytes_raw()).decode()
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode()


def verifies(text: bytes, key: Key) -> bool:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", VERIFY, record_of(key)], input=text, check=False, capture_output=True, timeout=60
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


async def sign(key: Path, mail: bytes) -> bytes:
    return (await ask(DKIM("example.org", "mesh", str(key), now=lambda: 1_780_000_000), mail)).content


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.peer("dkimverify")
@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
async def test_the_signature_verifies_until_something_signed_changes(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, kind: str
) -> None:
    assert find_command("dkimverify") is not None
    key: Key = rsa_key if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    signed = await sign(write(tmp_path, key), MAIL)
    assert signed.endswith(MAIL)
    assert signed.startswith(b"DKIM-Signature: v=1; a=" + kind.encode())
    assert all(len(line) <= 78 for line in signed.partition(b"Received")[0].split(b"\r\n"))
    assert verifies(signed, key)
    changed = (
        (b"world", b"World"),
        (b"Subject:  a", b"Subject: b"),
        (b"Date:", b"Date: y\r\nDate:"),
        (b"From:", b"From: eve@example.org\r\nFrom:"),
        (b"Hello", b"Reply-To: eve@example.org\r\n\r\nHello"),
    )
    for old, new in changed[:-1]:
        assert not verifies(signed.replace(old, new, 1), key), old
    assert not verifies(signed.replace(b"Received: x", b"Received: x\r\nReply-To: eve@e.test"), key), "oversigned"
    assert verifies(signed.replace(b"Received: x", b"Received: y\r\nX-New: z"), key), "relays may do that"
    assert verifies(signed.replace(b"  a   long", b" a long").replace(b"Hello  ", b"Hello"), key), "relaxed"


@pytest.mark.peer("dkimverify")
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"a b\r\n", b"\r\n", b" \t\r\n", b".\r\n", b"x  \r\n", b"\t\ty\r\n", b"end"]), max_size=8)
)
async def test_any_body_verifies(tmp_path: Path, rsa_key: rsa.RSAPrivateKey, lines: list[bytes]) -> None:
    body = b"".join(line for line in lines if line != b"end") + (b"end\r\n" if b"end" in lines else b"")
    assert verifies(await sign(write(tmp_path, rsa_key), b"From: sue@example.org\r\n\r\n" + body), rsa_key)


@given(st.binary(max_size=60), st.integers(1, 7))
async def test_the_body_hash_does_not_depend_on_how_it_is_cut(body: bytes, step: int) -> None:
    async def cut(size: int):  # type: ignore[no-untyped-def]
        for at in range(0, len(body), size):
            yield body[at : at + size]

    assert await hash_body(cut(step)) == await hash_body(cut(1000))


@pytest.mark.parametrize(
    ("author", "signed"),
    [
        ("sue@example.org", True),
        ('"a, b" <Sue@Sub.Example.ORG> (me)', True),
        ('"sue@example.org" <eve@e.test>', False),
        ("sue@notexample.org", False),
        ("sue@example.org, eve@e.test", False),
        ("sue", False),
    ],
)
async def test_only_mail_of_the_domain_is_signed(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, author: str, signed: bool
) -> None:
    mail = f"From: {author}\r\n\r\nx\r\n".encode()
    assert ((await sign(write(tmp_path, rsa_key), mail)) != mail) is signed
    twice = b"From: sue@example.org\r\nFrom: eve@e.test\r\n\r\nx\r\n"
    assert await sign(write(tmp_path, rsa_key), twice) == twice
    assert find_domain([]) == ""


def load(directory: Path, *priorities: int, **given: object) -> None:
    with_ = {"domain": "example.org", "selector": "s", "key": str(directory / "key.pem"), **given}
    sections: list[dict[str, object]] = [{"use": "dkim", "with": with_, "priority": priorities[0]}]
    sections += [{"use": "clamav", "with": {"address": "a:1"}, "priority": priority} for priority in priorities[1:]]
    load_bindings([SinkSettings.model_validate(section) for section in sections])


def test_nobody_is_asked_after_a_signer(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    write(tmp_path, rsa_key)
    load(tmp_path, 10, 5, 9)
    with pytest.raises(SinkError, match="sink clamav-2 may change what dkim has signed"):
        load(tmp_path, 10, 5, 11)


def test_keys_and_names_that_mean_nothing_are_named(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(SinkError, match="No such file"):
        load(tmp_path, 1)
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(SinkError, match="no private key without a password"):
        load(tmp_path, 1)
    write(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SinkError, match="neither an RSA nor an Ed25519 key"):
        load(tmp_path, 1)
    write(tmp_path, rsa_key)
    with pytest.raises(SinkError, match="no name in the DNS"):
        load(tmp_path, 1, domain="exa mple")
