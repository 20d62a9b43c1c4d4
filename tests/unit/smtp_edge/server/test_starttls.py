"""TLS on our listeners under attack, and what our own clients make of a certificate that is not right.

What a client may say around STARTTLS is in tests/dialogs/starttls; here are handshakes that fail, hang, are begun anew,
and certificates.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.delivery import DeliveryClient
from tests.conftest import find_command
from tests.unit.smtp_edge.client.certificates import DAY, NOW, Pair, issue
from tests.unit.smtp_edge.client.test_delivery import job
from tests.unit.smtp_edge.server.doors import Door, open_door, write_certificate

HOST = "localhost"
AUTHORITY = issue("authority", ca=True)
PATIENCE_S = 5


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def tls_door(
    tmp_path: Path, tls: str = "starttls", **settings: Any
) -> AsyncIterator[tuple[Door, ssl.SSLContext]]:
    certificate, key, context = write_certificate(tmp_path)
    async with open_door(tmp_path, tls=tls, certificate=certificate, key=key, **settings) as door:
        yield door, context


async def serves(door: Door) -> bool:
    """A bystander's transaction."""
    client = await door.client()
    return (await client.say("MAIL FROM:<>")).startswith("250")


# -- certificates, as our own clients see them -------------------------------------------------------------------------

CERTIFICATES = {
    "right": issue(HOST, AUTHORITY, names=(HOST,)),
    "expired": issue(HOST, AUTHORITY, names=(HOST,), begins=NOW - 2 * DAY, ends=NOW - DAY),
    "not valid yet": issue(HOST, AUTHORITY, names=(HOST,), begins=NOW + DAY, ends=NOW + 2 * DAY),
    "another name": issue("other.test", AUTHORITY, names=("other.test",)),
    "no name": issue(HOST, AUTHORITY),
    "self-signed": issue(HOST, names=(HOST,)),
    "another authority": issue(HOST, issue("authority", ca=True), names=(HOST,)),
    "of a client": issue(HOST, AUTHORITY, names=(HOST,), usage=None, ends=NOW + timedelta(seconds=-1)),
}


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("which", CERTIFICATES)
async def test_our_client_believes_none_but_the_right_certificate(tmp_path: Path, which: str, tls: str) -> None:
    result = await _attempt(tmp_path, CERTIFICATES[which], tls, tls)
    assert result is (OutcomeKind.ACCEPTED if which == "right" else OutcomeKind.TLS_FAILED)


@pytest.mark.parametrize("demand", ["opportunistic", "encrypted"])
@pytest.mark.parametrize("which", ["expired", "another name", "self-signed"])
async def test_who_does_not_verify_is_served_under_any_certificate(tmp_path: Path, which: str, demand: str) -> None:
    assert await _attempt(tmp_path, CERTIFICATES[which], "starttls", demand) is OutcomeKind.ACCEPTED


@pytest.mark.parametrize("demand", ["encrypted", "starttls"])
@pytest.mark.rfc("3207 6c")
async def test_our_client_sends_nothing_in_the_clear_where_the_offer_was_taken_away(
    tmp_path: Path, demand: str
) -> None:
    assert await _attempt(tmp_path, None, "none", demand) is OutcomeKind.TLS_FAILED


async def _attempt(tmp_path: Path, pair: Pair | None, tls: str, demand: str) -> OutcomeKind:
    """One message of our own client to our own listener."""
    authority = tmp_path / "authority.pem"
    authority.write_bytes(AUTHORITY.pem)
    certificate = pair.write(tmp_path / "server.pem") if pair else None
    client = DeliveryClient(hostname="client.test", identity=None, connect_timeout_s=2, attempt_timeout_s=5)
    try:
        async with open_door(tmp_path, tls=tls, certificate=certificate) as door:
            target = Target(Hop.parse("host:up"), HOST, door.port, tls=demand, tls_ca=authority)  # type: ignore[arg-type]
            result = await client.attempt(target, job())
            assert len(door.acceptor.messages) == int(result.kind is OutcomeKind.ACCEPTED)
            return result.kind
    finally:
        await client.close()


# -- handshakes that come to nothing -----------------------------------------------------------------------------------

