"""Over a network only members are answered: a revoked certificate still opens TLS, and nothing behind it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gossip.identity import Authority, Identity, certificate_der
from smtpmesh.admin.v1 import admin_pb2 as pb
from smtpmesh.admin.v1 import admin_pb2_grpc as pb_grpc
from tests.unit.smtp_edge.operator.views import FakeView, Served, make_identity


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=datetime.now(UTC))


@pytest.fixture
def networked(folder: Path, authority: Authority) -> Iterator[Served]:
    served = Served(FakeView(folder, make_identity(folder, authority=authority)), "0.0.0.0:0")
    yield served
    served.close()


def channel(served: Served, caller: Identity) -> grpc.Channel:
    own = served.view.identity
    credentials = grpc.ssl_channel_credentials(own.ca_pem, caller.key_pem, caller.certificate_pem)
    options = [("grpc.ssl_target_name_override", f"{own.node_id}.smtpmesh"), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(f"127.0.0.1:{served.address.rpartition(':')[2]}", credentials, options=options)


def test_a_member_is_answered_in_one_message_and_in_streams(
    networked: Served, authority: Authority, tmp_path: Path
) -> None:
    with channel(networked, make_identity(tmp_path, "caller", authority)) as opened:
        assert pb_grpc.AdminStub(opened).GetStatus(pb.GetStatusRequest(), timeout=5).name == "relay-a"
        watched = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=5)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        told = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(iter([question]), timeout=5)
        assert next(told).list_services_response.service


def test_a_revoked_member_is_refused_everything_and_told_why(
    networked: Served, authority: Authority, tmp_path: Path
) -> None:
    thief = make_identity(tmp_path, "thief", authority)
    own = networked.view.identity
    own.apply_revocation(authority.revoke(thief.node_id, at=datetime.now(UTC), reason="stolen"))
    with channel(networked, thief) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.AdminStub(opened).GetStatus(pb.GetStatusRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.details() == (f"not a member of this cluster: the node {thief.node_id} was revoked: stolen")
        with pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=5))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(networked: Served, authority: Authority) -> None:
    own, address = networked.view.identity, ("127.0.0.1", int(networked.address.rpartition(":")[2]))
    before = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address, timeout=5))
    assert before == own.certificate_der
    renewed = authority.renew(own.certificate_der, at=datetime.now(UTC), days=30)
    own.renew(Identity(own.ca_pem, renewed, own.key_pem))
    assert ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address, timeout=5)) == certificate_der(renewed)
