"""`smtpmesh renew` and `revoke`: files that a node takes, and nothing changed when something is wrong."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gossip.identity import Authority, Identity
from gossip.revocation import load_revocations
from smtp_edge.cli import cli
from smtp_edge.configuration import load_configuration

NOW = datetime.now(UTC)
FREE_ADDRESS = f"127.78.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
"""A loopback address of this process alone, so that the usual ports are free on it."""


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def identity(folder: Path) -> Identity:
    return Identity.load(folder / "ca.crt", folder / "node.crt", folder / "node.key")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    assert run("init", tmp_path / "relay-a", "--cluster", "east", "--address", FREE_ADDRESS).exit_code == 0
    return tmp_path / "relay-a"


@pytest.fixture
def second(first: Path) -> Path:
    folder = first.parent / "relay-b"
    assert run("init", folder, "--from", first, "--address", FREE_ADDRESS).exit_code == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- renew -------------------------------------------------------------------------------------------------------------


def test_renew_changes_the_certificate_and_nothing_else(first: Path, second: Path) -> None:
    before, node_id = contents(second), identity(second).node_id
    result = run("renew", second, "--from", first, "--days", "9")
    assert result.exit_code == 0, result.output
    until = f"{datetime.now(UTC) + timedelta(days=9):%Y-%m-%d}"
    assert result.stdout.splitlines() == [
        f"{second}/node.crt: node {node_id}, valid until {until}",
        "Restart the node to use it.",
    ]
    after = contents(second)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"node.crt"}
    assert identity(second).node_id == node_id
    assert stat.S_IMODE((second / "node.crt").stat().st_mode) == 0o644


def test_renew_takes_the_certificate_that_the_configuration_names(first: Path, second: Path) -> None:
    (second / "node.crt").rename(second / "mine.crt")
    config = second / "node.toml"
    config.write_text(config.read_text().replace("node.crt", "mine.crt"))
    assert run("renew", second, "--from", first).stdout.startswith(f"{second}/mine.crt: node ")
    assert not (second / "node.crt").exists()


def new_authority(folder: Path) -> Authority:
    """Another authority of the same cluster, in a folder beside the nodes'."""
    folder.mkdir()
    authority = Authority.create("east", at=NOW)
    authority.save(folder / "ca.crt", folder / "ca.key")
    return authority


def test_an_authority_is_exchanged_for_another_step_by_step(first: Path, second: Path) -> None:
    new = new_authority(first.parent / "ca2")
    both = (first / "ca.crt").read_bytes() + new.certificate_pem
    for folder in (first, second, first.parent / "ca2"):
        (folder / "ca.crt").write_bytes(both)
    ids = [identity(folder).node_id for folder in (first, second)]
    assert run("renew", second, "--from", first.parent / "ca2").exit_code == 0
    assert identity(first).member(identity(second).certificate_der, at=datetime.now(UTC)).node_id == ids[1]
    assert run("renew", first, "--from", first.parent / "ca2").exit_code == 0
    for folder in (first, second):
        (folder / "ca.crt").write_bytes(new.certificate_pem)
    assert [identity(folder).node_id for folder in (first, second)] == ids


def test_a_node_made_during_a_rotation_gets_the_whole_bundle(first: Path) -> None:
    bundle = (first / "ca.crt").read_bytes() + Authority.create("east", at=NOW).certificate_pem
    (first / "ca.crt").write_bytes(bundle)
    folder = first.parent / "relay-c"
    assert run("init", folder, "--from", first, "--address", FREE_ADDRESS).exit_code == 0
    assert (folder / "ca.crt").read_bytes() == bundle


def test_a_certificate_that_its_own_node_would_not_take_is_not_written(first: Path, second: Path) -> None:
    new = new_authority(first.parent / "ca2")
    (first.parent / "ca2" / "ca.crt").write_bytes(new.certificate_pem + (first / "ca.crt").read_bytes())
    before = contents(second)
    result = run("renew", second, "--from", first.parent / "ca2")
    assert result.exit_code == 1
    assert result.stderr == (
        f"smtpmesh: {second}/ca.crt does not know the authority in {first.parent}/ca2; "
        "add its certificate there, on every node, before renewing\n"
    )
    assert contents(second) == before


