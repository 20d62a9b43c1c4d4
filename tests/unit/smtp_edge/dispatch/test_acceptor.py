"""The acceptor: where responsibility passes, and when it does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.decision import OutcomeKind
from router.policy import RouteRule, RouteTable
from router.terms import Policy, Terms
from smtp_edge.acceptor import accept_token, split_token
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.envelope import Client, Recipient, Transfer
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.reply import Reply
from smtp_edge.room import NO_ROOM
from smtp_edge.routes import TRACE_ROOM_BYTES
from tests.unit.smtp_edge.dispatch.fakes import NODE, Bench, Ordered, message, until

PEER = "b" * 32
LATER, NO = Reply(450, "later", "4.2.0"), Reply(550, "no", "5.1.1")
TOKEN = f"{PEER}/Q99999999999/0"


async def test_the_reply_names_the_queue_id(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        reply = await bench.acceptor.accept(message())
        assert str(reply) == "250 2.0.0 Ok: queued as Q00000000001"


@pytest.mark.rfc("5321 6.1c")
async def test_a_transfer_is_stored_once(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        transfer = Transfer(TOKEN, (PEER,), 7)
        first = await bench.acceptor.accept(message(transfer=transfer, peer=PEER))
        second = await bench.acceptor.accept(message(transfer=transfer, peer=PEER))
        assert str(first) == "250 2.0.0 Ok: queued as Q00000000001; backlog default=1"
        assert str(second) == "250 2.0.0 Ok: already have it as Q00000000001; backlog default=1"
        assert bench.counters.duplicates_dropped == 1
        (stored,) = await bench.store.list()
        assert (stored.entry.trace, stored.entry.origin) == ((PEER,), f"{PEER}/Q99999999999")
        assert stored.delivery.transfer_token == TOKEN


async def test_a_message_that_steps_back_is_stored_again(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        there = Transfer(TOKEN, (PEER,))
        back = Transfer(TOKEN, (PEER, NODE, "c" * 32))
        for transfer, words in ((there, "queued"), (back, "queued"), (back, "already"), (there, "already")):
            reply = await bench.acceptor.accept(message(transfer=transfer, peer=PEER))
            assert words in reply.text


async def test_what_is_in_quarantine_is_stored_and_waits_for_an_operator(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        ann, bob, eve = (Recipient(f"{name}@example.org") for name in ("ann", "bob", "eve"))
        given = message()
        given = replace(given, envelope=replace(given.envelope, recipients=(ann, bob, eve)), held=((bob, "a virus"),))
        assert (await bench.acceptor.accept(given)).code == 250
        held = [item.delivery for item in await bench.store.list() if item.delivery.state is DeliveryState.HELD]
        assert [(item.recipients, item.last_reply) for item in held] == [((bob,), "a virus")]
        tokens = {item.delivery.transfer_token for item in await bench.store.list()}
        assert len(tokens) == 2, "the parts are transfers of their own"


@pytest.mark.rfc("1870 6.1b")
async def test_full_disk_answers_452_and_stores_nothing(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        bench.acceptor._store = Failing(StoreFull("no space"))  # type: ignore[assignment]
        assert (await bench.acceptor.accept(message())).code == 452
        bench.acceptor._store = Failing(StoreError("disk"))  # type: ignore[assignment]
        assert (await bench.acceptor.accept(message())).code == 451
        assert bench.counters.accepted == 0


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def put(self, *_: object, **__: object) -> None:
        raise self.error

    def begin(self, *_: object) -> None:
        return None


async def test_what_the_next_hop_takes_at_once_is_answered_without_the_disk(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        commits = bench.store.commits_count
        reply = await bench.acceptor.accept(message())
        assert str(reply) == "250 2.0.0 Ok: queued as Q00000000001"
        assert (bench.store.commits_count, bench.counters.passed, bench.counters.relayed) == (commits, 1, 1)
        history = await bench.store.history("Q00000000001")
        assert history is not None
        assert [note.event for note in history.notes] == ["received", "relayed"]
        assert await bench.store.list() == []


async def test_what_the_next_hop_does_not_take_is_stored_before_the_answer(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        bench.client.answer = lambda _hop, job: AttemptResult(
            OutcomeKind.MESSAGE_REFUSED, (LATER,) * len(job.envelope.recipients), LATER
        )
        assert (await bench.acceptor.accept(message())).code == 250
        (stored,) = await bench.store.list()
        assert stored.delivery.state in (DeliveryState.DEFERRED, DeliveryState.CLAIMED)
        await until(lambda: bench.counters.deferred == 1)


async def test_a_refusal_is_stored_with_its_report(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        bench.client.answer = lambda _hop, job: AttemptResult(
            OutcomeKind.MESSAGE_REFUSED, (NO,) * len(job.envelope.recipients), NO
        )
        assert (await bench.acceptor.accept(message())).code == 250
        await until(lambda: bench.counters.failed >= 1)
        history = await bench.store.history("Q00000000001")
        assert history is not None
        assert history.deliveries[0].state is DeliveryState.FAILED
        assert "bounced" in [note.event for note in history.notes]


async def test_a_slow_next_hop_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        bench.client.gate = asyncio.Event()
        assert (await bench.acceptor.accept(message())).code == 250
        assert [item.delivery.state for item in await bench.store.list()] == [DeliveryState.CLAIMED]
        bench.client.gate.set()
        await until(lambda: bench.counters.relayed == 1)
        assert (len(bench.client.attempts), await bench.store.list()) == (1, [])


@pytest.mark.parametrize(("error", "code"), [(StoreFull("no space"), 452), (StoreError("disk"), 451)])
async def test_a_disk_that_refuses_what_is_not_relayed(tmp_path: Path, error: StoreError, code: int) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        bench.client.answer = lambda _hop, job: AttemptResult(
            OutcomeKind.MESSAGE_REFUSED, (LATER,) * len(job.envelope.recipients), LATER
        )
        assert bench.store._cut is not None
        bench.store._cut._put = Failing(error).put  # type: ignore[assignment]
        assert (await bench.acceptor.accept(message())).code == code
        assert bench.counters.accepted == 0
        assert await bench.store.list() == []


async def test_mail_of_peers_is_stored(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        commits = bench.store.commits_count
        await bench.acceptor.accept(message(transfer=Transfer(TOKEN, (PEER,), 7), peer=PEER))
        assert bench.store.commits_count > commits


async def test_mail_for_several_classes_is_stored(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a"), cut_through=True) as bench:
        commits = bench.store.commits_count
        await bench.acceptor.accept(message("a@example.org", "b@o.test"))
        assert bench.store.commits_count > commits


async def test_too_little_space_is_refused_at_mail(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        assert bench.acceptor.admit(1000) is None
        bench.refusal = NO_ROOM
        assert bench.acceptor.admit(1000) == NO_ROOM


@pytest.mark.parametrize(("peer", "code"), [("", 550), (PEER, 451)])
async def test_no_route_is_final_for_clients_and_transient_for_peers(tmp_path: Path, peer: str, code: int) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        client = Client("127.0.0.1", peer_id=peer)
        assert bench.acceptor.check_recipient(client, Recipient("ann@example.org")) is None
        reply = bench.acceptor.check_recipient(client, Recipient("ann@nowhere.test"))
        assert reply is not None
        assert reply.code == code


def limited(bench: Bench, limit_bytes: int = 100_000) -> None:
    """Mail to small.test leaves by an exit with a limit, other mail by one without."""
    terms = (Terms(size_bytes_max=limit_bytes),)
    table = RouteTable(
        [RouteRule("small", ("small.test",), ("a",), Policy(), terms), RouteRule("rest", ("*",), ("b",))]
    )
    bench.acceptor.configure(table, hostname="relay.test", settings=bench.settings)


def body_of(size_bytes: int) -> bytes:
    return b"Subject: x\r\n\r\n" + b"x" * (size_bytes - 16) + b"\r\n"


async def test_mail_that_is_too_large_for_its_exits_is_refused_at_rcpt(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        limited(bench)
        client, peer = Client("127.0.0.1"), Client("127.0.0.1", peer_id=PEER)
        ann = Recipient("ann@small.test")
        assert bench.acceptor.check_recipient(client, ann, 100_000 - TRACE_ROOM_BYTES) is None
        assert bench.acceptor.check_recipient(client, Recipient("ann@large.test"), 10**9) is None
        reply = bench.acceptor.check_recipient(client, ann, 100_001 - TRACE_ROOM_BYTES)
        assert str(reply) == "552 5.3.4 message is larger than any exit to this destination takes"
        assert bench.acceptor.check_recipient(peer, ann, 100_000) is None
        assert str(bench.acceptor.check_recipient(peer, ann, 100_001)).startswith("451 4.3.4")


@pytest.mark.parametrize(("peer", "code"), [("", 552), (PEER, 451)])
async def test_mail_that_is_too_large_and_did_not_say_so_is_refused_after_the_data(
    tmp_path: Path, peer: str, code: int
) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        limited(bench)
        with capture_logs() as lines:
            reply = await bench.acceptor.accept(message("ann@small.test", body=body_of(100_001), peer=peer))
        assert reply.code == code
        (line,) = [line for line in lines if line["event"] == "message.too_large"]
        assert (line["size_bytes"], line["classes"], line["size_bytes_max"]) == (100_001, ["small>100000"], 100_000)
        assert await bench.store.list() == []
        assert (await bench.acceptor.accept(message("ann@small.test", body=body_of(90_000), peer=peer))).code == 250


async def test_mail_that_is_too_large_for_some_goes_to_the_others(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        limited(bench)
        large = body_of(100_001)
        assert (await bench.acceptor.accept(message("ann@small.test", "bob@large.test", body=large))).code == 250
        classes = sorted(claim.delivery.class_id for claim in await bench.store.list())
        assert classes == ["rest", "small>100000"]
        from_peer = message("ann@small.test", "bob@large.test", body=large, peer=PEER)
        assert (await bench.acceptor.accept(from_peer)).code == 451


async def test_the_age_of_a_transfer_counts_against_its_lifetime(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        await bench.acceptor.accept(message(transfer=Transfer(TOKEN, (PEER,), 3600), peer=PEER))
        await bench.acceptor.accept(message())
        old, fresh = sorted(await bench.store.list(), key=lambda claim: claim.entry.expires_at)
        gap = (fresh.entry.expires_at - old.entry.expires_at).total_seconds()
        assert 3599 <= gap <= 3605


async def test_mail_that_was_deferred_elsewhere_goes_on_where_it_was(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        before = datetime.now(UTC)
        deferred = Transfer(TOKEN, (PEER,), 100, 3, 600, True)
        assert (await bench.acceptor.accept(message(transfer=deferred, peer=PEER))).code == 250
        (claim,) = await bench.store.list()
        delivery = claim.delivery
        assert (delivery.state, delivery.attempts, delivery.delay_notified) == (DeliveryState.DEFERRED, 3, True)
        assert delivery.next_attempt_at is not None
        assert 599 <= (delivery.next_attempt_at - before).total_seconds() <= 601
        assert bench.client.attempts == []


async def test_attempts_of_mail_that_is_due_go_on_counting(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        await bench.acceptor.accept(message(transfer=Transfer(TOKEN, (PEER,), 100, 3), peer=PEER))
        (claim,) = await bench.store.list()
        assert (claim.delivery.state, claim.delivery.attempts) == (DeliveryState.CLAIMED, 3)


async def test_the_next_attempt_is_never_after_the_end_of_the_lifetime(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        await bench.acceptor.accept(message(transfer=Transfer(TOKEN, (PEER,), 0, 1, 999_999_999), peer=PEER))
        (claim,) = await bench.store.list()
        assert claim.delivery.next_attempt_at == claim.entry.expires_at


async def test_a_relay_that_drains_takes_no_mail_of_peers_but_answers_for_what_it_has(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        sent = message(transfer=Transfer(TOKEN, (PEER,)), peer=PEER)
        assert (await bench.acceptor.accept(sent)).code == 250
        bench.acceptor.draining = True
        assert "already have it as Q00000000001" in (await bench.acceptor.accept(sent)).text
        other = message(transfer=Transfer(TOKEN.replace("/0", "/1"), (PEER,)), peer=PEER)
        assert str(await bench.acceptor.accept(other)) == "451 4.3.2 this relay is being drained"
        assert (await bench.acceptor.accept(message())).code == 250  # of a session that was open
        assert len(await bench.store.list()) == 2


def test_the_split_token_depends_on_the_recipients_alone() -> None:
    ann, bob = Recipient("ann@example.org"), Recipient("bob@example.org")
    assert split_token("t", [ann, bob]) == split_token("t", [bob, ann])
    assert split_token("t", [ann]) != split_token("t", [bob])


def test_a_repeat_of_a_step_back_is_recognised() -> None:
    back = Transfer(TOKEN, (PEER, NODE, "c" * 32))
    assert accept_token(back, NODE) == accept_token(replace(back), NODE) == f"{TOKEN}@3"
    assert accept_token(Transfer(TOKEN, (PEER,)), NODE) == TOKEN


async def test_a_relay_without_room_still_knows_a_repeat_of_a_peer_and_takes_nothing_else(tmp_path: Path) -> None:
    async with Bench(tmp_path, Ordered()) as bench:
        door = bench.acceptor.for_peers()
        transfer = Transfer(TOKEN, (PEER,), 7)
        await door.accept(message(transfer=transfer, peer=PEER))
        bench.refusal = NO_ROOM
        assert door.admit(1000) is None
        repeated = await door.accept(message(transfer=transfer, peer=PEER))
        assert repeated.code == 250
        other = Transfer(f"{PEER}/Q88888888888/0", (PEER,), 7)
        assert await door.accept(message(transfer=other, peer=PEER)) == NO_ROOM
        assert len(await bench.store.list()) == 1
