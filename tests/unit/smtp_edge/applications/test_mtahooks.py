"""MTA hooks, asked over real HTTP: what a hook is told, what its answers come to, and its faults."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from smtp_edge.applications import mtahooks
from smtp_edge.applications.mtahooks import MTAHooks
from smtp_edge.envelope import Client
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import NodeServices
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import Binding, SinkError
from smtp_edge.sinks.testing import Outcome, ask

MAIL = b"Subject: one\r\nX-Same: a\r\nX-Same: b\r\n\r\n.dot\r\nbody \xff\xfe\r\n"
ACCEPT: dict[str, Any] = {"action": "accept"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Node:
    hostname = "relay.test"


class Hook:
    """A service that answers as told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: object = ACCEPT
        self.handler: Handler | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers))
        if self.handler is not None:
            return await self.handler(request)
        return web.json_response(self.answer)

    async def judge(self, mail: bytes = MAIL, *, on_failure: str = "tempfail", **settings: Any) -> Outcome:
        sink = MTAHooks(f"http://127.0.0.1:{self.port}/hook", **settings)
        sink.node = cast("NodeServices", Node())
        bindings = [Binding("hook", sink, timeout_s=0.5, on_failure=on_failure)]
        who = Client("192.0.2.1", 4711, helo="client.test", user="sue", listener="smtp")
        return await ask(bindings, mail, recipients=("ann@a.test", "bob@b.test"), client=who)


@asynccontextmanager
async def serving(hook: Hook) -> AsyncIterator[Hook]:
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_post("/hook", hook.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hook.port = runner.addresses[0][1]
    yield hook
    await runner.cleanup()


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with serving(Hook()) as opened:
        yield opened


async def test_a_hook_is_told_all_of_a_message_in_its_octets(hook: Hook, tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("Bearer secret\n")
    outcome = await hook.judge(auth_file=str(tmp_path / "auth"))
    assert (outcome.reply, outcome.content) == ("", MAIL)
    (asked,) = hook.asked
    assert asked["context"] == {
        "stage": "DATA",
        "client": {"ip": "192.0.2.1", "port": 4711, "ptr": None, "helo": "client.test"},
        "sasl": {"login": "sue"},
        "server": {"name": "relay.test"},
        "protocol": {"version": 1},
    }
    assert asked["envelope"] == {
        "from": {"address": "sender@example.net"},
        "to": [{"address": "ann@a.test"}, {"address": "bob@b.test"}],
    }
    assert base64.b64decode(asked["message"]["raw"]) == MAIL
    assert asked["message"]["contents"] == ".dot\r\nbody ÿþ\r\n"
    assert asked["message"]["headers"] == [["Subject", "one"], ["X-Same", "a"], ["X-Same", "b"]]
    assert hook.headers[0]["Authorization"] == "Bearer secret"


async def test_a_large_message_is_told_in_pieces_and_whole(hook: Hook) -> None:
    mail = b"Subject: large\r\n\r\n" + bytes(range(33, 127)) * 40_000 + b"\r\n"
    await hook.judge(mail)
    assert base64.b64decode(hook.asked[0]["message"]["raw"]) == mail
    await hook.judge(mail, contents=False)
    assert set(hook.asked[1]["message"]) == {"headers", "serverHeaders", "size"}


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (ACCEPT, ""),
        ({"action": "discard"}, "250 2.0.0 Ok"),
        ({"action": "reject"}, "550 5.7.1 refused by a hook"),
        ({"action": "reject", "response": {"status": 554, "enhancedStatus": "5.7.9", "message": "no"}}, "554 5.7.9 no"),
        ({"action": "reject", "response": {"status": 451, "message": "later\r\n250 Ok"}}, "451 4.7.1 later??250 Ok"),
        ({"action": "accept", "response": {"disconnect": True, "message": "bye"}}, "421 4.7.0 bye"),
        ({"action": "reject", "response": {"status": 250}}, "451 4.3.0 local error in processing"),
        ({"action": "reject", "response": {"enhancedStatus": "nonsense"}}, "451 4.3.0 local error in processing"),
    ],
)
async def test_what_an_answer_comes_to(hook: Hook, answer: object, reply: str) -> None:
    hook.answer = answer
    assert (await hook.judge()).reply == reply


async def test_quarantine_holds_the_message_with_the_hooks_words(hook: Hook) -> None:
    hook.answer = {"action": "quarantine", "response": {"message": "odd"}}
    assert (await hook.judge()).held == (("ann@a.test", "odd"), ("bob@b.test", "odd"))


