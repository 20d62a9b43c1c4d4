"""`smtpmesh init` and `check-config`: folders that work, and nothing overwritten."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gossip.identity import Identity
from smtp_edge.cli import cli
from smtp_edge.configuration import load_configuration
from smtp_edge.preflight import find_warnings
from smtp_edge.settings import Settings
from smtp_edge.setup import FILES
from smtp_edge.sinks.bindings import BUILT_IN

FREE_ADDRESS = f"127.77.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
"""A loopback address of this process alone, so that the usual ports are free on it."""


def init(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["init", *map(str, words), "--address", FREE_ADDRESS])


def check(folder: Path) -> Result:
    return CliRunner().invoke(cli, ["check-config", "--config", str(folder / "node.toml")])


def settings(folder: Path) -> Settings:
    return load_configuration(folder / "node.toml")[0]


def identity(folder: Path) -> Identity:
    return Identity.load(folder / "ca.crt", folder / "node.crt", folder / "node.key")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    result = init(tmp_path / "relay-a", "--cluster", "east")
    assert result.exit_code == 0, result.output
    return tmp_path / "relay-a"


def test_an_empty_folder_becomes_a_node_that_passes_check_config(first: Path) -> None:
    assert sorted(path.name for path in first.iterdir()) == sorted(FILES)
    result = check(first)
    assert result.exit_code == 0, result.output
    node_id = identity(first).node_id
    assert result.stdout == f"{first}/node.toml: good. Node relay-a ({node_id}) of the cluster east\n"
    assert result.stderr == ""


def test_init_ends_with_the_commands_to_type_next(tmp_path: Path) -> None:
    folder = tmp_path / "my node"
    lines = init(folder, "--name", "relay-a").stdout.splitlines()
    assert lines == [
        f"{folder} is ready. Next:",
        f"  edit '{folder}/node.toml': name your smart hosts",
        f"  smtpmesh check-config --config '{folder}/node.toml'",
        f"  smtpmesh run --config '{folder}/node.toml'",
        f"  smtpmesh init FOLDER --from '{folder}'   (a further node; then move FOLDER to its machine)",
        f"{folder}/ca.key admits new members: keep it safe; running nodes do not need it.",
    ]


def test_keys_are_for_their_owner_only(first: Path) -> None:
    modes = {name: stat.S_IMODE((first / name).stat().st_mode) for name in ("ca.key", "node.key")}
    assert modes == {"ca.key": 0o600, "node.key": 0o600}
    assert stat.S_IMODE(first.stat().st_mode) == 0o700


def test_a_second_node_joins_the_first_with_ports_of_its_own(first: Path) -> None:
    second = first.parent / "relay-b"
    assert init(second, "--from", first).exit_code == 0
    assert not (second / "ca.key").exists()
    assert check(second).exit_code == 0
    assert identity(second).cluster == "east"
    assert identity(second).node_id != identity(first).node_id
    assert settings(first).gossip.listen == f"{FREE_ADDRESS}:7946"
    assert settings(first).gossip.join == ()
    assert settings(second).gossip.join == (f"{FREE_ADDRESS}:7946",)
    assert settings(second).gossip.listen == f"{FREE_ADDRESS}:7956"
    assert settings(second).mesh.listen == f"{FREE_ADDRESS}:7935"
    assert settings(second).listener[0].listen == f"{FREE_ADDRESS}:2535"


def test_a_port_in_use_is_passed_over(tmp_path: Path, taken: int) -> None:
    init(tmp_path / "relay-a")
    assert settings(tmp_path / "relay-a").mesh.listen == f"{FREE_ADDRESS}:{taken + 10}"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((FREE_ADDRESS, 7925)):
        yield 7925


def test_a_folder_for_another_machine_keeps_the_usual_ports_and_says_what_to_change(first: Path) -> None:
    folder = first.parent / "relay-b"
    words = ["init", str(folder), "--from", str(first), "--address", "192.0.2.7"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert settings(folder).gossip.listen == "192.0.2.7:7946"
    assert (
        f"change gossip.join in {folder}/node.toml: {FREE_ADDRESS}:7946 is reached on the first node's own machine only"
    ) in result.stdout


@pytest.mark.parametrize("name", FILES)
def test_init_overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    result = init(tmp_path, "--name", "x")
    assert result.exit_code == 1
    assert result.stderr == f"smtpmesh: {tmp_path / name} exists; choose another folder, nothing was changed\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_second_init_changes_nothing(first: Path) -> None:
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    assert init(first).exit_code == 1
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before


def test_from_wants_the_folder_that_holds_the_authoritys_key(first: Path) -> None:
    second = first.parent / "relay-b"
    init(second, "--from", first)
    result = init(first.parent / "relay-c", "--from", second)
    assert result.exit_code == 1
    assert result.stderr == (
        f"smtpmesh: there is no {second}/ca.key; --from wants the first node's folder, which holds it\n"
    )
    assert not (first.parent / "relay-c").exists()


def test_a_name_that_no_node_can_have_is_refused(tmp_path: Path) -> None:
    result = init(tmp_path / "my node")
    assert result.exit_code == 1
    assert result.stderr == (
        "smtpmesh: 'my node' is no name for a node: letters, digits, dot, dash and underscore, at most 63; "
        "choose one with --name\n"
    )


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("relay.example", "--address relay.example is not an IP address of this machine"),
        ("0.0.0.0", "--address 0.0.0.0 is no address that peers can dial; name one of this machine"),
    ],
)
def test_an_address_that_peers_cannot_dial_is_refused(tmp_path: Path, address: str, text: str) -> None:
    result = CliRunner().invoke(cli, ["init", str(tmp_path / "a"), "--address", address])
    assert result.exit_code == 1
    assert result.stderr == f"smtpmesh: {text}\n"


def test_a_cluster_is_not_named_twice(first: Path) -> None:
    result = init(first.parent / "b", "--from", first, "--cluster", "west")
    assert result.exit_code == 2
    assert "a node made with --from joins that node's cluster; leave --cluster out" in result.stderr


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = init(tmp_path / "file" / "node", "--name", "x")
    assert result.exit_code == 1
    assert result.stderr == f"smtpmesh: {tmp_path}/file/node: Not a directory\n"


# -- check-config looks into the files that the configuration names ---------------------------------------------------


def test_check_config_reports_a_key_that_others_can_read(first: Path) -> None:
    (first / "node.key").chmod(0o644)
    result = check(first)
    assert result.exit_code == 78
    assert result.stderr == (
        f"smtpmesh: {first}/node.toml: cluster: {first}/node.key can be read by others; "
        f"run: chmod 600 {first}/node.key\n"
    )


def test_check_config_reports_every_file_that_does_not_work(first: Path) -> None:
    config = first / "node.toml"
    (first / "users").write_text("# nobody yet\njoe\n")
    (first / "empty").touch()
    text = config.read_text().replace(
        "[[smart_host]]",
        "[[sink]]\nuse = 'nowhere:Nothing'\n[[listener]]\nname = 'tls'\nlisten = '127.0.0.1:0'\ntls = 'starttls'\n"
        "certificate = 'node.crt'\nkey = 'ca.key'\nauth_users = 'users'\n[[smart_host]]\nuser = 'u'\n"
        "password_file = 'empty'\ntls = 'starttls'\n",
        1,
    )
    config.write_text(text)
    result = check(first)
    assert result.exit_code == 78
    lines = [line.removeprefix(f"smtpmesh: {config}: ") for line in result.stderr.splitlines()]
    assert lines == [
        f"listener[1].certificate: {first}/ca.key is not the key of {first}/node.crt",
        f"listener[1].auth_users: {first}/users, line 2: expected user:hash; make one: smtpmesh hash-password",
        f"smart_host[0].password_file: {first}/empty is empty; the password stands in it, alone",
        f"sink[0]: no such sink: neither built in ({', '.join(BUILT_IN)}) nor an entry point of smtpmesh.sinks"
        " nor module:Class (No module named 'nowhere')",
    ]


def test_check_config_shows_warnings_of_a_good_configuration(first: Path) -> None:
    config = first / "node.toml"
    config.write_text(config.read_text().replace("allow_networks", "# allow_networks"))
    result = check(first)
    assert result.exit_code == 0
    assert result.stderr == (
        f"smtpmesh: {config}: warning: listener smtp ({FREE_ADDRESS}:2525) relays for nobody: "
        "set allow_networks, relay_domains or auth_users\n"
    )


@pytest.mark.parametrize(
    ("days", "words"),
    [(13, "expires in 13 days, on 2026-03-14"), (-2, "has expired on 2026-02-27"), (15, "")],
)
def test_a_listeners_certificate_that_ends_soon_is_told(tmp_path: Path, days: int, words: str) -> None:
    at, path = datetime(2026, 3, 1, tzinfo=UTC), tmp_path / "tls.crt"
    ends_at = at + timedelta(days=days, hours=1)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx1.example.org")])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(at - timedelta(days=90)).not_valid_after(ends_at)
    path.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    listener = {"name": "mx", "tls": "starttls", "certificate": str(path)}
    chosen = Settings.model_validate({"node": {"name": "mx1"}, "listener": [listener]})
    assert list(find_warnings(chosen, at)) == ([f"listener mx: {path} {words}"] if words else [])
