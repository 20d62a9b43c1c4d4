"""Dialogues with a listener: what is accepted, what is refused, and with which codes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from smtp_edge.auth.users import hash_password
from smtp_edge.envelope import BodyType, Notify
from smtp_edge.reply import Reply
from tests.unit.smtp_edge.server.doors import RawClient, open_door, write_certificate
from tests.unit.smtp_edge.server.ordeal import SessionOrdeal


async def test_the_greeting_and_every_keyword(tmp_path: Path) -> None:
    async with open_door(tmp_path, size_bytes_max=5000) as door:
        client = await door.dial()
        assert await client.reply() == "220 relay.test ESMTP smtpmesh"
        lines = (await client.say("EHLO client.test")).split("\n")
        assert lines == [
            "250-relay.test",
            "250-PIPELINING",
            "250-SIZE 5000",
            "250-8BITMIME",
            "250-SMTPUTF8",
            "250-CHUNKING",
            "250-BINARYMIME",
            "250-DSN",
            "250-ENHANCEDSTATUSCODES",
            "250 LIMITS RCPTMAX=1000",
        ]


async def test_a_message_arrives_as_it_was_sent(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        assert (
            await client.say("MAIL FROM:<Sue@Example.net> SIZE=30 BODY=8BITMIME RET=HDRS ENVID=Ab+2Bc")
            == "250 2.1.0 Ok"
        )
        assert await client.say("RCPT TO:<ann@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann@x") == "250 2.1.5 Ok"
        assert (await client.say("DATA")).startswith("354 ")
        assert await client.say("Subject: x\r\n\r\n..dot\r\n\xe9\r\n.") == "250 2.0.0 Ok: queued as Q1"
        (message,) = door.acceptor.messages
        envelope = message.envelope
        assert (envelope.sender, envelope.ret, envelope.envid) == ("Sue@Example.net", "HDRS", "Ab+2Bc")
        assert envelope.body_type is BodyType.EIGHT_BIT_MIME
        assert envelope.recipients[0].notify == Notify.SUCCESS | Notify.DELAY
        assert envelope.recipients[0].orcpt == "rfc822;Ann@x"
        assert message.data.inline == "Subject: x\r\n\r\n..dot\r\n\xe9\r\n".encode()
        assert message.data.header == b"Subject: x\r\n\r\n"
        assert (message.client.helo, message.client.protocol) == ("client.test", "ESMTP")


async def test_the_size_that_mail_declared_is_known_when_recipients_are_judged(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        for mail in ("MAIL FROM:<a@b.c> SIZE=4711", "MAIL FROM:<a@b.c>"):
            await client.say(mail)
            await client.say("RCPT TO:<x@y.z>")
            await client.say("RSET")
        assert door.acceptor.declared == [4711, 0]


@pytest.mark.rfc("2920 3.2a")
async def test_a_pipelined_group_gets_its_replies_in_order(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nRCPT TO:<q@nowhere.test>\r\nDATA\r\n")
        assert [reply[:9] for reply in await client.replies(4)] == ["250 2.1.0", "250 2.1.5", "550 5.4.4", "354 end d"]
        client.write(b"Subject: 1\r\n\r\n.\r\nMAIL FROM:<a@b.c>\r\nRSET\r\nNOOP\r\nQUIT\r\n")
        assert [reply[:9] for reply in await client.replies(5)] == [
            "250 2.0.0",
            "250 2.1.0",
            "250 2.0.0",
            "250 2.0.0",
            "221 2.0.0",
        ]
        assert await client.reply() == ""


async def test_two_messages_in_one_session(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        for number in range(2):
            client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
            await client.replies(3)
            await client.say(f"Subject: {number}\r\n\r\n.")
        assert door.acceptor.bodies() == [b"Subject: 0\r\n\r\n", b"Subject: 1\r\n\r\n"]


async def test_mail_data_may_be_empty(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<>\r\nRCPT TO:<x@y.z>\r\n")
        await client.replies(2)
        assert (await client.send(b"")).startswith("250 ")
        assert door.acceptor.bodies() == [b""]


SMUGGLED = b"MAIL FROM:<evil@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\nSubject: smuggled\r\n\r\n"
ODD_ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n\n.\r\n", b"\r\n.\x00\r\n"]


@pytest.mark.parametrize("policy", ["refuse", "normalise"])
@pytest.mark.parametrize("end", ODD_ENDS)
@pytest.mark.rfc("5321 4.1.1.4a")
async def test_no_line_end_but_crlf_dot_crlf_ends_the_data(tmp_path: Path, end: bytes, policy: str) -> None:
    async with open_door(tmp_path, bare_newlines=policy) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"Subject: first\r\n\r\nhello" + end + SMUGGLED + b"\r\n.\r\n")
        reply = await client.reply()
        bare = end != b"\r\n.\x00\r\n"
        assert reply[:9] == ("550 5.6.0" if bare and policy == "refuse" else "250 2.0.0")
        assert await client.say("NOOP") == "250 2.0.0 Ok"
        assert len(door.acceptor.messages) == int(reply.startswith("250"))
        for body in door.acceptor.bodies():
            assert b"\r\n.\r\n" not in b"\r\n" + body
            assert body.count(b"\n") == body.count(b"\r\n") == body.count(b"\r")


@pytest.mark.parametrize("step", [1, 2, 3, 5])
async def test_the_end_is_found_however_the_segments_are_cut(tmp_path: Path, step: int) -> None:
    data = b"Subject: x\r\n\r\n..\r\n.a\r\n\r\n.\r\nNOOP\r\n"
    async with open_door(tmp_path) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        for start in range(0, len(data), step):
            client.write(data[start : start + step])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert [reply[:3] for reply in await client.replies(2)] == ["250", "250"]
        assert door.acceptor.bodies() == [b"Subject: x\r\n\r\n..\r\n.a\r\n\r\n"]


async def test_large_mail_goes_to_a_spool_file(tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 50_000
    async with open_door(tmp_path) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(body + b".\r\n")
        assert (await client.reply()).startswith("250")
        (message,) = door.acceptor.messages
        assert message.data.path is not None
        assert message.data.path.read_bytes() == body
        assert (message.data.size_bytes, message.data.header) == (len(body), b"Subject: large\r\n\r\n")


@pytest.mark.rfc("5321 4.5.3.1.7")
async def test_too_much_mail_data_is_refused_at_its_end_and_leaves_no_file(tmp_path: Path) -> None:
    async with open_door(tmp_path, size_bytes_max=20_000) as door:
        client = await door.client()
        assert (await client.say("MAIL FROM:<a@b.c> SIZE=20001")).startswith("552 5.3.4")
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"x" * 78 + b"\r\n")
        client.write((b"y" * 78 + b"\r\n") * 300 + b".\r\n")
        assert (await client.reply()).startswith("552 5.3.4")
        assert await client.say("NOOP") == "250 2.0.0 Ok"
        assert _files(tmp_path) == []


async def test_endless_mail_data_ends_the_session(tmp_path: Path) -> None:
    async with open_door(tmp_path, size_bytes_max=20_000) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"z" * 200_000)
        assert (await client.reply()).startswith("552 5.3.4")
        client.write(b"z" * 200_000)
        assert await client.reply() == "", "no reset: the reply would be lost with it"


async def _talk_on(client: RawClient) -> None:
    while True:
        client.write(b"y" * 1000)
        await client.writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("data", [False, True], ids=["a command", "mail data"])
async def test_a_client_that_does_not_listen_while_it_talks_still_finds_the_reply(tmp_path: Path, data: bool) -> None:
    async with open_door(tmp_path, size_bytes_max=20_000) as door:
        client = await door.client()
        if data:
            client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
            await client.replies(3)
        for _ in range(20):
            client.write(b"y" * 60_000)
            await client.writer.drain()
        assert (await client.reply())[:3] == ("552" if data else "500")
        assert await client.reply() == ""
        with pytest.raises(ConnectionError):  # it has hung up altogether after a while
            await asyncio.wait_for(_talk_on(client), 5)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("FOO", "500 5.5.1"),
        ("MAIL FROM:<a@b.c", "501 5.1.3"),
        ("MAIL FROM:a b@c", "501 5.1.3"),
        ("MAIL TO:<a@b.c>", "501 5.5.4"),
        ("MAIL FROM:<a@b..c>", "501 5.1.2"),
        ("MAIL FROM:<a@b.c> SIZE=abc", "501 5.5.4"),
        ("MAIL FROM:<a@b.c> COLOUR=red", "555 5.5.4"),
        ("MAIL FROM:<a@b.c> XTOKEN=x", "555 5.5.4"),
        ("MAIL FROM:<\xfc@b.c>", "550 5.6.7"),
        ("RCPT TO:<a@b.c>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("STARTTLS", "503 5.5.1"),
        ("AUTH PLAIN AHgAeQ==", "503 5.5.1"),
        ("VRFY root", "252 2.5.2"),
        ("EHLO", "501 5.5.4"),
        ("X" * 5000, "500 5.5.2"),
    ],
)
@pytest.mark.rfc("2034 4a")
async def test_bad_commands_get_their_code_and_no_echo(tmp_path: Path, line: str, code: str) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        reply = await client.say(line)
        assert reply[:9] == code
        assert line not in reply


@pytest.mark.rfc("5321 3.3a", "5321 4.5.1a")
async def test_commands_out_of_order_are_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.dial()
        await client.reply()
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("503 5.5.1")
        await client.say("HELO client.test")
        assert (await client.say("MAIL FROM:<a@b.c> SIZE=3")).startswith("501")
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("250")
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("503")
        assert (await client.say("DATA")).startswith("554")


async def test_utf8_addresses_need_smtputf8_and_keep_their_bytes(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.say("MAIL FROM:<sue@example.net> SMTPUTF8")
        assert (await client.say("RCPT TO:<j\xf6rg@\xe4.test>")).startswith("250")
        await client.send(b"x\r\n")
        (message,) = door.acceptor.messages
        assert message.envelope.recipients[0].address == "j\xf6rg@\xe4.test"
        assert message.client.protocol == "UTF8SMTP"


def test_a_refused_command_gives_others_their_turn() -> None:
    loop = asyncio.new_event_loop()
    flood, other = SessionOrdeal(loop), SessionOrdeal(loop)
    loop.call_soon(flood.deliver, b"FOO\r\n" * 60)
    assert other.say(b"NOOP\r\n")[-1] == "250 2.0.0 Ok"
    assert len(flood.session.inbox) > 0
    other.end()
    flood.end()
    loop.close()


async def test_many_bad_commands_end_the_session(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        codes = [(await client.say("FOO"))[:3] for _ in range(21)]
        assert codes == ["500"] * 20 + ["421"]


@pytest.mark.rfc("5321 4.5.3.1.10a")
async def test_too_many_recipients_are_told_to_come_again(tmp_path: Path) -> None:
    async with open_door(tmp_path, recipients_max=2) as door:
        client = await door.client()
        await client.say("MAIL FROM:<a@b.c>")
        codes = [(await client.say(f"RCPT TO:<{n}@y.z>"))[:9] for n in range(3)]
        assert codes == ["250 2.1.5", "250 2.1.5", "452 4.5.3"]


@pytest.mark.rfc("5321 4.5.3.2.7")
async def test_silence_ends_the_session(tmp_path: Path) -> None:
    async with open_door(tmp_path, idle_timeout_s=0.05) as door:
        client = await door.client()
        assert (await client.reply()).startswith("421 4.4.2")


async def test_one_client_has_no_more_than_its_connections(tmp_path: Path) -> None:
    async with open_door(tmp_path, connections_per_client_max=1) as door:
        await door.client()
        second = await door.dial()
        assert (await second.reply()).startswith("421 4.7.0")


@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_hundreds_may_call_at_once_while_the_loop_is_busy(tmp_path: Path, tls: str) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    async with open_door(tmp_path, tls=tls, certificate=certificate, key=key) as door:
        with contextlib.ExitStack() as stack:
            for _ in range(400):  # nothing is awaited: the kernel alone answers
                stack.enter_context(socket.create_connection((door.host, door.port), 5))


async def test_a_fault_of_our_own_is_451_and_the_session_goes_on(tmp_path: Path) -> None:
    def broken(_message: object) -> Reply:
        raise ZeroDivisionError("secret")

    async with open_door(tmp_path) as door:
        door.acceptor.answer = broken
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\n")
        await client.replies(2)
        with capture_logs():
            assert await client.send(b"x\r\n") == "451 4.3.0 local error in processing"
        assert await client.say("NOOP") == "250 2.0.0 Ok"


async def test_no_room_is_said_at_mail(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        door.acceptor.admission = Reply(452, "insufficient system storage", "4.3.1")
        client = await door.client()
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("452 4.3.1")


@pytest.mark.rfc("5321 4.1.1.4c")
async def test_a_client_that_leaves_in_its_mail_data_leaves_nothing(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        client.write(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n")
        await client.replies(3)
        client.write(b"x" * 50_000)
        await client.writer.drain()
        client.close()
        async with asyncio.timeout(5):
            while _files(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert door.acceptor.messages == []


async def test_a_client_that_has_said_all_and_closes_its_side_is_still_served(tmp_path: Path) -> None:
    async with open_door(tmp_path, pipelining="lenient") as door:
        client = await door.dial()
        client.write(b"EHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
        client.writer.write_eof()
        replies = await client.replies(7)
        assert [reply[:3] for reply in replies] == ["220", "250", "250", "250", "354", "250", "221"]


# -- TLS and AUTH ------------------------------------------------------------------------------------------------------


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"# who may submit\nsue:{hash_password('secret')}\n")
    return path


@pytest.mark.rfc("3207 4.2a")
async def test_starttls_forgets_what_was_said_before_and_shows_auth(tmp_path: Path, users: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    async with open_door(tmp_path, tls="starttls", certificate=certificate, key=key, auth_users=users) as door:
        client = await door.client()
        assert "AUTH" not in await client.say("EHLO client.test")
        assert (await client.say("AUTH PLAIN AHgAeQ==")).startswith("538 5.7.11")
        await client.secure(context)
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("503 5.5.1")
        keywords = await client.say("EHLO client.test")
        assert "AUTH PLAIN LOGIN" in keywords
        assert "STARTTLS" not in keywords


@pytest.mark.rfc("3207 6a")
async def test_commands_behind_starttls_in_the_clear_end_the_session(tmp_path: Path) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    async with open_door(tmp_path, tls="starttls", certificate=certificate, key=key) as door:
        client = await door.client()
        client.write(b"STARTTLS\r\nMAIL FROM:<evil@b.c>\r\n")
        assert (await client.reply()).startswith("554 5.7.0")
        assert await client.reply() == ""


@pytest.mark.rfc("4954 3a")
async def test_right_and_wrong_passwords(tmp_path: Path, users: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    settings = {"tls": "implicit", "certificate": certificate, "key": key, "auth_users": users, "allow_networks": []}
    async with open_door(tmp_path, **settings) as door:
        client = await (await door.dial(_for_relay(context))).hello()
        assert (await client.say("AUTH PLAIN " + _plain("sue", "wrong"))).startswith("535 5.7.8")
        assert (await client.say("AUTH PLAIN " + _plain("nobody", "secret"))).startswith("535 5.7.8")
        assert (await client.say("AUTH CRAM-MD5")).startswith("504 5.5.4")
        assert (await client.say("AUTH LOGIN")) == "334 VXNlcm5hbWU6"
        assert (await client.say(_base64("sue"))) == "334 UGFzc3dvcmQ6"
        assert (await client.say(_base64("secret"))).startswith("235 2.7.0")
        await client.say("MAIL FROM:<a@b.c>")
        assert (await client.say("RCPT TO:<x@anywhere.test>")).startswith("250")
        await client.send(b"x\r\n")
        (message,) = door.acceptor.messages
        assert (message.client.user, message.client.protocol) == ("sue", "ESMTPSA")
        assert message.client.tls.startswith("TLSv1.3 ")


async def test_guessing_passwords_ends_the_session(tmp_path: Path, users: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    async with open_door(tmp_path, tls="implicit", certificate=certificate, key=key, auth_users=users) as door:
        client = await (await door.dial(_for_relay(context))).hello()
        replies = [await client.say("AUTH PLAIN " + _plain("sue", "wrong")) for _ in range(3)]
        assert [reply[:3] for reply in replies] == ["535"] * 3
        assert await client.reply() == ""


def _files(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file()]


def _for_relay(context: object) -> object:
    context.check_hostname = False  # type: ignore[attr-defined]
    return context


def _plain(user: str, password: str) -> str:
    return _base64(f"\0{user}\0{password}")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
