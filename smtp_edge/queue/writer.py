"""Group commit: one thread owns the writing connection and commits whatever is waiting as one transaction.

    submit ──> waiting ──> BEGIN, every waiting change, COMMIT (one sync) ──> all futures, in one wake-up of the loop

While a commit waits for the disk, the next batch gathers: the slower the disk, the larger the batches. No future is
resolved before its COMMIT has returned. A change that fails on its own account must not spoil its neighbours: the batch
is rolled back and its changes run again one by one. A change may therefore run twice and must touch nothing but the
connection.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.queue.tally import Changes

log = structlog.get_logger()

T = TypeVar("T")
BATCH_COUNT_MAX = 256
"""Changes in one commit: more saves no syncs worth having and lengthens the wait of the first."""

Work = Callable[[sqlite3.Connection, Changes], T]


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A change that waits for its commit."""

    work: Work[T]
    future: asyncio.Future[T]
    on_abandoned: Callable[[T], None] | None
    """Called on the loop when it was committed but nobody waits for the result any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: `error` None and a result, or an error and nothing changed."""

    job: Job[Any]
    result: Any = None
    changes: Changes | None = None
    error: StoreError | None = None


class Writer:
    """The writing thread. Built on the loop that submits."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        on_committed: Callable[[Sequence[Changes]], None],
        clean_up: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._on_committed = on_committed
        self._clean_up = clean_up
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._pending: set[Job[Any]] = set()
        self._broken: StoreError | None = None
        self._thread = threading.Thread(target=self._run, name="queue-writer", daemon=True)
        self.commits = 0
        """Transactions committed; for measurements."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def submit(self, work: Work[T], on_abandoned: Callable[[T], None] | None = None) -> T:
        """Commit a change; returns its result once it is on stable storage. StoreError: nothing was changed."""
        if self._broken is not None:
            raise StoreError(str(self._broken))
        job: Job[T] = Job(work, self._loop.create_future(), on_abandoned)
        self._pending.add(job)
        self._waiting.put(job)
        try:
            return await job.future
        finally:
            self._pending.discard(job)

    def stop(self) -> None:
        """Commit what waits and end the thread; blocks."""
        self._waiting.put(None)
        self._thread.join()

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = StoreError("the queue is closed")
        try:
            connection = self._connect()
            try:
                while self._step(connection):
                    pass
            finally:
                connection.close()
        except BaseException as error:  # whatever it was: nobody may wait for ever, nobody may hear of a success
            log.error("queue.writer_failed", exc_info=error)
            reason = StoreError(f"the queue's writer has failed: {error}")
        self._call(lambda: self._break(reason))

    def _step(self, connection: sqlite3.Connection) -> bool:
        """One batch; False when told to stop."""
        batch, go_on = self._gather()
        if batch:
            ended = self._commit(connection, batch)
            self._call(lambda: self._deliver(ended))
            for end in ended:
                for name in end.changes.unlinked if end.changes is not None else ():
                    self._clean_up(name)
        return go_on

    def _gather(self) -> tuple[list[Job[Any]], bool]:
        batch: list[Job[Any]] = []
        job = self._waiting.get()
        while job is not None:
            if not job.future.cancelled():
                batch.append(job)
            if len(batch) >= BATCH_COUNT_MAX:
                return batch, True
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, connection: sqlite3.Connection, batch: list[Job[Any]]) -> list[Ended]:
        try:
            return self._commit_once(connection, batch)
        except Exception as error:
            if len(batch) == 1 or _is_disk_error(error):
                return [Ended(job, error=translate_sqlite_error(error)) for job in batch]
        return [ended for job in batch for ended in self._commit(connection, [job])]

    def _commit_once(self, connection: sqlite3.Connection, batch: list[Job[Any]]) -> list[Ended]:
        ended: list[Ended] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for job in batch:
                changes = Changes()
                ended.append(Ended(job, job.work(connection, changes), changes))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk may have rolled it back already
                connection.execute("ROLLBACK")
            raise
        self.commits += 1
        return ended

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            pass

    # -- back on the loop ----------------------------------------------------------------------------------------------

    def _deliver(self, batch: list[Ended]) -> None:
        self._on_committed([ended.changes for ended in batch if ended.changes is not None])
        for ended in batch:
            job = ended.job
            if ended.error is not None:
                if not job.future.done():
                    job.future.set_exception(ended.error)
            elif not job.future.done():
                job.future.set_result(ended.result)
            elif job.on_abandoned is not None:
                job.on_abandoned(ended.result)

    def _break(self, reason: StoreError) -> None:
        self._broken = reason
        for job in self._pending:
            if not job.future.done():
                job.future.set_exception(reason)
        self._pending.clear()


def _is_disk_error(error: Exception) -> bool:
    """The disk failed, not a change: hundreds of further syncs would only keep everybody waiting."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) == sqlite3.SQLITE_IOERR


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def translate_sqlite_error(error: Exception) -> StoreError:
    """The store's error for whatever a change ended with."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sqlite3.Error):
        if _primary_code(error) == sqlite3.SQLITE_FULL:
            return StoreFull("no space left for the queue's database")
        return StoreError(f"the queue's database: {error}")
    log.error("queue.bug", exc_info=error)
    return StoreError(f"the queue could not be changed: {error!r}")
