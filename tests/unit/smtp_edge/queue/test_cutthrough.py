"""Mail that passes without touching the disk, and every way in which it does not."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import uuid
import weakref
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from smtp_edge.envelope import MailData
from smtp_edge.queue import cutthrough, statements
from smtp_edge.queue.cutthrough import Passage
from smtp_edge.queue.entry import DeliveryState, Group, NewEntry, Regrouping
from smtp_edge.queue.spool import SpoolWriter
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.statements import ROWS_TOGETHER
from smtp_edge.queue.store import StoreDoubt, StoreError, StoreFull
from tests.unit.smtp_edge.queue.builders import AT, build_deferral, build_end, build_new, build_note
from tests.unit.smtp_edge.queue.test_sqlite_store import spooled


def build_store(directory: Path, *, entries_max: int = 1000, cut_through: bool = True) -> SQLiteStore:
    return SQLiteStore(
        directory,
        incarnation=uuid.uuid4().hex,
        history_s=3600,
        entries_max=entries_max,
        clock=lambda: AT,
        cut_through=cut_through,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = build_store(tmp_path)
    await store.open()
    yield store
    await store.close()


def begin(store: SQLiteStore, new: NewEntry | None = None) -> Passage:
    passage = store.begin(new or build_new())
    assert passage is not None
    return passage


def rows(directory: Path) -> list[tuple[str, str]]:
    """Queue ids and states on disk."""
    with sqlite3.connect(directory / "queue.db") as connection:
        found = connection.execute("SELECT queue_id, state FROM delivery ORDER BY queue_id").fetchall()
    connection.close()
    return found


async def test_relayed_in_time_it_is_never_on_disk_but_for_its_history(store: SQLiteStore, tmp_path: Path) -> None:
    new, commits = build_new(), store.commits_count
    passage = begin(store, new)
    assert [claim.entry for claim in passage.claims] == [new.entry]
    assert passage.claims[0].delivery.state is DeliveryState.CLAIMED
    end = build_end(passage.claims[0], hop="host:a", reply="250 ok", notes=(build_note("relayed"),))
    await store.settle([end])
    assert await passage.answer is True
    assert (store.commits_count, rows(tmp_path)) == (commits, [])
    history = await store.history(new.entry.queue_id)
    assert history is not None
    (delivery,) = history.deliveries
    assert (delivery.state, delivery.last_hop, delivery.last_reply, delivery.attempts) == (
        DeliveryState.RELAYED,
        "host:a",
        "250 ok",
        1,
    )
    assert [note.event for note in history.notes] == ["received", "relayed"]
    assert history.entry.envelope == new.entry.envelope
    assert (await store.summary()).relayed == 1
    assert store.entries_count == 0
    await store.prune(AT + timedelta(hours=2))
    assert await store.history(new.entry.queue_id) is None


async def test_what_passes_counts_as_waiting(store: SQLiteStore) -> None:
    passages = [begin(store) for _ in range(3)]
    assert dict(store.moving()) == {"default": 3}
    await store.settle([build_end(passages[0].claims[0])])
    assert dict(store.moving()) == {"default": 2}
    await store.settle([build_deferral(passages[1].claims[0], 10)])
    assert dict(store.moving()) == {"default": 1}
    await store.settle([build_end(passages[2].claims[0])])
    await store.history("")
    assert dict(store.moving()) == {}


async def test_the_history_of_many_is_one_commit(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutthrough, "HISTORY_S", 0.01)
    commits = store.commits_count
    for _ in range(50):
        await store.settle([build_end(begin(store).claims[0])])
    async with asyncio.timeout(10):
        while store.commits_count == commits:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (store.commits_count, len(rows(tmp_path))) == (commits + 1, 50)


@pytest.mark.parametrize("count", [1, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 1])
async def test_the_history_of_each_of_many_is_its_own(store: SQLiteStore, count: int) -> None:
    entries = [build_new() for _ in range(count)]
    for number, new in enumerate(entries):
        passage = begin(store, new)
        await store.settle([build_end(passage.claims[0], reply=f"250 {number}", notes=(build_note(f"{number}"),))])
    for number, new in enumerate(entries):
        history = await store.history(new.entry.queue_id)
        assert history is not None
        assert [delivery.last_reply for delivery in history.deliveries] == [f"250 {number}"]
        assert [note.event for note in history.notes] == ["received", f"{number}"]
    assert (await store.summary()).relayed == count


async def test_what_takes_too_long_is_stored_and_goes_on(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutthrough, "PASS_S", 0.01)
    passage = begin(store)
    assert await passage.answer is False
    assert [state for _, state in rows(tmp_path)] == ["claimed"]
    await store.settle([build_end(passage.claims[0])])
    assert [state for _, state in rows(tmp_path)] == ["relayed"]


@pytest.mark.parametrize("state", [DeliveryState.DEFERRED, DeliveryState.FAILED, DeliveryState.QUEUED])
async def test_what_is_not_relayed_is_stored(store: SQLiteStore, tmp_path: Path, state: DeliveryState) -> None:
    passage = begin(store)
    claim = passage.claims[0]
    deferred = state is DeliveryState.DEFERRED
    await store.settle([build_deferral(claim, 10) if deferred else build_end(claim, state)])
    assert await passage.answer is False
    assert [found for _, found in rows(tmp_path)] == [state.value]


async def test_what_is_relayed_with_a_report_is_stored_with_it(store: SQLiteStore, tmp_path: Path) -> None:
    passage, report = begin(store), build_new("reports")
    await store.settle([build_end(passage.claims[0], reports=(report,))])
    assert await passage.answer is False
    assert sorted(found for _, found in rows(tmp_path)) == ["queued", "relayed"]


async def test_what_a_peer_may_have_is_stored_with_its_name(store: SQLiteStore, tmp_path: Path) -> None:
    passage = begin(store)
    store.note_offer(passage.new.entry.queue_id, 0, "peer:b")
    await store.settle([build_deferral(passage.claims[0], 1, in_doubt_hop="peer:b")])
    assert await passage.answer is False
    (claim,) = await store.list()
    assert claim.delivery.in_doubt_hop == "peer:b"


async def test_what_gets_another_class_is_stored_first(store: SQLiteStore) -> None:
    passage = begin(store)
    delivery = passage.new.deliveries[0]
    groups = (Group("other", delivery.recipients, "token"),)
    item = Regrouping(delivery.queue_id, 0, passage.claims[0].token, delivery.recipients, groups)
    assert await store.regroup([item]) == 1
    assert await passage.answer is False
    assert [claim.delivery.class_id for claim in await store.list()] == ["other"]


async def test_a_store_that_closes_keeps_what_is_passing(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    await store.open()
    passage = begin(store)
    await store.close()
    assert await passage.answer is False
    again = build_store(tmp_path)
    await again.open()
    (claim,) = await again.claim(1, AT)
    assert claim.entry == passage.new.entry
    await again.close()


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("no")

    monkeypatch.setattr(statements, name, fail)


async def test_refused_by_the_disk_and_not_relayed_it_is_nobodys(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "put")
    passage = begin(store)
    await store.settle([build_deferral(passage.claims[0], 10)])
    with pytest.raises(StoreError):
        await passage.answer
    assert rows(tmp_path) == []


async def test_refused_by_the_disk_and_relayed_yet_it_is_the_next_hops(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutthrough, "PASS_S", 0.001)
    refuse(monkeypatch, "put")
    passage = begin(store)
    async with asyncio.timeout(10):
        while passage.error is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not passage.answer.done(), "the next hop may take it yet"
    await store.settle([build_end(passage.claims[0])])
    assert await passage.answer is True


async def test_refused_by_the_disk_with_its_report_it_is_nobodys(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some recipients were refused, and nothing would tell the sender: the client keeps the message."""
    refuse(monkeypatch, "put")
    passage = begin(store)
    await store.settle([build_end(passage.claims[0], reports=(build_new("reports"),))])
    with pytest.raises(StoreError):
        await passage.answer
    assert rows(tmp_path) == []


