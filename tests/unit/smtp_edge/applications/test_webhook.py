"""What the webhook's endpoint may answer and what that means, and which URLs and secrets are taken."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.webhook import Answer, Webhook, decide, parse_retry_after, parse_url
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Quarantine
from tests.unit.smtp_edge.applications.deliveries import RECEIVED, build_delivery

MAIL = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
SECRET = b"0123456789abcdef"
NOW = 1_764_000_000.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def endpoint(handler: Handler) -> AsyncIterator[str]:
    server = web.Server(handler)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook?x=1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def webhook(url: str, tmp_path: Path, **settings: object) -> AsyncIterator[Webhook]:
    (tmp_path / "secret").write_bytes(b"whsec_" + base64.b64encode(SECRET) + b"\n")
    sink = Webhook(url, str(tmp_path / "secret"), now=lambda: NOW, **settings)  # type: ignore[arg-type]
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop()


async def test_one_post_for_each_recipient_signed_and_whole(tmp_path: Path) -> None:
    seen: list[tuple[web.Request, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        seen.append((request, await request.read()))
        return web.Response(status=202)

    async with endpoint(take) as url, webhook(url, tmp_path) as sink:
        answers = await sink.deliver(await build_delivery(MAIL, "ann@example.org", "bob@example.org"))
    assert [str(answer) for answer in answers] == ["250 2.0.0 delivered"] * 2
    assert [request.headers["Idempotency-Key"] for request, _ in seen] == [
        "node/Q1/0/ann@example.org",
        "node/Q1/0/bob@example.org",
    ]
    request, body = seen[0]
    assert (request.path_qs, request.headers["Content-Length"]) == ("/hook?x=1", str(len(body)))
    assert "Transfer-Encoding" not in request.headers
    signed = b"node/Q1/0/ann@example.org.1764000000." + body
    digest = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert request.headers["Webhook-Signature"] == f"v1,{digest}"
    boundary = request.headers["Content-Type"].removeprefix("multipart/form-data; boundary=").encode()
    assert body == (
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="envelope"\r\n'
        b"Content-Type: application/json\r\n\r\n"
        b'{"queue_id": "Q1", "sender": "sender@example.net", "recipient": "ann@example.org", '
        b'"received_at": "2026-11-25T12:00:00Z", "attempts": 0, "client": "192.0.2.1 client.test"}\r\n'
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
        b"Content-Type: message/rfc822\r\n\r\n" + RECEIVED + MAIL + b"\r\n--" + boundary + b"--\r\n"
    )


@pytest.mark.parametrize(
    ("status", "refused", "answer"),
    [
        (200, "quarantine", Reply(250, "delivered", "2.0.0")),
        (204, "bounce", Reply(250, "delivered", "2.0.0")),
        (302, "bounce", Reply(451, "the endpoint answered 302", "4.3.2")),
        (408, "bounce", Reply(451, "the endpoint answered 408", "4.3.2")),
        (425, "bounce", Reply(451, "the endpoint answered 425", "4.3.2")),
        (429, "bounce", Reply(451, "the endpoint answered 429", "4.3.2")),
        (500, "bounce", Reply(451, "the endpoint answered 500", "4.3.2")),
        (503, "bounce", Reply(451, "the endpoint answered 503", "4.3.2")),
        (400, "bounce", Reply(550, "the endpoint answered 400", "5.7.1")),
        (404, "quarantine", Quarantine("the endpoint answered 404 why")),
    ],
)
def test_what_a_status_means(status: int, refused: str, answer: Reply | Quarantine) -> None:
    assert decide(Answer(status, "why"), refused) == answer


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("", 0),
        ("7", 7),
        (" 120 ", 120),
        ("99999999999999999999", 3600),
        ("-1", 0),
        ("1.5", 0),
        ("Mon, 24 Nov 2025 16:01:00 GMT", 60),
        ("Mon, 24 Nov 2025 15:00:00 GMT", 0),
        ("soon", 0),
    ],
)
def test_when_to_come_again(text: str, wait_s: float) -> None:
    assert parse_retry_after(text, NOW) == wait_s


@given(st.text())
def test_a_wait_is_bounded_whatever_is_said(text: str) -> None:
    assert 0 <= parse_retry_after(text, NOW) <= 3600


async def test_an_endpoint_that_wants_a_pause_gets_it_and_the_others_are_not_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    async def take(request: web.Request) -> web.Response:
        asked.append(request.headers["Idempotency-Key"])
        return web.Response(status=429, headers={"Retry-After": "60"})

    async with endpoint(take) as url, webhook(url, tmp_path) as sink:
        first = await sink.deliver(await build_delivery(MAIL, "ann@example.org", "bob@example.org"))
        (second,) = await sink.deliver(await build_delivery(MAIL, "carol@example.org"))
    assert [str(answer) for answer in first] == ["451 4.3.2 the endpoint answered 429"] * 2
    assert isinstance(second, Reply)
    assert second.text.startswith("the endpoint wants to be asked again in ")
    assert asked == ["node/Q1/0/ann@example.org"]


async def test_a_refusal_of_one_recipient_says_nothing_of_the_others(tmp_path: Path) -> None:
    async def take(request: web.Request) -> web.Response:
        bad = "ann" in request.headers["Idempotency-Key"]
        return web.Response(status=422 if bad else 200, text="no \x07such ticket\nsecret")

    async with endpoint(take) as url, webhook(url, tmp_path) as sink:
        answers = await sink.deliver(await build_delivery(MAIL, "ann@example.org", "bob@example.org"))
    assert answers == [Quarantine("the endpoint answered 422 no such ticket"), Reply(250, "delivered", "2.0.0")]


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    paths: list[str] = []

    async def take(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with endpoint(take) as url, webhook(url, tmp_path) as sink:
        (answer,) = await sink.deliver(await build_delivery(MAIL))
    assert str(answer) == "451 4.3.2 the endpoint answered 307"
    assert paths == ["/hook"]


async def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def take(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    async with endpoint(take) as url, webhook(url, tmp_path) as sink:
        (answer,) = await sink.deliver(await build_delivery(MAIL))
    assert str(answer) == "250 2.0.0 delivered"


@pytest.mark.parametrize(
    "said", [b"", b"\xff\0nonsense\r\n" * 9, b"HTTP/1.1 2OO fine\r\n\r\n", b"HTTP/1.1 200 OK\r\nA"]
)
async def test_an_endpoint_that_is_mad_is_asked_later(tmp_path: Path, said: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, webhook(url, tmp_path) as sink:
        (answer,) = await sink.deliver(await build_delivery(MAIL))
    assert str(answer) == "451 4.4.1 the endpoint does not answer"


async def test_an_endpoint_that_is_down_or_silent_is_asked_later(tmp_path: Path) -> None:
    async with webhook("http://127.0.0.1:1/", tmp_path) as sink:
        (down,) = await sink.deliver(await build_delivery(MAIL))

    over = asyncio.Event()

    async def sleep(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with endpoint(sleep) as url, webhook(url, tmp_path, timeout_s=0.2) as sink:
        (silent,) = await sink.deliver(await build_delivery(MAIL))
        over.set()
    assert str(down) == str(silent) == "451 4.4.1 the endpoint does not answer"


@pytest.mark.parametrize(
    "url", ["https://tickets.example.org/mail?a=b", "http://127.0.0.2:8080/", "http://[::1]/x", "http://localhost/"]
)
def test_a_url_that_is_taken(url: str) -> None:
    assert str(parse_url(url)) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://tickets.example.org/", "http is for loopback only, and tickets.example.org is not; write https"),
        ("http://127.0.0.1.example.org/", "http is for loopback only"),
        ("http://10.0.0.1/", "http is for loopback only"),
        ("ftp://127.0.0.1/", "is no https://host/path"),
        ("/mail", "is no https://host/path"),
        ("https://user:word@example.org/", "url holds a user or a password"),
        ("https://[::1/", "is no URL"),
    ],
)
def test_a_url_that_is_not(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_url(url)


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        (b"short", {}, "has 5 bytes; it takes 16 at least"),
        (b"whsec_***", {}, "what stands behind whsec_ in .* is not base64"),
        (SECRET, {"refused": "drop"}, "refused = 'drop' is neither quarantine nor bounce"),
        (SECRET, {"timeout_s": 0}, "timeout_s is a number"),
    ],
)
def test_a_setting_that_means_nothing_is_named(
    tmp_path: Path, text: bytes, settings: dict[str, object], reason: str
) -> None:
    (tmp_path / "secret").write_bytes(text)
    with pytest.raises(ValueError, match=reason):
        Webhook("https://example.org/", str(tmp_path / "secret"), **settings)  # type: ignore[arg-type]
