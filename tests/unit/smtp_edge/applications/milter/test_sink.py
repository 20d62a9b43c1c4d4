"""A filter of these tests: what it is told, what its answers come to, and one that is mad."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from smtp_edge import __version__
from smtp_edge.applications.milter.connection import parse_address
from smtp_edge.applications.milter.sink import Milter
from smtp_edge.envelope import Client
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import NodeServices, Sink
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import Binding, SinkError
from smtp_edge.sinks.testing import Outcome, ask

MAIL = b"Received: x\r\nSubject:  two\r\n blanks\r\n\r\nhello\r\n.dot\r\n"
CLIENT = Client("2001:db8::1", 4711, "a.example.net", "helo.test", "ESMTPA", user="ann", listener="in")
FAILED = "451 4.3.0 local error in processing"
SIGNED = b"A: b\r\nDKIM-Signature: v=1\r\n"
SMIME = b"Content-Type: multipart/signed; protocol=application/pkcs7-signature; boundary=b\r\n"
NOTE = "X-smtpmesh-Modified: body changed by a filter; signed before: DKIM"
ENCRYPTED = b"Content-Type: multipart/encrypted; protocol=application/pgp-encrypted; boundary=b\r\n"
EVERYTHING, NO_STEPS, NO_REPLY_BODY = 0x1FF, 0, 0x80000


class Node:
    """What the sink asks of its node."""

    hostname = "relay.test"


def milter(address: str, owns: Sequence[str] = ()) -> Milter:
    sink = Milter(address, owns=owns)
    sink.node = cast(NodeServices, Node())
    return sink


def packet(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload) + 1) + kind + payload


class Filter:
    """Says CONTINUE, or what it is to say to a command; keeps what it is told."""

    def __init__(self, answers: Mapping[bytes, Sequence[bytes]], *, steps: int, actions: int) -> None:
        self.answers = answers
        self.steps, self.actions = steps, actions
        self.told: list[bytes] = []
        self.sessions: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                told = await reader.readexactly(length)
                self.told.append(told)
                for answer in self._answer(told[:1]):
                    writer.write(answer)
        writer.close()

    def _answer(self, command: bytes) -> Sequence[bytes]:
        if command in self.answers:
            return self.answers[command]
        if command == b"O":
            return [packet(b"O", struct.pack(">III", 6, self.actions, self.steps))]
        mute = command in b"DQ" or (command == b"B" and self.steps & NO_REPLY_BODY)
        return [] if mute else [packet(b"c")]


@asynccontextmanager
async def filter_of(
    answers: Mapping[bytes, Sequence[bytes]] = {}, *, steps: int = NO_STEPS, actions: int = EVERYTHING
) -> AsyncIterator[tuple[Filter, str]]:
    made = Filter(answers, steps=steps, actions=actions)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        yield made, f"inet:{server.sockets[0].getsockname()[1]}@127.0.0.1"
        await asyncio.gather(*filter(None, made.sessions))


async def ask_with(*answers: bytes, to: bytes = b"E", mail: bytes = MAIL, steps: int = NO_STEPS) -> Outcome:
    async with filter_of({to: answers}, steps=steps) as (_, address):
        return await ask([Binding("milter", milter(address), timeout_s=1)], mail, recipients=("a@x.test", "b@x.test"))


async def test_a_filter_is_told_everything_in_its_order() -> None:
    async with filter_of() as (filter_, address):
        sink = milter(address)
        outcome = await ask(sink, MAIL, sender="s@y.test", recipients=("a@x.test", "b@x.test"), client=CLIENT)
    assert outcome == Outcome("", MAIL, ("a@x.test", "b@x.test"), (), "s@y.test")
    name = filter_.told[4].partition(b"i\0")[2][:12]
    size = str(len(MAIL) + 1).encode()
    version = f"v\0smtpmesh {__version__}\0".encode()
    assert filter_.told == [
        b"O\0\0\0\x06\0\0\x01\x7f\0\x1f\xff\xff",
        b"DCj\0relay.test\0{daemon_name}\0in\0" + version + b"_\0a.example.net [2001:db8::1]\0",
        b"Ca.example.net\x006\x12\x672001:db8::1\0",
        b"Hhelo.test\0",
        b"DMi\0" + name + b"\0{auth_type}\0PLAIN\0{auth_authen}\0ann\0{mail_addr}\0s@y.test\0"
        b"{mail_host}\0y.test\0{mail_mailer}\0smtp\0",
        b"M<s@y.test>\0SIZE=" + size + b"\0",
        b"DRi\0" + name + b"\0{rcpt_addr}\0a@x.test\0{rcpt_host}\0x.test\0{rcpt_mailer}\0smtp\0",
        b"R<a@x.test>\0",
        b"DRi\0" + name + b"\0{rcpt_addr}\0b@x.test\0{rcpt_host}\0x.test\0{rcpt_mailer}\0smtp\0",
        b"R<b@x.test>\0",
        b"DTi\0" + name + b"\0",
        b"T",
        b"LReceived\0x\0",
        b"LSubject\0 two\n blanks\0",
        b"DNi\0" + name + b"\0",
        b"N",
        b"Bhello\r\n.dot\r\n",
        b"DEi\0" + name + b"\0",
        b"E",
        b"Q",
    ]


async def test_a_large_body_comes_whole_in_packets_that_filters_take() -> None:
    body = b"".join(b"%070d\r\n" % number for number in range(20_000))
    async with filter_of(steps=NO_REPLY_BODY) as (filter_, address):
        assert (await ask(milter(address), b"A: b\r\n\r\n" + body)).reply == ""
    pieces = [told[1:] for told in filter_.told if told[:1] == b"B"]
    assert b"".join(pieces) == body
    assert {len(piece) for piece in pieces[:-1]} == {65535}


async def test_a_filter_that_skips_the_body_gets_no_more_of_it() -> None:
    async with filter_of({b"B": [packet(b"s")]}) as (filter_, address):
        assert (await ask(milter(address), b"A: b\r\n\r\n" + b"x" * 200_000 + b"\r\n")).reply == ""
    assert [told[:1] for told in filter_.told[-4:]] == [b"B", b"D", b"E", b"Q"]


async def test_a_filter_that_has_ruled_is_told_no_more() -> None:
    async with filter_of({b"R": [packet(b"r")]}) as (filter_, address):
        outcome = await ask(milter(address), MAIL, recipients=("a@x.test", "b@x.test"))
    assert outcome == Outcome("550 5.7.1 Command rejected")
    assert [told[:1] for told in filter_.told[-3:]] == [b"D", b"R", b"Q"]


@pytest.mark.parametrize(
    ("to", "answers", "reply"),
    [
        (b"C", [packet(b"y", b"554 5.7.1 go away\0")], "554 5.7.1 go away"),
        (b"R", [packet(b"t")], "451 4.7.1 Service unavailable - try again later"),
        (b"E", [packet(b"p"), packet(b"y", b"550-5.7.1 a\r\n550 5.7.1 b\0")], "550 5.7.1 a b"),
        (b"E", [packet(b"d")], "250 2.0.0 Ok"),
        (b"E", [packet(b"4")], "421 4.7.0 Server closing connection"),
        (b"E", [packet(b"h", b"A\0b\0"), packet(b"r")], "550 5.7.1 Command rejected"),
    ],
)
async def test_rulings_are_the_reply(to: bytes, answers: list[bytes], reply: str) -> None:
    assert await ask_with(*answers, to=to) == Outcome(reply)


async def test_an_accepting_filter_hears_no_more_and_the_message_goes_on() -> None:
    assert (await ask_with(packet(b"a"), to=b"M")).content == MAIL


async def test_changes_of_header_and_envelope_are_made() -> None:
    outcome = await ask_with(
        packet(b"i", b"\0\0\0\x01X-Top\0t\0"),
        packet(b"h", b"X-Last\0l\n\tm\0"),
        packet(b"m", b"\0\0\0\x01Subject\0new\0"),
        packet(b"+", b"<c@x.test>\0"),
        packet(b"-", b"<a@x.test>\0"),
        packet(b"e", b"<>\0"),
        packet(b"a"),
    )
    changed = b"X-Top: t\r\nReceived: x\r\nSubject: new\r\nX-Last: l\r\n\tm\r\n\r\nhello\r\n.dot\r\n"
    assert outcome == Outcome("", changed, ("b@x.test", "c@x.test"), (), "")


async def test_a_message_whose_recipients_are_all_removed_is_discarded() -> None:
    outcome = await ask_with(packet(b"-", b"a@x.test\0"), packet(b"-", b"b@x.test\0"), packet(b"c"))
    assert outcome == Outcome("250 2.0.0 Ok")


async def test_mail_is_held_for_the_reason_that_the_filter_gives() -> None:
    outcome = await ask_with(packet(b"q", b"smells\n bad\0"), packet(b"h", b"X-Spam\0yes\0"), packet(b"c"))
    assert outcome.held == (("a@x.test", "smells bad"), ("b@x.test", "smells bad"))
    assert b"X-Spam: yes\r\n\r\n" in outcome.content


CHUNKS = packet(b"b", b"new\n"), packet(b"m", b"\0\0\0\1Subject\0 new\0"), packet(b"b", b".body")


async def test_a_new_body_comes_in_chunks_between_other_changes() -> None:
    outcome = await ask_with(*CHUNKS, packet(b"c"))
    assert outcome.content == b"Received: x\r\nSubject:  new\r\n\r\nnew\r\n.body\r\n"
    assert (await ask_with(packet(b"b"), packet(b"c"))).content == MAIL.partition(b"hello")[0]


async def test_a_new_body_of_a_message_that_is_refused_or_held_is_as_the_filter_rules() -> None:
    assert (await ask_with(*CHUNKS, packet(b"r"))).content == b""
    held = await ask_with(*CHUNKS, packet(b"q", b"why\0"), packet(b"a"))
    assert held.held
    assert held.content.endswith(b"\r\n\r\nnew\r\n.body\r\n")


async def test_a_large_new_body_is_whole() -> None:
    chunks = [packet(b"b", bytes([97 + number % 26]) * 65_000 + b"\r\n") for number in range(40)]
    outcome = await ask_with(*chunks, packet(b"c"))
    assert outcome.content.partition(b"\r\n\r\n")[2] == b"".join(chunk[5:] for chunk in chunks)


@pytest.mark.parametrize(
    ("header", "choice", "changes", "result"),
    [
        (SIGNED, "refuse", (), ""),
        (SIGNED, "strip", (), "A: b||new"),
        (SIGNED, "annotate", (), f"{NOTE}|A: b|DKIM-Signature: v=1||new"),
        (SIGNED, "resign", (), ""),  # nobody signs later
        (SMIME, "strip", (), ""),
        (SMIME, "strip", (packet(b"m", b"\0\0\0\1Content-Type\0text/plain\0"),), "Content-Type: text/plain||new"),
        (ENCRYPTED, "strip", (), ""),
    ],
)  # fmt: skip
async def test_the_body_of_protected_mail_is_replaced_as_the_settings_say(
    header: bytes, choice: str, changes: tuple[bytes, ...], result: str
) -> None:
    async with filter_of({b"E": [packet(b"b", b"new\r\n"), *changes, packet(b"c")]}) as (_, address):
        sink = Milter(address, signed=choice)
        sink.node = cast(NodeServices, Node())
        outcome = await ask(sink, header + b"\r\nold\r\n")
    assert outcome.content.decode() == (result.replace("|", "\r\n") + "\r\n" if result else "")
    assert outcome.reply == ("" if result else FAILED)


@pytest.mark.parametrize(
    ("to", "answers"),
    [
        (b"O", [b"220 smtp.example.net ESMTP\r\n"]),
        (b"O", [packet(b"c")]),
        (b"M", [packet(b"?")]),
        (b"E", [packet(b"b", b"another body")]),
        (b"E", [packet(b"b", b"another body"), b"\xff\xff\xff\xff"]),
        (b"B", [packet(b"b", b"another body"), packet(b"c")]),
        (b"E", [packet(b"h", b"X-Bad\0a\nBcc: b\0"), packet(b"c")]),
        (b"E", [packet(b"+", b"<a b@x.test>\0"), packet(b"c")]),
        (b"E", [packet(b"y", b"250 fine\0")]),
        (b"E", [packet(b"p")]),
        (b"E", []),
    ],
)
async def test_a_mad_or_silent_filter_is_a_failure_and_nothing_of_it_stays(to: bytes, answers: list[bytes]) -> None:
    async with filter_of({to: answers}) as (_, address):
        binding = Binding("milter", milter(address), timeout_s=0.3, on_failure="accept")
        assert (await ask([binding], MAIL)).content == MAIL
        failing = Binding("milter", milter(address), timeout_s=0.3)
        assert (await ask([failing], MAIL)).reply == FAILED


async def test_a_filter_that_is_down_or_hangs_up_is_a_failure(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = tmp_path / "filter.sock"
    sink = milter(f"unix:{path}")
    assert (await ask(sink, MAIL)).reply == FAILED
    async with await asyncio.start_unix_server(hang_up, path):
        assert (await ask(sink, MAIL)).reply == FAILED


async def test_fields_that_only_the_filter_may_set_are_removed_when_it_fails_too(tmp_path: Path) -> None:
    sink = milter(f"unix:{tmp_path}/no", owns=["X-Spam"])
    outcome = await ask([Binding("milter", sink, on_failure="accept")], b"X-Spam: no\r\n" + MAIL)
    assert outcome.content == MAIL


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("inet:8891@127.0.0.1", ("127.0.0.1", 8891)),
        ("inet:localhost:8891", ("localhost", 8891)),
        ("inet6:8891@[::1]", ("::1", 8891)),
        ("inet:[::1]:8891", ("::1", 8891)),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("local:/run/x.sock", "/run/x.sock"),
    ],
)
def test_addresses_are_as_filters_and_postfix_have_them(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(({"address": text}, "address") for text in ("", "inet:8891", "unix:x", "inet:0@x", "inet:65536@x", "/x")),
        ({"address": "unix:/x", "owns": ["a b"]}, "a b"),
        ({"address": "unix:/x", "owns": "X-Spam"}, "is no list"),
        ({"address": "unix:/x", "signed": "yes"}, "signed = 'yes' is none of: refuse, strip, annotate, resign"),
        ({"adress": "unix:/x"}, "it takes: address, signs, owns, signed"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SinkError, match=words):
        load_bindings([SinkSettings.model_validate({"use": "milter", "with": settings})])


def test_it_is_found_by_its_name_and_may_sign() -> None:
    settings = {"use": "milter", "with": {"address": "unix:/x", "signs": True}}
    (binding,) = load_bindings([SinkSettings.model_validate(settings)])
    assert isinstance(binding.sink, Sink)
    assert binding.sink.signs
