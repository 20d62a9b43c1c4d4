"""Revocations: one form of bytes, signed by an authority of the bundle; garbage is RevocationError and nothing else."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import Authority, Identity, IdentityError
from gossip.linkstate import NodeId
from gossip.revocation import Revocation, RevocationError, build_text, load_revocations, parse_text

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODE = NodeId("0123456789abcdef0123456789abcdef")
AUTHORITY = Authority.create("east", at=NOW)
GOOD = Revocation("east", NODE, 1767225600, "stolen disk", "fedcba9876543210fedcba9876543210")
BODY = b"""\
smtpmesh revocation v1
cluster: east
node: 0123456789abcdef0123456789abcdef
revoked_at: 1767225600
reason: stolen disk
authority: fedcba9876543210fedcba9876543210
"""


def new_identity(issuer: Authority, *bundle: Authority) -> Identity:
    certificate, key = issuer.issue("n1", at=NOW)
    return Identity(b"".join(authority.certificate_pem for authority in bundle or (issuer,)), certificate, key)


def revoke(authority: Authority = AUTHORITY, node_id: NodeId = NODE) -> tuple[bytes, bytes]:
    revocation = authority.revoke(node_id, at=NOW, reason="stolen disk")
    return revocation.encode(), authority.sign_revocation(revocation)


IDENTITY = new_identity(AUTHORITY)
SIGNED = revoke()

# -- values and bytes --------------------------------------------------------------------------------------------------


def test_the_bytes_are_these() -> None:
    assert GOOD.encode() == BODY
    assert Revocation.decode(BODY) == GOOD


@given(
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64),
    st.integers(0, 2**53 - 1),
    st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=200),
)
def test_what_is_encoded_decodes_to_the_same(cluster: str, revoked_at: int, reason: str) -> None:
    try:
        revocation = Revocation(cluster, NODE, revoked_at, reason, GOOD.authority)
    except RevocationError:
        assert not (cluster + reason).isprintable()
        return
    assert Revocation.decode(revocation.encode()) == revocation


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("cluster", "", "no name of a cluster"),
        ("cluster", "a\nnode: b", "no name of a cluster"),
        ("cluster", "c" * 65, "no name of a cluster"),
        ("node_id", NODE.upper(), "not 32 hexadecimal digits"),
        ("node_id", NODE + "\n", "not 32 hexadecimal digits"),
        ("revoked_at", -1, "out of bounds"),
        ("revoked_at", 2**53, "out of bounds"),
        ("reason", "r" * 201, "at most 200 printable characters"),
        ("reason", "a\nb", "at most 200 printable characters"),
        ("reason", "\ud800", "at most 200 printable characters"),
        ("authority", "x" * 32, "not 32 hexadecimal digits"),
    ],
)
def test_values_outside_their_bounds_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(RevocationError, match=words):
        dataclasses.replace(GOOD, **{field: value})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY[:-1],
        BODY + b"\n",
        BODY.replace(b"v1", b"v2"),
        BODY.replace(b"1767225600", b"01767225600"),
        BODY.replace(b"1767225600", b"9" * 17),
        BODY.replace(b"1767225600", "١".encode()),
        BODY.replace(b"\n", b"\r\n"),
        BODY.replace(b"stolen", b"\xff"),
        BODY.replace(b"stolen disk", b"s" * 4096),
    ],
)
def test_only_the_canonical_bytes_are_a_revocation(body: bytes) -> None:
    with pytest.raises(RevocationError):
        Revocation.decode(body)


@given(st.binary(max_size=4096))
def test_garbage_is_a_revocation_error_and_nothing_else(garbage: bytes) -> None:
    for parse in (Revocation.decode, parse_text, lambda body: IDENTITY.check_revocation(body, garbage)):
        with pytest.raises(RevocationError):
            parse(garbage)


@given(st.integers(0, len(BODY) - 1), st.binary(max_size=3))
def test_damaged_bytes_are_another_revocation_or_a_revocation_error(place: int, change: bytes) -> None:
    damaged = BODY[:place] + change + BODY[place + 1 :]
    try:
        found = Revocation.decode(damaged)
    except RevocationError:
        return
    assert found.encode() == damaged


# -- who may sign ------------------------------------------------------------------------------------------------------


def test_the_authoritys_word_is_taken() -> None:
    revocation = IDENTITY.check_revocation(*SIGNED)
    assert (revocation.cluster, revocation.node_id, revocation.revoked_at) == ("east", NODE, 1767225600)
    assert revocation.reason == "stolen disk"


@given(st.binary(max_size=300))
def test_a_false_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(IdentityError, match="not signed by this cluster's authority"):
        IDENTITY.check_revocation(SIGNED[0], signature)


def test_a_members_key_revokes_nobody() -> None:
    with pytest.raises(IdentityError, match="not signed by this cluster's authority"):
        IDENTITY.check_revocation(SIGNED[0], IDENTITY.sign(SIGNED[0]))


def test_a_signature_holds_for_its_own_bytes_only() -> None:
    other, _ = revoke(node_id=NodeId("f" * 32))
    with pytest.raises(IdentityError, match="not signed by this cluster's authority"):
        IDENTITY.check_revocation(other, SIGNED[1])


def test_the_authority_of_another_cluster_is_not_heard() -> None:
    with pytest.raises(IdentityError, match="of the cluster 'west', not 'east'"):
        IDENTITY.check_revocation(*revoke(Authority.create("west", at=NOW)))


def test_another_authority_of_the_same_name_is_not_heard() -> None:
    with pytest.raises(IdentityError, match="not signed by this cluster's authority"):
        IDENTITY.check_revocation(*revoke(Authority.create("east", at=NOW)))


def test_either_authority_of_a_bundle_may_revoke() -> None:
    new = Authority.create("east", at=NOW)
    identity = new_identity(AUTHORITY, AUTHORITY, new)
    assert identity.check_revocation(*revoke(new)).node_id == NODE
    assert identity.check_revocation(*revoke(AUTHORITY)).node_id == NODE


def test_an_authority_signs_in_its_own_name_only() -> None:
    with pytest.raises(IdentityError, match="for another authority to sign"):
        AUTHORITY.sign_revocation(GOOD)


def test_a_reason_that_is_too_long_is_refused_before_it_is_signed() -> None:
    with pytest.raises(RevocationError, match="at most 200 printable characters"):
        AUTHORITY.revoke(NODE, at=NOW, reason="r" * 201)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_survives_editors_that_change_line_ends() -> None:
    text = build_text(*SIGNED)
    assert parse_text(text.encode()) == SIGNED
    assert parse_text(b"\n" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n") == SIGNED


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    second = revoke(node_id=NodeId("f" * 32))
    (tmp_path / "b.revoked").write_text(build_text(*SIGNED))
    (tmp_path / "a.revoked").write_text(build_text(*second))
    (tmp_path / "README").write_text("not read")
    assert load_revocations(tmp_path, IDENTITY) == [second, SIGNED]


def test_no_folder_is_no_revocation(tmp_path: Path) -> None:
    assert load_revocations(tmp_path / "absent", IDENTITY) == []


def not_ours(folder: Path) -> None:
    (folder / "x.revoked").write_text(build_text(*revoke(Authority.create("east", at=NOW))))


def empty(folder: Path) -> None:
    (folder / "x.revoked").touch()


def damaged(folder: Path) -> None:
    (folder / "x.revoked").write_text(build_text(*SIGNED).replace("REVOCATION-----\n", "REVOCATION-----\n=", 1))


def huge(folder: Path) -> None:
    (folder / "x.revoked").write_text(build_text(*SIGNED) + "\n" * 9000)


def a_folder(folder: Path) -> None:
    (folder / "x.revoked").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (not_ours, "the revocation was not signed by this cluster's authority"),
        (empty, "this is no file of `smtpmesh revoke`"),
        (damaged, "this is no file of `smtpmesh revoke`: its base64 is damaged"),
        (huge, "this is no file of `smtpmesh revoke`"),
        (a_folder, "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, spoil, words: str) -> None:
    (tmp_path / "good.revoked").write_text(build_text(*SIGNED))
    spoil(tmp_path)
    with pytest.raises(RevocationError) as caught:
        load_revocations(tmp_path, IDENTITY)
    assert str(caught.value) == f"{tmp_path}/x.revoked: {words}"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RevocationError, match="file: Not a directory"):
        load_revocations(tmp_path / "file", IDENTITY)