def test_a_stranger_is_not_renewed(first: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    assert run("init", stranger, "--cluster", "east", "--address", FREE_ADDRESS).exit_code == 0
    before = contents(stranger)
    result = run("renew", stranger, "--from", first)
    assert result.exit_code == 1
    assert result.stderr == (
        f"smtpmesh: {stranger}/node.crt is not renewed: the certificate was not issued by this cluster's authority\n"
    )
    assert contents(stranger) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("node.crt", None, "node.crt: No such file or directory"),
        ("node.crt", "garbage", "node.crt: it is not a PEM certificate"),
        ("ca.crt", "garbage", "ca.crt is not a PEM certificate"),
    ],
)
def test_renew_names_the_file_at_fault(first: Path, second: Path, name: str, content: str | None, words: str) -> None:
    (second / name).unlink() if content is None else (second / name).write_text(content)
    result = run("renew", second, "--from", first)
    assert result.exit_code == 1
    assert words in result.stderr


def test_both_want_the_authoritys_key(first: Path, second: Path) -> None:
    for words in (["renew", first], ["revoke", identity(first).node_id]):
        result = run(*words, "--from", second)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"smtpmesh: there is no {second}/ca.key; --from wants")


# -- revoke ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_by", ["node id", "certificate"])
def test_revoke_writes_what_the_other_nodes_take(
    first: Path, second: Path, named_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, node_id = first / "revocations", identity(second).node_id
    folder.mkdir()
    monkeypatch.chdir(folder)
    node = node_id if named_by == "node id" else second / "node.crt"
    result = run("revoke", node, "--from", first, "--reason", "stolen disk")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{node_id}.revoked revokes the node {node_id} of the cluster east.")
    assert [path.name for path in folder.iterdir()] == [f"{node_id}.revoked"]
    assert load_configuration(first / "node.toml")[0].cluster.revocations_folder == folder
    ((body, signature),) = load_revocations(folder, identity(first))
    found = identity(first).check_revocation(body, signature)
    assert (found.node_id, found.reason) == (node_id, "stolen disk")


def test_revoke_overwrites_nothing(first: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.revoked"
    file.write_text("precious")
    result = run("revoke", "0" * 32, "--from", first, "-o", file)
    assert result.exit_code == 1
    assert result.stderr == f"smtpmesh: {file} exists; name another with -o\n"
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("node", "reason", "output", "words"),
    [
        ("nobody", "", "x.revoked", "nobody is neither a node id (32 hexadecimal digits, see `smtpmesh nodes`) nor"),
        ("0" * 32, "two\nlines", "x.revoked", "one line of at most 200 printable characters"),
        ("0" * 32, "", "x.txt", "x.txt would not be read: the name must end in .revoked"),
        ("0" * 32, "", "absent/x.revoked", "absent/x.revoked: No such file or directory"),
    ],
)
def test_what_cannot_be_revoked_is_a_sentence(
    first: Path, tmp_path: Path, node: str, reason: str, output: str, words: str
) -> None:
    result = run("revoke", node, "--from", first, "--reason", reason, "-o", tmp_path / output)
    assert result.exit_code == 1
    assert words in result.stderr
    assert not (tmp_path / output).exists()


def test_a_strangers_certificate_is_not_revoked(first: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.crt"
    stranger.write_bytes(Authority.create("east", at=NOW).issue("x", at=NOW)[0])
    result = run("revoke", stranger, "--from", first, "-o", tmp_path / "x.revoked")
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"smtpmesh: {stranger} is not revoked: the certificate was not issued by this cluster's authority\n"
    )


# -- check-config ------------------------------------------------------------------------------------------------------


def test_check_config_names_a_revocation_that_cannot_be_used(first: Path) -> None:
    (first / "revocations").mkdir()
    (first / "revocations" / "x.revoked").write_text("garbage")
    result = run("check-config", "--config", first / "node.toml")
    assert result.exit_code == 78
    assert result.stderr == (
        f"smtpmesh: {first}/node.toml: cluster.revocations: {first}/revocations/x.revoked: "
        "this is no file of `smtpmesh revoke`\n"
    )


def test_a_folder_that_is_named_must_be_there(first: Path) -> None:
    config = first / "node.toml"
    config.write_text(config.read_text().replace('key = "node.key"', 'key = "node.key"\nrevocations = "gone"'))
    result = run("check-config", "--config", config)
    assert result.exit_code == 78
    assert result.stderr == (
        f"smtpmesh: {config}: cluster.revocations: {first}/gone is no folder; make it, or leave the key out\n"
    )
