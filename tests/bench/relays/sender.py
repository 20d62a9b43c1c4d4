"""A client that knows of each message what became of it: sessions that send as fast as they are answered, or at a rate.

    python -m tests.bench.relays.sender --port 2525 [--notes FILE] [--seconds 10] [--count N] [--rate 500] ...

Each message has a number in its header (`NUMBER_FIELD`) and is sent once. In the notes, a line for each one whose final
dot was sent: number, what it was answered (250, another code, or 0 for a connection that ended without an answer), when
its MAIL was sent and when that was known (monotonic seconds, as of all processes here). A session that ends is begun
again. SIGTERM ends it early: what was begun is finished.

The envelope is pipelined, and nothing is computed for a message but its number: the client shares the cores with what
it measures. Its output is JSON: messages begun and accepted, seconds, processor seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

NUMBER_FIELD = b"X-Bench-Number: "
NUMBER_DIGITS = 9
ACCEPTED = 250
LINE = b"x" * 78 + b"\r\n"
RECONNECT_S = 0.02
TICK_S = 0.002
FINISH_S = 30.0
"""For what was begun, at the end."""
BURST_MAX = 200
"""Messages that were due and found no free session are sent later; no more of them are remembered, the rest is late."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent."""

    port: int
    host: str = "127.0.0.1"
    size_bytes: int = 4096
    recipients: int = 1
    sessions: int = 20
    single: bool = False
    """A connection for each message."""
    starttls: bool = False
    seconds: float = 10.0
    count: int = 0
    """0 = as many as go into the time."""
    rate: float = 0.0
    """Messages per second; 0 = as fast as they are answered."""
    first: int = 0
    """Number of the first message."""
    domain: str = "example.net"

    def envelope(self) -> bytes:
        """MAIL, RCPT and DATA."""
        paths = b"".join(b"RCPT TO:<reader%d@%s>\r\n" % (n, self.domain.encode()) for n in range(self.recipients))
        return b"MAIL FROM:<sender@example.org>\r\n" + paths + b"DATA\r\n"

    def text(self) -> bytes:
        """What follows the number."""
        head = b"\r\nFrom: <sender@example.org>\r\nTo: <reader0@example.net>\r\nSubject: bench\r\n\r\n"
        return head + LINE * max(1, self.size_bytes // len(LINE)) + b".\r\n"


@dataclass(slots=True)
class Post:
    """What all sessions share."""

    plan: Plan
    notes: TextIO | None
    context: ssl.SSLContext | None = None
    next_number: int = 0
    accepted: int = 0
    outstanding: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once nothing is outstanding and nothing begins any more."""
    over: bool = False
    idle: deque[Session] = field(default_factory=deque)
    envelope: bytes = b""
    body: bytes = b""

    def __post_init__(self) -> None:
        self.next_number = self.plan.first
        self.envelope, self.body = self.plan.envelope(), self.plan.text()

    @property
    def begun(self) -> int:
        """Messages so far."""
        return self.next_number - self.plan.first

    @property
    def exhausted(self) -> bool:
        """Nothing is to be begun any more."""
        return self.over or bool(self.plan.count and self.begun >= self.plan.count)

    def take(self, session: Session) -> int | None:
        """The next message for a session, at once or (None) later or never."""
        if self.exhausted:
            return None
        if self.plan.rate:
            self.idle.append(session)
            return None
        return self.draw()

    def draw(self) -> int:
        """The next number."""
        number, self.next_number = self.next_number, self.next_number + 1
        self.outstanding += 1
        return number

    def end_one(self) -> None:
        """A message is over."""
        self.outstanding -= 1
        if self.over and not self.outstanding:
            self.done.set()

    def stop(self) -> None:
        """Nothing begins any more."""
        self.over = True
        if not self.outstanding:
            self.done.set()

    def note(self, number: int, code: int, began: float) -> None:
        """What became of a message."""
        self.accepted += code == ACCEPTED
        if self.notes is not None:
            self.notes.write(f"{number} {code} {began:.6f} {time.monotonic():.6f}\n")


class Session(asyncio.Protocol):
    """One connection after the other."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._wanted = 0
        """Replies that are still to come before the next step."""
        self._step = self._hello
        self._number: int | None = None
        self._dot_sent = False
        self._began = 0.0
        self._upgraded = False
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""
        if not self._upgraded:
            self._await(1, self._hello)

    def data_received(self, data: bytes) -> None:
        lines = (self._buffer + data).split(b"\r\n")
        self._buffer = lines.pop()
        for line in lines:
            if line[3:4] == b"-":
                continue
            self._wanted -= 1
            if self._wanted == 0:
                self._step(int(line[:3]))

    def connection_lost(self, error: Exception | None) -> None:
        self._forget(0)
        if self in self._post.idle:
            self._post.idle.remove(self)
        self.gone.set()

    def send(self, number: int) -> None:
        """A message, now."""
        assert self._transport is not None
        self._number, self._dot_sent, self._began = number, False, time.monotonic()
        self._await(2 + self._post.plan.recipients, self._envelope_answered)
        self._transport.write(self._post.envelope)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _hello(self, code: int) -> None:
        if code != 220:
            self.end()
            return
        self._say(b"EHLO bench.test\r\n", self._hello_answered)

    def _hello_answered(self, code: int) -> None:
        if code != 250:
            self.end()
        elif self._post.context is not None and not self._upgraded:
            self._say(b"STARTTLS\r\n", self._upgrade)
        else:
            self._go_on()

    def _upgrade(self, code: int) -> None:
        if code != 220:
            self.end()
            return
        self._upgraded = True
        asyncio.get_running_loop().create_task(self._handshake())

    async def _handshake(self) -> None:
        assert self._transport is not None
        assert self._post.context is not None
        loop = asyncio.get_running_loop()
        try:
            raw, context = self._transport, self._post.context
            transport = await loop.start_tls(raw, self, context, server_hostname="localhost")
        except (OSError, ssl.SSLError):
            self.end()
            return
        assert transport is not None
        self._transport = transport
        self._say(b"EHLO bench.test\r\n", self._hello_answered)

    def _go_on(self) -> None:
        number = self._post.take(self)
        if number is not None:
            self.send(number)
        elif self._post.exhausted:
            self.end()

    def _envelope_answered(self, code: int) -> None:
        if code != 354:  # a refusal of any part makes DATA fail, too
            self._forget(None)
            self.end()
            return
        assert self._transport is not None
        assert self._number is not None
        self._dot_sent = True
        self._await(1, self._text_answered)
        number = b"%0*d" % (NUMBER_DIGITS, self._number)
        self._transport.writelines([NUMBER_FIELD + number, self._post.body])

    def _text_answered(self, code: int) -> None:
        self._forget(code)
        if self._post.plan.single:
            self.end()
        else:
            self._go_on()

    # -- small things --------------------------------------------------------------------------------------------------

    def _forget(self, code: int | None) -> None:
        if self._number is None:
            return
        if self._dot_sent and code is not None:
            self._post.note(self._number, code, self._began)
        self._number = None
        self._post.end_one()

    def _say(self, line: bytes, then: object) -> None:
        assert self._transport is not None
        self._await(1, then)
        self._transport.write(line)

    def _await(self, replies: int, then: object) -> None:
        self._wanted, self._step = replies, then  # type: ignore[assignment]

    def end(self) -> None:
        """Say goodbye."""
        assert self._transport is not None
        self._transport.write(b"QUIT\r\n")
        self._transport.close()


async def keep_sending(post: Post) -> None:
    """One session after the other, until all is sent."""
    loop, plan = asyncio.get_running_loop(), post.plan
    while not post.exhausted:
        try:
            _, session = await loop.create_connection(lambda: Session(post), plan.host, plan.port)
        except OSError:
            await asyncio.sleep(RECONNECT_S)
            continue
        await session.gone.wait()


async def keep_pace(post: Post) -> None:
    """Hand out messages to idle sessions as they fall due."""
    began, done = time.monotonic(), 0
    while not post.exhausted:
        due = int((time.monotonic() - began) * post.plan.rate)
        done = max(done, due - BURST_MAX)
        while done < due and post.idle and not post.exhausted:
            done += 1
            post.idle.popleft().send(post.draw())
        await asyncio.sleep(TICK_S)
    while post.idle:
        post.idle.popleft().end()


async def run(plan: Plan, notes: TextIO | None) -> Post:
    """Send all."""
    post = Post(plan, notes, tls_context() if plan.starttls else None)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    sessions = [asyncio.create_task(keep_sending(post)) for _ in range(plan.sessions)]
    everything = asyncio.ensure_future(asyncio.gather(*sessions))
    waiting: list[asyncio.Future[Any]] = [everything, asyncio.create_task(over.wait())]
    pace = [asyncio.create_task(keep_pace(post))] if plan.rate else []
    await asyncio.wait(waiting, timeout=plan.seconds, return_when=asyncio.FIRST_COMPLETED)
    post.stop()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(post.done.wait(), FINISH_S)
    for task in (*sessions, *pace, *waiting):
        task.cancel()
    await asyncio.gather(*sessions, *pace, *waiting, return_exceptions=True)
    return post


def tls_context() -> ssl.SSLContext:
    """Any certificate will do: what is measured is work, not trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def parse_arguments(words: Sequence[str] | None = None) -> tuple[Plan, Path | None]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--notes", type=Path)
    for name in ("--size-bytes", "--recipients", "--sessions", "--count", "--first"):
        parser.add_argument(name, type=int, default=None)
    for name in ("--seconds", "--rate"):
        parser.add_argument(name, type=float, default=None)
    parser.add_argument("--domain", default=None)
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--starttls", action="store_true")
    values = vars(parser.parse_args(words))
    notes: Path | None = values.pop("notes")
    return Plan(**{name: value for name, value in values.items() if value is not None}), notes


def main() -> None:
    """See the module."""
    plan, path = parse_arguments()
    began = time.monotonic()
    with path.open("w") if path else contextlib.nullcontext() as notes:
        post = asyncio.run(run(plan, notes))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seen = {
        "begun": post.begun,
        "accepted": post.accepted,
        "seconds": time.monotonic() - began,
        "cpu_s": used.ru_utime + used.ru_stime,
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
