"""One inbound SMTP session, on aiosmtpd's `SMTP` class.

aiosmtpd gives transport, writer and lifetime; the dialogue is ours: commands of a pipelined group are answered without
a task switch and in one write, mail data is taken in bulk (receiving.py), parameters keep their case, every reply has
its enhanced status code (RFC 2034), and no text repeats what the client sent. What is wrong goes to the log instead.

    conversation.py    what was said, and the commands that need no waiting
    receiving.py       DATA and BDAT
    login.py           AUTH
    here               lines, replies, STARTTLS, the end

A session that loses its client while a message is being stored still learns how the storing ended: it is never
cancelled in between, so nothing is stored that nobody counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any, Protocol, cast

import structlog
from aiosmtpd.smtp import SMTP

from smtp_edge.address import SyntaxFault
from smtp_edge.envelope import Client
from smtp_edge.reply import LOCAL_ERROR, Goodbye, Reply
from smtp_edge.server.access import at_greeting
from smtp_edge.server.commands import decode_line, split_line
from smtp_edge.server.conversation import BAD_SEQUENCE, Conversation
from smtp_edge.server.crowd import Event
from smtp_edge.server.inbox import EndlessLine, Inbox
from smtp_edge.server.login import RESPONSE_BYTES_MAX, WRONG, exchange
from smtp_edge.server.options import Acceptor, SessionOptions
from smtp_edge.server.pace import Pace
from smtp_edge.server.pressure import Memory
from smtp_edge.server.proxy import ProxiedClient
from smtp_edge.server.receiving import Receiver
from smtp_edge.sinks.api import Become, Command, Verb
from smtp_edge.sinks.chain import SinkChain
from smtp_edge.sinks.commands import Commands
from smtp_edge.sinks.screen import Screen

log = structlog.get_logger()

QUICK_MAX = 8
"""Commands of one segment that are answered as it comes."""
GROUP_MAX = 64
"""Commands answered in a row before other sessions get their turn; one that is refused ends the row, so that a flood of
them leaves the time to those who send mail."""
OUT_BYTES_MAX = 32 * 1024
"""Replies that wait for the end of a group; more are sent at once."""
LAST_IN_GROUP = frozenset({b"HELO", b"EHLO", b"DATA", b"AUTH"})
"""After these a client has to wait for the reply (RFC 2920 section 3.1, RFC 4954); STARTTLS sees to it by itself."""
NOT_SMTP = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS", b"DELETE"})
"""A browser that somebody made talk to this port: nothing it says is answered twice."""
HEAR_OUT_S, HEAR_OUT_BYTES_MAX = 1.0, 4 * 1024 * 1024
"""What a client may still send, and how long, after the reply with which its session ends."""
BAD_CODES = frozenset({500, 501, 502, 503, 504, 555})
UNKNOWN_VERB = Reply(500, "command not recognised", "5.5.1")
LINE_TOO_LONG = Reply(500, "line too long", "5.5.2")
BARE_LF = Reply(500, "lines end in CRLF", "5.5.2")
PLAIN_COMMAND = re.compile(rb"([A-Za-z]+)(|(?: [ -~]*))\r\n")
"""A command as all but a few are: a word, visible ASCII, CRLF."""
OUT_OF_TURN = Reply(554, "talking before your turn", "5.5.0")


class TooSlow(Exception):
    """The client lets us wait too long."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _Nameless:
    """aiosmtpd looks for hooks and methods by their names; none that it finds would be used here."""

    def __dir__(self) -> list[str]:
        return []


class _Prototype(_Nameless, SMTP):
    """A session that never begins."""