async def test_refused_by_the_disk_it_is_not_regrouped(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "put")
    passage = begin(store)
    delivery = passage.new.deliveries[0]
    item = Regrouping(delivery.queue_id, 0, passage.claims[0].token, delivery.recipients, ())
    with pytest.raises(StoreError):
        await store.regroup([item])
    await store.settle([build_deferral(passage.claims[0], 1)])
    with pytest.raises(StoreError):
        await passage.answer


async def test_a_store_that_closes_on_a_bad_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build_store(tmp_path)
    await store.open()
    refuse(monkeypatch, "put")
    passage = begin(store)
    await store.close()
    with pytest.raises(StoreError):
        await passage.answer


async def test_history_that_cannot_be_written_is_lost_and_its_file_goes(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "record")
    data = await spooled(tmp_path)
    passage = begin(store, build_new(data=data))
    await store.settle([build_end(passage.claims[0])])
    assert await passage.answer is True
    assert await store.history(passage.new.entry.queue_id) is None
    assert not data.path.exists()


async def test_a_file_passes_without_a_sync_and_is_stored_with_one(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        real(number)

    monkeypatch.setattr(os, "fsync", note)
    passing, staying = await spooled(tmp_path), await spooled(tmp_path)
    passage = begin(store, build_new(data=passing))
    await store.settle([build_end(passage.claims[0])])
    assert await passage.answer is True
    await store.history("")
    assert synced == []
    passage = begin(store, build_new(data=staying))
    await store.settle([build_deferral(passage.claims[0], 10)])
    assert synced[:2] == [str(staying.path), str(staying.path.parent)]
    await store.close()
    assert not passing.path.exists()
    assert staying.path.exists()


def in_memory(size_bytes: int = 300_000) -> MailData:
    return MailData(size_bytes, inline=b"x" * size_bytes, header=b"")


async def test_large_mail_passes_from_memory_and_is_let_go(store: SQLiteStore, tmp_path: Path) -> None:
    new = build_new(data=in_memory())
    gone = weakref.ref(new.entry.data)
    passage = begin(store, new)
    await store.settle([build_end(passage.claims[0])])
    assert await passage.answer is True
    del new
    gc.collect()
    assert gone() is None, "its history is not written yet, and has no need of it"
    assert list((tmp_path / "spool").glob("*")) == [tmp_path / "spool" / "incoming"]
    history = await store.history(passage.new.entry.queue_id)
    assert history is not None
    assert history.entry.data.size_bytes == 300_000


async def test_large_mail_in_memory_that_is_stored_becomes_a_file(store: SQLiteStore, tmp_path: Path) -> None:
    passage = begin(store, build_new(data=in_memory()))
    await store.settle([build_deferral(passage.claims[0], 10)])
    assert await passage.answer is False
    (file,) = (path for path in (tmp_path / "spool").glob("*") if path.is_file())
    assert (await store.data(passage.new.entry.queue_id)).path == file
    assert file.read_bytes() == b"x" * 300_000


@pytest.mark.parametrize("error", [StoreError("no"), StoreDoubt("who knows")])
async def test_the_file_of_large_mail_that_is_refused_goes_unless_the_disk_may_name_it(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    def put(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(statements, "put", put)
    with pytest.raises(StoreError):
        await store.put(build_new(data=in_memory()))
    files = [path for path in (tmp_path / "spool").glob("*") if path.is_file()]
    assert len(files) == isinstance(error, StoreDoubt)


async def test_a_repeat_of_large_mail_leaves_one_file(store: SQLiteStore, tmp_path: Path) -> None:
    new = build_new(data=in_memory())
    assert not (await store.put(new, accept_token="t")).duplicate_of
    assert (await store.put(build_new(data=in_memory()), accept_token="t")).duplicate_of == new.entry.queue_id
    assert len([path for path in (tmp_path / "spool").glob("*") if path.is_file()]) == 1


async def test_a_disk_that_takes_no_file_has_nothing_of_it(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_writer: SpoolWriter, _chunk: bytes) -> None:
        raise StoreFull("no space")

    monkeypatch.setattr(SpoolWriter, "write", write)
    with pytest.raises(StoreFull):
        await store.put(build_new(data=in_memory()))
    assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []


async def test_a_class_that_was_too_slow_pauses_longer_each_time(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutthrough, "PASS_S", 0.001)
    for pause in (1, 2, 4, 8):
        assert await begin(store).answer is False
        assert [store.begin(build_new()) for _ in range(pause)] == [None] * pause
    other = begin(store, build_new("quick"))
    await store.settle([build_end(other.claims[0])])
    monkeypatch.setattr(cutthrough, "PASS_S", 60)
    passage = begin(store)
    await store.settle([build_end(passage.claims[0])])
    assert begin(store), "one that was quick enough ends it"


async def test_large_mail_has_more_time(store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutthrough, "PASS_S", 0.01)
    monkeypatch.setattr(cutthrough, "PASS_BYTES_PER_S", 10_000)
    large = begin(store, build_new(data=await spooled(tmp_path)))
    small = begin(store)
    assert await small.answer is False, "it does not stand behind the large one"
    assert not large.answer.done()
    await store.settle([build_end(large.claims[0])])
    assert await large.answer is True


def test_a_loop_that_is_late_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop gives another handle for a time that is past."""
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(cutthrough, "PASS_S", -1.0)

    async def work() -> list[bool]:
        store = build_store(tmp_path)
        await store.open()
        passages = [begin(store, build_new(f"class-{number}")) for number in range(5)]
        answers = [await passage.answer for passage in passages]
        await store.close()
        return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == [False] * 5


async def test_many_slow_classes_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutthrough, "PAUSED_CLASSES_MAX", 3)
    pauses = cutthrough._Pauses()
    for number in range(10):
        pauses.begin(str(number))
    assert len(pauses.of) <= 3


async def test_history_that_is_not_written_holds_the_passing_back(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutthrough, "UNWRITTEN_COUNT_MAX", 2)
    for _ in range(2):
        await store.settle([build_end(begin(store).claims[0])])
    assert store.begin(build_new()) is None
    await store.history("")
    assert begin(store)


async def test_what_is_put_instead(tmp_path: Path) -> None:
    store = build_store(tmp_path, entries_max=1)
    assert store.begin(build_new()) is None, "it is not open"
    await store.open()
    assert store.begin(build_new("one", "two")) is None, "two deliveries"
    assert store.begin(build_new(data=await spooled(tmp_path / "elsewhere"))) is None, "not its file"
    begin(store)
    assert store.begin(build_new()) is None, "the queue is full"
    await store.close()
    off = build_store(tmp_path / "off", cut_through=False)
    await off.open()
    assert off.begin(build_new()) is None
    await off.close()
