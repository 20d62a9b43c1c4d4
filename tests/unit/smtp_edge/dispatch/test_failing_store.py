"""The dispatcher on a store that fails now and then: it goes on, and repeats no attempt for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smtp_edge import dispatcher as dispatcher_module
from smtp_edge.queue.store import StoreError
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, message, until
from tests.unit.smtp_edge.queue.builders import build_new


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "SETTLE_RETRY_S", 0.01)


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
