"""From a target to a connection that is ready for MAIL: connect, greeting, EHLO, TLS, AUTH.

aiosmtplib does the talking; here its many exceptions become one `Unconnected` with the fault named, and the TLS word of
the target is enforced. Mail never goes out in the clear where TLS was demanded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import aiosmtplib

from gossip.identity import Identity, IdentityError
from router.decision import OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.patience import Patience
from smtp_edge.client.replies import ConnectionLost, ReplyStream, as_transport, clean_text
from smtp_edge.reply import Reply


class Unconnected(Exception):
    """No usable session came about. `kind` says whose fault; `reply` is the remote's, if it sent one."""

    def __init__(self, kind: OutcomeKind, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.reply = kind, reason, reply


@dataclass(slots=True, eq=False)
class Connection:
    """An open session."""

    target: Target
    stream: ReplyStream
    extensions: dict[str, str]
    """EHLO keywords in lower case with their arguments."""
    remote: str
    tls: str
    idle_since: float = 0.0
    used_count: int = 0
    needs_reset: bool = False
    client: aiosmtplib.SMTP | None = None

    def close(self) -> None:
        """Say QUIT without waiting for the answer, and close."""
        with contextlib.suppress(ConnectionLost):
            self.stream.write(b"QUIT\r\n")
        self.stream.close()


class Connector:
    """Opens connections for one node."""

    def __init__(self, *, hostname: str, identity: Identity | None, connect_timeout_s: float) -> None:
        self._hostname, self._identity = hostname, identity
        self._patience = Patience(connect_timeout_s)
        self._contexts: dict[object, ssl.SSLContext] = {}

    async def open(self, target: Target, host: str) -> Connection:
        """Connect to `host` (the target's own, or one of its mail exchangers). Unconnected if that fails."""
        try:
            return await self._open_in_time(target, host, target.tls)
        except _NoOpportunity:
            return await self.open_in_clear(target, host)

    async def open_in_clear(self, target: Target, host: str) -> Connection:
        """What `opportunistic` does when a remote's TLS is broken: a fresh connection without it."""
        return await self._open_in_time(target, host, "none")

    async def _open_in_time(self, target: Target, host: str, tls: str) -> Connection:
        began, allowed_s = time.monotonic(), self._patience.allow((host, target.port))
        try:
            async with asyncio.timeout(allowed_s * 3):
                connection = await self._open(target, host, tls, allowed_s)
        except TimeoutError:
            self._patience.note_timeout((host, target.port))
            raise Unconnected(OutcomeKind.TIMEOUT, "timeout before the session was ready") from None
        except Unconnected:
            if time.monotonic() - began >= allowed_s:
                self._patience.note_timeout((host, target.port))
            raise
        self._patience.note_session((host, target.port), time.monotonic() - began)
        return connection

    async def _open(self, target: Target, host: str, tls: str, timeout_s: float) -> Connection:
        implicit = tls in ("implicit", "mesh")
        client = aiosmtplib.SMTP(
            hostname=host,
            port=target.port,
            local_hostname=self._hostname,
            timeout=timeout_s,
            use_tls=implicit,
            start_tls=False,
            tls_context=self._context(target) if implicit else None,
        )
        stage = "connect"
        try:
            await client.connect()
            if tls == "mesh":
                self._check_peer(client, target)
            stage = "EHLO"
            await client.ehlo()
            if tls in ("starttls", "opportunistic"):
                stage = "STARTTLS"
                await self._secure(client, target, host, required=tls == "starttls")
            if target.user:
                stage = "AUTH"
                await self._login(client, target)
            return self._adopt(client, target, host)
        except BaseException as error:
            client.close()
            raise _translate(error, stage, opportunistic=tls == "opportunistic") from error

    async def _secure(self, client: aiosmtplib.SMTP, target: Target, host: str, *, required: bool) -> None:
        if client.supports_extension("starttls"):
            await client.starttls(server_hostname=host, tls_context=self._context(target))
            await client.ehlo()
        elif required:
            raise Unconnected(OutcomeKind.TLS_FAILED, "STARTTLS: not offered, and required for this host")

    async def _login(self, client: aiosmtplib.SMTP, target: Target) -> None:
        try:
            password = target.password_file.read_text("utf-8").strip() if target.password_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise Unconnected(OutcomeKind.CONNECT_FAILED, f"AUTH: {target.password_file}: {error}") from error
        await client.login(target.user, password)

    def _adopt(self, client: aiosmtplib.SMTP, target: Target, host: str) -> Connection:
        transport = as_transport(client.transport)
        peer = transport.get_extra_info("peername")
        tls = transport.get_extra_info("ssl_object")
        return Connection(
            target,
            ReplyStream(transport),
            {word.lower(): argument for word, argument in client.esmtp_extensions.items()},
            remote=f"{host}[{peer[0]}]:{peer[1]}" if peer else host,
            tls=f"{tls.version()} {tls.cipher()[0]}" if tls is not None and tls.cipher() else "",
            idle_since=time.monotonic(),
            client=client,
        )

    def _check_peer(self, client: aiosmtplib.SMTP, target: Target) -> None:
        identity = self._identity
        tls = client.get_transport_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if identity is None or certificate is None:
            raise Unconnected(OutcomeKind.TLS_FAILED, "connect: no cluster identity")
        try:
            found = identity.member(certificate, at=datetime.now(UTC)).node_id
        except IdentityError as error:
            raise Unconnected(OutcomeKind.TLS_FAILED, f"connect: {error}") from error
        if found != target.hop.name:
            raise Unconnected(OutcomeKind.TLS_FAILED, f"connect: the peer there is {found}")

    def _context(self, target: Target) -> ssl.SSLContext:
        """The TLS context of a target, made once."""
        key = ("mesh",) if target.tls == "mesh" else (target.tls, target.tls_ca)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._build_context(target)
        return context

    def _build_context(self, target: Target) -> ssl.SSLContext:
        if target.tls == "mesh":
            if self._identity is None:
                raise Unconnected(OutcomeKind.TLS_FAILED, "connect: no cluster identity")
            return self._identity.client_context()
        try:
            context = ssl.create_default_context(cafile=str(target.tls_ca) if target.tls_ca else None)
        except (OSError, ssl.SSLError) as error:
            raise Unconnected(OutcomeKind.TLS_FAILED, f"tls_ca {target.tls_ca}: {error}") from error
        if target.tls == "opportunistic":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _NoOpportunity(Exception):
    """Opportunistic TLS failed; try in the clear."""


def _translate(error: BaseException, stage: str, *, opportunistic: bool) -> BaseException:
    """aiosmtplib's exception as ours; what is not about the remote stays as it is."""
    if isinstance(error, Unconnected | asyncio.CancelledError | TimeoutError) and not isinstance(
        error, aiosmtplib.SMTPException
    ):
        return error
    text = f"{stage}: {_describe(error)}"
    if stage == "STARTTLS" and opportunistic and not isinstance(error, aiosmtplib.SMTPTimeoutError):
        return _NoOpportunity(text)
    if _is_tls(error) or stage == "STARTTLS":
        return Unconnected(OutcomeKind.TLS_FAILED, text)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return Unconnected(OutcomeKind.HOP_TEMPFAIL, text, _reply_of(error))
    if isinstance(error, aiosmtplib.SMTPConnectTimeoutError):
        return Unconnected(OutcomeKind.CONNECT_FAILED, text)
    if isinstance(error, aiosmtplib.SMTPTimeoutError):
        return Unconnected(OutcomeKind.TIMEOUT, text)
    if isinstance(error, aiosmtplib.SMTPConnectError | OSError | ConnectionLost):
        return Unconnected(OutcomeKind.CONNECT_FAILED, text)
    if isinstance(error, aiosmtplib.SMTPException):
        return Unconnected(OutcomeKind.HOP_TEMPFAIL, text)
    return error


def _describe(error: BaseException) -> str:
    """The operating system's word where there is one (`Connection refused`), else the library's."""
    cause = error.__cause__
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
