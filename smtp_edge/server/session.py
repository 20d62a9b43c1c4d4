"""One inbound SMTP session, on aiosmtpd's `SMTP` class.

aiosmtpd gives transport, stream and lifetime; the dialogue is ours: bulk DATA instead of a coroutine step for each
line, replies of a pipelined group in one write, parameters with their case kept, enhanced status codes (RFC 2034) on
every reply, and texts that never repeat what the client sent. What is wrong goes to the log, not to the client.

A session that loses its client while a message is being stored still learns how the storing ended: it is never
cancelled in between, so nothing is stored that nobody counts.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import structlog
from aiosmtpd.smtp import SMTP

from smtp_edge.auth import UsersFile
from smtp_edge.envelope import Client, Envelope, MailData, ReceivedMessage, Recipient, Transfer
from smtp_edge.reply import Reply
from smtp_edge.server.bulk import TooLarge, read_mail_data
from smtp_edge.server.commands import (
    MailParameters,
    PathArgument,
    SyntaxFault,
    parse_path_argument,
    take_mail_parameters,
    take_rcpt_parameters,
)
from smtp_edge.server.intake import LOCAL_ERROR, TOO_LARGE, Intake, IntakeOptions, SpoolWriter
from smtp_edge.trace import protocol_word
from smtp_edge.transfer import KEYWORD, STATE, TransferFault, parse_transfer

log = structlog.get_logger()

COMMAND_LINE_MAX = 4096
"""Octets of a command line: 512 of RFC 5321 and what the extensions add (XTRACE names 32 digits for each relay)."""
BUFFER_LIMIT = 128 * 1024
BAD_COMMANDS_MAX = 20
"""Refused commands in one session before it is ended."""
FAILED_AUTH_MAX = 3
DRAIN_FACTOR = 2
"""Mail data beyond SIZE is read on this far for the sake of a proper 552; past it the connection is closed."""

OK = Reply(250, "Ok", "2.0.0")
BAD_SEQUENCE = "bad sequence of commands"


class Acceptor(Protocol):
    """Who takes over responsibility for mail (`smtp_edge.acceptor.QueueAcceptor`)."""

    def admit(self, size_bytes: int) -> Reply | None:
        """At MAIL: None to go on, else a 452 or 421."""
        ...

    def check_recipient(self, client: Client, recipient: Recipient, size_bytes: int = 0) -> Reply | None:
        """At RCPT, after the relay policy. `size_bytes`: as MAIL declared it, 0 = not."""
        ...

    async def accept(self, message: ReceivedMessage) -> Reply:
        """After the final dot; 250 only when durable."""
        ...

    def spool(self) -> SpoolWriter:
        """A new spool file."""
        ...


class Permits(Protocol):
    """The relay policy."""

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """None, or the refusal."""
        ...


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a listener's sessions offer and how far they go."""

    listener: str
    hostname: str
    policy: Permits
    intake: IntakeOptions
    recipients_max: int = 1000
    idle_timeout_s: float = 300
    starttls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    users: UsersFile | None = None
    mesh: bool = False
    """Peers only: `XSMTPMESH`, and `peer_of` names the peer or refuses the connection."""
    peer_of: Callable[[bytes], str] | None = None


@dataclass(slots=True)
class Transaction:
    """MAIL and RCPT so far."""

    sender: str
    mail: MailParameters
    transfer: Transfer | None
    recipients: list[Recipient]


