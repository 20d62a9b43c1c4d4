"""Sinks on `expand`: who gets a message instead, under which reverse-path, and that all of it happens or nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.dispatch import expanding
from smtp_edge.dispatch.dispatcher import DispatcherLimits
from smtp_edge.envelope import Notify, Recipient
from smtp_edge.originator import Originator
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Expansion, Mail, Message, Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import Rule, parse_rule
from smtp_edge.sorting import EXPANSION
from tests.unit.smtp_edge.dispatch.fakes import NODE, Bench, Ordered, message, until

LIST, ANN, BOB, EVE = "list@example.org", "ann@example.org", "bob@o.test", "eve@example.org"
BOUNCES = "list-bounces@example.org"


def to(*addresses: str) -> tuple[Recipient, ...]:
    return tuple(map(Recipient, addresses))


class Table(Sink):
    """Expands by a table of addresses."""

    def __init__(self, table: dict[str, Callable[[Message], Expansion | None] | Expansion]) -> None:
        self.table, self.asked = table, list[str]()

    async def expand(self, message: Message) -> Expansion | None:
        (recipient,) = message.envelope.recipients
        self.asked.append(recipient.address)
        answer = self.table.get(recipient.address)
        return answer(message) if callable(answer) else answer


def bench_of(directory: Path, sink: Sink, rule: str = "rcpt to=*@example.org") -> Bench:
    route = Ordered("host:a")
    bench = Bench(directory, route, connections_max=100, active_max=1000)
    bound: Rule = parse_rule(rule, events=["expand"])
    bench.dispatcher.sinks = SinkChain([Binding("lists", sink, bound), Binding("route", route)])
    bench.dispatcher.originator = Originator(
        NODE, bench.new_queue_id, lambda: bench.acceptor.sorter, bench.spool, timedelta(days=5), 100_000
    )
    return bench


def sent(bench: Bench) -> Counter[tuple[str, str]]:
    """(reverse-path, recipient) of all that left."""
    jobs = [job for _, job in bench.client.attempts]
    return Counter((job.envelope.sender, item.address) for job in jobs for item in job.envelope.recipients)


async def idle(bench: Bench) -> None:
    await until(lambda: not bench.store.backlog_counts() or not sum(bench.store.backlog_counts().values()), limit_s=20)
    await until(lambda: not bench.dispatcher.active_count)


async def test_an_alias_is_replaced_under_the_old_reverse_path_with_its_wishes(tmp_path: Path) -> None:
    keeper = Recipient(BOB, "rfc822;x", Notify.SUCCESS)
    async with bench_of(tmp_path, Table({ANN: Expansion((*to(EVE), keeper))})) as bench:
        await bench.acceptor.accept(message(ANN, "sam@o.test"))
        await idle(bench)
        report = ("", "sue@example.net")
        assert set(sent(bench)) == {*(("sue@example.net", who) for who in (EVE, BOB, "sam@o.test")), report}
        assert keeper in [item for _, job in bench.client.attempts for item in job.envelope.recipients]
        history = await bench.store.history("Q00000000001")
        assert history is not None
        (note,) = [note for note in history.notes if note.event == "expanded"]
        assert note.detail.startswith("by lists to 2 recipients: Q0")


async def test_who_nobody_expands_goes_where_it_would_have_gone(tmp_path: Path) -> None:
    sink = Table({})
    async with bench_of(tmp_path, sink) as bench:
        await bench.acceptor.accept(message(ANN, BOB))
        await idle(bench)
        assert sent(bench) == {("sue@example.net", ANN): 1, ("sue@example.net", BOB): 1}
        assert sink.asked == [ANN]
        assert {job.queue_id for _, job in bench.client.attempts} == {"Q00000000001"}


async def test_a_name_that_comes_again_stands_for_itself(tmp_path: Path) -> None:
    table = Table({ANN: Expansion(to(EVE, ANN)), EVE: Expansion(to(ANN, BOB))})
    async with bench_of(tmp_path, table) as bench:
        await bench.acceptor.accept(message(ANN))
        await idle(bench)
        assert set(sent(bench)) == {("sue@example.net", ANN), ("sue@example.net", BOB)}


async def test_a_list_has_its_own_reverse_path_header_and_mail_beside_it(tmp_path: Path) -> None:
    def post(seen: Message) -> Expansion:
        seen.add_header("List-Id", "<list.example.org>")
        return Expansion(to(BOB), sender=BOUNCES, also=(Mail("", to(EVE), b"Subject: held\r\n\r\n.dot\r\n"),))

    table = Table({LIST: post})
    async with bench_of(tmp_path, table) as bench:
        await bench.acceptor.accept(message(LIST, ANN))
        await idle(bench)
        assert sent(bench) == {("sue@example.net", ANN): 1, (BOUNCES, BOB): 1, ("", EVE): 1}
        data = {job.envelope.sender: job.data.inline for _, job in bench.client.attempts}
        assert data[BOUNCES] == b"List-Id: <list.example.org>\r\nSubject: hello\r\n\r\nhello\r\n"
        assert data["sue@example.net"] == b"Subject: hello\r\n\r\nhello\r\n"
        assert data[""] == b"Subject: held\r\n\r\n..dot\r\n"
        assert EVE in table.asked, "mail beside it is looked up like any other"


async def test_a_command_to_a_list_is_at_its_end(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Table({LIST: Expansion()})) as bench:
        await bench.acceptor.accept(message(LIST))
        await idle(bench)
        assert not bench.client.attempts


async def test_ten_thousand_members_have_a_reverse_path_each_and_one_body(tmp_path: Path) -> None:
    members = to(*(f"m{number}@o.test" for number in range(10_000)))
    async with bench_of(tmp_path, Table({LIST: Expansion(members, sender=BOUNCES, verp=True)})) as bench:
        await bench.acceptor.accept(message(LIST))
        await until(lambda: sum(sent(bench).values()) == len(members), limit_s=60)
        assert sent(bench)["list-bounces+m7=o.test@example.org", "m7@o.test"] == 1
        assert max(sent(bench).values()) == 1
        assert len({job.queue_id for _, job in bench.client.attempts}) == 1


async def test_a_large_message_has_a_file_of_its_own(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Table({ANN: Expansion(to(EVE))})) as bench:
        writer = bench.acceptor.spool()
        writer.write(b"Subject: hello\r\n\r\n" + b"x" * 200_000 + b"\r\n")
        data = await writer.commit(b"Subject: hello\r\n\r\n")
        whole = message(ANN)
        await bench.acceptor.accept(type(whole)(whole.client, whole.envelope, data))
        sizes: list[int] = []
        bench.client.gate = asyncio.Event()
        await until(lambda: bool(bench.client.attempts))
        path = bench.client.attempts[0][1].data.path
        assert path is not None
        assert path != data.path
        sizes.append(path.stat().st_size)
        bench.client.gate.set()
        await idle(bench)
        assert sizes == [data.size_bytes]
        await until(lambda: not [item for item in (tmp_path / "spool").glob("*") if item.is_file()])


async def test_mail_of_a_peer_has_been_expanded_where_it_came_in(tmp_path: Path) -> None:
    table = Table({ANN: Expansion(to(EVE))})
    async with bench_of(tmp_path, table) as bench:
        await bench.acceptor.accept(message(ANN, peer="b" * 32))
        await idle(bench)
        assert sent(bench) == {("sue@example.net", ANN): 1}
        assert not table.asked


async def test_a_sink_that_fails_lets_the_mail_wait_and_parks_it_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seen: Message) -> Expansion:
        raise ZeroDivisionError

    async with bench_of(tmp_path, Table({ANN: fail})) as bench:
        await bench.acceptor.accept(message(ANN))
        await until(lambda: bench.counters.deferred == 1)
        (claim,) = await bench.store.list()
        assert (claim.delivery.state, claim.delivery.class_id) == (DeliveryState.DEFERRED, EXPANSION)
        monkeypatch.setattr(expanding, "FAILURES_MAX", 2)
        await bench.dispatcher.wake([EXPANSION])
        await until(lambda: not bench.dispatcher.active_count and len(bench.store.backlog_counts()) == 0, limit_s=10)
        (claim,) = await bench.store.list()
        assert claim.delivery.state is DeliveryState.HELD
        assert claim.delivery.last_reply == "sink lists failed: ZeroDivisionError, in 2 attempts"


async def test_a_crash_between_the_answer_and_its_commit_expands_once_more_and_nobody_gets_two(tmp_path: Path) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Table):
        async def expand(self, seen: Message) -> Expansion | None:
            entered.set()
            await go_on.wait()
            return await super().expand(seen)

    table = Slow({ANN: Expansion(to(BOB, "sam@o.test"))})
    async with bench_of(tmp_path, table) as bench:
        await bench.acceptor.accept(message(ANN))
        await entered.wait()
        bench.dispatcher.abandon()
    go_on.set()
    again = bench_of(tmp_path, table)
    numbers = itertools.count(100)
    assert again.dispatcher.originator is not None
    again.dispatcher.originator.new_queue_id = lambda at: f"Q{next(numbers):011d}"
    async with again as bench:
        await idle(bench)
        assert sent(bench) == {("sue@example.net", BOB): 1, ("sue@example.net", "sam@o.test"): 1}


async def test_a_list_tells_who_asked_that_it_has_the_message(tmp_path: Path) -> None:
    async with bench_of(tmp_path, Table({LIST: Expansion(to(BOB), sender=BOUNCES)})) as bench:
        whole = message(LIST)
        envelope = type(whole.envelope)("sue@o.test", (Recipient(LIST, notify=Notify.SUCCESS),))
        await bench.acceptor.accept(type(whole)(whole.client, envelope, whole.data))
        await idle(bench)
        assert set(sent(bench)) == {(BOUNCES, BOB), ("", "sue@o.test")}


async def test_a_recipient_of_no_route_is_taken_if_a_rule_names_it(tmp_path: Path) -> None:
    rule = "rcpt to=*@lists.test"
    client = message().client
    async with bench_of(tmp_path, Table({"l@lists.test": Expansion(to(BOB), sender=BOUNCES)}), rule) as bench:
        assert bench.acceptor.check_recipient(client, Recipient("l@lists.test")) is None
        refusal = bench.acceptor.check_recipient(client, Recipient("l@elsewhere.test"))
        assert refusal is not None
        assert refusal.code == 550


async def test_a_report_to_a_list_is_for_the_list_to_read(tmp_path: Path) -> None:
    """The copy of a member is refused by its host: our own report goes to the reverse-path, which a sink expands."""
    read: list[tuple[str, bool]] = []

    def read_bounce(seen: Message) -> Expansion:
        read.append((seen.envelope.sender, "multipart/report" in seen.headers.get("content-type")))
        return Expansion()

    bounces = "list-bounces+bob=o.test@example.org"
    table = Table({LIST: Expansion(to(BOB), sender=BOUNCES, verp=True), bounces: read_bounce})
    async with bench_of(tmp_path, table) as bench:
        bench.reporting = replace(
            bench.reporting, reporter=replace(bench.reporting.reporter, class_of=bench.acceptor.class_of)
        )
        bench.dispatcher.configure(bench.reporting, DispatcherLimits(100, 30, 10))
        no = Reply(550, "no such user", "5.1.1")
        bench.client.answer = lambda hop, job: AttemptResult(OutcomeKind.MESSAGE_REFUSED, (no,), no)
        await bench.acceptor.accept(message(LIST))
        await until(lambda: bool(read))
        assert read == [("", True)]
