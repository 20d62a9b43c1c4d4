"""A relay that drains gives away what is not due: what travels along, what stays as it was, what is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from router.decision import OutcomeKind
from smtp_edge import handover as handover_module
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.handover import HandOver
from smtp_edge.queue.entry import Delivery, DeliveryState
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import RouteRequest, Sink, Unreachable
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, accepted, message, refused, until
from tests.unit.smtp_edge.queue.builders import build_new

PEER, OTHER, EXIT = "peer:" + "b" * 32, "peer:" + "c" * 32, "host:a"
DUE = timedelta(minutes=10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes follow each other at once."""
    for name in ("PAUSE_FIRST_S", "PAUSE_MAX_S", "ROOM_S"):
        monkeypatch.setattr(handover_module, name, 0.005)


async def defer(bench: Bench, class_id: str = "default", due: timedelta = DUE) -> Delivery:
    """Mail that was tried twice and greylisted."""
    now_at = datetime.now(UTC)
    new = build_new(class_id, received_at=now_at - timedelta(minutes=5))
    delivery = new.deliveries[0].but(
        state=DeliveryState.DEFERRED,
        attempts=2,
        next_attempt_at=now_at + due,
        last_hop=EXIT,
        last_reply="451 4.7.1 greylisted",
        delay_notified=True,
    )
    await bench.store.put(replace(new, deliveries=(delivery,)), claim=False)
    return (await deliveries(bench))[-1]


async def deliveries(bench: Bench) -> list[Delivery]:
    return [claim.delivery for claim in await bench.store.list()]


@asynccontextmanager
async def draining(bench: Bench, *classes: str) -> AsyncIterator[HandOver]:
    """While mail of these classes may leave."""
    handover = HandOver(bench.store, bench.dispatcher, may_leave=lambda class_id: class_id in (classes or ("default",)))
    task = asyncio.create_task(handover.run())
    handover.begin()
    try:
        yield handover
    finally:
        task.cancel()


async def test_mail_that_is_not_due_goes_to_a_peer_with_its_time_and_count(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered(EXIT, PEER)) as bench:
        await defer(bench)
        async with draining(bench):
            await until(lambda: bench.counters.relayed == 1)
        ((hop, job),) = bench.client.attempts
        assert hop == PEER
        assert job.transfer is not None
        assert (job.transfer.attempts, job.transfer.delay_notified) == (2, True)
        assert 590 <= job.transfer.due_s <= 600
        assert job.transfer.age_s >= 300
        assert bench.store.backlog_counts() == {}


async def test_a_sink_is_told_that_only_a_relay_may_take_it(tmp_path: Path) -> None:
    sink = Ordered(PEER)
    async with Bench(tmp_path, sink) as bench:
        await defer(bench)
        await bench.acceptor.accept(message())
        async with draining(bench):
            await until(lambda: bench.counters.relayed == 2)
        assert sorted(request.hand_over for request in sink.requests) == [False, True]


async def test_mail_that_is_due_still_leaves_by_exits(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered(EXIT)) as bench:
        before = await defer(bench)
        async with draining(bench):
            await bench.acceptor.accept(message())
            await until(lambda: bench.counters.relayed == 1)
            await until(lambda: bench.dispatcher.early_room() < 50)
        assert [hop for hop, _ in bench.client.attempts] == [EXIT]
        bench.dispatcher.return_early()
        await until(lambda: bench.dispatcher.active_count == 0)
        assert await deliveries(bench) == [before]


async def test_early_mail_without_a_slot_does_not_stand_before_mail_that_is_due(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered(EXIT)) as bench:
        for _ in range(20):
            await defer(bench)
        async with draining(bench):
            await until(lambda: bench.dispatcher.early_room() == 30)
            await bench.acceptor.accept(message())
            await until(lambda: bench.counters.relayed == 1)


@pytest.mark.parametrize("end", ["refused", "tempfail", "permanent"])
async def test_a_hand_over_that_fails_leaves_time_count_and_reply_as_they_were(tmp_path: Path, end: str) -> None:
    replies = {"tempfail": Reply(451, "full", "4.2.2"), "permanent": Reply(550, "no", "5.7.1")}

    def answer(hop: str, job: Job) -> AttemptResult:
        if end == "refused":
            return refused(hop, job)
        return AttemptResult(OutcomeKind.MESSAGE_REFUSED, (replies[end],), replies[end], str(replies[end]))

    async with Bench(tmp_path, Ordered(PEER)) as bench:
        bench.client.answer = answer
        before = await defer(bench)
        async with draining(bench) as handover:
            await until(lambda: len(bench.client.attempts) >= 1)
            handover.end()
            await until(lambda: bench.dispatcher.active_count == 0)
        assert await deliveries(bench) == [before]
        history = await bench.store.history(before.queue_id)
        assert history is not None
        assert {note.hop for note in history.notes if note.event == "attempt"} == {PEER}