NO_HANDSHAKES = {
    "a command": b"EHLO evil.test\r\nMAIL FROM:<evil@evil.test>\r\n",
    "zeros": bytes(500),
    "a record without end": b"\x16\x03\x01\xff\xff" + bytes(1000),
    "half a hello": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(20),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "nothing": b"",
}


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("what", NO_HANDSHAKES)
@pytest.mark.rfc("3207 4.1a")
async def test_garbage_instead_of_a_handshake_ends_that_session_alone(tmp_path: Path, what: str, tls: str) -> None:
    limits = {"handshake_timeout_s": 0.1, "handshakes_max": 1}
    with capture_logs() as lines:
        async with tls_door(tmp_path, tls, connections_per_client_max=1, limits=limits) as (door, context):
            context.check_hostname = False
            client = await door.dial()
            if tls == "starttls":
                await client.reply()
                assert (await client.say("EHLO evil.test")).startswith("250")
                assert (await client.say("STARTTLS")).startswith("220")
            client.write(NO_HANDSHAKES[what])
            async with asyncio.timeout(PATIENCE_S):
                assert b"250" not in await client.reader.read()
            await until(lambda: door.listener.session_count == 0)
            bystander = await (await door.dial(context if tls == "implicit" else None)).hello()
            assert await bystander.say("NOOP") == "250 2.0.0 Ok"
    assert [line["event"] for line in lines if line["log_level"] != "debug"] == ["tls.failed"]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_client_that_leaves_in_its_mail_data_under_tls_has_sent_nothing(tmp_path: Path, tls: str) -> None:
    async with tls_door(tmp_path, tls) as (door, context):
        context.check_hostname = False
        client = await door.dial(context if tls == "implicit" else None)
        await client.hello()
        if tls == "starttls":
            await client.secure(context)
            await client.say("EHLO client.test")
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"Subject: cut off\r\n\r\n.")
        await client.writer.drain()
        client.writer.transport.abort()  # the end of the connection without the end of TLS: an attacker could do that
        await until(lambda: door.listener.session_count == 0)
        assert door.acceptor.messages == []


async def test_too_many_handshakes_of_one_client_are_told_in_the_clear(tmp_path: Path) -> None:
    async with tls_door(tmp_path, limits={"handshakes_per_minute": 1}) as (door, context):
        first, second = await door.client(), await door.client()
        await first.secure(context)
        assert await second.say("STARTTLS") == "454 4.7.0 too many TLS handshakes from your network, come later"
        assert await second.say("NOOP") == "250 2.0.0 Ok"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_of_tls_are_not_spoken(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with tls_door(tmp_path) as (door, context):
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        client = await door.client()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.secure(context)
        assert await serves(door)


# -- openssl s_client --------------------------------------------------------------------------------------------------


async def _s_client(door: Door, *words: str, talk: list[tuple[bytes, bytes]]) -> None:
    """`openssl s_client` over STARTTLS: each line is typed once the one before has led to what stands beside it.

    It takes R, K and Q at the beginning of what it reads as orders to itself: one line at a time.
    """
    command = [find_command("openssl") or "", "s_client", "-connect", f"{door.host}:{door.port}", "-starttls", "smtp"]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, "-crlf", *words, **pipes)  # type: ignore[arg-type]
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            for typed, expected in [
                (b"", b"\n250 STARTTLS"),
                *talk,
            ]:  # the last line in the clear; shown when TLS is up
                process.stdin.write(typed)
                said = b""
                while expected not in said:
                    piece = await process.stdout.read(4096)
                    assert piece, f"{typed!r}: expected {expected!r}, openssl said {said!r}"
                    said += piece
            process.stdin.close()
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.peer("openssl")
async def test_renegotiation_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as (door, _context):
        bystander = await door.client()
        await _s_client(door, "-tls1_2", talk=[(b"NOOP\n", b"250 2.0.0 Ok"), (b"R\n", b"no renegotiation")])
        await until(lambda: door.listener.session_count == 1)
        assert await bystander.say("NOOP") == "250 2.0.0 Ok"


@pytest.mark.peer("openssl")
async def test_new_keys_in_the_middle_of_a_session_are_fine(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as (door, _context):
        keys = [(b"k\n", b"KEYUPDATE"), (b"NOOP\n", b"250 2.0.0 Ok"), (b"K\n", b"KEYUPDATE")]
        await _s_client(door, "-tls1_3", talk=[*keys, (b"NOOP\n", b"250 2.0.0 Ok"), (b"quit\n", b"221 2.0.0 Bye")])
