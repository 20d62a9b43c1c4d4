"""The blocking admin client of the command line."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format

from smtp_edge.admin.server import is_loopback
from smtp_edge.settings import ClusterSettings
from smtpmesh.admin.v1 import admin_pb2, admin_pb2_grpc

TIMEOUT_S = 10.0


class UnreachableError(Exception):
    """Nobody answers there; `str()` says what to look at."""


class CallError(Exception):
    """The node refused the call; `str()` is its sentence."""


class AdminClient:
    """A channel to one node. On other addresses than loopback it shows the certificate of `cluster`."""

    def __init__(self, address: str, cluster: ClusterSettings | None) -> None:
        self._address = address
        host = address.rpartition(":")[0]
        if address.startswith("unix:") or is_loopback(host) or cluster is None:
            self._channel = grpc.insecure_channel(address)
        else:
            self._channel = grpc.secure_channel(address, _credentials(cluster))
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """One call. UnreachableError, or CallError with the node's own sentence."""
        message = json_format.ParseDict(request, getattr(admin_pb2, f"{method}Request")())
        try:
            return getattr(self._stub, method)(message, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise UnreachableError(
                    f"no answer from {self._address}: is the node running, is this its admin address, "
                    "may this user open it, is the certificate of its cluster?"
                ) from None
            raise CallError(details or code.name) from None


def _credentials(cluster: ClusterSettings) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        cluster.ca.read_bytes(), cluster.key.read_bytes(), cluster.certificate.read_bytes()
    )
