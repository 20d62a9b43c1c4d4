"""Who may call the admin service, what a generic client finds there, and what a caller hears who may not."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from gossip.identity import Authority, Identity
from smtp_edge.admin.address import find_fault, is_loopback, needs_certificates
from smtp_edge.admin.server import AdminError
from smtp_edge.cli import cli
from smtpmesh.admin.v1 import admin_pb2 as pb
from smtpmesh.admin.v1 import admin_pb2_grpc as pb_grpc
from tests.e2e import reflection_client
from tests.unit.smtp_edge.operator.views import FakeView, Served, make_identity

ANYWHERE = "0.0.0.0"
NODE = '[node]\nname = "x"\n[[route]]\nvia = ["mx"]\n'


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=datetime.now(UTC))


@pytest.fixture
def networked(folder: Path, authority: Authority) -> Iterator[Served]:
    """A server on every address: callers need a certificate."""
    served = Served(FakeView(folder, make_identity(folder, authority=authority)), f"{ANYWHERE}:0")
    yield served
    served.close()


def ask(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def port_of(served: Served) -> str:
    return served.address.rpartition(":")[2]


def network_address() -> str:
    """An address of this machine that is not loopback, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


# -- the door ----------------------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_only(served: Served, folder: Path) -> None:
    mode = (folder / "admin.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_socket_left_by_a_killed_node_is_taken_over(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "admin.sock"))
    served = Served(FakeView(folder, make_identity(folder)), "unix:admin.sock")
    try:
        assert ask("status", "--admin", served.address).exit_code == 0
    finally:
        served.close()


def refusal(folder: Path, listen: str) -> str:
    with pytest.raises(AdminError) as caught:
        Served(FakeView(folder, make_identity(folder)), listen)
    return str(caught.value)


def test_a_file_in_the_sockets_place_is_not_removed(folder: Path) -> None:
    (folder / "admin.sock").write_text("precious")
    expected = f"{folder}/admin.sock is a file, not a socket; set admin.listen to another path"
    assert refusal(folder, "unix:admin.sock") == expected
    assert (folder / "admin.sock").read_text() == "precious"


def test_a_path_too_long_for_a_socket_says_so(folder: Path) -> None:
    text = refusal(folder, f"unix:{'x' * 120}")
    assert text.endswith("is too long for a socket (107 bytes at most); set admin.listen")


def test_a_port_in_use_says_so(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        port = address.rpartition(":")[2]
        assert refusal(folder, address) == f"cannot listen on {address}: is the port {port} in use?"


def test_loopback_answers_without_certificates(folder: Path) -> None:
    served = Served(FakeView(folder, make_identity(folder)), "127.0.0.1:0")
    try:
        result = ask("status", "--admin", served.address)
        assert result.exit_code == 0, result.output
    finally:
        served.close()


# -- beyond loopback ---------------------------------------------------------------------------------------------------


def call_over_tls(served: Served, caller: Identity | None) -> pb.GetStatusResponse:
    """A caller who trusts the cluster's authority and expects this node, so that only the server can refuse."""
    own = served.view.identity
    credentials = grpc.ssl_channel_credentials(
        own.ca_pem, caller.key_pem if caller else None, caller.certificate_pem if caller else None
    )
    options = [("grpc.ssl_target_name_override", f"{own.node_id}.smtpmesh"), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port_of(served)}", credentials, options=options) as channel:
        answer: pb.GetStatusResponse = pb_grpc.AdminStub(channel).GetStatus(pb.GetStatusRequest(), timeout=5)
        return answer


def test_over_the_network_nobody_is_answered_in_the_clear(networked: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        reflection_client.list_services(f"127.0.0.1:{port_of(networked)}")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_over_the_network_nobody_is_answered_without_a_certificate(networked: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call_over_tls(networked, None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_over_the_network_nobody_is_answered_with_a_certificate_of_another_authority(
    networked: Served, tmp_path: Path
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call_over_tls(networked, make_identity(tmp_path, "stranger"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_over_the_network_a_certificate_of_the_cluster_opens(
    networked: Served, authority: Authority, tmp_path: Path
) -> None:
    assert call_over_tls(networked, make_identity(tmp_path, "caller", authority)).name == "relay-a"


def test_over_the_network_a_member_is_answered(networked: Served, authority: Authority, tmp_path: Path) -> None:
    make_identity(tmp_path, "caller", authority)
    (tmp_path / "node.toml").write_text(NODE)
    address = f"{network_address()}:{port_of(networked)}"
    result = ask("status", "--admin", address, "--config", str(tmp_path / "node.toml"))
    assert result.exit_code == 0, result.output
    assert "relay-a" in result.stdout


def test_over_the_network_a_stranger_is_refused_and_told_what_to_check(networked: Served, tmp_path: Path) -> None:
    make_identity(tmp_path, "stranger")
    (tmp_path / "node.toml").write_text(NODE)
    address = f"{network_address()}:{port_of(networked)}"
    result = ask("status", "--admin", address, "--config", str(tmp_path / "node.toml"))
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith(
        f"smtpmesh: no answer from {address}: is the node running, is this its admin.listen, "
        "was the certificate refused?"
    )


def test_a_node_that_listens_everywhere_is_asked_over_loopback_with_its_own_certificate(
    networked: Served, folder: Path
) -> None:
    listen = f"{ANYWHERE}:{port_of(networked)}"
    (folder / "node.toml").write_text(f'{NODE}[admin]\nlisten = "{listen}"\n')
    result = ask("status", "--config", str(folder / "node.toml"))
    assert result.exit_code == 0, result.output


# -- what a caller hears -----------------------------------------------------------------------------------------------


def test_a_node_that_does_not_run_is_one_sentence_and_exit_code_3() -> None:
    result = ask("routes", "--admin", "unix:/nowhere/admin.sock")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        "smtpmesh: no answer from unix:/nowhere/admin.sock: is the node running, and may this user open its socket?\n"
    )


def test_an_address_that_is_none_is_a_mistake_of_usage() -> None:
    result = ask("routes", "--admin", "relay-a")
    assert result.exit_code == 2
    assert "'relay-a': expected unix:PATH or HOST:PORT" in result.stderr


def test_without_an_address_and_a_configuration_the_way_out_is_named(tmp_path: Path) -> None:
    result = ask("routes", "--config", str(tmp_path / "node.toml"))
    assert result.exit_code == 78
    assert "there is no such file; `smtpmesh init FOLDER` writes one, `--config FILE` names one" in result.stderr


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("[::]", False), ("192.0.2.1", False), ("relay.example", False), ("127.0.0.1.example", False)],
)  # fmt: skip
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert needs_certificates(f"{host}:1") is not expected


@pytest.mark.parametrize("address", ["", "unix:", "host", "host:", ":1", "host:0", "host:65536", "host:x", "h:-1"])
def test_an_address_that_nobody_can_dial_is_found(address: str) -> None:
    assert find_fault(address)


# -- reflection and health ---------------------------------------------------------------------------------------------


def test_a_generic_client_finds_the_service_and_its_methods(served: Served) -> None:
    assert reflection_client.ADMIN in reflection_client.list_services(served.address)
    assert reflection_client.list_methods(served.address) == [
        "GetStatus",
        "GetRoutes",
        "Explain",
        "WhatIf",
        "ListNodes",
        "ListLinks",
        "GetQueue",
        "GetMessage",
        "GetGossipStats",
        "WatchEvents",
        "GetOrders",
        "GetDrain",
        "Why",
        "GetShape",
        "DrainNode",
        "UndrainNode",
        "DrainHost",
        "UndrainHost",
        "Pin",
        "Unpin",
        "Reload",
        "ChangeQueue",
    ]


@pytest.mark.parametrize("service", ["", "smtpmesh.smtp", "smtpmesh.queue", reflection_client.ADMIN])
def test_health_says_serving(served: Served, service: str) -> None:
    answer = reflection_client.call(served.address, reflection_client.HEALTH, "Check", {"service": service})
    assert answer == {"status": "SERVING"}


def test_a_listener_that_asks_for_more_than_there_is_gets_what_there_is(served: Served) -> None:
    answer = reflection_client.call(served.address, reflection_client.ADMIN, "GetQueue", {"limit": 4_000_000_000})
    assert answer["deliveries"] == []


def test_json_shows_every_field_even_where_it_is_zero(served: Served) -> None:
    shown = json.loads(ask("queue", "--json", "--admin", served.address).stdout)
    assert {
        "classes",
        "held",
        "relayed",
        "failed",
        "expired",
        "corrupt",
        "bytes_stored",
        "deliveries",
        "damaged",
    } == set(shown)
