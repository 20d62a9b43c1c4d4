"""ETRN: who may ask for which domains, what is flushed, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from smtp_edge.applications import etrn
from smtp_edge.applications.etrn import ETRN
from smtp_edge.envelope import Client
from smtp_edge.queue.errors import StoreError
from smtp_edge.sinks.api import Command, NodeServices

ALLOW = {
    "192.0.2.0/24": ["example.org", "*.example.net", "example.net", "some.test", "a*.some.test"],
    "2001:db8::/32": ["six.test"],
}


class Node:
    def __init__(self, count: int = 0) -> None:
        self.count, self.flushed = count, list[list[str]]()

    async def flush(self, domains: Sequence[str]) -> int:
        self.flushed.append(list(domains))
        if self.count < 0:
            raise StoreError("disk")
        return self.count


def sink(node: Node, pause_s: float = 0.0) -> ETRN:
    made = ETRN(ALLOW, pause_s)
    made.node = cast("NodeServices", node)
    return made


async def say(made: ETRN, argument: str, client: str = "192.0.2.7") -> str:
    return str(await made.command(Command("ETRN", argument, Client(client))))


@pytest.mark.rfc("1985 5b", "1985 5.1a", "1985 5.1d", "1985 5.3a", "1985 8")
@pytest.mark.parametrize(
    ("argument", "client", "reply", "flushed"),
    [
        ("example.org", "192.0.2.7", "253 2.0.0 3 pending messages for example.org started", [["example.org"]]),
        ("EXAMPLE.org", "192.0.2.7", "253 2.0.0 3 pending messages for EXAMPLE.org started", [["example.org"]]),
        ("sub.example.net", "192.0.2.7", "253", [["sub.example.net"]]),
        ("@example.net", "192.0.2.7", "253", [["example.net", ".example.net"]]),
        ("@example.org", "192.0.2.7", "459 4.7.1", []),
        ("a1.some.test", "192.0.2.7", "253", [["a1.some.test"]]),
        ("@some.test", "192.0.2.7", "459 4.7.1", []),
        ("@test", "192.0.2.7", "459 4.7.1", []),
        ("elsewhere.test", "192.0.2.7", "459 4.7.1", []),
        ("six.test", "192.0.2.7", "459 4.7.1", []),
        ("six.test", "2001:db8::1", "253", [["six.test"]]),
        ("#queue", "192.0.2.7", "459 4.5.4", []),
        ("", "192.0.2.7", "501 5.5.4", []),
        ("a b", "192.0.2.7", "501 5.5.4", []),
        ("*", "192.0.2.7", "501 5.5.4", []),
        ("%", "192.0.2.7", "501 5.5.4", []),
    ],
)
async def test_what_is_told_and_flushed(argument: str, client: str, reply: str, flushed: list[list[str]]) -> None:
    node = Node(3)
    assert (await say(sink(node), argument, client)).startswith(reply)
    assert node.flushed == flushed


@pytest.mark.rfc("1985 5.1d", "1985 5.1e")
async def test_nothing_waits_and_a_disk_that_fails() -> None:
    assert (await say(sink(Node(0)), "example.org")).startswith("251 2.0.0 no messages")
    assert (await say(sink(Node(-1)), "example.org")).startswith("458 4.3.0")


async def test_a_flush_that_failed_may_be_asked_for_again_at_once() -> None:
    node = Node(-1)
    made = sink(node, pause_s=60)
    assert (await say(made, "example.org"))[:3] == "458"
    node.count = 2
    assert (await say(made, "example.org"))[:3] == "253"


@pytest.mark.rfc("1985 5.1c")
async def test_a_long_queue_is_walked_through_behind_the_answer_until_the_sink_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Node):
        ended = ""

        async def flush(self, domains: Sequence[str]) -> int:
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                self.ended = "cancelled"
                raise
            self.ended = "whole"
            return 1

    monkeypatch.setattr(etrn, "ANSWER_S", 0.0)
    go_on, node = asyncio.Event(), Slow()
    made = sink(node)
    assert await say(made, "example.org") == "250 2.0.0 queuing for example.org started"
    go_on.set()
    await asyncio.gather(*made._working)
    assert node.ended == "whole"
    go_on.clear()
    assert (await say(made, "example.org"))[:3] == "250"
    await made.stop()
    assert node.ended == "cancelled"


@pytest.mark.rfc("1985 5.1e")
async def test_a_domain_is_flushed_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    node, now = Node(1), [100.0]
    made = sink(node, pause_s=60)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0], raising=False)
    said = []
    for at in (100.0, 130.0, 161.0):
        now[0] = at
        said.append((await say(made, "example.org"))[:3])
    monkeypatch.undo()
    assert said == ["253", "458", "253"]


@pytest.mark.parametrize(
    ("allow", "pause_s", "words"),
    [
        ({}, 0, "allow is empty"),
        ({"192.0.2.0/24": "example.org"}, 0, "wants a list"),
        ({"here": ["a.test"]}, 0, "here"),
        (ALLOW, -1, "pause_s"),
    ],
)
def test_settings_that_mean_nothing(allow: dict[str, list[str]], pause_s: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ETRN(allow, pause_s)
