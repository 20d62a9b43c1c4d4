"""Identities: who is let in, and what an operator reads when a file is not right."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gossip.identity import Authority, Identity, IdentityError, node_id_of, server_name, write_new

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
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
