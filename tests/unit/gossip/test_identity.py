"""Identities: who is let in, and what an operator reads when a file is not right."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import (
    Authority,
    Identity,
    IdentityError,
    RevokedError,
    TrustBundle,
    node_id_of,
    replace_file,
    server_name,
    write_new,
)

NOW = datetime.now(UTC)


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=NOW)


def write_node(folder: Path, authority: Authority, *, name: str = "n1", at: datetime = NOW, days: int = 30) -> None:
    folder.mkdir(exist_ok=True)
    certificate, key = authority.issue(name, at=at, days=days)
    write_new(folder / "ca.crt", authority.certificate_pem, mode=0o644)
    write_new(folder / "node.crt", certificate, mode=0o644)
    write_new(folder / "node.key", key, mode=0o600)


def load(folder: Path) -> Identity:
    return Identity.load(folder / "ca.crt", folder / "node.crt", folder / "node.key")


def test_a_node_is_named_by_its_key(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path, authority)
    identity = load(tmp_path)
    assert (identity.name, identity.cluster) == ("n1", "test")
    assert identity.node_id == node_id_of(identity.certificate_der)
    assert len(identity.node_id) == 32
    assert server_name(identity.node_id) == f"{identity.node_id}.smtpmesh"


def test_members_verify_each_others_signatures(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path, authority)
    identity = load(tmp_path)
    member = identity.member(identity.certificate_der, at=NOW)
    signature = identity.sign(b"hello")
    assert member.verify(signature, b"hello")
    assert not member.verify(signature, b"hullo")
    assert not member.verify(b"nonsense", b"hello")


def test_an_authority_survives_the_disk_and_never_overwrites(tmp_path: Path, authority: Authority) -> None:
    authority.save(tmp_path / "ca.crt", tmp_path / "ca.key")
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    again = Authority.load(tmp_path / "ca.crt", tmp_path / "ca.key")
    assert again.certificate_pem == authority.certificate_pem
    with pytest.raises(FileExistsError):
        authority.save(tmp_path / "ca.crt", tmp_path / "ca.key")


def test_a_certificate_of_another_authority_of_the_same_name_is_refused(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path / "ours", authority)
    write_node(tmp_path / "theirs", Authority.create("test", at=NOW))
    with pytest.raises(IdentityError, match="not issued by this cluster's authority"):
        load(tmp_path / "ours").member(load(tmp_path / "theirs").certificate_der, at=NOW)


def test_an_expired_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path, authority)
    identity = load(tmp_path)
    with pytest.raises(IdentityError, match="valid until"):
        identity.member(identity.certificate_der, at=NOW + timedelta(days=31))


def test_what_is_no_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path, authority)
    with pytest.raises(IdentityError):
        load(tmp_path).member(b"nonsense", at=NOW)
    with pytest.raises(IdentityError):
        node_id_of(b"nonsense")


def missing(folder: Path) -> None:
    (folder / "node.crt").unlink()


def readable_by_others(folder: Path) -> None:
    (folder / "node.key").chmod(0o644)


def another_key(folder: Path) -> None:
    _, key = Authority.create("test", at=NOW).issue("x", at=NOW)
    (folder / "node.key").write_bytes(key)


def garbage(folder: Path) -> None:
    (folder / "ca.crt").write_text("not a certificate")


def another_authority(folder: Path) -> None:
    (folder / "ca.crt").write_bytes(Authority.create("test", at=NOW).certificate_pem)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "node.crt: No such file or directory; `smtpmesh init`"),
        (readable_by_others, "can be read by others; run: chmod 600"),
        (another_key, "is not the key of"),
        (garbage, "ca.crt is not a PEM certificate"),
        (another_authority, "does not fit"),
    ],
)
def test_each_wrong_file_is_named_with_the_way_out(tmp_path: Path, authority: Authority, damage, words: str) -> None:
    write_node(tmp_path, authority)
    damage(tmp_path)
    with pytest.raises(IdentityError) as caught:
        load(tmp_path)
    assert words in str(caught.value)


def test_the_contexts_demand_certificates_of_both_sides(tmp_path: Path, authority: Authority) -> None:
    write_node(tmp_path, authority)
    identity = load(tmp_path)
    for context in (identity.server_context(), identity.client_context()):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


# -- rotation: old and new authority in one bundle ---------------------------------------------------------------------


def new_node(issuer: Authority, *bundle: Authority, name: str = "n1") -> Identity:
    certificate, key = issuer.issue(name, at=NOW)
    return Identity(b"".join(authority.certificate_pem for authority in bundle or (issuer,)), certificate, key)


def shake_hands(server: Identity, client: Identity) -> str:
    """TLS in memory; the version agreed on. ssl.SSLError when either side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.server_context().wrap_bio(to_server, to_client, server_side=True),
        client.client_context().wrap_bio(to_client, to_server, server_hostname=server_name(server.node_id)),
    ]
    waiting = list(sides)
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert waiting == []
    return sides[0].version() or ""