class Goodbye(Exception):
    """End the session after the reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Session(SMTP):
    """See the module. `on_open` may refuse the connection with a reply; `on_close` is called once for each open."""

    line_length_limit = BUFFER_LIMIT  # aiosmtpd builds its stream reader with it

    def __init__(
        self,
        options: SessionOptions,
        acceptor: Acceptor,
        *,
        loop: asyncio.AbstractEventLoop,
        on_open: Callable[[Session, str], Reply | None],
        on_close: Callable[[Session], None],
    ) -> None:
        super().__init__(object(), hostname=options.hostname, enable_SMTPUTF8=True, loop=loop)
        self._options = options
        self._acceptor = acceptor
        self._on_open, self._on_close = on_open, on_close
        self._client = Client("unknown", listener=options.listener)
        self._extended = False
        self._transaction: Transaction | None = None
        self._bad_commands = 0
        self._failed_auth = 0
        self._out = bytearray()
        self._busy = False
        self._ending = self._leaving = False
        self._verbs: dict[bytes, Callable[[str], Awaitable[Reply | None]]] = {
            b"HELO": self._helo,
            b"EHLO": self._ehlo,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"VRFY": self._vrfy,
            b"HELP": self._help,
            b"QUIT": self._quit,
            b"STARTTLS": self._starttls,
            b"AUTH": self._auth,
        }

    # -- transport -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there (after the handshake, under implicit TLS)."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername") or ("unknown", 0)
        address, port = (peer[0], peer[1]) if isinstance(peer, tuple) else ("local", 0)
        self._client = replace(self._client, address=address, port=port, tls=_describe_tls(transport))

    def connection_lost(self, error: Exception | None) -> None:
        """Let the dialogue end by itself: what is being stored is stored and counted."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    def eof_received(self) -> bool:
        """A client that has said all it has to say may still read the replies (not under TLS)."""
        self._reader.feed_eof()
        return not self._client.tls

    def _reset_timeout(self, duration: float | None = None) -> None:
        """aiosmtpd's timer is not used: reading has its own limit, and storing has none."""

    def abort(self) -> None:
        """Hang up without another word."""
        self._writer.transport.abort()

    def close_soon(self) -> None:
        """End at the next pause between commands."""
        self._ending = True
        if not self._busy and self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def leave(self, leaving: bool) -> None:
        """End as soon as no transaction is open; False = stay after all."""
        self._leaving = leaving
        idle = not self._busy and self._transaction is None
        if leaving and idle and self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    # -- dialogue ------------------------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        refusal = self._greet()
        try:
            if refusal is not None:
                raise Goodbye(refusal)
            self._queue(Reply(220, f"{self._options.hostname} ESMTP smtpmesh"))
            while True:
                await self._step()
        except Goodbye as goodbye:
            self._queue(goodbye.reply)
        except asyncio.CancelledError:
            self._queue(Reply(421, f"{self._options.hostname} is closing", "4.3.2"))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except Exception:
            log.exception("session.bug", client=self._client.address)
            self._queue(Reply(421, "local error, closing", "4.3.0"))
        finally:
            self._on_close(self)
            self._writer.write(bytes(self._out))
            self._writer.close()

    def _greet(self) -> Reply | None:
        refusal = self._on_open(self, self._client.address)
        if refusal is not None or self._options.peer_of is None:
            return refusal
        certificate = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            peer_id = self._options.peer_of(certificate or b"")
        except ValueError as error:
            log.warning("mesh.peer_refused", client=self._client.address, reason=str(error))
            return Reply(554, "not a member of this cluster", "5.7.1")
        self._client = replace(self._client, peer_id=peer_id)
        return None

    async def _step(self) -> None:
        line = await self._read_line()
        verb, _, argument = line.partition(b" ")
        method = self._verbs.get(verb.upper())
        self._busy = True
        try:
            if method is None:
                self._bad(Reply(500, "command not recognised", "5.5.1"))
                return
            reply = await method(argument.decode("utf-8", "surrogateescape").strip())
        except SyntaxFault as fault:
            self._bad(Reply(501 if fault.status[0] == "5" else 451, str(fault), fault.status))
        except (Goodbye, ConnectionError, asyncio.IncompleteReadError):
            raise
        except Exception as error:
            self._queue(await self._handle_bug(error))
        else:
            if reply is not None:
                self._bad(reply) if reply.code in (500, 501, 503, 504) else self._queue(reply)
        finally:
            self._busy = False
        if self._ending or (self._leaving and self._transaction is None):
            raise Goodbye(Reply(421, f"{self._options.hostname} is closing", "4.3.2"))

    async def _handle_bug(self, error: Exception) -> Reply:
        """Our own fault is never the client's: it keeps the message and tries again."""
        log.exception("session.bug", client=self._client.address, exc_info=error)
        self._transaction = None
        return LOCAL_ERROR

    async def _read_line(self) -> bytes:
        buffer = self._reader._buffer  # type: ignore[attr-defined]
        if self._out and b"\n" not in buffer:
            await self._flush()
        try:
            async with asyncio.timeout(self._options.idle_timeout_s):
                line: bytes = await self._reader.readuntil(b"\n")
        except TimeoutError:
            raise Goodbye(Reply(421, "idle for too long", "4.4.2")) from None
        except asyncio.LimitOverrunError:
            raise Goodbye(Reply(500, "line too long", "5.5.2")) from None
        if len(line) > COMMAND_LINE_MAX:
            self._bad(Reply(500, "line too long", "5.5.2"))
            return b"NOOP"
        return line.rstrip(b"\r\n")

    def _queue(self, reply: Reply, *, extended: bool = True) -> None:
        lines = reply.text.split("\n")
        status = f"{reply.status} " if reply.status and extended else ""
        for number, line in enumerate(lines):
            mark = " " if number == len(lines) - 1 else "-"
            self._out += f"{reply.code}{mark}{status}{line}\r\n".encode("utf-8", "replace")

    async def _flush(self) -> None:
        out, self._out = bytes(self._out), bytearray()
        self._writer.write(out)
        await self._writer.drain()

    def _bad(self, reply: Reply) -> None:
        self._bad_commands += 1
        if self._bad_commands > BAD_COMMANDS_MAX:
            raise Goodbye(Reply(421, "too many bad commands", "4.7.0"))
        self._queue(reply)

    # -- verbs ---------------------------------------------------------------------------------------------------------

    async def _helo(self, argument: str) -> Reply:
        return self._hello(argument, extended=False) or Reply(250, self._options.hostname)

    async def _ehlo(self, argument: str) -> Reply:
        return self._hello(argument, extended=True) or Reply(250, "\n".join(self._keywords()))

    def _hello(self, argument: str, *, extended: bool) -> Reply | None:
        name = argument.split(" ")[0]
        if not name or not name.isprintable() or len(name) > 255:
            return Reply(501, "a host name is required", "5.5.4")
        self._transaction, self._extended = None, extended
        self._client = replace(self._client, helo=name)
        return None

    def _keywords(self) -> list[str]:
        options = self._options
        words = [options.hostname, "PIPELINING", f"SIZE {options.intake.size_bytes_max}", "8BITMIME", "SMTPUTF8", "DSN"]
        words.append("ENHANCEDSTATUSCODES")
        if options.starttls is not None and not self._client.tls:
            words.append("STARTTLS")
        if self._auth_offered() and not self._client.user:
            words.append("AUTH PLAIN LOGIN")
        if options.mesh:
            words.append(f"{KEYWORD} {STATE}")
        return words

    def _auth_offered(self) -> bool:
        return self._options.users is not None and bool(self._client.tls)

    async def _mail(self, argument: str) -> Reply:
        if not self._client.helo:
            return Reply(503, "EHLO or HELO first", "5.5.1")
        if self._transaction is not None:
            return Reply(503, BAD_SEQUENCE, "5.5.1")
        path = parse_path_argument(argument, "FROM", null_allowed=True)
        transaction, size_bytes = self._parse_mail(path)
        if not (path.address.isascii() or transaction.mail.smtputf8):
            return Reply(553, "SMTPUTF8 is required for this address", "5.6.7")
        if size_bytes > self._options.intake.size_bytes_max:
            return TOO_LARGE
        refusal = self._acceptor.admit(size_bytes)
        if refusal is not None:
            return refusal
        self._transaction = transaction
        return Reply(250, "Ok", "2.1.0")

    def _parse_mail(self, path: PathArgument) -> tuple[Transaction, int]:
        parameters = self._parameters(path)
        mail = take_mail_parameters(parameters)
        transfer = self._parse_transfer(parameters)
        if parameters:
            raise SyntaxFault("parameter not recognised")
        return Transaction(path.address, mail, transfer, []), mail.size_bytes

    def _parse_transfer(self, parameters: dict[str, str | None]) -> Transfer | None:
        if not self._client.peer_id:
            return None
        try:
            return parse_transfer(parameters)
        except TransferFault as fault:
            raise SyntaxFault(str(fault)) from fault

    async def _rcpt(self, argument: str) -> Reply:
        transaction = self._transaction
        if transaction is None:
            return Reply(503, "MAIL first", "5.5.1")
        path = parse_path_argument(argument, "TO", null_allowed=False)
        recipient = self._parse_recipient(path)
        if not (path.address.isascii() or transaction.mail.smtputf8):
            return Reply(553, "SMTPUTF8 is required for this address", "5.6.7")
        if len(transaction.recipients) >= self._options.recipients_max:
            return Reply(452, "too many recipients", "4.5.3")
        refusal = self._options.policy.permits(self._client, recipient)
        if refusal is None:
            refusal = self._acceptor.check_recipient(self._client, recipient, transaction.mail.size_bytes)
        if refusal is not None:
            log.info("rcpt.refused", client=self._client.address, recipient=recipient.address, reply=str(refusal))
            self._bad_commands += 1
            return refusal
        transaction.recipients.append(recipient)
        return Reply(250, "Ok", "2.1.5")

    def _parse_recipient(self, path: PathArgument) -> Recipient:
        parameters = self._parameters(path)
        notify, orcpt = take_rcpt_parameters(parameters)
        if parameters:
            raise SyntaxFault("parameter not recognised")
        return Recipient(path.address, orcpt, notify)

    def _parameters(self, path: PathArgument) -> dict[str, str | None]:
        """A copy to take from; what is left over is not known."""
        if path.parameters and not self._extended:
            raise SyntaxFault("parameters need EHLO")
        return dict(path.parameters)

    async def _rset(self, argument: str) -> Reply:
        self._transaction = None
        return OK

    async def _noop(self, argument: str) -> Reply:
        return OK

    async def _vrfy(self, argument: str) -> Reply:
        return Reply(252, "send some mail, I will try my best", "2.5.0")

    async def _help(self, argument: str) -> Reply:
        return Reply(214, "see RFC 5321", "2.0.0")

    async def _quit(self, argument: str) -> Reply:
        raise Goodbye(Reply(221, "Bye", "2.0.0"))

    # -- TLS and AUTH --------------------------------------------------------------------------------------------------

    async def _starttls(self, argument: str) -> Reply | None:
        context = self._options.starttls
        if context is None or self._client.tls:
            return Reply(503, BAD_SEQUENCE, "5.5.1")
        if argument:
            return Reply(501, "no parameters allowed", "5.5.4")
        if self._reader._buffer:  # type: ignore[attr-defined]
            raise Goodbye(Reply(554, "commands after STARTTLS in the clear", "5.7.0"))
        self._queue(Reply(220, "ready to start TLS", "2.0.0"))
        out, self._out = bytes(self._out), bytearray()
        self._writer.write(out)  # no drain: the handshake may begin as soon as this is read
        try:
            async with asyncio.timeout(self._options.idle_timeout_s):
                transport = await self.loop.start_tls(self._writer.transport, self, context, server_side=True)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            log.info("tls.failed", client=self._client.address, reason=str(error))
            raise ConnectionError("no TLS") from error
        self._take_transport(transport)
        return None

    def _take_transport(self, transport: Any) -> None:
        """Everything learnt before TLS is forgotten (RFC 3207 section 4.2)."""
        self.transport = transport
        self._writer._transport = transport  # type: ignore[attr-defined]
        self._reader._transport = transport  # type: ignore[attr-defined]
        self._transaction, self._extended = None, False
        self._client = replace(self._client, helo="", user="", tls=_describe_tls(transport))

    async def _auth(self, argument: str) -> Reply:
        users = self._options.users
        if users is None or not self._extended:
            return Reply(503, "AUTH is not offered", "5.5.1")
        if not self._client.tls:
            return Reply(538, "encryption required", "5.7.11")
        if self._client.user or self._transaction is not None:
            return Reply(503, BAD_SEQUENCE, "5.5.1")
        mechanism, _, initial = argument.partition(" ")
        match mechanism.upper():
            case "PLAIN":
                credentials = _parse_plain(await self._answer(initial, ""))
            case "LOGIN":
                user = await self._answer(initial, "VXNlcm5hbWU6")
                credentials = (
                    user.decode("utf-8", "replace"),
                    (await self._answer("", "UGFzc3dvcmQ6")).decode("utf-8", "replace"),
                )
            case _:
                return Reply(504, "mechanism not recognised", "5.5.4")
        return await self._verify(users, *credentials)

    async def _answer(self, initial: str, challenge: str) -> bytes:
        if not initial:
            self._out += f"334 {challenge}\r\n".encode()
            await self._flush()
            initial = (await self._read_line()).decode("ascii", "replace")
        if initial == "*":
            raise SyntaxFault("authentication cancelled", "5.7.0")
        try:
            return b"" if initial == "=" else base64.b64decode(initial, validate=True)
        except (binascii.Error, ValueError):
            raise SyntaxFault("not base64", "5.5.2") from None

    async def _verify(self, users: UsersFile, user: str, password: str) -> Reply:
        if await users.verify(user, password):
            self._client = replace(self._client, user=user)
            return Reply(235, "authentication successful", "2.7.0")
        self._failed_auth += 1
        log.warning("auth.failed", client=self._client.address, user=user[:64], listener=self._options.listener)
        refusal = Reply(535, "authentication credentials invalid", "5.7.8")
        if self._failed_auth >= FAILED_AUTH_MAX:
            raise Goodbye(refusal)
        return refusal

    # -- DATA ----------------------------------------------------------------------------------------------------------

    async def _data(self, argument: str) -> Reply:
        transaction = self._transaction
        if argument:
            return Reply(501, "no parameters allowed", "5.5.4")
        if transaction is None:
            return Reply(503, "MAIL first", "5.5.1")
        if not transaction.recipients:
            return Reply(554, "no valid recipients", "5.5.1")
        began = time.monotonic()
        self._queue(Reply(354, "end data with <CR><LF>.<CR><LF>"))
        await self._flush()
        self._transaction = None
        data = await self._receive()
        if isinstance(data, MailData):
            reply = await self._acceptor.accept(self._build_message(transaction, data))
        else:
            reply = data
        self._log(transaction, reply, data.size_bytes if isinstance(data, MailData) else 0, began)
        return reply

    async def _receive(self) -> MailData | Reply:
        """Read the mail data; a refusal once it is complete."""
        intake = Intake(self._options.intake, self._acceptor.spool)
        drain_max = self._options.intake.size_bytes_max * DRAIN_FACTOR
        try:
            async with asyncio.timeout(None) as limit:
                loop = asyncio.get_running_loop()
                limit.reschedule(loop.time() + self._options.idle_timeout_s)
                async for chunk in read_mail_data(self._reader, drain_max=drain_max):
                    limit.reschedule(loop.time() + self._options.idle_timeout_s)
                    intake.feed(chunk)
        except TooLarge:
            await intake.abort()
            raise Goodbye(TOO_LARGE) from None
        except TimeoutError:
            await intake.abort()
            raise Goodbye(Reply(421, "timeout in mail data", "4.4.2")) from None
        except BaseException:
            await intake.abort()
            raise
        return await intake.finish()

    def _build_message(self, transaction: Transaction, data: MailData) -> ReceivedMessage:
        word = protocol_word(
            extended=self._extended,
            tls=bool(self._client.tls),
            authenticated=bool(self._client.user),
            utf8=transaction.mail.smtputf8,
        )
        envelope = Envelope(
            transaction.sender,
            tuple(transaction.recipients),
            transaction.mail.body_type,
            transaction.mail.smtputf8,
            transaction.mail.envid,
            transaction.mail.ret,
        )
        return ReceivedMessage(replace(self._client, protocol=word), envelope, data, transaction.transfer)

    def _log(self, transaction: Transaction, reply: Reply, size_bytes: int, began: float) -> None:
        log.info(
            "transaction",
            listener=self._options.listener,
            client=self._client.address,
            peer=self._client.peer_id,
            sender=transaction.sender,
            recipients=len(transaction.recipients),
            size_bytes=size_bytes,
            reply=str(reply),
            duration_s=round(time.monotonic() - began, 4),
        )


def _describe_tls(transport: asyncio.BaseTransport) -> str:
    tls = cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))
    if tls is None:
        return ""
    cipher = tls.cipher()
    return f"{tls.version()} {cipher[0] if cipher else ''}".strip()


def _parse_plain(answer: bytes) -> tuple[str, str]:
    parts = answer.split(b"\0")
    if len(parts) != 3:
        raise SyntaxFault("bad PLAIN response", "5.5.2")
    return parts[1].decode("utf-8", "replace"), parts[2].decode("utf-8", "replace")