async def test_a_lost_reply_is_asked_of_the_same_peer_before_the_time_has_come(tmp_path: Path) -> None:
    doubt = AttemptResult(OutcomeKind.IN_DOUBT, reason="connection lost after the final dot")

    def first_in_doubt(hop: str, job: Job) -> AttemptResult:
        return doubt if len(bench.client.attempts) == 1 else accepted(hop, job)

    sink = Ordered(PEER, OTHER)
    async with Bench(tmp_path, sink) as bench:
        bench.client.answer = first_in_doubt
        before = await defer(bench)
        async with draining(bench):
            await until(lambda: len(bench.client.attempts) == 1)
            sink.hops = [OTHER, PEER]
            await until(lambda: bench.counters.relayed == 1)
        (first, one), (second, other) = bench.client.attempts
        assert (first, second) == (PEER, PEER)
        assert one.transfer is not None
        assert other.transfer is not None
        assert one.transfer.token == other.transfer.token == before.transfer_token
        assert other.transfer.due_s > 0


async def test_a_doubt_ends_in_its_time_however_often_the_mail_goes_back_to_disk(tmp_path: Path) -> None:
    sink = Ordered()
    async with Bench(tmp_path, sink) as bench:
        now_at = datetime.now(UTC)
        new = build_new(received_at=now_at)
        doubtful = new.deliveries[0].but(
            state=DeliveryState.DEFERRED, next_attempt_at=now_at + DUE, in_doubt_hop=PEER, attempts=1
        )
        await bench.store.put(replace(new, deliveries=(doubtful,)), claim=False)
        async with draining(bench):
            await until(lambda: bench.dispatcher.active_count == 1)
            ends, (before,) = dict(bench.dispatcher._places._doubts), bench.dispatcher._places
            bench.dispatcher.return_early()
            await until(lambda: before not in bench.dispatcher._places and bench.dispatcher.active_count == 1)
            assert bench.dispatcher._places._doubts == ends
            sink.hops = [PEER]
            bench.dispatcher.ask_again(news=True)
            await until(lambda: bench.counters.relayed == 1)
        assert bench.dispatcher._places._doubts == {}


async def test_a_class_that_no_peer_takes_stays_on_disk(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered(PEER)) as bench:
        kept = await defer(bench, "other")
        await defer(bench)
        async with draining(bench, "default"):
            await until(lambda: bench.counters.relayed == 1)
        commits = bench.store.commits_count
        assert await deliveries(bench) == [kept]
        async with draining(bench, "default"):
            await asyncio.sleep(0.05)  # passes with nothing to do write nothing
        assert bench.store.commits_count == commits


async def test_what_is_held_and_what_is_for_good_waits_for_its_own_time(tmp_path: Path) -> None:
    class Nowhere(Sink):
        async def route(self, delivery: RouteRequest) -> Unreachable:
            return Unreachable("no such place", for_good=True)

    async with Bench(tmp_path, Nowhere()) as bench:
        before = await defer(bench)
        asked = bench.store.commits_count
        async with draining(bench):
            await until(lambda: bench.store.commits_count >= asked + 2)
        bench.dispatcher.return_early()
        await until(lambda: bench.dispatcher.active_count == 0)
        assert await deliveries(bench) == [before]
        assert bench.counters.failed == 0


async def test_after_the_drain_nothing_that_is_not_due_is_left_in_memory(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        before = [await defer(bench) for _ in range(5)]
        async with draining(bench) as handover:
            await until(lambda: bench.dispatcher.active_count == 5)
            handover.end()
            await until(lambda: bench.dispatcher.active_count == 0)
            await asyncio.sleep(0.03)  # no further pass begins
        assert await deliveries(bench) == before


async def test_early_mail_takes_half_of_the_memory_at_most(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered(), active_max=8) as bench:
        for _ in range(7):
            await defer(bench)
        async with draining(bench):
            await until(lambda: bench.dispatcher.active_count == 4)
            await asyncio.sleep(0.03)
            assert bench.dispatcher.active_count == 4


async def test_a_kill_in_the_middle_loses_no_time_and_leaves_a_doubt(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Ordered(PEER))
    bench.client.gate = asyncio.Event()
    async with bench:
        before = await defer(bench)
        async with draining(bench):
            await until(lambda: len(bench.client.attempts) == 1)
        bench.dispatcher.abandon()
    again = Bench(tmp_path, Ordered(EXIT))
    async with again:
        assert await deliveries(again) == [before.but(in_doubt_hop=PEER)]
        assert again.client.attempts == []
