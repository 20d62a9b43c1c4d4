"""The routes change while mail waits: every delivery goes where it belongs now, none is lost, none goes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from router.decision import OutcomeKind
from router.policy import RouteRule, RouteTable
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.dispatch.dispatcher import DispatcherLimits
from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import Claim, DeliveryState, NewEntry, Settlement, Stored
from smtp_edge.queue.store import StoreError
from smtp_edge.reply import Reply
from smtp_edge.rerouting import FILE, Rerouter
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable
from smtp_edge.sorting import Sorter, split_token
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, accepted, message, until
from tests.unit.smtp_edge.queue.builders import AT, build_end, build_new

BEFORE = RouteTable([RouteRule("default", ("example.org", "o.test"), ("h",))])
AFTER = RouteTable([RouteRule("org", ("example.org",), ("h",)), RouteRule("other", ("o.test",), ("h",))])


class ByClass(Sink):
    """Only these classes have a way."""

    def __init__(self, *open_classes: str) -> None:
        self.open = set(open_classes)

    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        return Route((NextHop("host:a"),)) if delivery.class_id in self.open else Unreachable("no exit")


class Routes:
    """A table that can be exchanged."""

    def __init__(self, bench: Bench, path: Path, *, doubt_s: float = 0.0) -> None:
        self.bench, self.table = bench, BEFORE
        self.rerouter = Rerouter(
            bench.store,
            bench.dispatcher,
            sorter=lambda: Sorter(self.table, "relay.test"),
            path=path / FILE,
            doubt_s=lambda: doubt_s,
            now=bench.now,
        )
        bench.on_late = self.rerouter.begin
        self.set(BEFORE)

    def set(self, table: RouteTable) -> None:
        self.table = table
        self.bench.acceptor.configure(table, hostname="relay.test", settings=self.bench.settings)

    def change(self) -> None:
        self.set(AFTER)
        self.rerouter.begin()

    async def done(self) -> None:
        await until(lambda: not self.rerouter.busy)


@asynccontextmanager
async def opened(folder: Path, sink: Sink, *, doubt_s: float = 0.0) -> AsyncIterator[tuple[Bench, Routes]]:
    async with Bench(folder, sink) as bench:
        routes = Routes(bench, folder, doubt_s=doubt_s)
        running = asyncio.create_task(routes.rerouter.run())
        try:
            yield bench, routes
        finally:
            running.cancel()


def sent_to(bench: Bench) -> list[str]:
    return sorted(recipient.address for _, job in bench.client.attempts for recipient in job.envelope.recipients)


async def test_mail_that_waits_in_memory_is_parted_and_delivered_once(tmp_path: Path) -> None:
    async with opened(tmp_path, ByClass("org", "other")) as (bench, routes):
        await bench.acceptor.accept(message("ann@example.org", "bob@o.test", "cid@example.org"))
        await until(lambda: bench.dispatcher.active_count == 1)
        routes.change()
        await until(lambda: bench.counters.relayed == 2)
        assert sent_to(bench) == ["ann@example.org", "bob@o.test", "cid@example.org"]
        await routes.done()
        assert bench.store.entries_count == 0


async def test_mail_on_disk_follows_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtp_edge.rerouting.PAGE_COUNT", 2)
    async with opened(tmp_path, ByClass("org", "other")) as (bench, routes):
        for number in range(5):
            new = build_new("default", addresses=(f"{number}@example.org",))
            claims = (await bench.store.put(new)).claims
            await bench.store.settle([_defer(claims[0])])
        routes.change()
        await until(lambda: bench.counters.relayed == 5)
        assert sent_to(bench) == [f"{number}@example.org" for number in range(5)]


async def test_what_is_under_way_ends_by_itself_and_follows_if_it_failed(tmp_path: Path) -> None:
    sink = ByClass("default")
    async with opened(tmp_path, sink) as (bench, routes):
        bench.client.gate = asyncio.Event()
        bench.client.answer = lambda hop, job: AttemptResult(OutcomeKind.HOP_TEMPFAIL, reason="busy")
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: len(bench.client.attempts) == 1)
        sink.open = {"org"}
        routes.change()
        await asyncio.sleep(0.01)
        assert routes.rerouter.busy
        bench.client.answer = accepted
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 1)
        await routes.done()


async def test_what_is_being_stored_while_the_routes_change_follows_them(tmp_path: Path) -> None:
    async with opened(tmp_path, ByClass("org")) as (bench, routes):
        committed, put = asyncio.Event(), bench.store.put

        async def put_slowly(new: NewEntry, **words: Any) -> Stored:
            await committed.wait()
            return await put(new, **words)

        bench.store.put = put_slowly  # type: ignore[method-assign]
        accepting = asyncio.create_task(bench.acceptor.accept(message("ann@example.org")))
        await asyncio.sleep(0)
        routes.change()
        await routes.done()
        committed.set()
        assert (await accepting).code == 250
        await until(lambda: bench.counters.relayed == 1)
        assert sent_to(bench) == ["ann@example.org"]


async def test_a_report_that_is_being_stored_while_the_routes_change_follows_them(tmp_path: Path) -> None:
    async with opened(tmp_path, ByClass("default", "new")) as (bench, routes):
        committed, settle = asyncio.Event(), bench.store.settle

        async def settle_slowly(settlements: Sequence[Settlement]) -> None:
            if any(settlement.reports for settlement in settlements):
                await committed.wait()
            await settle(settlements)

        bench.store.settle = settle_slowly  # type: ignore[method-assign]
        answers = [AttemptResult(OutcomeKind.ACCEPTED, (Reply(550, "no such user", "5.1.1"),))]
        bench.client.answer = lambda hop, job: answers.pop() if answers else accepted(hop, job)
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: len(bench.client.attempts) == 1)
        routes.set(RouteTable([RouteRule("new", ("*",), ("h",))]))
        bench.dispatcher.configure(replace(bench.reporting), DispatcherLimits(100, 30, 10))
        committed.set()
        await until(lambda: bench.counters.relayed == 1)
        assert sent_to(bench) == ["ann@example.org", "sue@example.net"]


async def test_the_next_attempt_after_a_failure_is_of_the_new_class(tmp_path: Path) -> None:
    sink = ByClass("default")
    async with opened(tmp_path, sink) as (bench, routes):
        bench.client.gate = asyncio.Event()
        answers = [AttemptResult(OutcomeKind.HOP_TEMPFAIL, reason="busy")]
        bench.client.answer = lambda hop, job: answers.pop() if answers else accepted(hop, job)
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: len(bench.client.attempts) == 1)
        sink.open = {"org"}
        routes.change()
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 1)
        history = await bench.store.history(bench.client.attempts[0][1].queue_id)
        assert history is not None
        assert [note.event for note in history.notes] == ["received", "attempt", "rerouted", "relayed"]


async def test_what_no_route_takes_any_more_waits_and_goes_when_one_does(tmp_path: Path) -> None:
    async with opened(tmp_path, ByClass("other", "org")) as (bench, routes):
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: bench.dispatcher.active_count == 1)
        routes.set(RouteTable([RouteRule("other", ("o.test",), ("h",))]))
        routes.rerouter.begin()
        await until(lambda: bench.store.backlog_counts() == {"unroutable:example.org": 1})
        routes.change()
        await until(lambda: bench.counters.relayed == 1)


async def test_a_disk_that_refuses_is_asked_again_and_nothing_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtp_edge.rerouting.ROUND_S", 0.01)
    async with opened(tmp_path, ByClass("org")) as (bench, routes):
        await bench.acceptor.accept(message("ann@example.org"))
        await until(lambda: bench.dispatcher.active_count == 1)
        regroup, failures = bench.store.regroup, [StoreError("no"), StoreError("no")]

        async def refusing(items: object) -> int:
            if failures:
                raise failures.pop()
            return await regroup(items)  # type: ignore[arg-type]

        monkeypatch.setattr(bench.store, "regroup", refusing)
        routes.change()
        await until(lambda: bench.counters.relayed == 1)


async def test_what_a_peer_may_have_is_parted_only_after_its_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtp_edge.rerouting.ROUND_S", 0.01)
    async with opened(tmp_path, ByClass(), doubt_s=0.2) as (bench, routes):
        new = build_new("default", addresses=("ann@example.org", "bob@o.test"))
        (claim,) = (await bench.store.put(new)).claims
        await bench.store.settle([replace(_defer(claim), in_doubt_hop="peer:" + "b" * 32)])
        routes.change()
        await asyncio.sleep(0.05)
        assert bench.store.backlog_counts() == {"default": 1}
        await until(lambda: bench.store.backlog_counts() == {"org": 1, "other": 1})
        await routes.done()


async def test_a_start_with_other_routes_looks_through_the_queue(tmp_path: Path) -> None:
    async with opened(tmp_path, Ordered()) as (bench, routes):
        await routes.rerouter.begin_if_changed()
        assert (tmp_path / FILE).read_text() == BEFORE.digest()
        await bench.acceptor.accept(message("ann@example.org"))
    async with opened(tmp_path, ByClass("org")) as (bench, routes):
        await routes.rerouter.begin_if_changed()
        assert not routes.rerouter.busy
        routes.set(AFTER)
        await routes.rerouter.begin_if_changed()
        assert routes.rerouter.busy
        await until(lambda: bench.counters.relayed == 1)
        await routes.done()
        assert (tmp_path / FILE).read_text() == AFTER.digest()


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_a_delivery_that_is_where_it_belongs_is_left_alone() -> None:
    assert Sorter(BEFORE, "relay.test").plan(_claim("default", "ann@example.org", "bob@o.test")) is None


def test_a_whole_delivery_keeps_its_token_and_parts_get_their_own() -> None:
    sorter = Sorter(AFTER, "relay.test")
    whole = sorter.plan(_claim("default", "ann@example.org"))
    assert whole is not None
    assert [(group.class_id, group.transfer_token) for group in whole.groups] == [("org", "n/q/0")]
    parted = sorter.plan(_claim("default", "ann@example.org", "bob@o.test"))
    assert parted is not None
    assert [(group.class_id, group.transfer_token) for group in parted.groups] == [
        ("org", split_token("n/q/0", [Recipient("ann@example.org")])),
        ("other", split_token("n/q/0", [Recipient("bob@o.test")])),
    ]


def _claim(class_id: str, *addresses: str) -> Claim:
    new = build_new(class_id, addresses=addresses, received_at=AT)
    return Claim(new.entry, new.deliveries[0].but(transfer_token="n/q/0"), 0)


def _defer(claim: Claim) -> Settlement:
    later = datetime.now(UTC) + timedelta(hours=1)
    return build_end(claim, DeliveryState.DEFERRED, next_attempt_at=later, hop="host:a", reply="451 later")
