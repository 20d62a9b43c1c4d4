"""What clamd's answers come to, and a clamd that is down, silent or mad."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.clamav import ClamAV, is_encrypted
from smtp_edge.applications.clamd import ClamdError, Scan, parse_answer
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import Sink
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import Binding, SinkError
from smtp_edge.sinks.testing import Outcome, ask

MAIL = b"X-Virus-Status: Clean\r\nSubject: x\r\n\r\nhello\r\n.dot\r\n"
Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def clamd(answer: Answer) -> AsyncIterator[str]:
    """Reads a stream and answers it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(10) == b"zINSTREAM\0"
        taken = b""
        while length := struct.unpack(">I", await reader.readexactly(4))[0]:
            taken += await reader.readexactly(length)
        writer.write(answer(taken))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def says(text: str) -> Answer:
    return lambda _taken: text.encode() + b"\0"


async def scan_with(answer: Answer, mail: bytes = MAIL, policy: str = "tempfail", **settings: object) -> Outcome:
    async with clamd(answer) as address:
        sink = ClamAV(address, **settings)  # type: ignore[arg-type]
        return await ask([Binding("clamav", sink, timeout_s=1, on_failure=policy)], mail)


async def test_clean_is_said_and_what_others_said_is_removed() -> None:
    seen: list[bytes] = []

    def note(taken: bytes) -> bytes:
        seen.append(taken)
        return b"stream: OK\0"

    outcome = await scan_with(note)
    assert outcome.content == b"X-Virus-Status: Clean\r\nSubject: x\r\n\r\nhello\r\n.dot\r\n"
    assert seen == [b"Subject: x\r\n\r\nhello\r\n.dot\r\n"], "the scanner sees dots as the author wrote them"


@pytest.mark.parametrize(
    ("infected", "outcome"),
    [
        ("reject", Outcome("550 5.7.1 the message contains malware")),
        ("discard", Outcome("250 2.0.0 Ok")),
    ],
)
async def test_malware_is_answered_as_the_operator_wants(infected: str, outcome: Outcome) -> None:
    assert await scan_with(says("stream: Eicar-Test FOUND"), infected=infected) == outcome


async def test_malware_in_quarantine_names_it() -> None:
    outcome = await scan_with(says("stream: Eicar-Test FOUND"), infected="quarantine")
    assert outcome.held == (("recipient@example.org", "malware: Eicar-Test"),)


@pytest.mark.parametrize(
    ("answer", "mail", "why"),
    [
        ("stream: Heuristics.Encrypted.Zip FOUND", MAIL, "encrypted (Heuristics.Encrypted.Zip)"),
        ("INSTREAM size limit exceeded. ERROR", MAIL, "larger than clamd's StreamMaxLength"),
        ("stream: OK", b"Content-Type: multipart/encrypted; x=y\r\n\r\n", "encrypted"),
        ("stream: OK", b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\n", "encrypted"),
    ],
)
async def test_what_was_not_scanned_is_never_called_clean(answer: str, mail: bytes, why: str) -> None:
    outcome = await scan_with(says(answer), mail)
    assert outcome.content.startswith(f"X-Virus-Status: Not scanned; {why}\r\n".encode())
    for policy, reply in (("tempfail", "451 4.7.1"), ("reject", "550 5.7.1")):
        assert (await scan_with(says(answer), mail, unscanned=policy)).reply.startswith(reply)
    held = (await scan_with(says(answer), mail, unscanned="quarantine")).held
    assert held == (("recipient@example.org", f"not scanned: {why}"),)


async def test_a_message_that_is_too_large_is_not_even_sent() -> None:
    outcome = await scan_with(says("stream: Eicar FOUND"), stream_bytes_max=10)
    assert b"Not scanned; larger than 10 bytes" in outcome.content


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff" * 10_000)
    writer.close()


async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(20)
    writer.transport.abort()


@pytest.mark.parametrize("serve", [silent, mad, dying, None], ids=["silent", "mad", "dying", "down"])
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
async def test_a_clamd_that_gives_no_answer_is_a_failure(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None, policy: str
) -> None:
    server = await asyncio.start_server(serve or mad, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if serve is None:
        server.close()
    binding = Binding("clamav", ClamAV(address), timeout_s=0.2, on_failure=policy)
    outcome = await ask([binding], b"X-Virus-Status: Clean\r\nSubject: x\r\n\r\n" + b"y" * 500_000 + b"\r\n")
    server.close()
    if policy == "tempfail":
        assert outcome.reply == "451 4.3.0 local error in processing"
    else:
        assert outcome.content.startswith(b"Subject: x"), "nothing is claimed"
        assert bool(outcome.held) is (policy == "quarantine")


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: f"stream: {text}".encode()))
def test_any_answer_is_a_scan_or_an_error(answer: bytes) -> None:
    try:
        assert parse_answer(answer) != Scan() or answer.rstrip(b"\0\r\n") == b"stream: OK"
    except ClamdError:
        pass


@pytest.mark.parametrize(
    ("content_type", "encrypted"),
    [
        ("", False),
        ("text/plain", False),
        ("Multipart/Encrypted; protocol=x", True),
        ("application/pkcs7-mime; smime-type=signed-data", False),
        ("application/x-pkcs7-mime", True),
    ],
)
def test_encrypted_mail_is_known_by_its_type(content_type: str, encrypted: bool) -> None:
    assert is_encrypted(content_type) is encrypted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "it takes: address, infected"),
        ({"address": "nowhere"}, "neither unix:/path nor host:port"),
        ({"address": "a:1", "infected": "burn"}, "is none of: discard, quarantine, reject"),
        ({"address": "a:1", "header": "no good"}, "no name of a header field"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], words: str) -> None:
    section = SinkSettings.model_validate({"use": "smtp_edge.applications.clamav:ClamAV", "with": settings})
    with pytest.raises(SinkError, match=words):
        load_bindings([section])


def test_it_is_a_sink_like_any_other() -> None:
    assert issubclass(ClamAV, Sink)
