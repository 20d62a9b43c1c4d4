"""Orders about the queue, around a real store and dispatcher: what is on disk, in memory, under way, and in a race."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.postmaster import Done, Order, Postmaster, QueueOrderError
from smtp_edge.queue.entry import Claim, Decision, DeliveryState
from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.survey import FIRST
from smtp_edge.reply import Reply
from smtp_edge.rulings import Action
from smtp_edge.sinks.api import Route, RouteRequest, Sink, Unreachable
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, message, until
from tests.unit.smtp_edge.queue.builders import AT, build_deferral, build_new

PEER = "b" * 32


class Nowhere(Sink):
    """No way for anything."""

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        return Unreachable("hold: no path")


def postmaster(bench: Bench) -> Postmaster:
    return Postmaster(bench.store, bench.dispatcher, bench.dispatcher._endings.reporting)


async def order(bench: Bench, action: Action, selection: Selection | None = None, **fields: Any) -> Done:
    asked = Order(action, selection or Selection(), "sue", all=selection is None, **fields)
    return await postmaster(bench).carry_out(asked)


async def states(bench: Bench) -> list[str]:
    return [claim.delivery.state.value for claim in await bench.store.list()]


async def events(bench: Bench, queue_id: str) -> list[str]:
    history = await bench.store.history(queue_id)
    assert history is not None
    return [note.event for note in history.notes]


async def test_mail_that_waits_in_memory_is_held_and_nobody_attempts_it(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), connections_max=1) as bench:
        bench.client.gate = asyncio.Event()
        for _ in range(3):
            await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 1)
        done = await order(bench, Action.HOLD)
        assert [queue_id for queue_id, _ in done.changed] == ["Q00000000002", "Q00000000003"]
        assert done.under_way == 1
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 1)
        assert await states(bench) == ["held", "held"]
        assert bench.dispatcher.active_count == 0
        assert (await order(bench, Action.RELEASE)).changed == done.changed
        await until(lambda: bench.counters.relayed == 3)
        assert await events(bench, "Q00000000002") == ["received", "held", "released", "relayed"]


async def test_deferred_mail_is_retried_at_once_and_its_attempts_go_on(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        claim = (await bench.store.put(build_new("default"))).claims[0]
        later = (datetime.now(UTC) - AT).total_seconds() / 60 + 60
        await bench.store.settle([build_deferral(claim, later)])
        done = await order(bench, Action.RETRY)
        assert len(done.changed) == 1
        await until(lambda: bench.counters.relayed == 1)
        history = await bench.store.history(claim.delivery.queue_id)
        assert history is not None
        assert history.deliveries[0].attempts == 2


async def test_a_bounce_reports_and_a_removal_does_not(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        await bench.acceptor.accept(message(sender="sue@o.test"))
        await bench.acceptor.accept(message(sender="tom@o.test"))
        await order(bench, Action.BOUNCE, Selection(senders=("sue@o.test",)), reason="closed")
        await order(bench, Action.REMOVE, Selection(senders=("tom@o.test",)))
        (report,) = await bench.store.list()
        assert [recipient.address for recipient in report.delivery.recipients] == ["sue@o.test"]
        assert await events(bench, "Q00000000001") == ["received", "bounced", "failed", "bounced"]
        assert await events(bench, "Q00000000002") == ["received", "removed"]
        assert (await bench.store.summary()).failed == 2


async def test_mail_moves_to_another_class_and_goes_its_way(tmp_path: Path) -> None:
    class OnlyOther(Sink):
        async def route(self, delivery: RouteRequest) -> Route | Unreachable:
            if delivery.class_id != "other":
                return Unreachable("hold: no path")
            answer = await Ordered("host:b").route(delivery)
            assert answer is not None
            return answer

    async with Bench(tmp_path, OnlyOther()) as bench:
        await bench.acceptor.accept(message())
        done = await order(bench, Action.MOVE, class_id="other")
        assert len(done.changed) == 1
        await until(lambda: bench.counters.relayed == 1)
        assert [hop for hop, _ in bench.client.attempts] == ["host:b"]


async def test_mail_is_handed_to_a_peer_with_its_time_and_attempts(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        claim = (await bench.store.put(build_new("default"))).claims[0]
        later = (datetime.now(UTC) - AT).total_seconds() / 60 + 60
        await bench.store.settle([build_deferral(claim, later)])
        await bench.acceptor.accept(message())
        done = await order(bench, Action.MOVE, hop=f"peer:{PEER}")
        assert len(done.changed) == 2
        await until(lambda: bench.counters.relayed == 2)
        jobs = {job.queue_id: job for hop, job in bench.client.attempts if hop == f"peer:{PEER}"}
        transfer = jobs[claim.delivery.queue_id].transfer
        assert transfer is not None
        assert transfer.attempts == 1
        assert 3500 < transfer.due_s <= 3600
        assert "moved" in await events(bench, "Q00000000001")


async def test_what_was_at_a_peer_or_may_be_elsewhere_is_not_handed_to_it(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        await bench.store.put(build_new("default"), claim=False)  # its trace: node-x, node-y
        claim = (await bench.store.put(build_new("default"))).claims[0]
        await bench.store.settle([build_deferral(claim, 10**7, in_doubt_hop="peer:other")])
        done = await order(bench, Action.MOVE, hop="peer:node-x")
        assert (done.changed, done.unfit) == ((), 2)


async def test_what_a_peer_does_not_take_is_as_it_was(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        claim = (await bench.store.put(build_new("default", received_at=datetime.now(UTC)))).claims[0]
        later = (datetime.now(UTC) - AT).total_seconds() / 60 + 60
        await bench.store.settle([build_deferral(claim, later)])
        (before,) = await bench.store.list()
        bench.client.answer = lambda hop, job: refuse_all(len(job.envelope.recipients))
        await order(bench, Action.MOVE, hop=f"peer:{PEER}")
        await until(lambda: bench.dispatcher.active_count == 0)
        (after,) = await bench.store.list()
        assert after.delivery == before.delivery


def refuse_all(count: int) -> AttemptResult:
    refusal = Reply(451, "no", "4.3.2")
    return AttemptResult(OutcomeKind.MESSAGE_REFUSED, (refusal,) * count, refusal)


async def test_an_order_without_a_selection_must_say_all(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        with pytest.raises(QueueOrderError, match="say which deliveries are meant"):
            await postmaster(bench).carry_out(Order(Action.HOLD, Selection(), "sue"))


async def test_a_dry_run_counts_and_changes_nothing(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        await bench.acceptor.accept(message())
        with capture_logs() as logs:
            done = await order(bench, Action.REMOVE, dry_run=True)
        assert len(done.changed) == 1
        assert await states(bench) == ["claimed"]
        assert [line for line in logs if line["event"] == "queue.order"] == []


async def test_an_order_is_one_line_of_the_log_with_who_asked(tmp_path: Path) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        await bench.acceptor.accept(message())
        with capture_logs() as logs:
            await order(bench, Action.HOLD, reason="looks odd")
        (line,) = [line for line in logs if line["event"] == "queue.order"]
        assert (line["action"], line["by"], line["reason"], line["changed"]) == ("hold", "sue", "looks odd", 1)
        assert line["queue_ids"] == ["Q00000000001"]


async def nothing(*_: object, **__: object) -> list[Claim]:
    """A claim from disk, of a dispatcher that does not come by itself."""
    return []


async def test_what_somebody_took_meanwhile_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        monkeypatch.setattr(bench.store, "claim", nothing)  # the dispatcher comes by in the wrong moment, not before
        new = build_new("default")
        await bench.store.put(new, claim=False)
        real = bench.store.change
        raced = []

        async def change(decided: Sequence[Decision]) -> list[bool]:
            if not raced:
                raced.append(True)
                bench.dispatcher.submit(await bench.store.claim_these([(new.entry.queue_id, 0)], datetime.now(UTC)))
                assert bench.dispatcher.active_count == 1
            return await real(decided)

        monkeypatch.setattr(bench.store, "change", change)
        done = await order(bench, Action.HOLD)
        assert len(done.changed) == 1
        assert await states(bench) == ["held"]
        assert bench.dispatcher.active_count == 0


async def test_what_is_claimed_and_not_in_memory_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(tmp_path, Nowhere()) as bench:
        monkeypatch.setattr(bench.store, "claim", nothing)
        new = build_new("default")
        await bench.store.put(new, claim=False)
        claims = await bench.store.claim_these([(new.entry.queue_id, 0)], datetime.now(UTC))
        asyncio.get_running_loop().call_later(0.03, bench.dispatcher.submit, claims)
        done = await order(bench, Action.HOLD)
        assert (len(done.changed), done.under_way) == (1, 0)


async def test_a_disk_that_refuses_an_order_leaves_the_mail_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(decided: Sequence[Decision]) -> list[bool]:
        raise StoreError("no space left")

    sink = Ordered()
    async with Bench(tmp_path, sink) as bench:
        await bench.acceptor.accept(message())
        monkeypatch.setattr(bench.store, "change", change)
        with pytest.raises(StoreError):
            await order(bench, Action.HOLD)
        sink.hops = ["host:a"]
        bench.dispatcher.ask_again(news=True)
        await until(lambda: bench.counters.relayed == 1)


async def test_a_great_many_go_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtp_edge.postmaster.PAGE", 4)
    async with Bench(tmp_path, Nowhere(), active_max=4) as bench:
        for _ in range(10):
            await bench.acceptor.accept(message())
        pages, after = [], FIRST
        while True:
            done = await postmaster(bench).carry_out(Order(Action.HOLD, Selection(), "sue", all=True), after)
            pages.append(len(done.changed))
            if done.after is None:
                break
            after = done.after
        assert pages == [4, 4, 2]
        assert {claim.delivery.state for claim in await bench.store.list()} == {DeliveryState.HELD}
