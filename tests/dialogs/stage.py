"""Where dialogues are played: doors, loops, ways to cut a segment, and the play itself.

A **door** is a way of the product to hold a session. `DOORS` names all that there are; each dialogue is played through
each of them, and has to sound the same. A **cut** is how the client's bytes reach the server. Nodes run on uvloop where
it is installed, else on asyncio's own loop, which differ in what they do on sockets that are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, assert_never

from gossip.identity import Authority, Identity
from smtp_edge.auth.users import hash_password
from smtp_edge.envelope import ReceivedMessage
from smtp_edge.reply import Reply
from smtp_edge.server.listener import Surroundings
from smtp_edge.server.pressure import Memory
from smtp_edge.settings_inbound import AccessSettings
from tests.dialogs.script import Act, Check, Hear, Script, Send
from tests.unit.smtp_edge.server.doors import (
    HOSTNAME,
    INLINE_BYTES_MAX,
    Remembering,
    build_identity,
    chain_of,
    open_door,
    open_mesh_door,
    write_certificate,
)

PATIENCE_S = 5.0
CRUMBS_MAX = 200
"""Pieces into which a segment is cut: single bytes if it is no longer than that."""


class Place(Protocol):
    """An open door."""

    host: str
    port: int
    acceptor: Remembering


Open = Callable[[Path, dict[str, Any], Surroundings], AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def by_aiosmtpd(directory: Path, settings: dict[str, Any], surroundings: Surroundings) -> AsyncIterator[Place]:
    """The session on aiosmtpd's class."""
    async with open_door(directory, surroundings, **settings) as door:
        yield door


DOORS: Mapping[str, Open] = {"aiosmtpd": by_aiosmtpd}


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def in_one(data: bytes) -> list[bytes]:
    """As the dialogue says it."""
    return [data]


