"""Listeners: sockets, TLS contexts and connection limits around sessions.

`Listener` is for clients and other mail servers; `MeshListener` is the peers' door: implicit TLS, cluster certificates
on both sides, nothing else gets as far as a greeting.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from gossip.identity import Identity, IdentityError
from smtp_edge.auth import UsersError, UsersFile
from smtp_edge.envelope import Client, Recipient
from smtp_edge.reply import Reply
from smtp_edge.server.intake import IntakeOptions
from smtp_edge.server.relay import RelayPolicy
from smtp_edge.server.session import Acceptor, Session, SessionOptions
from smtp_edge.settings import ListenerSettings

log = structlog.get_logger()

BACKLOG = 1024
HANDSHAKE_TIMEOUT_S = 30.0
HANDSHAKES_MAX = 200
"""TLS handshakes under way at once; further callers wait in the kernel's backlog."""
ACCEPT_PAUSE_S = 0.5
DRAINED = Reply(421, "this relay is being drained, try another", "4.3.2")
MESH = "mesh"
MESH_CONNECTIONS_MAX = 2000
REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this cluster's authority",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
}
"""OpenSSL's words in ours."""


class ListenerError(Exception):
    """The listener cannot start; `str()` says what is in the way."""


class _Door:
    """A listening socket and its sessions."""

    def __init__(
        self, name: str, listen: str, acceptor: Acceptor, *, connections_max: int, connections_per_client_max: int
    ) -> None:
        self._name, self._listen, self._acceptor = name, listen, acceptor
        self._connections_max, self._per_client_max = connections_max, connections_per_client_max
        self._sessions: set[Session] = set()
        self._clients: Counter[str] = Counter()
        self._counted: dict[Session, str] = {}
        self._server: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._drained = False
        self._handshakes = asyncio.Semaphore(HANDSHAKES_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    async def _open(self, options: SessionOptions, tls: ssl.SSLContext | None) -> str:
        loop = asyncio.get_running_loop()
        host, port = split_address(self._listen)

        def build() -> Session:
            return Session(options, self._acceptor, loop=loop, on_open=self._admit, on_close=self._forget)

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ListenerError(f"cannot listen on {self._listen}: {_explain(error)}") from error
        if tls is None:
            self._server = await loop.create_server(build, sock=listening)
        else:
            listening.setblocking(False)
            self._listening, self._accepting = listening, loop.create_task(self._accept(listening, build, tls))
        bound = listening.getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    @property
    def session_count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    def drain(self, drained: bool) -> None:
        """Greet nobody any more (421), and let sessions end after their transactions; False = open again."""
        self._drained = drained
        for session in list(self._sessions):
            session.leave(drained)

    async def stop(self, grace_s: float) -> None:
        """Accept nobody, let transactions finish within `grace_s`, then hang up."""
        if self._server is not None:
            self._server.close()
        if self._accepting is not None and self._listening is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._listening.close()
        for session in list(self._sessions):
            session.close_soon()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._sessions and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  (a stop may poll)
            await asyncio.sleep(0.05)
        for session in list(self._sessions):
            session.abort()

    async def _accept(self, listening: socket.socket, build: Callable[[], Session], tls: ssl.SSLContext) -> None:
        """Implicit TLS, accepted by hand: a server made with `ssl=` says nothing about a handshake that failed."""
        loop = asyncio.get_running_loop()
        while True:
            await self._handshakes.acquire()
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # too many open files: those that are open will end
                log.error("listener.accept_failed", listener=self._name, reason=str(error))
                self._handshakes.release()
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            task = loop.create_task(self._secure(accepted, address[0], build, tls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _secure(
        self, accepted: socket.socket, address: str, build: Callable[[], Session], tls: ssl.SSLContext
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                build, accepted, ssl=tls, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or str(error) or "the client hung up"
            event = "mesh.peer_refused" if self._name == MESH else "tls.failed"
            log.warning(event, client=address, listener=self._name, reason=REASONS.get(reason, reason))
            accepted.close()
        finally:
            self._handshakes.release()

    def _admit(self, session: Session, address: str) -> Reply | None:
        self._sessions.add(session)
        self._counted[session] = address
        self._clients[address] += 1
        if self._drained:
            return DRAINED
        if len(self._sessions) > self._connections_max or self._clients[address] > self._per_client_max:
            log.warning("listener.full", listener=self._name, client=address, connections=len(self._sessions))
            return Reply(421, "too many connections", "4.7.0")
        return None

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        address = self._counted.pop(session, None)
        if address is not None:
            self._clients[address] -= 1
            if not self._clients[address]:
                del self._clients[address]


class Listener(_Door):
    """Where clients submit or other servers deliver."""

    def __init__(self, settings: ListenerSettings, acceptor: Acceptor, *, hostname: str, inline_bytes_max: int) -> None:
        super().__init__(
            settings.name,
            settings.listen,
            acceptor,
            connections_max=settings.connections_max,
            connections_per_client_max=settings.connections_per_client_max,
        )
        self._settings, self._hostname, self._inline_bytes_max = settings, hostname, inline_bytes_max

    async def start(self) -> str:
        """Listen; the bound host:port. ListenerError: port in use, certificate or users file unusable."""
        settings = self._settings
        context = self._load_context()
        implicit = settings.tls == "implicit"
        options = SessionOptions(
            listener=settings.name,
            hostname=self._hostname,
            policy=RelayPolicy(settings),
            intake=IntakeOptions(settings.size_bytes_max, self._inline_bytes_max, settings.bare_newlines),
            recipients_max=settings.recipients_max,
            idle_timeout_s=settings.idle_timeout_s,
            starttls=None if implicit else context,
            implicit_tls=implicit,
            users=self._load_users(),
        )
        return await self._open(options, context if implicit else None)

    def _load_context(self) -> ssl.SSLContext | None:
        certificate, key = self._settings.certificate, self._settings.key
        if self._settings.tls == "none" or certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ListenerError(f"certificate {certificate} with key {key or certificate}: {error}") from error
        return context

    def _load_users(self) -> UsersFile | None:
        path: Path | None = self._settings.auth_users
        try:
            return UsersFile.load(path) if path is not None else None
        except UsersError as error:
            raise ListenerError(str(error)) from error


class _PeersMayAll:
    """Between peers the ingress relay has judged already."""

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """Peers relay anything."""
        return None


class MeshListener(_Door):
    """The peers' door."""

    def __init__(
        self,
        listen: str,
        identity: Identity,
        acceptor: Acceptor,
        *,
        hostname: str,
        inline_bytes_max: int,
        size_bytes_max: int,
    ) -> None:
        super().__init__(
            MESH,
            listen,
            acceptor,
            connections_max=MESH_CONNECTIONS_MAX,
            connections_per_client_max=MESH_CONNECTIONS_MAX,
        )
        self._identity = identity
        self._options = SessionOptions(
            listener=MESH,
            hostname=hostname,
            policy=_PeersMayAll(),
            intake=IntakeOptions(size_bytes_max, inline_bytes_max),
            recipients_max=50_000,
            implicit_tls=True,
            mesh=True,
            peer_of=self._peer_of,
        )

    async def start(self) -> str:
        """Listen; the bound host:port. ListenerError if the port is in use."""
        return await self._open(self._options, self._identity.server_context())

    def _peer_of(self, certificate_der: bytes) -> str:
        try:
            return self._identity.member(certificate_der, at=datetime.now(UTC)).node_id
        except IdentityError as error:
            raise ValueError(str(error)) from error


def split_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. ListenerError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ListenerError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def _explain(error: OSError) -> str:
    """The reason with the way out."""
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; stop what listens there (`ss -ltnp` names it) or choose another port"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address"
        case errno.EACCES:
            return "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE"
        case _:
            return error.strerror or str(error)
