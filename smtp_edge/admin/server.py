"""The admin server: where it listens decides who may call.

unix:PATH          whoever may open the socket file (mode 0600: the owner and root); the default
loopback:port      any local user
anything else      mutual TLS with a certificate of a member that was not revoked, or it does not start

Orders (drains, pins) are taken through the socket, and over TLS from the certificates that admin.operators names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from gossip.identity import Identity
from gossip.service import ShownCertificates
from smtp_edge.admin.address import needs_certificates
from smtp_edge.admin.membership import MembersOnly
from smtp_edge.admin.roles import Roles
from smtp_edge.admin.service import AdminService
from smtp_edge.admin.view import NodeView
from smtpmesh.admin.v1 import admin_pb2, admin_pb2_grpc

SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
SMTP, QUEUE = "smtpmesh.smtp", "smtpmesh.queue"
HEALTH_NAMES = ("", SMTP, QUEUE, SERVICE)
SOCKET_PATH_MAX = 107
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),  # a watcher whose machine is gone gives its place back
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # watchers ask too, see `client.OPTIONS`
]


class AdminError(Exception):
    """The admin service cannot start; `str()` says why and the way out."""


class AdminServer:
    """Serves one node's view."""

    def __init__(self, view: NodeView, listen: str, identity: Identity) -> None:
        self._view, self._listen, self._identity = view, listen, identity
        self._server: grpc.aio.Server | None = None
        self._health = HealthServicer()
        self._draining = self._overloaded = self._ailing = False

    async def start(self) -> str:
        """Listen; the address that clients dial."""
        guards = [MembersOnly(self._identity)] if needs_certificates(self._listen) else []
        server = self._server = grpc.aio.server(options=OPTIONS, interceptors=guards)
        roles = Roles(self._listen, self._identity, lambda: self._view.settings.admin.operators)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self._view, roles), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*HEALTH_NAMES[-1:], reflection.SERVICE_NAME), server)
        address = self._bind(server)
        await server.start()
        for name in HEALTH_NAMES:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._show()
        return address

    async def show_draining(self, draining: bool) -> None:
        """A node that drains does not serve SMTP, say health checks; whoever balances load goes elsewhere."""
        self._draining = draining
        await self._show()

    async def show_pressure(self, overloaded: bool, ailing: bool) -> None:
        """Neither does one that has no room. `ailing`: the queue's disk takes nothing."""
        self._overloaded, self._ailing = overloaded, ailing
        await self._show()

    async def _show(self) -> None:
        status = health_pb2.HealthCheckResponse
        closed = self._draining or self._overloaded
        await self._health.set(SMTP, status.NOT_SERVING if closed else status.SERVING)
        await self._health.set(QUEUE, status.NOT_SERVING if self._ailing else status.SERVING)

    async def stop(self) -> None:
        """Let those who watch events go, say NOT_SERVING, then close."""
        self._view.events.close()
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(0.2)

    def _bind(self, server: grpc.aio.Server) -> str:
        if self._listen.startswith("unix:"):
            return self._bind_socket(server)
        host, _, port = self._listen.rpartition(":")
        try:
            if needs_certificates(self._listen):
                bound = server.add_secure_port(self._listen, self._credentials())
            else:
                bound = server.add_insecure_port(self._listen)
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise AdminError(f"cannot listen on {self._listen}: is the port {port} in use?")
        return f"{host}:{bound}"

    def _bind_socket(self, server: grpc.aio.Server) -> str:
        path = Path(self._listen.removeprefix("unix:"))
        path = path if path.is_absolute() else self._view.settings.node.data_dir.absolute() / path
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise AdminError(f"{path} is too long for a socket ({SOCKET_PATH_MAX} bytes at most); set admin.listen")
        if path.exists() and not path.is_socket():
            raise AdminError(f"{path} is a file, not a socket; set admin.listen to another path")
        before = os.umask(0o177)  # the socket is never open to others, not even for a moment
        try:
            path.unlink(missing_ok=True)  # the store's lock says that no other process lives here
            bound = server.add_insecure_port(f"unix:{path}")
        except OSError as error:
            raise AdminError(f"cannot listen on {path}: {error.strerror}") from error
        except RuntimeError:
            bound = 0
        finally:
            os.umask(before)
        if bound == 0:
            raise AdminError(f"cannot listen on {path}: does its folder exist, and may this user write there?")
        return f"unix:{path}"

    def _credentials(self) -> grpc.ServerCredentials:
        shown = ShownCertificates(self._identity)
        return grpc.dynamic_ssl_server_credentials(
            shown.configuration(),
            shown.renewed,  # type: ignore[arg-type]  # None is in the documentation, and not in the stubs
            require_client_authentication=True,
        )
