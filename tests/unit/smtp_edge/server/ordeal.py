"""A session without sockets, and bytes that a client may say to it: for hypothesis and for atheris alike.

Whatever the bytes are and however they are cut, every reply is a whole line of ours with a text that stands in our
source (nothing of the client's, nothing of an exception), no bug is logged, the session never hangs with something to
do, what is accepted keeps the rules of envelope.py and the relay policy, and at the end nothing is kept or counted.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from structlog.testing import capture_logs

import smtp_edge.server
from smtp_edge.auth.api import Authenticator, AuthUnavailable
from smtp_edge.auth.guard import Guard
from smtp_edge.envelope import BodyType, Client, MailData, ReceivedMessage, Recipient
from smtp_edge.networks import ClientKeys
from smtp_edge.queue.errors import StoreFull
from smtp_edge.reply import Reply
from smtp_edge.server.access import compile_rules
from smtp_edge.server.bulk import END
from smtp_edge.server.intake import IntakeOptions
from smtp_edge.server.listener import build_pace
from smtp_edge.server.login import Passwords
from smtp_edge.server.options import SessionOptions
from smtp_edge.server.pressure import Memory
from smtp_edge.server.relay import RelayPolicy
from smtp_edge.server.session import Session
from smtp_edge.settings_inbound import AccessSettings, LimitsSettings, ListenerSettings
from smtp_edge.sinks.chain import SinkChain
from tests.unit.smtp_edge.server.doors import chain_of

HOSTNAME = "relay.test"
OURS, NOWHERE = "here.test", "nowhere.test"
CANARY = "caNary"
"""In what clients and broken parts say, and in nothing that we say."""
CUT = b"\xfd"
"""In an input: a segment ends here. It is in no UTF-8, so nothing readable is lost."""
STEPS_MAX = 2000
"""Turns of the loop until a session has to wait for its client again."""
SIZE_BYTES_MAX, INLINE_BYTES_MAX = 4096, 256

TLS, LENIENT, REPAIR, TRUSTED, SMALL, BROKEN, FULL, PEER = (1 << n for n in range(8))
"""Bits of the first byte: TLS with AUTH; lenient pipelining; bare newlines repaired; XCLIENT; small limits; an acceptor
that fails; a disk that is full; a peer."""

_LINE = re.compile(rb"[2-5]\d\d[- ][ -~]*\r\n")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3} ")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")


class Transport(asyncio.Transport):
    """Remembers what is written; hangs up as a socket does, and is as strict as uvloop's."""

    def __init__(self, tls: bool) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "ssl_object": _Tls() if tls else None})
        self.written = bytearray()
        self.closing = False
        self.session: Session | None = None

    def write(self, data: Any) -> None:
        if self.closing:
            raise RuntimeError("unable to perform operation; the handler is closed")
        self.written += data

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            assert self.session is not None
            asyncio.get_event_loop().call_soon(self.session.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False


class _Tls:
    def version(self) -> str:
        return "TLSv1.3"

    def cipher(self) -> tuple[str, str, int]:
        return ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)


class _Users(Authenticator):
    """sue with her password; bob cannot be asked for now."""

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        if user == "bob":
            raise AuthUnavailable(CANARY)
        if user == "eve":
            raise ZeroDivisionError(CANARY)
        return user if (user, password) == ("sue", "secret") else None


class Spool:
    """A file in memory."""

    open_count = 0

    def __init__(self, full: bool) -> None:
        self.size_bytes, self._full, self._open = 0, full, True
        Spool.open_count += 1
        self.written = bytearray()

    def write(self, chunk: bytes) -> None:
        if self._full and self.size_bytes > INLINE_BYTES_MAX * 2:
            raise StoreFull(CANARY)
        self.written += chunk
        self.size_bytes += len(chunk)

    async def commit(self, header: bytes) -> MailData:
        self._end()
        return MailData(self.size_bytes, inline=bytes(self.written), header=header)

    async def abort(self) -> None:
        self._end()

    def _end(self) -> None:
        Spool.open_count -= self._open
        self._open = False


