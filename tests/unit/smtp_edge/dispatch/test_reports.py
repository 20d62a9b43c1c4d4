"""Sinks on `outcome` and `link`: what they are told, in order, and that a slow one delays nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from smtp_edge.sinks import reports as reports_module
from smtp_edge.sinks.api import DeliveryOutcome, LinkOutcome, Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import parse_rule
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, message, refused, until


class Listener(Sink):
    def __init__(self) -> None:
        self.heard: list[DeliveryOutcome | LinkOutcome] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def outcome(self, outcome: DeliveryOutcome) -> None:
        await self.gate.wait()
        self.heard.append(outcome)
        raise ZeroDivisionError

    async def link(self, outcome: LinkOutcome) -> None:
        self.heard.append(outcome)


def bench_of(directory: Path, listener: Listener, rule: str = "") -> Bench:
    route = Ordered("host:a")
    bench = Bench(directory, route)
    bound = Binding("ear", listener, parse_rule(rule, events=["outcome"]))
    bench.dispatcher.sinks = SinkChain([bound, Binding("route", route)])
    return bench


async def test_each_end_of_an_attempt_is_told_with_who_it_is_about(tmp_path: Path) -> None:
    listener = Listener()
    async with bench_of(tmp_path, listener) as bench:
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: len(listener.heard) == 1)
        bench.client.answer = refused
        await bench.acceptor.accept(message("bob@example.org"))
        await bench.dispatcher.stop(1)
    first = listener.heard[0]
    assert isinstance(first, DeliveryOutcome)
    assert (first.state, first.hop, first.reply) == ("relayed", "host:a", "250 2.0.0 ok")
    assert [item.address for item in first.recipients] == ["ann@example.org"]
    assert first.key.endswith(first.queue_id)


async def test_rules_choose_what_is_told(tmp_path: Path) -> None:
    listener = Listener()
    async with bench_of(tmp_path, listener, "rcpt to=bob@*") as bench:
        await bench.acceptor.accept(message("ann@example.org"))
        await bench.acceptor.accept(message("bob@example.org"))
        await until(lambda: bench.counters.relayed == 2 and len(listener.heard) == 1)
        assert [item.address for item in listener.heard[0].recipients] == ["bob@example.org"]  # type: ignore[union-attr]


async def test_a_listener_that_stands_still_delays_no_mail_and_loses_what_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports_module, "WAITING_MAX", 2)
    listener = Listener()
    listener.gate.clear()
    async with bench_of(tmp_path, listener) as bench:
        for _ in range(5):
            await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: bench.counters.relayed == 5)
        assert bench.dispatcher.reports.dropped == 2
        listener.gate.set()
        await until(lambda: len(listener.heard) == 3)


async def test_links_are_told_too(tmp_path: Path) -> None:
    listener = Listener()
    async with bench_of(tmp_path, listener) as bench:
        assert bench.dispatcher.reports.wanted("link")
        bench.dispatcher.reports.tell(LinkOutcome("host:a", "up", "down", "refused"))
        await until(lambda: listener.heard == [LinkOutcome("host:a", "up", "down", "refused")])
