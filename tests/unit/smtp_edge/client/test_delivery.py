"""Attempts against a server that lies at every step: whose fault, who was answered what, what is safe to reuse."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority, write_new
from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.envelope import BodyType, Envelope, MailData, Notify, Recipient, Transfer
from smtp_edge.reply import Reply
from tests.unit.smtp_edge.client.servers import DROP, HANG, KEYWORDS, Script, SmtpServer, smtp_server
from tests.unit.smtp_edge.server.doors import build_identity, write_certificate

ANN, BOB = Recipient("ann@example.org"), Recipient("bob@example.org")
BODY = b"Subject: x\r\n\r\n..hello\r\n"
EIGHT_BIT = b"Subject: x\r\n\r\ngr\xfc\xdfe\r\n"
PREFIX = b"Received: by relay.test\r\n"
HOST = Hop.parse("host:sink")


@pytest.fixture
async def client() -> AsyncIterator[DeliveryClient]:
    made = DeliveryClient(hostname="relay.test", identity=None, connect_timeout_s=1, attempt_timeout_s=0.5)
    yield made
    await made.close()


def target(server: SmtpServer, **changes: object) -> Target:
    return replace(Target(HOST, "127.0.0.1", server.port, tls="none"), **changes)  # type: ignore[arg-type]


def job(*recipients: Recipient, body: bytes = BODY, sender: str = "sue@example.net", **changes: object) -> Job:
    envelope = Envelope(sender, recipients or (ANN,), **changes)  # type: ignore[arg-type]
    header = body[: body.index(b"\r\n\r\n") + 4]
    return Job("Q1", envelope, MailData(len(body), inline=body, header=header), PREFIX)


def codes(result: AttemptResult) -> list[int | None]:
    return [reply.code if reply else None for reply in result.replies]


@pytest.mark.rfc("5321 3.6.3", "5321 4.4a", "5321 4.5.2a")
async def test_a_message_arrives_byte_for_byte_behind_its_trace_field(client: DeliveryClient) -> None:
    async with smtp_server() as server:
        result = await client.attempt(target(server), job())
        assert (result.kind, codes(result)) == (OutcomeKind.ACCEPTED, [250])
        assert server.seen.bodies == [PREFIX + BODY]
        assert server.seen.said("MAIL") == [f"MAIL FROM:<sue@example.net> SIZE={len(PREFIX + BODY)}"]
        assert result.latency_s > 0


@pytest.mark.rfc("5321 3.2a")
async def test_the_connection_is_used_again(client: DeliveryClient) -> None:
    async with smtp_server() as server:
        for _ in range(3):
            await client.attempt(target(server), job())
        assert (server.seen.connections, len(server.seen.bodies)) == (1, 3)


async def test_a_used_up_connection_is_replaced(client: DeliveryClient) -> None:
    async with smtp_server() as server:
        for _ in range(4):
            await client.attempt(target(server, messages_per_connection_max=2), job())
        assert server.seen.connections == 2


async def test_a_stale_connection_is_replaced_without_anyone_noticing(client: DeliveryClient) -> None:
    async with smtp_server(Script(drop_after_messages=1)) as server:
        results = [await client.attempt(target(server), job()) for _ in range(3)]
        assert [result.kind for result in results] == [OutcomeKind.ACCEPTED] * 3
        assert server.seen.connections == 3


@pytest.mark.rfc("2920 3.1a", "3461 5.2.2b")
async def test_without_pipelining_each_command_waits_for_its_reply(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=())) as server:
        result = await client.attempt(target(server), job(ANN, BOB))
        assert codes(result) == [250, 250]
        assert server.seen.said("MAIL") == ["MAIL FROM:<sue@example.net>"]


def some(refused: str) -> Callable[[str], str]:
    return lambda line: refused if "bob" in line else "250 2.1.5 Ok"


@pytest.mark.parametrize("keywords", [KEYWORDS, ()])
@pytest.mark.rfc("2920 3.1c", "5321 4.5.4.1d")
async def test_each_recipient_gets_its_own_reply(client: DeliveryClient, keywords: tuple[str, ...]) -> None:
    async with smtp_server(Script(rcpt=some("450 4.2.0 later"), keywords=keywords)) as server:
        result = await client.attempt(target(server), job(ANN, BOB))
        assert (result.kind, codes(result)) == (OutcomeKind.ACCEPTED, [250, 450])


@pytest.mark.parametrize("keywords", [KEYWORDS, ()])
@pytest.mark.parametrize(
    ("script", "kind", "answers"),
    [
        (Script(rcpt=lambda line: "550 5.1.1 who"), OutcomeKind.MESSAGE_REFUSED, [550, 550]),
        (Script(rcpt=lambda line: "450 4.2.0 later"), OutcomeKind.MESSAGE_REFUSED, [450, 450]),
        (Script(rcpt=lambda line: "421 4.3.2 closing"), OutcomeKind.HOP_TEMPFAIL, [421, 421]),
        (Script(mail="550 5.7.1 not you"), OutcomeKind.MESSAGE_REFUSED, [550, 550]),
        (Script(mail="451 4.3.0 broken"), OutcomeKind.HOP_TEMPFAIL, [451, 451]),
        (Script(data="451 4.3.0 broken"), OutcomeKind.HOP_TEMPFAIL, [451, 451]),
        (Script(data="554 5.6.0 no"), OutcomeKind.MESSAGE_REFUSED, [554, 554]),
        (Script(final="554 5.6.0 spam"), OutcomeKind.MESSAGE_REFUSED, [554, 554]),
        (Script(final="452 4.3.1 full"), OutcomeKind.HOP_TEMPFAIL, [452, 452]),
    ],
)
async def test_refusals(
    client: DeliveryClient, script: Script, kind: OutcomeKind, answers: list[int], keywords: tuple[str, ...]
) -> None:
    async with smtp_server(replace(script, keywords=keywords)) as server:
        result = await client.attempt(target(server), job(ANN, BOB))
        assert (result.kind, codes(result)) == (kind, answers)
        assert result.reason


@pytest.mark.parametrize("keywords", [KEYWORDS, ()])
@pytest.mark.rfc("2920 3.1d")
async def test_after_a_refusal_the_connection_is_in_step_again(
    client: DeliveryClient, keywords: tuple[str, ...]
) -> None:
    script = Script(rcpt=lambda line: "550 5.1.1 who", keywords=keywords)
    async with smtp_server(script) as server:
        await client.attempt(target(server), job())
        script.rcpt = lambda line: "250 2.1.5 Ok"
        result = await client.attempt(target(server), job())
        assert (result.kind, server.seen.connections) == (OutcomeKind.ACCEPTED, 1)
        assert server.seen.said("RSET") == ["RSET"]
        assert server.seen.bodies == [PREFIX + BODY]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(greeting=DROP), OutcomeKind.CONNECT_FAILED),
        (Script(greeting="421 4.3.2 busy"), OutcomeKind.HOP_TEMPFAIL),
        (Script(greeting="554 5.7.1 go away"), OutcomeKind.HOP_TEMPFAIL),
        (Script(greeting=HANG), OutcomeKind.CONNECT_FAILED),
        (Script(greeting="gibberish"), OutcomeKind.HOP_TEMPFAIL),
        (Script(mail=DROP), OutcomeKind.DISCONNECTED),
        (Script(mail=HANG), OutcomeKind.TIMEOUT),
        (Script(mail="gibberish"), OutcomeKind.DISCONNECTED),
        (Script(mail="250 " + "x" * 5000), OutcomeKind.DISCONNECTED),
        (Script(rcpt=lambda line: DROP), OutcomeKind.DISCONNECTED),
        (Script(data=DROP), OutcomeKind.DISCONNECTED),
        (Script(data=HANG), OutcomeKind.TIMEOUT),
        (Script(final=DROP), OutcomeKind.IN_DOUBT),
        (Script(final=HANG), OutcomeKind.IN_DOUBT),
        (Script(final="gibberish"), OutcomeKind.IN_DOUBT),
        (Script(final="354 go on"), OutcomeKind.IN_DOUBT),
    ],
)
@pytest.mark.rfc("5321 3.8d", "5321 4.5.3.2a")
async def test_broken_sessions_and_the_instant_of_doubt(
    client: DeliveryClient, script: Script, kind: OutcomeKind
) -> None:
    async with smtp_server(script) as server:
        result = await client.attempt(target(server), job())
        assert result.kind is kind
        assert all(reply is None or reply.code >= 400 for reply in result.replies)
        script.mail = script.data = script.greeting = "250 2.0.0 unused"


async def test_nobody_listening(client: DeliveryClient) -> None:
    async with smtp_server() as server:
        gone = target(server)
    result = await client.attempt(gone, job())
    assert (result.kind, result.reason) == (OutcomeKind.CONNECT_FAILED, "connect: Connection refused")


async def test_control_characters_of_a_remote_reach_no_log(client: DeliveryClient) -> None:
    async with smtp_server(Script(final="554 5.6.0 a\x1b[31mred\x07")) as server:
        result = await client.attempt(target(server), job())
        assert result.reply is not None
        assert result.reply.text == "a?[31mred?"


@pytest.mark.parametrize("in_file", [False, True])
async def test_large_mail_is_streamed(client: DeliveryClient, tmp_path: Path, in_file: bool) -> None:
    body = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 60_000
    path = tmp_path / "spooled"
    path.write_bytes(body)
    header = b"Subject: large\r\n\r\n"
    data = MailData(len(body), path=path, header=header) if in_file else MailData(len(body), body, header=header)
    async with smtp_server() as server:
        result = await client.attempt(target(server), replace(job(), data=data))
        assert result.kind is OutcomeKind.ACCEPTED
        assert server.seen.bodies == [PREFIX + body]


@pytest.mark.parametrize(
    ("keywords", "what", "status"),
    [
        (("SIZE 10",), job(), "5.3.4"),
        ((), job(body_type=BodyType.EIGHT_BIT_MIME, body=EIGHT_BIT), "5.6.3"),
        (("CHUNKING", "8BITMIME"), job(body_type=BodyType.BINARY_MIME), "5.6.1"),
        (("BINARYMIME", "8BITMIME"), job(body_type=BodyType.BINARY_MIME), "5.6.1"),
        (("REQUIRETLS",), job(requiretls=True), "5.7.10"),
        ((), job(Recipient("j\xf6rg@example.org"), smtputf8=True), "5.6.7"),
    ],
)
@pytest.mark.rfc("1870 6.2", "3030 3c", "6152 3c", "6531 3.2a", "8689 4.2.1d")
async def test_what_the_remote_does_not_take_is_not_sent(
    client: DeliveryClient, keywords: tuple[str, ...], what: Job, status: str
) -> None:
    async with smtp_server(Script(keywords=keywords)) as server:
        result = await client.attempt(target(server), what)
        assert result.kind is OutcomeKind.MESSAGE_REFUSED
        assert [reply.status if reply else "" for reply in result.replies] == [status]
        assert server.seen.said("MAIL") == []


@pytest.mark.parametrize("keywords", [("PIPELINING",), ("CHUNKING",)])
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.rfc("1870 5", "1870 6a")
async def test_doubled_dots_do_not_count_against_the_size_that_a_remote_takes(
    client: DeliveryClient, tmp_path: Path, keywords: tuple[str, ...], in_file: bool
) -> None:
    dotted = b"Subject: x\r\n\r\n" + b"..\r\n" * 50
    what = job(body=dotted)
    if in_file:
        (tmp_path / "spooled").write_bytes(dotted)
        what = replace(what, data=MailData(len(dotted), path=tmp_path / "spooled", header=b"Subject: x\r\n\r\n"))
    size = len(PREFIX + dotted) - 50
    async with smtp_server(Script(keywords=(*keywords, f"SIZE {size}"))) as server:
        assert (await client.attempt(target(server), what)).kind is OutcomeKind.ACCEPTED
    async with smtp_server(Script(keywords=(*keywords, f"SIZE {size - 1}"))) as server:
        result = await client.attempt(target(server), what)
        assert (str(result.reply), server.seen.said("MAIL")) == (
            "552 5.3.4 message is larger than the next hop takes",
            [],
        )


@pytest.mark.parametrize("said", ["SIZE", "SIZE 0", "SIZE x", "SIZE ٣", "SIZE " + "9" * 5000])
async def test_a_size_that_makes_no_sense_is_no_limit(client: DeliveryClient, said: str) -> None:
    async with smtp_server(Script(keywords=(said,))) as server:
        assert (await client.attempt(target(server), job())).kind is not OutcomeKind.MESSAGE_REFUSED


@pytest.mark.rfc("1870 5", "3461 5.2.1a", "6152 3b")
async def test_extensions_are_used_where_they_are_offered(client: DeliveryClient) -> None:
    ann = Recipient("j\xf6rg@example.org", "rfc822;x@y", Notify.SUCCESS)
    what = job(ann, body_type=BodyType.EIGHT_BIT_MIME, smtputf8=True, ret="HDRS", envid="E1")
    async with smtp_server() as server:
        await client.attempt(target(server), what)
        (mail,) = server.seen.said("MAIL")
        assert mail.split(" ")[2:] == [
            f"SIZE={len(PREFIX + BODY)}",
            "BODY=8BITMIME",
            "SMTPUTF8",
            "RET=HDRS",
            "ENVID=E1",
        ]
        assert server.seen.said("RCPT") == ["RCPT TO:<j\xf6rg@example.org> NOTIFY=SUCCESS ORCPT=rfc822;x@y"]


@pytest.mark.rfc("3461 5.2.1b")
async def test_wishes_that_nobody_stated_are_not_stated_to_the_next_hop(client: DeliveryClient) -> None:
    stated = Recipient("bob@example.org", notify=Notify.FAILURE | Notify.DELAY | Notify.STATED)
    async with smtp_server(Script(keywords=("DSN",))) as server:
        await client.attempt(target(server), job(ANN, stated))
        assert server.seen.said("MAIL") == ["MAIL FROM:<sue@example.net>"]
        assert server.seen.said("RCPT") == [
            "RCPT TO:<ann@example.org>",
            "RCPT TO:<bob@example.org> NOTIFY=FAILURE,DELAY",
        ]
    async with smtp_server(Script(keywords=())) as server:
        wishes = job(Recipient("bob@example.org", "rfc822;x@y", Notify.NEVER), ret="HDRS", envid="E1")
        await client.attempt(target(server), wishes)
        assert [*server.seen.said("MAIL"), *server.seen.said("RCPT")] == [
            "MAIL FROM:<sue@example.net>",
            "RCPT TO:<bob@example.org>",
        ]


@pytest.mark.rfc("6152 3b")
async def test_mail_marked_8bit_that_is_ascii_goes_out_as_7bit(client: DeliveryClient, tmp_path: Path) -> None:
    path = tmp_path / "spooled"
    path.write_bytes(BODY)
    plain = job(body_type=BodyType.EIGHT_BIT_MIME)
    spooled = replace(plain, data=MailData(len(BODY), path=path, header=plain.data.header))
    async with smtp_server(Script(keywords=())) as server:
        for what in (plain, spooled):
            assert (await client.attempt(target(server), what)).kind is OutcomeKind.ACCEPTED
        path.write_bytes(EIGHT_BIT)
        result = await client.attempt(target(server), replace(spooled, data=replace(spooled.data, size_bytes=20)))
        assert (result.replies[0] or Reply(250, "")).status == "5.6.3"
        assert server.seen.said("MAIL") == ["MAIL FROM:<sue@example.net>"] * 2


@pytest.mark.rfc("6531 3.2c")
async def test_an_original_recipient_beyond_ascii_is_escaped_for_a_session_without_smtputf8(
    client: DeliveryClient,
) -> None:
    ann = Recipient("ann@example.org", "utf-8;j\xf6rg@example.org")
    async with smtp_server(Script(keywords=("DSN",))) as server:
        await client.attempt(target(server), job(ann, smtputf8=True))
        assert server.seen.said("RCPT") == ["RCPT TO:<ann@example.org> ORCPT=utf-8;j\\x{F6}rg@example.org"]


@pytest.mark.rfc("6531 3.4")
async def test_an_ascii_message_marked_smtputf8_goes_out_without(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=())) as server:
        assert (await client.attempt(target(server), job(smtputf8=True))).kind is OutcomeKind.ACCEPTED


async def test_a_cancelled_attempt_leaves_no_connection_behind(client: DeliveryClient) -> None:
    async with smtp_server(Script(final=HANG)) as server:
        task = asyncio.create_task(client.attempt(target(server), job()))
        while not server.seen.bodies:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.script.final = "250 2.0.0 Ok"
        await client.attempt(target(server), job())
        assert server.seen.connections == 2


async def test_probes_open_a_session_and_close_it(client: DeliveryClient) -> None:
    async with smtp_server() as server:
        assert (await client.probe(target(server))).kind is OutcomeKind.ACCEPTED
        assert server.seen.said("NOOP") == ["NOOP"]
        server.script.greeting = "421 4.3.2 busy"
        assert (await client.probe(target(server))).kind is OutcomeKind.HOP_TEMPFAIL


# -- TLS and AUTH ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server_context(tmp_path: Path) -> ssl.SSLContext:
    certificate, key, _ = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_opportunistic_tls_takes_what_is_offered(client: DeliveryClient, server_context: ssl.SSLContext) -> None:
    async with smtp_server(Script(keywords=("STARTTLS",), context=server_context)) as server:
        result = await client.attempt(target(server, tls="opportunistic"), job())
        assert result.kind is OutcomeKind.ACCEPTED
        assert result.tls.startswith("TLSv1.3")


@pytest.mark.parametrize("answer", ["454 4.7.0 not now", "220 but nothing follows"])
async def test_broken_opportunistic_tls_falls_back_on_a_fresh_connection(client: DeliveryClient, answer: str) -> None:
    async with smtp_server(Script(keywords=("STARTTLS",), starttls=answer)) as server:
        result = await client.attempt(target(server, tls="opportunistic"), job())
        assert (result.kind, result.tls, server.seen.connections) == (OutcomeKind.ACCEPTED, "", 2)


@pytest.mark.parametrize("keywords", [("STARTTLS",), ()])
@pytest.mark.rfc("3207 4.1b", "3207 6c")
async def test_demanded_tls_is_never_left_out(
    client: DeliveryClient, server_context: ssl.SSLContext, keywords: tuple[str, ...]
) -> None:
    async with smtp_server(Script(keywords=keywords, context=server_context)) as server:
        result = await client.attempt(target(server, tls="starttls"), job())
        assert result.kind is OutcomeKind.TLS_FAILED  # not offered, or a certificate of nobody we know
        assert server.seen.said("MAIL") == []


async def test_passwords_come_from_a_file_and_a_refusal_is_the_hosts(
    client: DeliveryClient, tmp_path: Path, server_context: ssl.SSLContext
) -> None:
    secret = tmp_path / "password"
    write_new(secret, b"secret\n", mode=0o600)
    script = Script(keywords=("STARTTLS", "AUTH PLAIN"), context=server_context)
    async with smtp_server(script) as server:
        chosen = target(server, user="sue", password_file=secret, tls="encrypted")
        assert (await client.attempt(chosen, job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.said("AUTH") == ["AUTH PLAIN AHN1ZQBzZWNyZXQ="]
        client.forget(HOST)
        script.auth = "535 5.7.8 no"
        result = await client.attempt(chosen, job())
        assert (result.kind, result.reason[:5]) == (OutcomeKind.HOP_TEMPFAIL, "AUTH:")


@pytest.mark.parametrize("tls", ["none", "opportunistic"])
@pytest.mark.rfc("4954 4h")
async def test_a_password_never_goes_out_in_the_clear(client: DeliveryClient, tmp_path: Path, tls: str) -> None:
    secret = tmp_path / "password"
    write_new(secret, b"secret\n", mode=0o600)
    async with smtp_server(Script(keywords=("AUTH PLAIN",))) as server:
        result = await client.attempt(target(server, user="sue", password_file=secret, tls=tls), job())
        assert result.kind is OutcomeKind.TLS_FAILED
        assert server.seen.said("AUTH") == server.seen.said("MAIL") == []


# -- peers -------------------------------------------------------------------------------------------------------------


async def test_a_peer_is_known_by_its_certificate_and_told_token_trace_and_age() -> None:
    authority = Authority.create("test", at=datetime.now(UTC))
    us, them = build_identity(authority, "us"), build_identity(authority, "them")
    client = DeliveryClient(hostname="relay.test", identity=us, connect_timeout_s=2, attempt_timeout_s=2)
    script = Script(keywords=("XSMTPMESH", "PIPELINING"), final="250 2.0.0 Ok: queued as X; backlog default=7")
    what = replace(job(), transfer=Transfer(f"{us.node_id}/Q1/0", (us.node_id,), 3))
    async with smtp_server(script, implicit=them.server_context()) as server:
        there = target(server, tls="mesh", hop=Hop.parse(f"peer:{them.node_id}"))
        result = await client.attempt(there, what)
        assert (result.kind, result.peer_backlogs) == (OutcomeKind.ACCEPTED, {"default": 7})
        (mail,) = server.seen.said("MAIL")
        assert mail.split(" ")[2:] == [f"XTOKEN={us.node_id}/Q1/0", f"XTRACE={us.node_id}", "XAGE=3"]
        deferred = replace(what, transfer=Transfer(f"{us.node_id}/Q1/0", (), 3, 2, 600, True))
        await client.attempt(there, deferred)
        assert server.seen.said("MAIL")[-1].split(" ")[2:] == [f"XTOKEN={us.node_id}/Q1/0", "XAGE=3"]
        client.forget(there.hop)
        script.keywords = ("XSMTPMESH STATE", "PIPELINING")
        await client.attempt(there, deferred)
        assert server.seen.said("MAIL")[-1].split(" ")[3:] == ["XAGE=3", "XATTEMPTS=2", "XDUE=600", "XDELAYED"]
        other = await client.attempt(replace(there, hop=Hop.parse("peer:" + "0" * 32)), what)
        assert other.kind is OutcomeKind.TLS_FAILED
        assert them.node_id in other.reason
    await client.close()