@lru_cache(maxsize=16)
def _attributes_of_smtp(hostname: str, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """What aiosmtpd sets in a session, made once for all of a loop: it was a twentieth of one with a single message."""
    return vars(_Prototype(_Nameless(), hostname=hostname, enable_SMTPUTF8=True, loop=loop))


class House(Protocol):
    """The listener behind its sessions."""

    memory: Memory

    def enter(self, session: Session) -> Reply | None:
        """A session begins; the refusal, if it is one too many."""
        ...

    def leave(self, session: Session) -> None:
        """It has ended; called once for each `enter`."""
        ...


class Session(SMTP):
    """See the module."""

    _paused: bool
    """The client does not read what it is told: the transport's buffer is full. asyncio's (`FlowControlMixin`)."""

    def __init__(
        self,
        options: SessionOptions,
        acceptor: Acceptor,
        house: House,
        *,
        loop: asyncio.AbstractEventLoop,
        proxied: ProxiedClient | None = None,
        entry: Any = None,
    ) -> None:
        vars(self).update(_attributes_of_smtp(options.hostname, loop))
        asyncio.StreamReaderProtocol.__init__(self, asyncio.StreamReader(loop=loop), self._cb_client_connected, loop)
        self.options, self.entry = options, entry
        self._acceptor, self._house, self._proxied = acceptor, house, proxied
        self.inbox = Inbox(loop)
        self.pace = Pace(options.pace, time.monotonic())
        self.conversation: Conversation
        """From `connection_made` on."""
        self._failed_auth_count = 0
        self._out = b""
        self._busy = self._ending = self._leaving = False
        self.screen: Screen | None = None
        """Where sinks are asked; None = nobody is."""
        self._owed: tuple[bytes, Reply] | None = None
        """A command that was right, with its reply, which the task has to ask sinks about first."""
        self._commands: Commands | None = None
        """Those that sinks answer; None = there are none."""
        self._later: dict[bytes, Callable[[str], Awaitable[Reply | None]]] = {
            b"STARTTLS": self._starttls,
            b"AUTH": self._auth,
        }

    # -- transport -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there (after the handshake, under implicit TLS)."""
        asyncio.StreamReaderProtocol.connection_made(self, transport)
        self.transport = self.inbox.transport = cast("asyncio.Transport", transport)
        self._handler_coroutine = self.loop.create_task(self._handle_client())
        peer = transport.get_extra_info("peername") or ("unknown", 0)
        address, port = (peer[0], peer[1]) if isinstance(peer, tuple) else ("local", 0)
        if self._proxied is not None:
            address, port = self._proxied.address, self._proxied.port
        client = Client(address, port, listener=self.options.listener, tls=_describe_tls(transport))
        self.conversation = Conversation(self.options, self._acceptor, client)
        self.receiver = Receiver(
            self.conversation, self.inbox, self._acceptor, self._house.memory, self.pace, self._say
        )
        self._later |= {b"DATA": self.receiver.data, b"BDAT": self.receiver.bdat}

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.pace.received_count += len(data)
        self.inbox.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Let the dialogue end by itself: what is being stored is stored and counted."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.inbox.feed_eof()
        self.transport = None

    def eof_received(self) -> bool:
        """A client that has said all it has to say may still read the replies (not under TLS)."""
        self.inbox.feed_eof()
        return not self.conversation.client.tls

    def _reset_timeout(self, duration: float | None = None) -> None:
        """aiosmtpd's timer is not used: the listener looks at `pace`."""

    @property
    def address(self) -> str:
        """Of the client, as it is connected (or as its load balancer says)."""
        return self.conversation.client.address

    def look(self, now: float) -> None:
        """End it if the client has been too slow."""
        farewell = self.pace.overdue(now)
        if farewell is None:
            return
        self.inbox.fail(TooSlow(farewell))
        if self._paused:
            self.abort()

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
        idle = not self._busy and self.conversation.transaction is None
        if leaving and idle and self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    # -- dialogue ------------------------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        if self.options.sinks is not None:
            self._meet_sinks(self.options.sinks)
        try:
            await self._greet()
            await self._converse()
        except Goodbye as goodbye:
            self._queue(goodbye.reply)
            if self.conversation.client.helo and goodbye.reply.code != 221:
                await self._hear_out()
        except TooSlow as slow:
            self._queue(slow.reply)
        except asyncio.CancelledError:
            self._queue(self._closing())
        except (ConnectionError, ssl.SSLError):
            pass
        except Exception:
            log.exception("session.bug", client=self.address)
            self._queue(Reply(421, "local error, closing", "4.3.0"))
        finally:
            try:
                await self._finish()
            finally:
                if self._commands is not None:
                    self._commands.close()
                if self.screen is not None:
                    await self.screen.close(self.conversation.client)

    async def _hear_out(self) -> None:
        """Say it, and for a moment take what still comes: a reset would undo the reply for a client that goes on."""
        transport = self._writer.transport
        self.pace.work()
        self._write_out()
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
        with contextlib.suppress(ConnectionError, TimeoutError, TooSlow):
            async with asyncio.timeout(HEAR_OUT_S):
                await self.inbox.drop(HEAR_OUT_BYTES_MAX)

    async def _finish(self) -> None:
        self.inbox.clear()
        self._house.leave(self)
        self._write_out()
        self._writer.close()
        await self.receiver.drop()

    async def _greet(self) -> None:
        refusal = self._house.enter(self)
        if refusal is not None:
            raise Goodbye(refusal)
        if self.options.peer_of is not None:
            self._meet_peer(self.options.peer_of)
        greeting = self.conversation.greeting()
        if self.screen is not None and self.screen.asks("connect"):
            await self._screen_client(self.screen)
        delay_s = self.options.limits.greeting_delay_s
        if delay_s:
            await asyncio.sleep(delay_s)
            if len(self.inbox) and self.options.pipelining == "strict":
                raise self._out_of_turn("before the greeting")
        self._queue(greeting)

    def _meet_peer(self, peer_of: Callable[[bytes], str]) -> None:
        certificate = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            self.conversation.met(peer_of(certificate or b""))
        except ValueError as error:
            log.warning("mesh.peer_refused", client=self.address, reason=str(error))
            raise Goodbye(Reply(554, "not a member of this cluster", "5.7.1")) from None

    async def _converse(self) -> None:
        """Commands, until somebody has had enough."""
        line_max = self.options.limits.command_line_bytes_max
        while True:
            for _ in range(GROUP_MAX):
                line = self._take_line(line_max)
                good = await self._answer(line or await self._await_line(line_max), line_max)
                if self._ending or (self._leaving and self.conversation.transaction is None):
                    raise Goodbye(self._closing())
                if not good:
                    break
            await asyncio.sleep(0)

    def _take_line(self, line_max: int) -> bytes | None:
        try:
            return self.inbox.take_line(line_max)
        except EndlessLine:
            raise Goodbye(LINE_TOO_LONG) from None

    async def _await_line(self, line_max: int, *, command: bool = True) -> bytes:
        """Send what there is to say, and wait for a whole line: one that comes in pieces gets no more time.

        Empty if a reply is owed instead.
        """
        self.pace.between_transactions = self.conversation.transaction is None
        self.pace.await_client(time.monotonic())
        await self._flush()
        self.inbox.quick = self._answer_quickly if command else None
        try:
            line: bytes | None = b""
            while self._owed is None and (line := self._take_line(line_max)) is None:
                await self.inbox.more()
                if self.receiver.stale:
                    await self.receiver.drop()
                if self._paused:
                    await self._writer.drain()
        finally:
            self.inbox.quick = None
        self.pace.work()
        return line or b""

    def _answer_quickly(self, data: bytes) -> tuple[int, bool]:
        """Answer what needs no waiting as it comes, without waking the task of the session.

        How many bytes are dealt with, and whether the task has to look at the others. Whatever is not as simple as that
        is left for it: long and broken lines, commands that wait.
        """
        if self._owed is not None or self._paused:
            return 0, True
        conversation, receiver, line_max = self.conversation, self.receiver, self.options.limits.command_line_bytes_max
        at, size = 0, len(data)
        for _ in range(QUICK_MAX):
            command = PLAIN_COMMAND.match(data, at)
            if command is None:
                break
            verb, end = command[1].upper(), command.end()
            answer = conversation.verbs.get(verb)
            if answer is None or end - at > line_max or (end < size and verb in LAST_IN_GROUP):
                break
            at = end
            try:
                reply = self._try(answer, command[2])
                if self.screen is not None and self._asks_sinks(self.screen, verb, reply):
                    self._owed = verb, reply
                    return at, True
                good = self._conclude(reply)
                if self._ending or (self._leaving and conversation.transaction is None):
                    raise Goodbye(self._closing())
            except Goodbye as goodbye:
                self.inbox.fail(goodbye)
                return at, True
            if not good or end == size or receiver.stale:
                break
        if at:
            self.pace.between_transactions = conversation.transaction is None
            self.pace.await_client(time.monotonic())
            self._write_out()
        left = size - at
        wanted = left > line_max or (left > 0 and data.find(b"\n", at) >= 0)
        return at, wanted or receiver.stale or self._paused

    def _try(self, answer: Callable[[str], Reply], argument: bytes) -> Reply:
        """A command that needs no waiting. Goodbye."""
        try:
            return answer(argument.strip(b" ").decode("ascii"))
        except Exception as error:
            return self._excuse(error)

    async def _answer(self, line: bytes, line_max: int) -> bool:
        """False if the command was refused."""
        self._busy = True
        try:
            reply = await self._reply(line, line_max)
        except Exception as error:
            reply = self._excuse(error)
        finally:
            self._busy = False
        good = reply is None or self._conclude(reply)
        if self.receiver.stale:
            await self.receiver.drop()
        if len(self._out) > OUT_BYTES_MAX:
            await self._flush()
        return good

    def _conclude(self, reply: Reply) -> bool:
        """A command has been answered; False if it was refused. Goodbye."""
        if reply.code in BAD_CODES:
            self.conversation.note_bad()
        self._queue(reply)
        return reply.code < 400

    async def _reply(self, line: bytes, line_max: int) -> Reply | None:
        if self._owed is not None and self.screen is not None:
            (verb, reply), self._owed = self._owed, None
            return await self._ask_sinks(self.screen, verb, reply)
        if len(line) > line_max:
            return LINE_TOO_LONG
        if not line.endswith(b"\r\n") and self.options.intake.bare_newlines == "refuse":
            return BARE_LF
        verb, argument = split_line(line)
        if verb in LAST_IN_GROUP and len(self.inbox) and self.options.pipelining == "strict":
            raise self._out_of_turn(verb.decode("ascii"))
        answer = self.conversation.verbs.get(verb)
        if answer is not None:
            reply = answer(decode_line(argument))
            if self.screen is not None and self._asks_sinks(self.screen, verb, reply):
                return await self._ask_sinks(self.screen, verb, reply)
            return reply
        later = self._later.get(verb)
        if later is not None:
            return await later(decode_line(argument))
        if verb in NOT_SMTP:
            raise Goodbye(UNKNOWN_VERB)
        return UNKNOWN_VERB

    def _out_of_turn(self, verb: str) -> Goodbye:
        log.info("session.out_of_turn", client=self.address, verb=verb)
        return Goodbye(OUT_OF_TURN)

    def _excuse(self, error: Exception) -> Reply:
        """The reply to a command that could not be carried out. What ends the session is raised again.

        Our own fault is never the client's: it keeps the message and tries again.
        """
        if isinstance(error, SyntaxFault):
            return Reply(error.code, str(error), error.status)
        if isinstance(error, Goodbye | TooSlow | ConnectionError):
            raise error
        log.exception("session.bug", client=self.address, exc_info=error)
        self.conversation.end_transaction()
        return LOCAL_ERROR

    def _closing(self) -> Reply:
        return Reply(421, f"{self.options.hostname} is closing", "4.3.2")

    # -- sinks ---------------------------------------------------------------------------------------------------------

    def _meet_sinks(self, sinks: SinkChain) -> None:
        if sinks.screens and not self.options.mesh:
            self.screen = self.receiver.screen = Screen(sinks)
        if sinks.verbs:
            self._commands = Commands(sinks, peers=self.options.mesh)
            self._take_verbs(self.conversation, self._commands)

    def _asks_sinks(self, screen: Screen, verb: bytes, reply: Reply) -> bool:
        """Somebody may have a say in a command that was right: its reply has to wait."""
        if verb not in screen.asked or reply.code >= 300:
            return False
        return verb != b"RCPT" or screen.wants_recipient(self.conversation.last_recipient)

    async def _ask_sinks(self, screen: Screen, verb: bytes, reply: Reply) -> Reply:
        """One that is turned down was never said. Goodbye."""
        conversation = self.conversation
        client = conversation.client
        if verb == b"MAIL":
            refusal, withdraw = await screen.mail(client, conversation.envelope), conversation.withdraw_mail
        elif verb == b"RCPT":
            refusal = await screen.rcpt(client, conversation.last_recipient, lambda: conversation.envelope)
            withdraw = conversation.withdraw_recipient
        else:
            refusal, withdraw = await screen.helo(client), conversation.withdraw_hello
        if refusal is not None:
            withdraw()
        return refusal or reply

    def _take_verbs(self, conversation: Conversation, commands: Commands) -> None:
        """To those who may not say it, a verb is what it is without its sink."""
        conversation.more_keywords = lambda: commands.keywords(conversation.client, conversation.origin)
        for verb in commands.verbs:
            word = verb.name.encode()
            otherwise = conversation.verbs.pop(word, lambda _argument: UNKNOWN_VERB)
            self._later[word] = partial(self._command, commands, verb, otherwise)

    async def _command(self, commands: Commands, verb: Verb, otherwise: Callable[[str], Reply], argument: str) -> Reply:
        """What is pipelined behind it waits."""
        conversation = self.conversation
        if not commands.knows(verb, conversation.client, conversation.origin):
            return otherwise(argument)
        refusal = conversation.refuse_command(verb, argument)
        if refusal is not None:
            return refusal
        answer = await commands.ask(Command(verb.name, argument, conversation.introduced))
        if isinstance(answer, Become):
            return await self._become(verb, answer)
        return answer or otherwise(argument)

    async def _become(self, verb: Verb, answer: Become) -> Reply:
        """Another client; anew, as if it had connected itself: what was said before it heard the reply was not its."""
        if answer.anew and len(self.inbox) and self.options.pipelining == "strict":
            raise self._out_of_turn(verb.name)
        refusal = self.conversation.become(answer.client, anew=answer.anew)
        if refusal is None and answer.anew and self.screen is not None:
            await self._screen_client(self.screen)
        return refusal or answer.reply

    async def _screen_client(self, screen: Screen) -> None:
        refusal = await screen.connect(self.conversation.client)
        if refusal is not None:
            raise Goodbye(at_greeting(refusal))

    # -- replies -------------------------------------------------------------------------------------------------------

    def _queue(self, reply: Reply) -> None:
        status = f"{reply.status} " if reply.status else ""
        if "\n" not in reply.text:
            self._out += f"{reply.code} {status}{reply.text}\r\n".encode("utf-8", "replace")
            return
        lines = reply.text.split("\n")
        for number, line in enumerate(lines):
            mark = " " if number == len(lines) - 1 else "-"
            self._out += f"{reply.code}{mark}{status}{line}\r\n".encode("utf-8", "replace")

    async def _say(self, reply: Reply) -> None:
        """A reply that cannot wait for the end of the group."""
        self._queue(reply)
        self.pace.await_client(time.monotonic())
        await self._flush()

    async def _flush(self) -> None:
        self._write_out()
        if self._paused:
            await self._writer.drain()

    def _write_out(self) -> None:
        """Hand over what there is to say. Nobody hears it once the client is gone; uvloop would raise RuntimeError."""
        if self._out:
            out, self._out = self._out, b""
            transport = self.inbox.transport
            if transport is not None and not transport.is_closing():
                transport.write(out)

    # -- TLS and AUTH --------------------------------------------------------------------------------------------------

    async def _starttls(self, argument: str) -> Reply | None:
        context = self.options.starttls
        if context is None or self.conversation.client.tls or self.conversation.transaction is not None:
            return BAD_SEQUENCE
        if argument:
            return Reply(501, "no parameters allowed", "5.5.4")
        if len(self.inbox):
            raise Goodbye(Reply(554, "commands after STARTTLS in the clear", "5.7.0"))
        refusal = self.options.too_often(Event.HANDSHAKE, self.address)
        if refusal is not None:
            return refusal
        self._queue(Reply(220, "ready to start TLS", "2.0.0"))
        self._write_out()  # no drain: the handshake may begin as soon as this is read
        try:
            async with asyncio.timeout(self.options.limits.handshake_timeout_s):
                transport = await self.loop.start_tls(self._writer.transport, self, context, server_side=True)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            log.info("tls.failed", client=self.address, listener=self.options.listener, reason=_explain_tls(error))
            raise ConnectionError("no TLS") from error
        self._take_transport(transport)
        return None

    def _take_transport(self, transport: Any) -> None:
        self.transport = self.inbox.transport = transport
        self._writer._transport = transport  # type: ignore[attr-defined]
        self._reader._transport = transport  # type: ignore[attr-defined]
        self.conversation.secured(_describe_tls(transport))

    async def _auth(self, argument: str) -> Reply:
        login, conversation = self.options.login, self.conversation
        if login is None or not conversation.extended:
            return Reply(503, "AUTH is not offered", "5.5.1")
        if not conversation.client.tls:
            return Reply(538, "encryption required", "5.7.11")
        if conversation.client.user or conversation.transaction is not None:
            return BAD_SEQUENCE
        conversation.note_idle()
        credentials = await exchange(argument, self._ask)
        if isinstance(credentials, Reply):
            return self._note_failed_auth(credentials)
        reply, user = await login.check(credentials.user, credentials.password, conversation.client)
        if reply.positive:
            conversation.authenticated(user)
            refusal = await self.screen.auth(conversation.client) if self.screen is not None else None
            if refusal is not None:
                conversation.authenticated("")
            return refusal or reply
        return self._note_failed_auth(reply)

    def _note_failed_auth(self, reply: Reply) -> Reply:
        if reply.code in (WRONG.code, 454):
            self._failed_auth_count += 1
        if self._failed_auth_count >= self.options.limits.auth_failures_per_session_max:
            raise Goodbye(reply)
        return reply

    async def _ask(self, challenge: str) -> bytes:
        """A challenge of AUTH and its answer."""
        self._out += f"334 {challenge}\r\n".encode()
        line = self._take_line(RESPONSE_BYTES_MAX) or await self._await_line(RESPONSE_BYTES_MAX, command=False)
        if len(line) > RESPONSE_BYTES_MAX:
            raise SyntaxFault("line too long", "5.5.2", code=500)
        if len(self.inbox) and self.options.pipelining == "strict":
            raise Goodbye(OUT_OF_TURN)
        return line.rstrip(b"\r\n")


def _describe_tls(transport: asyncio.BaseTransport) -> str:
    tls = cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))
    if tls is None:
        return ""
    cipher = tls.cipher()
    return f"{tls.version()} {cipher[0] if cipher else ''}".strip()


def _explain_tls(error: BaseException) -> str:
    return getattr(error, "reason", None) or str(error) or type(error).__name__