def test_members_of_either_authority_know_each_other_while_both_are_in_the_bundle(authority: Authority) -> None:
    new = Authority.create("test", at=NOW)
    before, after = new_node(authority, authority, new), new_node(new, new, authority)
    assert before.member(after.certificate_der, at=NOW).node_id == after.node_id
    assert after.member(before.certificate_der, at=NOW).node_id == before.node_id
    assert shake_hands(before, after) == shake_hands(after, before) == "TLSv1.3"


def test_a_node_whose_bundle_lacks_the_new_authority_refuses_its_members(authority: Authority) -> None:
    new = Authority.create("test", at=NOW)
    before, after = new_node(authority), new_node(new, new, authority)
    with pytest.raises(IdentityError, match="not issued by this cluster's authority"):
        before.member(after.certificate_der, at=NOW)
    with pytest.raises(ssl.SSLError):
        shake_hands(before, after)


def test_a_bundle_is_loaded_from_one_file_and_comments_in_it_do_not_matter(
    tmp_path: Path, authority: Authority
) -> None:
    write_node(tmp_path, authority)
    new = Authority.create("test", at=NOW)
    text = b"# the new one \xc3\xa9\n" + new.certificate_pem + b"# the old one\n" + authority.certificate_pem
    (tmp_path / "ca.crt").write_bytes(text)
    identity = load(tmp_path)
    assert identity.ca_pem == new.certificate_pem + authority.certificate_pem
    assert identity.server_context().cert_store_stats()["x509_ca"] == 2


def test_an_authority_is_found_in_a_bundle_by_its_key(tmp_path: Path, authority: Authority) -> None:
    new = Authority.create("test", at=NOW)
    new.save(tmp_path / "ca.crt", tmp_path / "ca.key")
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem + new.certificate_pem)
    loaded = Authority.load(tmp_path / "ca.crt", tmp_path / "ca.key")
    assert loaded.certificate_pem == new.certificate_pem
    assert loaded.trust.pem == authority.certificate_pem + new.certificate_pem


def two_clusters(authority: Authority) -> bytes:
    return authority.certificate_pem + Authority.create("other", at=NOW).certificate_pem


def a_node(authority: Authority) -> bytes:
    return authority.certificate_pem + authority.issue("n1", at=NOW)[0]


def half_a_file(authority: Authority) -> bytes:
    return authority.certificate_pem + authority.certificate_pem[:200]


def too_many(authority: Authority) -> bytes:
    return authority.certificate_pem * 17


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (two_clusters, "ca.crt holds authorities of two clusters, 'test' and 'other'; keep those of one"),
        (a_node, "ca.crt holds the certificate of 'n1', which is no authority"),
        (half_a_file, "ca.crt holds a block that is no whole certificate"),
        (too_many, "ca.crt holds more than 16 authorities"),
    ],
)
def test_a_bundle_that_would_let_in_others_is_refused(
    tmp_path: Path, authority: Authority, content, words: str
) -> None:
    write_node(tmp_path, authority)
    (tmp_path / "ca.crt").write_bytes(content(authority))
    with pytest.raises(IdentityError, match=f"{re.escape(words)}$"):
        load(tmp_path)


def test_membership_ends_with_the_certificate_or_the_authority_whichever_is_first(authority: Authority) -> None:
    trust = TrustBundle(authority.certificate_pem)
    end = NOW.replace(microsecond=0)
    for days, expected in ((30, end + timedelta(days=30)), (9999, end + timedelta(days=3650))):
        certificate, _ = authority.issue("n1", at=NOW, days=days)
        assert trust.member(der(certificate), at=NOW).not_after == expected


