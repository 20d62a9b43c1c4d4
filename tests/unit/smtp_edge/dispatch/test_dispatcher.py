"""The dispatcher around a real store: late binding, other hops at once, holding, in-doubt transfers, restarts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from router.decision import ExitHop, Hop, HopKind, OutcomeKind
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from router.terms import Policy, Terms
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.dispatch import lines
from smtp_edge.envelope import Recipient, Transfer
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Route, RouteRequest, Sink, Unreachable
from smtp_edge.sinks.mesh import MeshRouter
from tests.unit.smtp_edge.dispatch.fakes import NODE, Bench, Ordered, accepted, message, refused, until
from tests.unit.smtp_edge.queue.builders import build_new


async def states(bench: Bench) -> list[DeliveryState]:
    return [claim.delivery.state for claim in await bench.store.list()]


async def test_accepted_mail_is_attempted_and_settled(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        assert (await bench.acceptor.accept(message())).code == 250
        await until(lambda: bench.counters.relayed == 1)
        ((hop, job),) = bench.client.attempts
        assert (hop, job.data.inline) == ("host:a", message().data.inline)
        assert job.prefix.startswith(b"Received: from client.test")
        assert bench.store.backlog_counts().get("default", 0) == 0
        assert bench.observer.busy == {"host:a": 0}


async def test_another_hop_is_tried_at_once_when_the_first_is_at_fault(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a", "host:b")) as bench:
        bench.client.answer = lambda hop, job: refused(hop, job) if hop == "host:a" else accepted(hop, job)
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        assert [hop for hop, _ in bench.client.attempts] == ["host:a", "host:b"]


async def test_history_names_every_attempt(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a", "host:b")) as bench:
        bench.client.answer = lambda hop, job: refused(hop, job) if hop == "host:a" else accepted(hop, job)
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        history = await bench.store.history(bench.client.attempts[0][1].queue_id)
        assert history is not None
        hops = [(note.event, note.hop) for note in history.notes if note.hop]
        assert hops == [("attempt", "host:a"), ("relayed", "host:b")]


async def test_no_more_than_the_slots_of_a_hop_are_in_flight(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), connections_max=2) as bench:
        bench.client.gate = asyncio.Event()
        for _ in range(5):
            await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 2)
        await asyncio.sleep(0)
        assert bench.dispatcher.inflight_count("host:a") == 2
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 5)


async def test_held_mail_moves_when_something_changed(tmp_path: Path) -> None:
    sink = Ordered()
    async with Bench(tmp_path, sink) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: len(sink.requests) >= 1)
        assert bench.client.attempts == []
        sink.hops = ["host:a"]
        bench.dispatcher.ask_again()
        await until(lambda: bench.counters.relayed == 1)


async def test_a_hop_that_nobody_knows_holds_the_mail(tmp_path: Path) -> None:
    sink = Ordered("host:unknown")
    async with Bench(tmp_path, sink) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: len(sink.requests) >= 1)
        assert bench.client.attempts == []
        assert await states(bench) == [DeliveryState.CLAIMED]


async def test_unreachable_for_good_bounces(tmp_path: Path) -> None:
    class Nowhere(Sink):
        async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
            return (
                Unreachable("no such place", for_good=True) if delivery.sender else Unreachable("later", retry_in_s=60)
            )

    async with Bench(tmp_path, Nowhere()) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.failed == 1)
        await until(lambda: bench.store.backlog_counts().get("example.net", 0) == 1)
        (report,) = await bench.store.list()
        assert (report.entry.envelope.sender, report.delivery.class_id) == ("", "example.net")


async def test_mail_that_no_exit_takes_for_its_size_is_reported_as_such(tmp_path: Path) -> None:
    limited = RouteRule("default", ("*",), ("a",), Policy(), (Terms(size_bytes_max=65536),))
    exits = [ExitHop(Hop(HopKind.SMART_HOST, "a"), "a", terms=Terms(size_bytes_max=65536))]
    engine = RoutingEngine(
        node_id=NODE,
        node_name="a",
        table=RouteTable([limited]),
        exits=exits,
        settings=RouterSettings(),
        rng=random.Random(1),
        now=0.0,
    )
    async with Bench(tmp_path, MeshRouter(engine, lambda: 0.0)) as bench:
        await bench.store.put(build_new("default>65536", received_at=datetime.now(UTC)), claim=False)
        bench.dispatcher.note_unclaimed()
        await until(lambda: bench.counters.failed == 1)
        (report,) = await bench.store.list()
        text = (await bench.store.data(report.entry.queue_id)).inline or b""
        assert b"Status: 5.3.4" in text


async def test_lost_final_reply_of_a_peer_is_asked_of_the_same_peer_only(tmp_path: Path) -> None:
    peer = "peer:" + "b" * 32
    doubt = AttemptResult(OutcomeKind.IN_DOUBT, reason="connection lost after the final dot")

    def first_in_doubt(hop: str, job: Job) -> AttemptResult:
        return doubt if len(bench.client.attempts) == 1 else accepted(hop, job)

    sink = Ordered(peer, "host:a")
    async with Bench(tmp_path, sink) as bench:
        bench.client.answer = first_in_doubt
        await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 1)
        sink.hops = ["host:a", peer]
        await until(lambda: bench.counters.relayed == 1)
        assert [hop for hop, _ in bench.client.attempts] == [peer, peer]
        tokens = {job.transfer.token for _, job in bench.client.attempts if job.transfer}
        assert len(tokens) == 1
        assert sink.requests[-1].prefer == peer


async def test_mail_in_doubt_does_not_stand_before_the_rest(tmp_path: Path) -> None:
    peer = "peer:" + "b" * 32
    doubt = AttemptResult(OutcomeKind.IN_DOUBT, reason="connection lost after the final dot")
    sink = Ordered(peer)
    async with Bench(tmp_path, sink, connections_max=20) as bench:
        bench.client.answer = lambda hop, job: doubt if hop == peer else accepted(hop, job)
        for _ in range(12):
            await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 12)
        sink.hops = ["host:a"]
        await asyncio.sleep(1.3)  # the deliveries in doubt are claimed again
        assert bench.counters.relayed == 0
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        assert [hop for hop, _ in bench.client.attempts[12:]] == ["host:a"]


async def test_mail_that_backs_off_does_not_stand_before_the_rest(tmp_path: Path) -> None:
    later = Reply(451, "not now", "4.3.0")

    def moody(hop: str, job: Job) -> AttemptResult:
        if "bad" in job.envelope.recipients[0].address:
            return AttemptResult(OutcomeKind.HOP_TEMPFAIL, (later,), later)
        return accepted(hop, job)

    async with Bench(tmp_path, Ordered("host:a"), connections_max=1) as bench:
        bench.client.answer = moody
        for number in range(12):
            await bench.acceptor.accept(message(f"bad{number}@example.org"))
        await bench.acceptor.accept(message("good@example.org"))
        await until(lambda: bench.counters.relayed == 1, limit_s=1.0)


async def test_mail_that_backs_off_from_a_hop_goes_at_once_when_the_hop_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "AVOID_FIRST_S", 600.0)
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        bench.client.answer = refused
        await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 1)
        bench.client.answer = accepted
        bench.dispatcher.ask_again(news=True, back=["host:b"])
        await asyncio.sleep(0)
        assert len(bench.client.attempts) == 1
        bench.dispatcher.ask_again(news=True, back=["host:a"])
        await until(lambda: bench.counters.relayed == 1)


async def test_a_peer_gets_trace_and_age(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("peer:" + "b" * 32)) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        transfer = bench.client.attempts[0][1].transfer
        assert transfer is not None
        assert (transfer.trace, transfer.age_s) == ((NODE,), 0)
        assert transfer.token == f"{NODE}/{bench.client.attempts[0][1].queue_id}/0"


async def test_what_was_in_flight_at_a_stop_is_attempted_after_the_restart(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        bench.client.gate = asyncio.Event()
        await bench.acceptor.accept(message())
        await until(lambda: len(bench.client.attempts) == 1)
    async with Bench(tmp_path, Ordered("host:a")) as again:
        await until(lambda: again.counters.relayed == 1)
        assert again.client.attempts[0][1].queue_id == bench.client.attempts[0][1].queue_id


async def test_mail_beyond_the_active_bound_waits_on_disk_and_follows(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), active_max=2, connections_max=1) as bench:
        bench.client.gate = asyncio.Event()
        for _ in range(6):
            await bench.acceptor.accept(message())
        assert bench.dispatcher.active_count <= 2
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 6)


async def test_recipients_of_two_classes_travel_apart(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        await bench.acceptor.accept(message("ann@example.org", "bob@o.test", "joe@example.org"))
        await until(lambda: bench.counters.relayed == 2)
        groups = sorted([r.address for r in job.envelope.recipients] for _, job in bench.client.attempts)
        assert groups == [["ann@example.org", "joe@example.org"], ["bob@o.test"]]


async def test_permanent_refusal_sends_one_report_which_is_attempted_too(tmp_path: Path) -> None:
    gone = Reply(550, "no such user", "5.1.1")

    def no_user(hop: str, job: Job) -> AttemptResult:
        if job.envelope.sender:
            return AttemptResult(OutcomeKind.MESSAGE_REFUSED, (gone,), gone)
        return accepted(hop, job)

    async with Bench(tmp_path, Ordered("host:a")) as bench:
        bench.client.answer = no_user
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        (_, first), (_, report) = bench.client.attempts
        assert (first.envelope.sender, report.envelope.sender) == ("sue@example.net", "")
        assert [r.address for r in report.envelope.recipients] == ["sue@example.net"]


async def test_after_a_rest_a_message_that_saw_every_relay_begins_a_second_round(tmp_path: Path) -> None:
    class Exhausted(Sink):
        requests: list[RouteRequest] = []  # noqa: RUF012

        async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
            self.requests.append(delivery)
            return Unreachable("hold: every way leads back", retry_in_s=0.01)

    sink = Exhausted()
    async with Bench(tmp_path, sink) as bench:
        transfer = Transfer(f"{'c' * 32}/Q1/0", ("c" * 32, NODE, "b" * 32))
        await bench.acceptor.accept(message(transfer=transfer, peer="b" * 32))
        await until(lambda: len(sink.requests) >= 2)
        assert [request.trace for request in sink.requests[:2]] == [transfer.trace, ()]


async def test_mail_on_its_way_to_the_disk_when_its_class_is_woken_is_due_at_once(tmp_path: Path) -> None:
    """The waking does not meet it there: it would wait for the end of its pause, with the way open."""
    waking: list[asyncio.Future[None]] = []

    class Opens(Ordered):
        async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
            if waking:
                return await super().route(delivery)
            waking.append(asyncio.ensure_future(bench.dispatcher.wake(["default"])))
            return Unreachable("no way", retry_in_s=3600)

    async with Bench(tmp_path, Opens("host:a")) as bench:
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        await asyncio.gather(*waking)


async def test_who_was_refused_after_the_others_were_taken_is_reported_with_the_words_of_the_refusal(
    tmp_path: Path,
) -> None:
    bob = Recipient("bob@example.org")
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        whole = replace(message("ann@example.org", bob.address), refused=((bob, Reply(550, "a virus", "5.7.1")),))
        await bench.acceptor.accept(whole)
        await until(lambda: len(bench.client.attempts) == 2)
        first, report = (job for _, job in bench.client.attempts)
        assert [item.address for item in first.envelope.recipients] == ["ann@example.org"]
        assert [item.address for item in report.envelope.recipients] == ["sue@example.net"]
        assert b"bob@example.org" in (report.data.inline or b"")
        assert b"550 5.7.1 a virus" in (report.data.inline or b"")
        assert b"ann@example.org" not in (report.data.inline or b"")