class _Acceptor:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self.messages: list[ReceivedMessage] = []

    def admit(self, size_bytes: int) -> Reply | None:
        return None

    def check_recipient(self, client: Client, recipient: Recipient, size_bytes: int = 0) -> Reply | None:
        return Reply(550, "known text: no route", "5.4.4") if recipient.domain == NOWHERE else None

    async def accept(self, message: ReceivedMessage) -> Reply:
        await asyncio.sleep(0)
        if self._flags & BROKEN:
            raise ZeroDivisionError(CANARY)
        self.messages.append(message)
        return Reply(250, "known text: queued", "2.0.0")

    def spool(self) -> Spool:
        return Spool(bool(self._flags & FULL))


class _House:
    def __init__(self) -> None:
        self.memory = Memory(1024 * 1024)
        self.present = 0

    def enter(self, session: Session) -> Reply | None:
        self.present += 1
        return None

    def leave(self, session: Session) -> None:
        self.present -= 1


@lru_cache(maxsize=1)
def known_texts() -> frozenset[str]:
    """Every string of the server's source, and what is put together from them."""
    texts = {"known text: no route", "known text: queued", f"{HOSTNAME} is closing", f"{HOSTNAME} ESMTP smtpmesh", ""}
    texts |= {"syntax: FROM:<address>", "syntax: TO:<address>", HOSTNAME, "relaying denied"}
    texts |= {f"bad {name}" for name in ("NAME", "ADDR", "HELO", "PORT", "PROTO", "IDENT", "XAGE", "XATTEMPTS", "XDUE")}
    folder = Path(smtp_edge.server.__file__).parent
    for path in [
        *folder.glob("*.py"),
        folder.parent / "transfer.py",
        folder.parent / "reply.py",
        folder.parent / "applications/xclient.py",
    ]:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(texts)


def trusting_chain() -> SinkChain:
    """XCLIENT and XFORWARD for loopback."""
    return chain_of(Path(), {"use": "xclient", "with": {"networks": ["127.0.0.0/8"]}})


@lru_cache(maxsize=256)
def build_options(flags: int) -> SessionOptions:
    """Of a session with these bits."""
    limits = LimitsSettings(bad_commands_max=200, idle_commands_max=1000, mail_line_bytes_max=2000, hops_max=5)
    if flags & SMALL:
        small = {"bad_commands_max": 3, "idle_commands_max": 6, "refused_recipients_max": 2, "header_fields_max": 10}
        limits = limits.model_copy(update=small | {"messages_per_session_max": 2, "header_bytes_max": 1024})
    rules = [{"helo": ["refused.test"], "action": "reject"}, {"sender": ["refused.test"], "action": "defer"}]
    repair = "normalise" if flags & REPAIR else "refuse"
    keys = ClientKeys(32, 64)
    return SessionOptions(
        listener="ordeal",
        hostname=HOSTNAME,
        policy=RelayPolicy(ListenerSettings.model_validate({"relay_domains": [OURS, NOWHERE]})),
        intake=IntakeOptions(
            SIZE_BYTES_MAX,
            INLINE_BYTES_MAX,
            repair,  # type: ignore[arg-type]
            line_bytes_max=limits.mail_line_bytes_max,
            header_bytes_max=limits.header_bytes_max,
            header_fields_max=limits.header_fields_max,
            hops_max=limits.hops_max,
        ),
        limits=limits,
        recipients_max=3 if flags & SMALL else 100,
        pace=build_pace(300, limits),
        access=compile_rules([AccessSettings.model_validate(rule) for rule in rules], "ordeal"),
        login=Passwords(_Users(), Guard(per_client=0, per_user=0), keys, timeout_s=10) if flags & TLS else None,
        sinks=trusting_chain() if flags & TRUSTED else None,
        pipelining="lenient" if flags & LENIENT else "strict",
        mesh=bool(flags & PEER),
    )


