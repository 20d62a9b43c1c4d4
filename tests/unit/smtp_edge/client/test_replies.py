"""What a remote's reply means: its code decides. And what is said to a remote that offers little, or at the end."""

from __future__ import annotations

import asyncio

import pytest

from router.decision import OutcomeKind
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.replies import build_reply
from smtp_edge.envelope import Notify, Recipient
from smtp_edge.reply import Reply
from tests.unit.smtp_edge.client.servers import HANG, Script, smtp_server
from tests.unit.smtp_edge.client.test_delivery import codes, job, target

ACCEPTED, REFUSED = OutcomeKind.ACCEPTED, OutcomeKind.MESSAGE_REFUSED


@pytest.fixture
def client() -> DeliveryClient:
    return DeliveryClient(hostname="relay.test", identity=None, connect_timeout_s=5, attempt_timeout_s=5)


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("250", ACCEPTED, 250),
        ("250 rejected, this failed", ACCEPTED, 250),
        ("259 2.99.999 never heard of", ACCEPTED, 259),
        ("250-2.0.0 taken\r\n250-2.0.0 and\r\n250 2.0.0 queued", ACCEPTED, 250),
        ("250-554 5.7.1 no\r\n250 ok", ACCEPTED, 250),
        ("250 5.7.1 no", ACCEPTED, 250),
        ("554 2.0.0 accepted", REFUSED, 554),
        ("554-250 ok\r\n554 250 ok", REFUSED, 554),
        ("599 ok", REFUSED, 599),
        ("559", REFUSED, 559),
        ("459 4.7.99 ok", REFUSED, 459),
    ],
)
@pytest.mark.rfc("3463 2b", "5321 4.2b", "5321 4.2c")
async def test_replies_are_judged_by_their_code_alone(
    client: DeliveryClient, said: str, kind: OutcomeKind, code: int
) -> None:
    async with smtp_server(Script(final=said)) as server:
        result = await client.attempt(target(server), job())
        assert (result.kind, codes(result)) == (kind, [code])
    await client.close()


@pytest.mark.parametrize(
    ("line", "status"),
    [("5.1.1 who", ""), ("4.2.2 full", ""), ("2.1.5 ok", "2.1.5"), ("2.1.5ok", ""), ("2.1 ok", ""), ("", "")],
)
@pytest.mark.rfc("2034 4c")
def test_a_status_of_another_class_is_not_believed(line: str, status: str) -> None:
    reply = build_reply([(250, line)])
    assert reply.status == status
    assert f"{reply.status} {reply.text}".strip() == line


@pytest.mark.rfc("2034 4b")
def test_a_reply_of_ours_is_one_line_with_one_status() -> None:
    assert str(Reply(550, "no such user\nsee our pages", "5.1.1")) == "550 5.1.1 no such user see our pages"


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",), ("CHUNKING",)])
@pytest.mark.rfc("3461 5.2.2b")
async def test_to_a_host_without_dsn_nothing_of_it_is_said(client: DeliveryClient, keywords: tuple[str, ...]) -> None:
    ann = Recipient("ann@example.org", "rfc822;x@y", Notify.SUCCESS | Notify.STATED)
    async with smtp_server(Script(keywords=keywords)) as server:
        result = await client.attempt(target(server), job(ann, ret="HDRS", envid="E1"))
        assert result.kind is ACCEPTED
        assert server.seen.said("MAIL") == ["MAIL FROM:<sue@example.net>"]
        assert server.seen.said("RCPT") == ["RCPT TO:<ann@example.org>"]
    await client.close()


@pytest.mark.rfc("5321 3.8b")
async def test_a_connection_that_was_used_ends_with_quit(client: DeliveryClient) -> None:
    async with smtp_server(Script(quit=HANG)) as server:
        await client.attempt(target(server), job())
        assert server.seen.said("QUIT") == []
        await client.close()
        async with asyncio.timeout(5):
            while not server.seen.said("QUIT"):  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.mark.rfc("2920 3.1d")
async def test_a_go_ahead_for_nobody_is_answered_by_a_lone_dot(client: DeliveryClient) -> None:
    script = Script(rcpt=lambda line: "550 5.1.1 who", data="354 go on", final="554 5.5.1 no valid recipients")
    async with smtp_server(script) as server:
        result = await client.attempt(target(server), job())
        assert (result.kind, codes(result)) == (REFUSED, [550])
        assert server.seen.bodies == [b""]
    await client.close()