async def test_modifications_are_made_in_their_order(hook: Hook) -> None:
    hook.answer = {
        "action": "accept",
        "modifications": [
            {"type": "addHeader", "name": "X-Last", "value": "l\r\n"},
            {"type": "insertHeader", "index": 1, "name": "X-Second", "value": "s"},
            {"type": "changeHeader", "index": 2, "name": "x-same", "value": "B"},
            {"type": "deleteHeader", "index": 1, "name": "X-Same"},
            {"type": "deleteHeader", "index": 7, "name": "X-Same"},
            {"type": "deleteRecipient", "value": "bob@B.test"},
            {"type": "addRecipient", "value": "eve@e.test"},
            {"type": "changeFrom", "value": "", "parameters": {}},
        ],
    }
    outcome = await hook.judge()
    assert outcome.content.partition(b"\r\n\r\n")[0] == b"Subject: one\r\nX-Second: s\r\nx-same: B\r\nX-Last: l"
    assert (outcome.sender, outcome.recipients) == ("", ("ann@a.test", "eve@e.test"))


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"action": "shrug"},
        {"action": "accept", "response": 5},
        {"action": "accept", "modifications": 5},
        {"action": "accept", "modifications": [5]},
        {"action": "accept", "modifications": [{}] * 1001},
        *(
            {"action": "accept", "modifications": [item]}
            for item in (
                {"type": "replaceContents", "value": "x"},
                {"type": "addHeader", "name": "X Y", "value": "z"},
                {"type": "addHeader", "name": "X", "value": "a\r\nB: c"},
                {"type": "addHeader", "name": 1, "value": "z"},
                {"type": "insertHeader", "index": -1, "name": "X", "value": "z"},
                {"type": "addRecipient", "value": "nobody"},
                {"type": "changeFrom"},
            )
        ),
    ],
    ids=str,
)
async def test_an_answer_that_makes_no_sense_is_a_failure_and_edits_nothing(hook: Hook, answer: object) -> None:
    hook.answer = answer
    assert (await hook.judge()).reply.startswith("451 4.3.0")
    accepted = await hook.judge(on_failure="accept")
    assert (accepted.reply, accepted.content) == ("", MAIL)


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def babble(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\x00 not JSON")


async def flood(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * (mtahooks.ANSWER_BYTES_MAX + 1))


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/hook")


async def fail(request: web.Request) -> web.StreamResponse:
    raise web.HTTPInternalServerError


@pytest.mark.parametrize("handler", [hang, babble, flood, redirect, fail])
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
async def test_a_service_that_fails_means_what_the_binding_says(hook: Hook, handler: Handler, policy: str) -> None:
    hook.handler = handler
    outcome = await hook.judge(on_failure=policy)
    assert outcome.reply.startswith("451") is (policy == "tempfail")
    assert bool(outcome.held) is (policy == "quarantine")
    assert outcome.content == (b"" if policy == "tempfail" else MAIL)


async def test_a_service_that_is_down_is_a_failure() -> None:
    async with serving(Hook()) as gone:
        pass
    assert (await gone.judge()).reply.startswith("451")


async def test_each_stage_that_is_asked_for_is_asked_and_no_other(hook: Hook) -> None:
    await hook.judge(stages=["connect", "ehlo", "mail", "rcpt"])
    assert [asked["context"]["stage"] for asked in hook.asked] == ["CONNECT", "EHLO", "MAIL", "RCPT", "RCPT"]
    assert [len(asked.get("envelope", {}).get("to", [])) for asked in hook.asked] == [0, 0, 0, 1, 2]


def test_a_rule_may_use_what_the_stages_know() -> None:
    def load(stages: list[str]) -> list[Binding]:
        settings = {"url": "https://filter.test/", "stages": stages}
        section = {"use": "mtahooks", "rule": "rcpt to=*@a.test", "with": settings}
        return load_bindings([SinkSettings.model_validate(section)])

    assert load(["rcpt", "data"])[0].handles("data")
    assert not load(["rcpt"])[0].handles("data")
    with pytest.raises(SinkError, match="means nothing for the event 'helo'"):
        load(["ehlo", "data"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "http://filter.example.org/"}, "http is for loopback only"),
        ({"url": "ftp://localhost/"}, "is no https://host/path"),
        ({"url": "https://a:b@localhost/"}, "write them into auth_file"),
        ({"url": "https://localhost/", "stages": ["dinner"]}, "stages is a list of: connect"),
        ({"url": "https://localhost/", "stages": "data"}, "stages is a list of: connect"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MTAHooks(**settings)


def test_an_auth_file_that_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("\n")
    with pytest.raises(ValueError, match="one line of ASCII"):
        MTAHooks("https://localhost/", auth_file=str(tmp_path / "auth"))
