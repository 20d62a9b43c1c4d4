"""A listening socket and its sessions: accepting, PROXY headers, implicit TLS, counting, and the watch on slow clients.

    plain, no proxies     the loop's own server accepts
    else                  accepted by hand: PROXY header, handshake, then a session; a server made with `ssl=` says
                          nothing about a handshake that failed, and could not read a header before it

Every connection is counted before a byte is read from it; those that are one too many get 421, or are just closed where
the answer would need a handshake.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass, field

import structlog

from smtp_edge.networks import Networks
from smtp_edge.reply import Reply
from smtp_edge.server.crowd import LISTENER_FULL, Crowd, Event
from smtp_edge.server.listening import listen_on
from smtp_edge.server.options import Acceptor, SessionOptions
from smtp_edge.server.pressure import Memory
from smtp_edge.server.proxy import ProxiedClient, ProxyFault, needed, parse_proxy
from smtp_edge.server.session import Session
from smtp_edge.settings_inbound import LimitsSettings

log = structlog.get_logger()

BACKLOG = 4096
"""Connections that wait in the kernel until they are accepted; beyond it a caller's SYN is dropped, and he waits for
seconds. The kernel's own bound (net.core.somaxconn) is 4096 by default."""
HANDSHAKE_PATIENCE_S = 2.0
"""While all places are taken, a handshake that takes longer is broken off."""
ROOM_PAUSE_S = 0.02
ACCEPT_PAUSE_S = 0.5
LOOKS_IN_A_ROW = 1000
"""Sessions looked at before other work gets its turn."""
REFUSALS_LOGGED_S = 1.0
"""Refused connections are logged one by one, but no more often than this; the others are counted."""
DRAINED = Reply(421, "this relay is being drained, try another", "4.3.2")
MESH = "mesh"
REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this cluster's authority",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
}
"""OpenSSL's words in ours."""


class OneTooMany(ConnectionError):
    """A connection that is closed because of its client's counts; `listener.full` has said so."""


@dataclass(frozen=True, slots=True)
class DoorOptions:
    """How connections become sessions."""

    session: SessionOptions
    connections_max: int
    connections_per_client_max: int
    tls: ssl.SSLContext | None = None
    """Implicit TLS."""
    proxies: Networks = field(default_factory=lambda: Networks(()))

    @property
    def by_hand(self) -> bool:
        """See the module."""
        return self.tls is not None or bool(self.proxies)


@dataclass(slots=True)
class Entry:
    """A connection in the counts of its client."""

    key: str
    refusal: Reply | None
    left: bool = False