def test_an_expired_authority_vouches_for_nobody() -> None:
    old = Authority.create("test", at=NOW - timedelta(days=3651))
    node = new_node(old)
    with pytest.raises(IdentityError, match="authority is valid until"):
        node.member(node.certificate_der, at=NOW)


# -- renewal -----------------------------------------------------------------------------------------------------------


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_a_renewed_certificate_is_of_the_same_node_with_the_same_names(authority: Authority) -> None:
    certificate, key = authority.issue("n1", hosts=["mx1.example.org"], at=NOW - timedelta(days=90), days=30)
    renewed = authority.renew(der(certificate), at=NOW, days=60)
    before, after = (x509.load_pem_x509_certificate(pem) for pem in (certificate, renewed))
    for kind in (x509.SubjectAlternativeName, x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage):
        assert before.extensions.get_extension_for_class(kind) == after.extensions.get_extension_for_class(kind)
    assert before.subject == after.subject
    assert before.serial_number != after.serial_number
    identity = Identity(authority.certificate_pem, renewed, key)
    member = identity.member(identity.certificate_der, at=NOW)
    assert (member.node_id, member.name) == (node_id_of(der(certificate)), "n1")
    assert member.not_after == NOW.replace(microsecond=0) + timedelta(days=60)


def test_the_new_authority_renews_what_the_old_one_issued(authority: Authority) -> None:
    new = Authority.create("test", at=NOW)
    new.trust = TrustBundle(new.certificate_pem + authority.certificate_pem)
    certificate, _ = authority.issue("n1", at=NOW)
    renewed = new.renew(der(certificate), at=NOW)
    assert TrustBundle(new.certificate_pem).member(der(renewed), at=NOW).name == "n1"


def test_a_strangers_certificate_is_not_renewed(authority: Authority) -> None:
    certificate, _ = Authority.create("test", at=NOW).issue("n1", at=NOW)
    with pytest.raises(IdentityError, match="not issued by this cluster's authority"):
        authority.renew(der(certificate), at=NOW)
    with pytest.raises(IdentityError, match="names no node"):
        authority.renew(der(authority.certificate_pem), at=NOW)
    with pytest.raises(IdentityError, match="cannot be read"):
        authority.renew(b"nonsense", at=NOW)


def test_a_file_is_replaced_in_one_step_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / ".a.new").write_bytes(b"of a run that died")
    replace_file(tmp_path / "a", b"new", mode=0o600)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# -- what a peer may send ----------------------------------------------------------------------------------------------

ANY = Authority.create("test", at=NOW)
ANY_DER = der(ANY.issue("n1", at=NOW)[0])


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, len(ANY_DER) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_an_identity_error_or_the_same_member(place: int, change: int) -> None:
    """What the signature does not cover (the outer name of its algorithm) may change, and changes nothing."""
    damaged = bytearray(ANY_DER)
    damaged[place] ^= change
    try:
        assert TrustBundle(ANY.certificate_pem).member(bytes(damaged), at=NOW).node_id == node_id_of(ANY_DER)
    except IdentityError:
        pass
    try:
        node_id_of(bytes(damaged))
    except IdentityError:
        pass


def test_a_revoked_node_is_refused_with_the_reason(authority: Authority) -> None:
    first, second = new_node(authority), new_node(authority, name="n2")
    revocation = authority.revoke(second.node_id, at=NOW, reason="stolen disk")
    body, signature = revocation.encode(), authority.sign_revocation(revocation)
    first.apply_revocation(first.check_revocation(body, signature))
    with pytest.raises(RevokedError, match=f"the node {second.node_id} was revoked: stolen disk"):
        first.member(second.certificate_der, at=NOW)
    assert first.member(first.certificate_der, at=NOW).name == "n1"


def test_a_renewed_certificate_of_a_revoked_node_is_refused_too(authority: Authority) -> None:
    first, second = new_node(authority), new_node(authority, name="n2")
    first.apply_revocation(authority.revoke(second.node_id, at=NOW))
    renewed = authority.renew(second.certificate_der, at=NOW + timedelta(days=1))
    with pytest.raises(RevokedError):
        first.member(der(renewed), at=NOW + timedelta(days=1))
