"""The blocking admin client of the command line.

unix:PATH, loopback:port    plain: whoever may open it may ask
HOST:PORT elsewhere         mutual TLS with the certificates of a configuration (`--config`)
"""

from __future__ import annotations

import getpass
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format

from smtp_edge.admin.address import needs_certificates
from smtpmesh.admin.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:  # imported where a certificate is needed: most questions go to a socket of this machine
    from gossip.identity import Identity
    from smtp_edge.settings import ClusterSettings

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
NOT_FOUND = "NOT_FOUND"
USER_HEADER = "smtpmesh-user"
"""Of a call: the user's name, as the caller's own machine knows it."""
NODE_HEADER = "smtpmesh-node"
"""Of a stream that has begun: the node's name."""
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 20_000),  # a stream may be silent for days: is the node still there?
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the core waits for the longer of both
]


class UnreachableError(Exception):
    """Nobody answers there; `str()` says what to look at."""


class CallError(Exception):
    """The node refused the call; `str()` is its sentence, `code` the name of gRPC's status."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class AdminClient:
    """A channel to one node: with `cluster` by mutual TLS, else plain."""

    def __init__(self, address: str, cluster: ClusterSettings | None) -> None:
        self._address = address
        if cluster is None:
            self._channel = grpc.insecure_channel(address, options=OPTIONS)
        else:
            self._channel = _open_secure(address, cluster)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: dict[str, Any], *, timeout_s: float = TIMEOUT_S) -> Any:
        """One call with one answer. UnreachableError, or CallError with the node's own sentence."""
        message = json_format.ParseDict(request, getattr(admin_pb2, f"{method}Request")())
        try:
            return getattr(self._stub, method)(message, timeout=timeout_s, metadata=_user())
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise UnreachableError(_explain_silence(self._address)) from None
            raise CallError(details or code.name, code.name) from None

    def stream(self, method: str, request: dict[str, Any], on_open: Callable[[str], None]) -> Iterator[Any]:
        """Answers until the node ends the stream. `on_open`: it has begun, at the node of this name."""
        message = json_format.ParseDict(request, getattr(admin_pb2, f"{method}Request")())
        call, begun = getattr(self._stub, method)(message), False
        try:
            # a call that fails has headers too, empty ones, and they may come before the failure
            name = dict(call.initial_metadata() or ()).get(NODE_HEADER)
            if name is not None:
                begun = True
                on_open(str(name))
            yield from call
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                gone = f"{self._address} is gone: the node was killed, or the connection broke"
                raise UnreachableError(gone if begun else _explain_silence(self._address)) from None
            raise CallError(details or code.name, code.name) from None
        finally:
            call.cancel()


def _user() -> tuple[tuple[str, str], ...]:
    """Who asks, for the node's log."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user without an entry and without a variable
        return ()
    return ((USER_HEADER, name),) if name.isascii() and name.isprintable() else ()


def _explain_silence(address: str) -> str:
    if address.startswith("unix:"):
        return f"no answer from {address}: is the node running, and may this user open its socket?"
    refused = ", was the certificate refused" if needs_certificates(address) else ""
    return f"no answer from {address}: is the node running, is this its admin.listen{refused}?"


def _open_secure(address: str, cluster: ClusterSettings) -> grpc.Channel:
    """Certificates name node ids, not addresses: look who answers, check it, then insist on exactly that node."""
    from gossip.identity import Identity, IdentityError

    try:
        identity = Identity.load(cluster.ca, cluster.certificate, cluster.key)
        member = identity.member(_fetch_certificate(address, identity), at=datetime.now(UTC))
    except IdentityError as error:
        raise CallError(f"{address}: {error}") from error
    except (OSError, ValueError) as error:
        raise UnreachableError(f"{_explain_silence(address)} ({error})") from error
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", f"{member.node_id}.smtpmesh")]
    return grpc.secure_channel(address, credentials, options=options)


def _fetch_certificate(address: str, identity: Identity) -> bytes:
    host, _, port = address.rpartition(":")
    context = identity.client_context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S) as plain,
        context.wrap_socket(plain) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
    if certificate is None:
        raise ssl.SSLError("no certificate")
    return certificate