class Door:
    """See the module. The options may change while it is open: sessions keep those that they began with.

    `shared`: other processes of this user may listen on the same address, and the kernel chooses among them.
    """

    def __init__(self, name: str, listen: str, acceptor: Acceptor, memory: Memory, *, shared: bool = False) -> None:
        self.name, self.listen, self.memory, self._shared = name, listen, memory, shared
        self._acceptor = acceptor
        self._crowd = Crowd(LimitsSettings(), connections_max=0, connections_per_client_max=0)
        self._sessions: dict[Session, Entry] = {}
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._callers: dict[asyncio.Task[None], tuple[float, DoorOptions]] = {}
        """Connections that are no sessions yet, oldest first: when they came, and the options that they go by."""
        self._drained = False
        self._refused_count = 0
        self._refused_logged = float("-inf")

    # -- opening and closing -------------------------------------------------------------------------------------------

    def configure(self, options: DoorOptions) -> None:
        """For connections from now on; `pause` and `serve` if `by_hand` has changed."""
        self._crowd.configure(
            options.session.limits,
            connections_max=options.connections_max,
            connections_per_client_max=options.connections_per_client_max,
        )
        self._options = options

    def too_often(self, event: Event, address: str) -> Reply | None:
        """For the sessions' options."""
        return self._crowd.note(event, address, time.monotonic())

    def bind(self) -> str:
        """Take the address; the bound host:port. ListenerError if it is not to be had."""
        self._socket = listen_on(self.listen, backlog=BACKLOG, shared=self._shared)
        self._socket.setblocking(False)
        bound = self._socket.getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def serve(self) -> None:
        """Accept on the bound socket. Connections that came since `bind` are not lost."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        mine = self._socket.dup()  # to close what accepts does not close the address
        if self._options.by_hand:
            self._loops.append(loop.create_task(self._accept(mine)))
        else:
            self._server = await loop.create_server(self._build, sock=mine)
            mine.listen(BACKLOG)  # the loop has made it 100: as many as it accepts in a row, which may stay so
        self._loops.append(loop.create_task(self._watch()))

    async def pause(self) -> None:
        """Accept nobody for now; `serve` goes on. Callers wait in the kernel's backlog."""
        if self._server is not None:
            server, self._server = self._server, None
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            await asyncio.sleep(0)  # whom asyncio has accepted becomes a session: a closed server would lose him
            server.close()
        loops, self._loops = self._loops, []
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    async def release(self) -> None:
        """Accept nobody and give the address up; `bind` and `serve` take it again."""
        await self.pause()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def close(self) -> None:
        """Accept those who wait already, and nobody else; sessions go on to their own end, watched."""
        await self.pause()
        self._take_waiting()
        await self.release()
        self._loops.append(asyncio.get_running_loop().create_task(self._watch()))

    def _take_waiting(self) -> None:
        """Connections in the kernel's backlog would be reset with the address."""
        while self._socket is not None:
            try:
                accepted, address = self._socket.accept()
            except OSError:
                break
            self._admit(accepted, address[0])

    def drain(self, drained: bool) -> None:
        """Greet nobody any more (421), and let sessions end after their transactions; False = open again."""
        self._drained = drained
        for session in list(self._sessions):
            session.leave(drained)

    async def stop(self, grace_s: float) -> None:
        """Accept nobody, let transactions finish within `grace_s`, then hang up."""
        await self.release()
        self._loops.append(asyncio.get_running_loop().create_task(self._watch()))
        for caller in list(self._callers):
            caller.cancel()
        for session in list(self._sessions):
            session.close_soon()
        deadline = time.monotonic() + grace_s
        while self._sessions and time.monotonic() < deadline:  # noqa: ASYNC110  (a stop may poll)
            await asyncio.sleep(0.02)
        for session in list(self._sessions):
            session.abort()
        await self.pause()
        self.memory.unread_bytes.pop(id(self), None)

    @property
    def session_count(self) -> int:
        """Sessions that are there."""
        return len(self._sessions)

    @property
    def present_count(self) -> int:
        """Sessions, and connections that will be ones."""
        return len(self._sessions) + len(self._callers)

    @property
    def stale_count(self) -> int:
        """Sessions, and connections that will be ones, by options that others have replaced."""
        current = self._options.session
        stale = sum(session.options is not current for session in self._sessions)
        return stale + sum(options is not self._options for _, options in self._callers.values())

    # -- House: what sessions ask --------------------------------------------------------------------------------------

    def enter(self, session: Session) -> Reply | None:
        """A session begins."""
        entry = session.entry or self._count(session.address)
        self._sessions[session] = entry
        return entry.refusal

    def leave(self, session: Session) -> None:
        """It has ended."""
        entry = self._sessions.pop(session, None)
        if entry is not None:
            self._uncount(entry)

    def _count(self, address: str) -> Entry:
        key, refusal = self._crowd.enter(address, time.monotonic())
        if self._drained:
            return Entry(key, DRAINED)
        if refusal is None and self.memory.full:
            refusal = LISTENER_FULL
        if refusal is not None:
            self._log_refused(address, refusal)
        return Entry(key, refusal)

    def _uncount(self, entry: Entry) -> None:
        """Once, whoever notices first that it is over."""
        if not entry.left:
            entry.left = True
            self._crowd.leave(entry.key)

    def _log_refused(self, address: str, refusal: Reply) -> None:
        now = time.monotonic()
        self._refused_count += 1
        if now - self._refused_logged >= REFUSALS_LOGGED_S:
            connections = self._crowd.open_count
            log.warning("listener.full", listener=self.name, client=address, connections=connections,
                        refused=self._refused_count, reply=str(refusal))  # fmt: skip
            self._refused_count, self._refused_logged = 0, now

    # -- accepting -----------------------------------------------------------------------------------------------------

    def _build(self) -> Session:
        return Session(self._options.session, self._acceptor, self, loop=asyncio.get_running_loop())

    async def _accept(self, listening: socket.socket) -> None:
        """Until a pause, which may come while one waits, and never between accepting and admitting."""
        try:
            while True:
                await self._make_room()
                try:
                    accepted, address = listening.accept()
                except BlockingIOError:
                    await _readable(listening)
                    continue
                except ConnectionAbortedError:
                    continue
                except OSError as error:  # too many open files: those that are open will end
                    log.error("listener.accept_failed", listener=self.name, reason=str(error))
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._admit(accepted, address[0])
        finally:
            listening.close()

    def _admit(self, accepted: socket.socket, address: str) -> None:
        task = asyncio.get_running_loop().create_task(self._receive(accepted, address, self._options))
        self._callers[task] = time.monotonic(), self._options
        task.add_done_callback(self._callers.pop)

    async def _make_room(self) -> None:
        """Wait until a handshake may begin. Those that take long make room: who hangs must not shut others out."""
        while len(self._callers) >= self._options.session.limits.handshakes_max:
            oldest, (came, _) = next(iter(self._callers.items()))
            if time.monotonic() - came >= HANDSHAKE_PATIENCE_S:
                oldest.cancel()
            await asyncio.sleep(ROOM_PAUSE_S)

    async def _receive(self, accepted: socket.socket, address: str, options: DoorOptions) -> None:
        """From a connection to a session."""
        entry: Entry | None = None
        try:
            proxied = await self._read_proxy(accepted, address, options)
            client = proxied.address if proxied is not None else address
            entry = self._count(client)
            refusal = entry.refusal
            if options.tls is not None:
                refusal = refusal or self._crowd.note(Event.HANDSHAKE, client, time.monotonic())
            if options.tls is not None and refusal is not None:
                raise OneTooMany(refusal.text)
            await self._begin(accepted, options, proxied, entry)
        except (OSError, ssl.SSLError, ProxyFault, TimeoutError, asyncio.CancelledError) as error:
            accepted.close()
            if entry is not None:
                self._uncount(entry)
            self._log_failed(address, error)

    async def _begin(
        self, accepted: socket.socket, options: DoorOptions, proxied: ProxiedClient | None, entry: Entry
    ) -> None:
        loop = asyncio.get_running_loop()

        def build() -> Session:
            return Session(options.session, self._acceptor, self, loop=loop, proxied=proxied, entry=entry)

        if options.tls is None:
            await loop.connect_accepted_socket(build, accepted)
        else:
            timeout_s = options.session.limits.handshake_timeout_s
            await loop.connect_accepted_socket(build, accepted, ssl=options.tls, ssl_handshake_timeout=timeout_s)

    async def _read_proxy(self, accepted: socket.socket, address: str, options: DoorOptions) -> ProxiedClient | None:
        """What a load balancer says; None for who is none, or says nothing. ProxyFault, OSError."""
        if not options.proxies.hold(address):
            return None
        accepted.setblocking(False)
        loop, header = asyncio.get_running_loop(), b""
        try:
            async with asyncio.timeout(options.session.limits.proxy_timeout_s):
                while count := needed(header):
                    received = await loop.sock_recv(accepted, count)
                    if not received:
                        raise ProxyFault("the connection ended in its PROXY header")
                    header += received
        except TimeoutError:
            raise ProxyFault("no PROXY header in time") from None
        return parse_proxy(header)

    def _log_failed(self, address: str, error: BaseException) -> None:
        if isinstance(error, OneTooMany):
            return
        if isinstance(error, ProxyFault):
            log.warning("proxy.refused", client=address, listener=self.name, reason=str(error))
            return
        reason = getattr(error, "reason", None) or str(error) or "the client hung up or was too slow"
        event = "mesh.peer_refused" if self.name == MESH else "tls.failed"
        log.warning(event, client=address, listener=self.name, reason=REASONS.get(reason, reason))

    # -- the watch -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at every session: is the client too slow, how much of what it sent is unread."""
        while True:
            await asyncio.sleep(self._options.session.pace.look_every_s)
            unread = 0
            for number, session in enumerate(list(self._sessions)):
                session.look(time.monotonic())
                unread += len(session.inbox)
                if number % LOOKS_IN_A_ROW == LOOKS_IN_A_ROW - 1:
                    await asyncio.sleep(0)
            self.memory.unread_bytes[id(self)] = unread


async def _readable(listening: socket.socket) -> None:
    """Until somebody calls."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()
    loop.add_reader(listening, _note, came)
    try:
        await came
    finally:
        loop.remove_reader(listening)


def _note(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)
