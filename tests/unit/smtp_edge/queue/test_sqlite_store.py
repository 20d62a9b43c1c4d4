"""The embedded store: the contract, and what is peculiar to SQLite and to files."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.queue import questions, statements
from smtp_edge.queue import sqlite as sqlite_module
from smtp_edge.queue import wal as wal_module
from smtp_edge.queue import writer as writer_module
from smtp_edge.queue.entry import DeliveryState, Stored
from smtp_edge.queue.faults import Kind
from smtp_edge.queue.spool import Spool
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import MessageStore, StoreDoubt, StoreError, StoreFull
from smtp_edge.queue.tally import Tally
from tests.unit.smtp_edge.queue.builders import (
    AT,
    HEADER,
    build_deferral,
    build_end,
    build_new,
    build_note,
    hold,
    release,
)
from tests.unit.smtp_edge.queue.store_contract import ENTRIES_MAX, HISTORY, MakeStore, StoreContract


def build_store(directory: Path, entries_max: int = 100_000) -> SQLiteStore:
    return SQLiteStore(
        directory,
        incarnation=uuid.uuid4().hex,
        history_s=HISTORY.total_seconds(),
        entries_max=entries_max,
        clock=lambda: AT,
    )


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        async def make() -> MessageStore:
            store = build_store(tmp_path / "queue", ENTRIES_MAX)
            await store.open()
            return store

        return make


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    store = build_store(tmp_path / "queue")
    await store.open()
    yield store
    await store.close()


async def spooled(directory: Path, size_bytes: int = 300_000) -> Any:
    writer = Spool(directory).begin()
    writer.write(HEADER)
    writer.write(b"x" * (size_bytes - len(HEADER) - 2))
    writer.write(b"\r\n")
    return await writer.commit(HEADER)


async def test_concurrent_puts_share_commits(store: SQLiteStore) -> None:
    await asyncio.gather(*(store.put(build_new()) for _ in range(200)))
    assert store.backlog_counts() == {"default": 200}
    assert store.commits_count <= 10


async def test_totals_in_memory_equal_those_of_the_rows(store: SQLiteStore, tmp_path: Path) -> None:
    for number in range(60):
        stored = await store.put(
            build_new(f"class-{number % 3}", "both", received_at=AT - timedelta(minutes=number)), claim=number % 4 != 0
        )
        for claim in stored.claims[: number % 3]:
            states = [DeliveryState.RELAYED, DeliveryState.FAILED, DeliveryState.DEFERRED, DeliveryState.EXPIRED]
            await store.settle([build_end(claim, states[number % 4])])
        if number % 7 == 0:
            await hold(store, stored.claims[0].delivery.queue_id if stored.claims else "none")
    await store.claim(5, AT)
    await store.wake(["both"], AT)
    for claim in (await store.list(states=[DeliveryState.DEFERRED]))[:4]:
        await hold(store, claim.delivery.queue_id)
    for claim in (await store.list(states=[DeliveryState.HELD]))[:2]:
        await release(store, claim.delivery.queue_id)
    with sqlite3.connect(tmp_path / "queue" / "queue.db") as connection:
        counted = Tally()
        counted.begin(questions.count_everything(connection))
    assert await store.summary() == counted.summary()
    assert store.backlog_counts() == counted.backlogs()
    await store.prune(AT + HISTORY * 2)
    with sqlite3.connect(tmp_path / "queue" / "queue.db") as connection:
        pruned = Tally()
        pruned.begin(questions.count_everything(connection))
    assert await store.summary() == pruned.summary() != counted.summary()


async def test_spooled_mail_lives_as_long_as_its_entry(store: SQLiteStore, tmp_path: Path) -> None:
    data = await spooled(tmp_path / "queue")
    await store.put(build_new(data=data), claim=False)
    (claim,) = await store.claim(1, AT)
    assert claim.entry.data == data
    await store.settle([build_end(claim)])
    await store.close()  # the file goes after the commit, on the writer's thread
    assert not data.path.exists()


async def test_spool_file_of_another_directory_is_refused(store: SQLiteStore, tmp_path: Path) -> None:
    data = await spooled(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not a spool file"):
        await store.put(build_new(data=data))


async def test_orphans_are_removed_at_opening(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    store = build_store(directory)
    await store.open()
    kept = await spooled(directory)
    await store.put(build_new(data=kept), claim=False)
    orphan = await spooled(directory)
    unfinished = Spool(directory).begin()
    unfinished.write(b"half")
    await store.close()
    again = build_store(directory)
    await again.open()
    assert kept.path.exists()
    assert not orphan.path.exists()
    assert list((directory / "spool" / "incoming").iterdir()) == []
    await again.close()
    await unfinished.abort()


BREAK = {
    "document is no JSON": "UPDATE entry SET document = '{' WHERE queue_id = ?",
    "document lacks fields": "UPDATE entry SET document = '{}' WHERE queue_id = ?",
    "document is a list": "UPDATE entry SET document = '[1]' WHERE queue_id = ?",
    "mail data is gone": "DELETE FROM body WHERE queue_id = ?",
    "mail data is short": "UPDATE body SET content = x'00' WHERE queue_id = ?",
    "mail data is text": "UPDATE body SET content = 'text' WHERE queue_id = ?",
    "recipients are nonsense": "UPDATE delivery SET recipients = '[[1]]' WHERE queue_id = ?",
    "entry is gone": "DELETE FROM entry WHERE queue_id = ?",
    "impossible time": "UPDATE entry SET expires_at = 9e18 WHERE queue_id = ?",
}


@pytest.mark.parametrize("sql", BREAK.values(), ids=BREAK.keys())
async def test_corrupt_entry_is_set_aside_and_the_rest_goes_on(tmp_path: Path, sql: str) -> None:
    directory = tmp_path / "queue"
    store = build_store(directory)
    await store.open()
    bad, good = build_new(), build_new()
    await store.put(bad, claim=False)
    await store.put(good, claim=False)
    with sqlite3.connect(directory / "queue.db") as connection:
        connection.execute(sql, (bad.entry.queue_id,))
    (claim,) = await store.claim(10, AT)
    assert claim.entry.queue_id == good.entry.queue_id
    assert (await store.summary()).corrupt == 1
    assert store.backlog_counts() == {"default": 1}
    assert [found.delivery.queue_id for found in await store.list()] == [good.entry.queue_id]
    await store.close()
    again = build_store(directory)
    await again.open()
    assert (await again.summary()).corrupt == 1
    await again.close()


async def test_missing_spool_file_is_corrupt(store: SQLiteStore, tmp_path: Path) -> None:
    data = await spooled(tmp_path / "queue")
    await store.put(build_new(data=data), claim=False)
    data.path.unlink()
    assert await store.claim(10, AT) == []
    assert (await store.summary()).corrupt == 1


async def test_damaged_mail_is_listed_tried_again_and_given_up(store: SQLiteStore, tmp_path: Path) -> None:
    data = await spooled(tmp_path / "queue")
    new = build_new(data=data)
    name = new.entry.queue_id
    await store.put(new, claim=False)
    content = data.path.read_bytes()
    data.path.unlink()
    assert await store.claim(10, AT) == []
    (item,) = await store.damaged(10)
    assert (item.queue_id, item.class_id) == (name, "default")
    assert item.reason.endswith("No such file or directory")
    assert await store.revive([name], build_note("retried")) == 1
    assert await store.claim(10, AT) == []  # set aside once more
    data.path.write_bytes(content)
    assert await store.revive([name], build_note("retried")) == 1
    (claim,) = await store.claim(10, AT)
    data.path.unlink()
    await store.settle([build_end(claim, DeliveryState.QUEUED)])
    assert await store.claim(10, AT) == []
    assert await store.bury([name], build_note("removed")) == 1
    summary = await store.summary()
    assert (summary.corrupt, summary.failed, store.entries_count) == (0, 1, 0)
    history = await store.history(name)
    assert history is not None
    assert [note.event for note in history.notes] == ["received", "retried", "retried", "removed"]


async def test_second_store_on_a_directory_names_the_holder(store: SQLiteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"queue is in use by process \d+: .*node\.data_dir"):
        await build_store(tmp_path / "queue").open()
    await store.put(build_new())


async def test_second_process_on_a_directory_is_refused(store: SQLiteStore, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from smtp_edge.queue.sqlite import SQLiteStore\n"
        "store = SQLiteStore(Path(sys.argv[1]), incarnation='x', history_s=1, entries_max=1,"
        " clock=lambda: datetime.now(UTC))\n"
        "try: asyncio.run(store.open())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "queue")]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
    assert run.stdout.startswith("StoreError"), run.stderr
    assert "is in use by process" in run.stdout


async def test_database_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    with sqlite3.connect(tmp_path / "queue" / "queue.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        await build_store(tmp_path / "queue").open()


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "queue.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=r"queue\.db|not a database"):
        await build_store(tmp_path / "queue").open()


async def test_directory_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        await build_store(tmp_path / "file" / "queue").open()


# -- the disk ----------------------------------------------------------------------------------------------------------


class FaultyConnection(sqlite3.Connection):
    """Fails on COMMIT with whatever is set."""

    fault: sqlite3.Error | None = None

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.fault is not None:
            raise self.fault
        return super().execute(sql, *parameters)


@pytest.fixture
def set_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite_module.sqlite3, "connect", lambda *args, **named: connect(*args, factory=FaultyConnection, **named)
    )

    def set_to(code: int | None) -> None:
        fault = None
        if code is not None:
            fault = sqlite3.OperationalError("injected")
            fault.sqlite_errorcode = code
        monkeypatch.setattr(FaultyConnection, "fault", fault)

    return set_to


async def eventually_put(store: SQLiteStore) -> Stored:
    """As a client that comes again."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await store.put(build_new())
            except StoreError:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "kind", "trouble"),
    [
        (sqlite3.SQLITE_FULL, StoreFull, Kind.FULL),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreDoubt, Kind.SUSPECT),
        (sqlite3.SQLITE_READONLY, StoreDoubt, Kind.SUSPECT),
        (sqlite3.SQLITE_BUSY, StoreError, None),
    ],
)
async def test_failed_commit_is_nobodys_success_and_the_store_recovers_by_itself(
    tmp_path: Path,
    set_fault: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[StoreError],
    trouble: Kind | None,
) -> None:
    monkeypatch.setattr(writer_module, "TRIAL_S", 0.01)
    store = build_store(tmp_path / "queue")
    await store.open()
    claim = (await store.put(build_new())).claims[0]
    set_fault(code)
    answers = await asyncio.gather(*(store.put(build_new()) for _ in range(20)), return_exceptions=True)
    assert kind in {type(answer) for answer in answers} <= {kind, StoreError}  # later ones are not even tried
    with pytest.raises(StoreError):
        await store.settle([build_end(claim)])
    assert (store.trouble.kind if store.trouble is not None else None) == trouble
    set_fault(None)
    assert store.backlog_counts() == {"default": 1}
    await eventually_put(store)
    assert store.trouble is None
    await store.settle([build_deferral(claim, 1)])
    assert store.backlog_counts() == {"default": 2}
    await store.close()


