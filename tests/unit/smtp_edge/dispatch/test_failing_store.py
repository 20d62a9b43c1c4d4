"""The dispatcher on a store that fails now and then: it goes on, and repeats no attempt for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.dispatch import endings, refill
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.queue.store import StoreError
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, message, until
from tests.unit.smtp_edge.queue.builders import build_new


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "RETRY_S", 0.01)
    monkeypatch.setattr(refill, "RETRY_S", 0.01)


def fail_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str) -> list[str]:
    """The next call fails; the list names it then."""
    real, failed = getattr(bench.store, method), list[str]()

    async def failing(*args: Any, **named: Any) -> Any:
        if not failed:
            failed.append(method)
            raise StoreError("the disk says no")
        return await real(*args, **named)

    monkeypatch.setattr(bench.store, method, failing)
    return failed


@pytest.mark.parametrize("method", ["next_due_at", "claim"])
async def test_mail_on_disk_is_claimed_although_the_store_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        failed = fail_once(bench, monkeypatch, method)
        bench.dispatcher.note_unclaimed()
        await until(lambda: bool(failed))
        await bench.store.put(build_new(), claim=False)
        bench.dispatcher.note_unclaimed()
        await until(lambda: bench.counters.relayed == 1)


async def test_an_end_that_cannot_be_recorded_is_offered_again_and_not_attempted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        failed = fail_once(bench, monkeypatch, "settle")
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.relayed == 1)
        assert failed
        assert len(bench.client.attempts) == 1
        assert bench.store.backlog_counts() == {}


async def test_a_wake_that_fails_leaves_the_mail_to_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench(tmp_path, Ordered("host:a")) as bench:
        failed = fail_once(bench, monkeypatch, "wake")
        await bench.dispatcher.wake(["default"])
        assert failed


async def test_mail_data_that_is_lost_makes_the_mail_wait_with_the_reason_and_blames_no_hop(tmp_path: Path) -> None:
    def lost(_hop: str, _job: Job) -> AttemptResult:
        raise MailDataLost("its mail data cannot be read: abc: Input/output error")

    async with Bench(tmp_path, Ordered("host:a")) as bench:
        bench.client.answer = lost
        await bench.acceptor.accept(message())
        await until(lambda: bench.counters.deferred == 1)
        (listed,) = await bench.store.list()
        assert listed.delivery.state is DeliveryState.DEFERRED
        assert listed.delivery.last_reply == "its mail data cannot be read: abc: Input/output error"
        assert listed.delivery.attempts == 0
        assert bench.observer.ends == [("host:a", OutcomeKind.CANCELLED)]