class SessionOrdeal:
    """One session. `say` gives the replies to what is said; `end` checks what is left."""

    def __init__(self, loop: asyncio.AbstractEventLoop, flags: int = 0) -> None:
        self._loop, self._flags = loop, flags
        self._capture = capture_logs()
        self._logs = self._capture.__enter__()
        Spool.open_count = 0
        self.acceptor, self._house = _Acceptor(flags), _House()
        self._transport = Transport(bool(flags & TLS))
        self.session = Session(build_options(flags), self.acceptor, self._house, loop=loop)
        self._transport.session = self.session
        self._heard = 0
        asyncio.set_event_loop(loop)
        loop.call_soon(self.session.connection_made, self._transport)
        self._settle()
        if flags & PEER:
            self.session.conversation.met("ab" * 16)

    @property
    def over(self) -> bool:
        """The session has ended."""
        return self._transport.closing

    def say(self, data: bytes) -> list[str]:
        """One segment of the client, and the lines that it leads to."""
        if not self.over:
            self._loop.call_soon(self.deliver, data)
            self._settle()
        return self._listen()

    def end(self, *, lost: bool = False) -> None:
        """The client leaves, or is `lost` without a word. AssertionError for whatever is not as it has to be."""
        try:
            if not self.over:
                self._loop.call_soon(self._transport.close if lost else self._leave)
                self._settle()
            self._listen()
            self._check()
        finally:
            self._capture.__exit__(None, None, None)

    def deliver(self, data: bytes) -> None:
        """The socket has a segment; nobody has looked at it yet."""
        if not self._transport.closing:
            self.session.data_received(data)

    def _leave(self) -> None:
        self.session.eof_received()

    def _settle(self) -> None:
        """Turn the loop until the session waits for its client, or has ended."""
        for _ in range(STEPS_MAX):
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
            if self._waits():
                return
        raise AssertionError("the session hangs")

    def _waits(self) -> bool:
        task = cast("asyncio.Task[None] | None", self.session._handler_coroutine)
        if task is None:
            return False
        if self._transport.closing or task.done():
            return task.done() and self.session.transport is None
        waiter = self.session.inbox._waiter
        return waiter is not None and not waiter.done()

    def _listen(self) -> list[str]:
        written = bytes(self._transport.written[self._heard :])
        self._heard += len(written)
        lines = written.splitlines(keepends=True)
        return [self._judge(line) for line in lines]

    def _judge(self, line: bytes) -> str:
        assert _LINE.fullmatch(line), line
        text = line[:-2].decode()
        words = text[4:]
        if text.startswith("334"):
            assert words in ("", "VXNlcm5hbWU6", "UGFzc3dvcmQ6")
            return text
        words = _STATUS.sub("", words, count=1)
        known = words in known_texts() or words in self.session.conversation.keywords() or _is_keyword(words)
        assert known, f"not a text of ours: {text!r}"
        return text

    def _check(self) -> None:
        if not self._flags & BROKEN:
            bugs = [line for line in self._logs if line["event"].endswith(".bug") and line["event"] != "auth.bug"]
            assert not bugs, bugs
        task = cast("asyncio.Task[None]", self.session._handler_coroutine)
        assert task.exception() is None
        assert self._house.memory.kept_bytes == 0
        assert self._house.present == 0
        assert Spool.open_count == 0
        for message in self.acceptor.messages:
            self._check_message(message)

    def _check_message(self, message: ReceivedMessage) -> None:
        data = message.data.inline or b""
        assert message.data.size_bytes == len(data)
        assert END not in b"\r\n" + data
        if message.envelope.body_type is not BodyType.BINARY_MIME:
            assert not _BARE.search(data)
            assert not data or data.endswith(b"\r\n")
        assert message.envelope.recipients
        for recipient in message.envelope.recipients:
            assert message.client.user or message.client.peer_id or recipient.domain == OURS, recipient


def _is_keyword(words: str) -> bool:
    """Of an answer to EHLO before things changed."""
    return words.startswith(
        ("SIZE ", "LIMITS RCPTMAX=", "AUTH PLAIN LOGIN", "XCLIENT NAME ", "XFORWARD NAME ", "XSMTPMESH")
    )


def run(loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    """An input: a byte of bits, then segments; behind a last cut the client is lost, else it leaves.

    AssertionError, or whatever exception leaves the session.
    """
    if not data:
        return
    ordeal = SessionOrdeal(loop, data[0])
    try:
        for segment in itertools.islice(data[1:].split(CUT), 200):
            if ordeal.over:
                break
            if segment:
                ordeal.say(segment)
    finally:
        ordeal.end(lost=data.endswith(CUT))
