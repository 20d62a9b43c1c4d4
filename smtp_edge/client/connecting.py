"""From a place to a connection that is ready for MAIL: connect, greeting, EHLO, TLS, AUTH.

Every way in which that can fail becomes one `Unconnected` with the fault named. The TLS demand of the place is
enforced: mail never goes out in the clear where TLS was demanded, and a password never does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiosmtplib

from gossip.identity import Identity
from router.decision import HopKind, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.contexts import Contexts, TlsRefused, describe_session, judge_session
from smtp_edge.client.dialogue import Refused, ask_for_tls, log_in, say_hello
from smtp_edge.client.limits import NO_LIMITS, Limits, parse_limits
from smtp_edge.client.patience import Patience
from smtp_edge.client.replies import OUT_OF_TURN, ConnectionLost, ReplyStream, as_transport, clean_text
from smtp_edge.client.tls_policy import CLEAR, Level, TlsDemand
from smtp_edge.reply import Reply
from smtp_edge.settings import OutboundSettings

INSECURE_STATUS = "4.7.5"


class Unconnected(Exception):
    """No usable session came about. `kind` says whose fault; `reply` is the remote's if it sent one, or our `own`."""

    def __init__(self, kind: OutcomeKind, reason: str, reply: Reply | None = None, *, own: bool = False) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.reply, self.own = kind, reason, reply, own


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is tried."""

    host: str
    """Name for people and for TLS."""
    address: str
    """To call; empty for a Unix socket."""
    demands: tuple[TlsDemand, ...] = (CLEAR,)
    """In order; the next only after TLS has failed, on a new connection."""


@dataclass(slots=True, eq=False)
class Connection:
    """An open session."""

    target: Target
    stream: ReplyStream
    extensions: dict[str, str]
    """Keywords of the answer to EHLO in lower case, with their arguments."""
    remote: str
    tls: str
    verified: bool = False
    """The certificate was checked, by whatever means."""
    pooled: bool = True
    """May be used for other messages."""
    limits: Limits = NO_LIMITS
    domains: set[str] = field(default_factory=set)
    """Domains of recipients named in the session; kept only where the remote limits them."""
    idle_since: float = 0.0
    used_count: int = 0
    needs_reset: bool = False

    def close(self) -> None:
        """Say QUIT without waiting for the answer, and close."""
        with contextlib.suppress(ConnectionLost):
            self.stream.write(b"QUIT\r\n")
        self.stream.close()


class Connector:
    """Opens connections for one node."""

    def __init__(
        self,
        *,
        hostname: str,
        identity: Identity | None,
        connect_timeout_s: float,
        settings: OutboundSettings | None = None,
        on_fallback: Callable[[Place, TlsDemand, str], None] | None = None,
    ) -> None:
        self._hostname, self._on_fallback = hostname, on_fallback
        self._patience = Patience(connect_timeout_s)
        self._contexts = Contexts(identity, settings)

    async def open(self, target: Target, place: Place) -> Connection:
        """Connect to a place. Unconnected if that fails for every demand that may be tried."""
        for demand in place.demands[:-1]:
            try:
                return await self._open_in_time(target, place, demand)
            except Unconnected as error:
                if error.kind is not OutcomeKind.TLS_FAILED:
                    raise
                if self._on_fallback is not None:
                    self._on_fallback(place, demand, error.reason)
        return await self._open_in_time(target, place, place.demands[-1])

    async def _open_in_time(self, target: Target, place: Place, demand: TlsDemand) -> Connection:
        endpoint = (place.address or str(target.socket), target.port)
        began, allowed_s = time.monotonic(), self._patience.allow(endpoint)
        try:
            async with asyncio.timeout(allowed_s * 3):
                connection = await self._open(target, place, demand, allowed_s)
        except TimeoutError:
            self._patience.note_timeout(endpoint)
            raise Unconnected(OutcomeKind.TIMEOUT, "timeout before the session was ready") from None
        except Unconnected:
            if time.monotonic() - began >= allowed_s:
                self._patience.note_timeout(endpoint)
            raise
        self._patience.note_session(endpoint, time.monotonic() - began)
        return connection

    async def _open(self, target: Target, place: Place, demand: TlsDemand, allowed_s: float) -> Connection:
        stage, stream = ["connect"], None
        try:
            async with asyncio.timeout(allowed_s):
                stream = await self._greet(target, place, demand, allowed_s)
            return await self._prepare(stream, target, place, demand, stage)
        except BaseException as error:
            if stream is not None:
                stream.abort()
            ours = _translate(error, stage[0])
            if ours is error:
                raise
            raise ours from error

    async def _greet(self, target: Target, place: Place, demand: TlsDemand, allowed_s: float) -> ReplyStream:
        """TCP (and TLS, where it is implicit) up to the greeting."""
        context = None
        if target.tls == "mesh":
            context = self._contexts.mesh()
        elif target.tls == "implicit":
            context = self._contexts.find(demand)
        client = aiosmtplib.SMTP(
            hostname=place.host,
            socket_path=target.socket,
            sock=None if target.socket else await _call(place.address, target.port),
            local_hostname=self._hostname,
            timeout=allowed_s,
            use_tls=context is not None,
            start_tls=False,
            tls_context=context,
        )
        greeting = await client.connect()
        if target.hop.kind is HopKind.MX and greeting.message.partition(" ")[0].lower() == self._hostname.lower():
            client.close()
            raise Unconnected(OutcomeKind.CONNECT_FAILED, "connect: the host there has our own name, mail would loop")
        return ReplyStream(as_transport(client.transport))

    async def _prepare(
        self, stream: ReplyStream, target: Target, place: Place, demand: TlsDemand, stage: list[str]
    ) -> Connection:
        """EHLO, STARTTLS, AUTH; `stage` holds what is being done."""
        checked, lmtp = "", target.protocol == "lmtp"
        if target.tls == "mesh":
            self._contexts.check_peer(stream.info("ssl_object"), target.hop.name)
        elif target.tls == "implicit":
            checked = judge_session(stream.info("ssl_object"), demand)
        stage[0] = "EHLO"
        extensions = await say_hello(stream, self._hostname, lmtp=lmtp)
        if target.tls not in ("mesh", "implicit") and demand.level > Level.NONE:
            if "starttls" in extensions:
                stage[0] = "STARTTLS"
                await ask_for_tls(stream)
                await stream.secure(self._contexts.find(demand), demand.host)
                checked = judge_session(stream.info("ssl_object"), demand)
                stage[0] = "EHLO"
                extensions = await say_hello(stream, self._hostname, lmtp=lmtp)
            elif demand.level > Level.OPPORTUNISTIC:
                raise TlsRefused("STARTTLS is not offered, and TLS is demanded for this host")
        if target.user:
            stage[0] = "AUTH"
            await _log_in(stream, target, extensions)
        if not stream.usable:  # one reply too many would be taken for the answer to MAIL
            raise ConnectionLost(OUT_OF_TURN)
        return _adopt(stream, target, place, extensions, checked)


async def _call(address: str, port: int) -> socket.socket:
    """A connected socket. OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    except BaseException:
        made.close()
        raise
    return made


