"""Sinks on `deliver`: what each answer comes to for the recipients, the queue and the sender."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.dispatch import delivering
from smtp_edge.envelope import MailData
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.reply import Reply
from smtp_edge.sinks.answers import DELIVERED
from smtp_edge.sinks.api import Delivery, Quarantine, Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import ALWAYS, Rule, parse_rule
from tests.unit.smtp_edge.dispatch.fakes import BODY, Bench, Ordered, message, until

ANN, BOB = "ann@example.org", "bob@example.org"
FULL = Reply(452, "mailbox full", "4.2.2")
UNKNOWN = Reply(550, "no such user", "5.1.1")
Answer = Reply | Sequence[Reply | Quarantine] | None


class Box(Sink):
    """Keeps what it gets, and answers as told."""

    def __init__(self, answer: Callable[[Delivery], Answer] = lambda delivery: None) -> None:
        self.answer = answer
        self.got: list[tuple[str, tuple[str, ...], bytes]] = []

    async def deliver(self, delivery: Delivery) -> Answer:
        recipients = tuple(recipient.address for recipient in delivery.envelope.recipients)
        self.got.append((delivery.key, recipients, await delivery.read()))
        return self.answer(delivery)


def bench_of(directory: Path, box: Sink, *, rule: Rule = ALWAYS, timeout_s: float | None = None) -> Bench:
    route = Ordered("host:box")
    bench = Bench(directory, route)
    bench.dispatcher.sinks = SinkChain([Binding("box", box, rule, timeout_s=timeout_s), Binding("route", route)])
    bench.targets["host:box"] = Target(Hop.parse("host:box"), "", 0, sink="box", connections_max=2)
    return bench


async def state_of(bench: Bench) -> tuple[DeliveryState, tuple[str, ...], str]:
    ((state, recipients, reply),) = [
        (claim.delivery.state, tuple(item.address for item in claim.delivery.recipients), claim.delivery.last_reply)
        for claim in await bench.store.list()
        if claim.entry.envelope.sender
    ]
    return state, recipients, reply


async def test_what_a_sink_takes_is_delivered_with_its_trace_field(tmp_path: Path) -> None:
    box = Box()
    async with bench_of(tmp_path, box) as bench:
        await bench.acceptor.accept(message(ANN, BOB, body=b"Subject: dots\r\n\r\n..two\r\n"))
        await until(lambda: bench.counters.relayed == 1)
        ((key, recipients, content),) = box.got
        assert recipients == (ANN, BOB)
        assert content.startswith(b"Received: from client.test")
        assert content.endswith(b"\r\nSubject: dots\r\n\r\n.two\r\n")
        assert key == (await bench.store.history("Q00000000001")).entry.origin  # type: ignore[union-attr]
        assert bench.observer.ends == [("host:box", OutcomeKind.ACCEPTED)]


async def test_large_mail_comes_from_its_file(tmp_path: Path) -> None:
    box = Box()
    async with bench_of(tmp_path, box) as bench:
        writer = bench.acceptor.spool()
        writer.write(BODY + b"x" * 200_000 + b"\r\n")
        data: MailData = await writer.commit(b"Subject: hello\r\n\r\n")
        whole = message(ANN)
        await bench.acceptor.accept(type(whole)(whole.client, whole.envelope, data))
        await until(lambda: bench.counters.relayed == 1)
        assert box.got[0][2].endswith(BODY + b"x" * 200_000 + b"\r\n")


async def test_each_recipient_has_a_fate_of_its_own(tmp_path: Path) -> None:
    fates: dict[str, Reply | Quarantine] = {ANN: DELIVERED, BOB: FULL, "eve@example.org": UNKNOWN}
    box = Box(lambda delivery: [fates[recipient.address] for recipient in delivery.envelope.recipients])
    async with bench_of(tmp_path, box) as bench:
        await bench.acceptor.accept(message(*fates))
        await until(lambda: bench.counters.deferred == 1)
        assert await state_of(bench) == (DeliveryState.DEFERRED, (BOB,), "250 2.0.0 delivered")
        history = await bench.store.history("Q00000000001")
        assert history is not None
        assert any("DSN" in note.detail and "failed" in note.detail for note in history.notes)


@pytest.mark.parametrize(
    ("reply", "kind"), [(FULL, OutcomeKind.MESSAGE_REFUSED), (Reply(451, "no", "4.3.0"), OutcomeKind.HOP_TEMPFAIL)]
)
async def test_a_full_mailbox_says_nothing_against_the_store(tmp_path: Path, reply: Reply, kind: OutcomeKind) -> None:
    async with bench_of(tmp_path, Box(lambda delivery: reply)) as bench:
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bool(bench.observer.ends))
        assert bench.observer.ends[0] == ("host:box", kind)


async def test_poison_waits_for_an_operator_when_the_others_are_done(tmp_path: Path) -> None:
    box = Box(lambda delivery: [Quarantine("not JSON"), DELIVERED])
    async with bench_of(tmp_path, box) as bench:
        await bench.acceptor.accept(message(ANN, BOB))
        await until(lambda: bool(bench.observer.ends) and not bench.observer.busy["host:box"])
        await until(lambda: not bench.dispatcher.active_count)
        assert await state_of(bench) == (DeliveryState.HELD, (ANN,), "not JSON")


async def test_who_is_held_beside_one_that_is_asked_again_is_asked_again_too(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Box(lambda delivery: [Quarantine("not JSON"), FULL])) as bench:
        await bench.acceptor.accept(message(ANN, BOB))
        await until(lambda: bench.counters.deferred == 1)
        assert (await state_of(bench))[:2] == (DeliveryState.DEFERRED, (ANN, BOB))


def fail(delivery: Delivery) -> Answer:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "answer",
    [fail, lambda delivery: [], lambda delivery: "ok", lambda delivery: [None], lambda delivery: Reply(354, "go on")],
)
async def test_a_failure_is_the_sinks_and_parks_the_message_in_the_end(
    tmp_path: Path, answer: Callable[[Delivery], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "FAILURES_MAX", 1)
    async with bench_of(tmp_path, Box(answer)) as bench:
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bool(bench.observer.ends) and not bench.dispatcher.active_count)
        state, recipients, reply = await state_of(bench)
        assert (state, recipients) == (DeliveryState.HELD, (ANN,))
        assert reply.startswith("sink box")
        assert reply.endswith("in 1 attempts")


async def test_a_failure_before_that_is_as_if_a_host_did_not_answer(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Box(fail)) as bench:
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bool(bench.observer.ends))
        assert bench.observer.ends[0] == ("host:box", OutcomeKind.HOP_TEMPFAIL)
        assert bench.counters.failed == 0


async def test_one_that_gives_no_answer_may_have_done_it_and_is_asked_again(tmp_path: Path) -> None:
    class Slow(Sink):
        async def deliver(self, delivery: Delivery) -> None:
            await asyncio.Event().wait()

    async with bench_of(tmp_path, Slow(), timeout_s=0.02) as bench:
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bench.counters.deferred == 1)
        assert bench.observer.ends[0] == ("host:box", OutcomeKind.IN_DOUBT)


async def test_a_rule_leaves_recipients_out_and_their_mail_waits(tmp_path: Path) -> None:
    box = Box()
    async with bench_of(tmp_path, box, rule=parse_rule(f"rcpt to={ANN}", events=["deliver"])) as bench:
        await bench.acceptor.accept(message(ANN, BOB))
        await until(lambda: bench.counters.deferred == 1)
        assert [recipients for _, recipients, _ in box.got] == [(ANN,)]
        assert (await state_of(bench))[:2] == (DeliveryState.DEFERRED, (BOB,))


async def test_a_sink_that_a_reload_took_away_holds_the_mail(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Box()) as bench:
        bench.dispatcher.sinks = SinkChain([Binding("route", Ordered("host:box"))])
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bool(bench.observer.ends))
        assert bench.observer.ends[0] == ("host:box", OutcomeKind.CONNECT_FAILED)
        assert (await state_of(bench))[0] in (DeliveryState.CLAIMED, DeliveryState.QUEUED, DeliveryState.DEFERRED)