def in_crumbs(data: bytes) -> list[bytes]:
    """Byte by byte, or in `CRUMBS_MAX` pieces; the same each time."""
    if len(data) <= CRUMBS_MAX:
        return [data[n : n + 1] for n in range(len(data))]
    places = [0, *sorted(random.Random(len(data)).sample(range(1, len(data)), CRUMBS_MAX - 1)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


CUTS: Mapping[str, Callable[[bytes], list[bytes]]] = {"whole": in_one, "crumbs": in_crumbs}


# -- what a dialogue may ask about accepted mail -----------------------------------------------------------------------


def _joined(words: Any) -> bytes:
    return ", ".join(words).encode()


FACTS: Mapping[str, Callable[[ReceivedMessage, bytes], bytes]] = {
    "sender": lambda message, data: message.envelope.sender.encode(),
    "recipients": lambda message, data: _joined(r.address for r in message.envelope.recipients),
    "orcpt": lambda message, data: _joined(r.orcpt for r in message.envelope.recipients),
    "notify": lambda message, data: _joined(str(r.notify).removeprefix("Notify.") for r in message.envelope.recipients),
    "body": lambda message, data: message.envelope.body_type.value.encode(),
    "smtputf8": lambda message, data: str(message.envelope.smtputf8).encode(),
    "envid": lambda message, data: message.envelope.envid.encode(),
    "ret": lambda message, data: message.envelope.ret.encode(),
    "requiretls": lambda message, data: str(message.envelope.requiretls).encode(),
    "client": lambda message, data: message.client.address.encode(),
    "port": lambda message, data: str(message.client.port).encode(),
    "name": lambda message, data: message.client.name.encode(),
    "helo": lambda message, data: message.client.helo.encode(),
    "protocol": lambda message, data: message.client.protocol.encode(),
    "user": lambda message, data: message.client.user.encode(),
    "forwarded": lambda message, data: str(message.client.forwarded).encode(),
    "token": lambda message, data: (message.transfer.token if message.transfer else "").encode(),
    "data": lambda message, data: data,
    "size": lambda message, data: str(message.data.size_bytes).encode(),
    "spooled": lambda message, data: str(message.data.path is not None).encode(),
}
"""Of the last accepted message and its mail data (dot-stuffed, as it is kept)."""


# -- scenery -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenery:
    """What is dear to make and the same for all dialogues."""

    certificate: Path
    key: Path
    trust: ssl.SSLContext
    relay: Identity
    peer: Identity


def build_scenery(directory: Path) -> Scenery:
    """Certificates."""
    authority = Authority.create("test", at=datetime.now(UTC))
    names = build_identity(authority, "self"), build_identity(authority, "peer")
    return Scenery(*write_certificate(directory), *names)


@asynccontextmanager
async def _open(script: Script, door: Open, directory: Path, scenery: Scenery) -> AsyncIterator[Place]:
    settings = {key: value for key, value in script.settings.items() if key not in ("from", "whole")}
    access = tuple(AccessSettings.model_validate(rule) for rule in settings.pop("access", ()))
    sections = settings.pop("sink", ())
    sinks = chain_of(directory, *sections) if sections else None
    surroundings = Surroundings(HOSTNAME, INLINE_BYTES_MAX, access=access, sinks=sinks)
    answers = {key: _reply(settings.pop(key)) for key in ("admission", "answer") if key in settings}
    if settings.get("tls", "none") != "none":
        settings |= {"certificate": scenery.certificate, "key": scenery.key}
    if "users" in settings:
        settings["auth_users"] = directory / "users"
        lines = [f"{user}:{hash_password(password)}\n" for user, password in settings.pop("users").items()]
        settings["auth_users"].write_text("".join(lines), "utf-8")
    if "sender_map" in settings:
        settings["senders"] = directory / "senders"
        settings["senders"].write_text("\n".join(settings.pop("sender_map")), "utf-8")
    opened = open_mesh_door(directory, scenery.relay, sinks) if settings.pop("mesh", False) else None
    async with opened or door(directory, settings, surroundings) as place:
        place.acceptor.admission = answers.get("admission")
        if "answer" in answers:
            place.acceptor.answer = lambda message: answers["answer"]
        yield place
        await _wait_clean(surroundings.memory, directory / "spool" / "incoming")


async def _wait_clean(memory: Memory, incoming: Path) -> None:
    """Whatever was said and however it ended, nothing of half a message stays: a moment later, for a file."""
    async with asyncio.timeout(PATIENCE_S):
        while memory.kept_bytes or any(incoming.glob("*")):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.005)


def _reply(text: str) -> Reply:
    code, status, words = text.split(" ", 2)
    return Reply(int(code), words, status)


# -- the play ----------------------------------------------------------------------------------------------------------


class Player:
    """A client that goes by a script."""

    def __init__(self, script: Script, scenery: Scenery, cut: Callable[[bytes], list[bytes]]) -> None:
        self._script, self._scenery, self._cut = script, scenery, cut
        self._gone = False

    async def play(self, place: Place) -> None:
        """AssertionError with file and line where it goes otherwise."""
        address = self._script.settings.get("from")
        local = (address, 0) if address else None
        self._reader, self._writer = await asyncio.open_connection(place.host, place.port, local_addr=local)
        self._acceptor = place.acceptor
        try:
            for number, step in self._script.steps:
                async with asyncio.timeout(PATIENCE_S):
                    fault = await self._do(step)
                assert fault is None, f"{self._script.path}, line {number}: {fault}"
            if not self._script.ends_itself:
                async with asyncio.timeout(PATIENCE_S):
                    await self._take_leave()
        except TimeoutError:
            raise AssertionError(f"{self._script.path}, line {number}: waited in vain for {step}") from None
        finally:
            self._writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await self._writer.wait_closed()

    async def _do(self, step: Send | Hear | Act | Check) -> str | None:
        match step:
            case Send():
                await self._send(step.data)
            case Hear():
                heard = await self._line()
                if step.line is None:
                    return None if heard is None else f"expected the end, heard {heard!r}"
                if heard is None or not step.fits(heard):
                    return f"expected {step.line!r}, heard {heard!r}"
            case Act():
                await self._act(step)
            case Check():
                return await self._check(step)
            case _:
                assert_never(step)
        return None

    async def _send(self, data: bytes) -> None:
        for piece in self._cut(data):
            if self._writer.is_closing():
                return  # the server has had enough; what it said last is there to be heard
            self._writer.write(piece)
            await asyncio.sleep(0)

    async def _line(self) -> str | None:
        try:
            line = await self._reader.readline()
        except ConnectionError:  # what the server did not read turns its end into a reset
            return None
        assert not line or line.endswith(b"\r\n"), f"a line without its end: {line!r}"
        return line[:-2].decode() if line else None

    async def _act(self, step: Act) -> None:
        match step.what:
            case "tls":
                mesh = self._script.settings.get("mesh", False)
                context = self._scenery.peer.client_context() if mesh else self._scenery.trust
                await self._writer.start_tls(context, server_hostname=None if mesh else "relay.test")
            case "hello":
                await self._hello()
            case "ehlo":
                await self._ehlo()
            case "eof":
                self._writer.write_eof()
            case "hang up":
                self._writer.transport.abort()
            case "wait":
                await asyncio.sleep(step.seconds)
            case other:
                raise AssertionError(f"unknown act {other!r}")

    async def _hello(self) -> None:
        assert (await self._line() or "").startswith("220 "), "no greeting"
        await self._ehlo()

    async def _ehlo(self) -> None:
        await self._send(b"EHLO client.test\r\n")
        while (await self._line() or "250 ").startswith("250-"):
            pass

    async def _check(self, check: Check) -> str | None:
        messages = self._acceptor.messages
        if check.fact == "count":
            found = str(len(messages)).encode()
        elif not messages:
            return "nothing was accepted"
        else:
            found = FACTS[check.fact](messages[-1], self._acceptor.bodies()[-1])
        return None if found == check.value else f"expected {check.value[:200]!r}, found {found[:200]!r}"

    async def _take_leave(self) -> None:
        self._writer.write(b"QUIT\r\n")
        heard = [line async for line in self._rest()]
        assert heard == ["221 2.0.0 Bye"], f"{self._script.path}, at its end: heard {heard}"

    async def _rest(self) -> AsyncIterator[str]:
        while (line := await self._line()) is not None:
            yield line


async def play(script: Script, door: Open, cut: Callable[[bytes], list[bytes]], directory: Path, sc: Scenery) -> None:
    """Open the door, and play the dialogue before it. AssertionError."""
    async with _open(script, door, directory, sc) as place:
        await Player(script, sc, cut).play(place)
