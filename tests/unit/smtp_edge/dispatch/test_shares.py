"""One class that stands still does not stop the others, and what waits in memory says why."""

from __future__ import annotations

import asyncio
from pathlib import Path

from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, accepted, message, refused, until
from tests.unit.smtp_edge.queue.builders import build_new


class ByClass(Sink):
    """One hop for each class; that of `default` hangs or is not there."""

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        if delivery.class_id == "default":
            return Unreachable("hold: no path")
        return Route((NextHop(f"host:{delivery.class_id}"),))


async def test_a_class_without_a_way_leaves_room_for_the_fresh_mail_of_others(tmp_path: Path) -> None:
    async with Bench(tmp_path, ByClass(), active_max=10) as bench:
        for _ in range(30):
            await bench.acceptor.accept(message())
        assert bench.dispatcher.active_count == 5
        for number in range(20):
            await bench.acceptor.accept(message("ann@o.test"))
            await until(lambda wanted=number + 1: bench.counters.relayed == wanted)  # type: ignore[misc]


async def test_a_class_without_a_way_leaves_room_for_mail_of_others_on_disk(tmp_path: Path) -> None:
    async with Bench(tmp_path, ByClass(), active_max=10) as bench:
        for _ in range(30):
            await bench.store.put(build_new("default"), claim=False)
        for _ in range(20):
            await bench.store.put(build_new("other"), claim=False)
        bench.dispatcher.note_unclaimed()
        await until(lambda: bench.counters.relayed == 20)
        assert bench.dispatcher.active_count <= 5


async def test_what_is_under_way_says_where_and_what_waits_says_why(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), connections_max=1) as bench:
        bench.client.gate = asyncio.Event()
        for _ in range(3):
            await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 1)
        first, second, third = (bench.dispatcher.standing(f"Q{number:011d}", 0) for number in (1, 2, 3))
        assert first is not None
        assert (first.stage, first.hop) == ("attempted", "host:a")
        assert second is not None
        assert (second.stage, second.reason) == ("waiting", "its turn comes")
        assert third is not None
        assert third.reason == "its turn comes, 1 before it"
        assert bench.dispatcher.standing("Q99999999999", 0) is None
        bench.client.gate.set()


async def test_mail_that_no_hop_takes_says_so(tmp_path: Path) -> None:
    async with Bench(tmp_path, ByClass()) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: (found := bench.dispatcher.standing("Q00000000001", 0)) and "no path" in found.reason)


async def test_mail_that_backs_off_says_from_what_and_for_how_long(tmp_path: Path) -> None:
    def answer(hop: str, job: Job) -> AttemptResult:
        return refused(hop, job) if job.queue_id == "Q00000000001" else accepted(hop, job)

    async with Bench(tmp_path, Ordered("host:a")) as bench:
        bench.client.answer = answer
        await bench.acceptor.accept(message())
        await until(lambda: (found := bench.dispatcher.standing("Q00000000001", 0)) and found.stage == "resting")
        found = bench.dispatcher.standing("Q00000000001", 0)
        assert found is not None
        assert found.reason == "backs off from host:a for 1 s"