async def _log_in(stream: ReplyStream, target: Target, extensions: dict[str, str]) -> None:
    if stream.info("ssl_object") is None:
        raise TlsRefused("the session is in the clear, where no password goes")
    try:
        password = target.password_file.read_text("utf-8").strip() if target.password_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise Unconnected(OutcomeKind.CONNECT_FAILED, f"AUTH: {target.password_file}: {error}") from error
    await log_in(stream, extensions.get("auth", ""), target.user, password)


def _adopt(stream: ReplyStream, target: Target, place: Place, extensions: dict[str, str], checked: str) -> Connection:
    tls, peer = stream.info("ssl_object"), stream.info("peername")
    words = [describe_session(tls), checked]
    return Connection(
        target,
        stream,
        extensions,
        remote=f"{place.host}[{peer[0]}]:{peer[1]}" if isinstance(peer, tuple) else str(target.socket),
        tls=" ".join(word for word in words if word),
        verified=bool(checked) or target.tls == "mesh",
        limits=parse_limits(extensions["limits"]) if "limits" in extensions else NO_LIMITS,
        idle_since=time.monotonic(),
    )


def _translate(error: BaseException, stage: str) -> BaseException:
    """Whatever ended the beginning of a session as ours; what is not about the remote stays as it is."""
    match error:
        case Unconnected():
            return error
        case Refused():
            kind = OutcomeKind.TLS_FAILED if error.stage == "STARTTLS" else OutcomeKind.HOP_TEMPFAIL
            return Unconnected(kind, str(error), error.reply, own=error.own)
        case TlsRefused():
            return _insecure(stage, str(error))
        case ConnectionLost() if stage == "STARTTLS":
            return _insecure(stage, str(error))
        case aiosmtplib.SMTPResponseException():
            return Unconnected(OutcomeKind.HOP_TEMPFAIL, f"{stage}: {_describe(error)}", _reply_of(error))
        case TimeoutError():  # aiosmtplib's are TimeoutErrors, too
            if stage == "connect":
                return Unconnected(OutcomeKind.CONNECT_FAILED, f"{stage}: timeout")
            return error
        case _ if _is_tls(error):
            return _insecure(stage, _describe(error))
        case OSError() if stage == "STARTTLS":
            return _insecure(stage, _describe(error))
        case OSError() | ConnectionLost():
            return Unconnected(OutcomeKind.CONNECT_FAILED, f"{stage}: {_describe(error)}")
        case aiosmtplib.SMTPException():
            return Unconnected(OutcomeKind.HOP_TEMPFAIL, f"{stage}: {_describe(error)}")
        case _:
            return error


def _insecure(stage: str, reason: str) -> Unconnected:
    text = f"{stage}: {reason}"
    return Unconnected(OutcomeKind.TLS_FAILED, text, Reply(454, text, INSECURE_STATUS), own=True)


def _describe(error: BaseException) -> str:
    """The operating system's word where there is one (`Connection refused`), else the library's."""
    for cause in (error, error.__cause__):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return clean_text(f"certificate: {cause.verify_message or cause.reason}")
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ssl.SSLError):
            return os.strerror(cause.errno) if cause.errno > 0 else clean_text(str(cause))
    return clean_text(str(error)) or type(error).__name__


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__
    return False


def _reply_of(error: aiosmtplib.SMTPResponseException) -> Reply | None:
    return Reply(error.code, clean_text(error.message)) if 200 <= error.code <= 599 else None