async def test_damage_found_by_a_change_closes_the_door_and_lets_mail_out(
    tmp_path: Path, set_fault: Callable[[int | None], None]
) -> None:
    store = build_store(tmp_path / "queue")
    await store.open()
    claim = (await store.put(build_new())).claims[0]
    set_fault(sqlite3.SQLITE_CORRUPT)
    with pytest.raises(StoreError, match="smtpmesh queue repair"):
        await store.put(build_new())
    set_fault(None)
    with pytest.raises(StoreError, match="damaged"):
        await store.put(build_new())
    await store.settle([build_end(claim)])
    assert await store.list() == []
    await store.close()


async def test_dead_writer_fails_everyone(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **named: object) -> None:
        raise SystemExit("the thread ends")

    monkeypatch.setattr(statements, "put", explode)
    answers = await asyncio.gather(*(store.put(build_new()) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in answers)
    with pytest.raises(StoreError, match="writer has failed"):
        await store.settle([])


async def test_put_cancelled_after_its_commit_gives_its_claims_back(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = build_new()
    real_put = statements.put

    def put_and_cancel(*args: Any, **named: Any) -> Any:
        answer = real_put(*args, **named)
        cancelled = asyncio.run_coroutine_threadsafe(cancel(), loop)
        cancelled.result(5)
        return answer

    async def cancel() -> None:
        task.cancel()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(statements, "put", put_and_cancel)
    task = loop.create_task(store.put(new))
    with pytest.raises(asyncio.CancelledError):
        await task
    await hold(store, "none")  # its commit comes after that of the put
    (claim,) = await store.claim(10, AT)
    assert claim.entry == new.entry


async def test_nobody_else_may_look_inside(store: SQLiteStore, tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    for path in (directory, directory / "spool", directory / "spool" / "incoming"):
        assert path.stat().st_mode & 0o077 == 0


async def test_every_commit_is_synced(store: SQLiteStore) -> None:
    writer = store._connect()
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.close()


async def test_failed_open_leaves_the_directory_free(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    with sqlite3.connect(directory / "queue.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema"):
        await build_store(directory).open()
    with sqlite3.connect(directory / "queue.db") as connection:
        connection.execute("PRAGMA user_version = 0")
    store = build_store(directory)
    await store.open()
    await store.close()


# -- the log -----------------------------------------------------------------------------------------------------------


async def test_the_log_is_copied_between_commits_and_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_module, "CHECKPOINT_PAGES", 50)
    store = build_store(tmp_path / "queue")
    await store.open()
    sizes = []
    for _ in range(60):
        await store.put(build_new())
        sizes.append((tmp_path / "queue" / "queue.db-wal").stat().st_size)
    await store.close()
    assert max(sizes) < 120 * 8192  # pages: some 50, and what one batch more brings
    assert sizes[-1] == sizes[20]


async def test_a_reader_of_another_program_only_delays_the_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_module, "CHECKPOINT_PAGES", 50)
    store = build_store(tmp_path / "queue")
    await store.open()
    await store.put(build_new())
    with sqlite3.connect(tmp_path / "queue" / "queue.db", isolation_level=None) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM entry").fetchone()
        for _ in range(30):
            await store.put(build_new())
        other.execute("COMMIT")
    other.close()
    for _ in range(30):
        await store.put(build_new())
    assert store.trouble is None
    assert store.backlog_counts() == {"default": 61}
    await store.close()


async def test_a_start_believes_no_log_but_copies_it(tmp_path: Path) -> None:
    store = build_store(tmp_path / "queue")
    await store.open()
    new = build_new()
    await store.put(new)
    shutil.copytree(tmp_path / "queue", tmp_path / "killed")
    await store.close()
    assert (tmp_path / "killed" / "queue.db-wal").stat().st_size > 0
    store = build_store(tmp_path / "killed")
    await store.open()
    with sqlite3.connect(f"file:{tmp_path / 'killed' / 'queue.db'}?immutable=1", uri=True) as database:
        assert database.execute("SELECT queue_id FROM entry").fetchall() == [(new.entry.queue_id,)]
    database.close()
    await store.close()


async def test_totals_are_right_although_mail_came_while_they_were_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_store(tmp_path / "queue")
    await store.open()
    claims = [(await store.put(build_new())).claims[0] for _ in range(5)]
    await store.close()
    counted, may_end = asyncio.Event(), threading.Event()
    real = questions.count_everything

    def slow(connection: sqlite3.Connection) -> Any:
        changes = real(connection)
        loop.call_soon_threadsafe(counted.set)
        may_end.wait(10)
        return changes

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(questions, "count_everything", slow)
    monkeypatch.setattr(sqlite_module, "COUNT_WAIT_S", 0)
    store = build_store(tmp_path / "queue")
    await store.open()
    await counted.wait()
    (first, *_) = await store.claim(2, AT)
    await store.settle([build_end(first)])
    await store.put(build_new("other"), claim=False)
    assert store.queued_count == 1
    asking = asyncio.ensure_future(store.summary())
    await asyncio.sleep(0)
    assert not asking.done()
    may_end.set()
    summary = await asking
    assert {item.class_id: item.count for item in summary.classes} == {"default": 4, "other": 1}
    assert (summary.relayed, store.queued_count, store.entries_count) == (1, 4, 5)
    assert claims
    await store.close()
