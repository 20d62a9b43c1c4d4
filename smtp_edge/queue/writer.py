"""Group commit: one thread owns the writing connection and commits whatever is waiting as one transaction.

    submit ──> waiting ──> BEGIN, every waiting change, COMMIT (one sync) ──> all futures, in one wake-up of the loop
                                                                         ──> a checkpoint, if the log has grown

While a commit waits for the disk, the next batch gathers: the slower the disk, the larger the batches. No future is
resolved before its COMMIT has returned. A change that fails on its own account must not spoil its neighbours: the batch
is rolled back and its changes run again one by one. A change may therefore run twice and must touch nothing but the
connection.

    well ──no space──> full: the reserve goes, each change is tried for itself; every `TRIAL_S` as when suspect
      ^  ──I/O error─> suspect: every change is refused; every `TRIAL_S` the log is emptied, then a trial (faults.py)
      └─── a trial has succeeded, and there is a reserve again ───┘
    any ──damage──> damaged: until the next start nothing new is taken; what is there is delivered as far as it goes
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from smtp_edge.queue.faults import Kind, Trouble, find_trouble, translate
from smtp_edge.queue.store import StoreError
from smtp_edge.queue.tally import Changes
from smtp_edge.queue.wal import WriteAheadLog

log = structlog.get_logger()

T = TypeVar("T")
BATCH_COUNT_MAX = 256
"""Changes in one commit: more saves no syncs worth having and lengthens the wait of the first."""
TRIAL_S = 1.0
"""While the disk is in trouble: so often, at most, it is looked at again."""

Work = Callable[[sqlite3.Connection, Changes], T]


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A change that waits for its commit."""

    work: Work[T]
    future: asyncio.Future[T]
    on_abandoned: Callable[[T], None] | None
    """Called on the loop when it was committed but nobody waits for the result any more."""
    adds_mail: bool
    """New mail has to wait where space is short; the ends of what is under way have not."""
    file: str
    """Spool file that the change names; empty if it names none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: `error` None and a result, or an error and nothing changed."""

    job: Job[Any]
    result: Any = None
    changes: Changes | None = None
    error: StoreError | None = None


class Writer:
    """The writing thread. Built on the loop that submits.

    `trial` raises what the disk says to a small file, and sees to the reserve; `on_full` gives the reserve up, if any.
    `on_committed` is called on the loop; `clean_up` on the thread, with names of spool files that are no longer needed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        wal: WriteAheadLog,
        trial: Callable[[], None],
        on_full: Callable[[], bool],
        on_committed: Callable[[Sequence[Changes]], None],
        clean_up: Callable[[str], None],
    ) -> None:
        self._connection, self._wal, self._trial, self._on_full = connection, wal, trial, on_full
        self._on_committed = on_committed
        self._clean_up = clean_up
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._pending: set[Job[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="queue-writer", daemon=True)
        self._tried_at = 0.0
        self._doubtful: set[str] = set()
        """Spool files of changes that may be on disk although they failed."""
        self.trouble: Trouble | None = None
        """Why the queue takes nothing now. Written by the thread, read by anybody."""
        self.commits = 0
        """Transactions committed; for measurements."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def submit(
        self,
        work: Work[T],
        on_abandoned: Callable[[T], None] | None = None,
        *,
        adds_mail: bool = False,
        file: str = "",
    ) -> T:
        """Commit a change; returns its result once it is on stable storage.

        StoreError: nothing was changed. StoreDoubt: nothing counts as changed, but the disk may have it; a `file` that
        the change names is cleaned up once that is certain.
        """
        if self.trouble is not None and self.trouble.kind is Kind.STOPPED:
            raise self.trouble.error
        job: Job[T] = Job(work, self._loop.create_future(), on_abandoned, adds_mail, file)
        self._pending.add(job)
        self._waiting.put(job)
        try:
            return await job.future
        finally:
            self._pending.discard(job)

    def report(self, error: Exception) -> None:
        """A reader met an error: what it says of the disk counts as if a change had met it."""
        self._note(error)

    def stop(self) -> None:
        """Commit what waits and end the thread; blocks."""
        self._waiting.put(None)
        self._thread.join()

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = "the queue is closed"
        try:
            try:
                while self._step():
                    pass
            finally:
                self._connection.close()
        except BaseException as error:  # whatever it was: nobody may wait for ever, nobody may hear of a success
            log.error("queue.writer_failed", exc_info=error)
            reason = f"the queue's writer has failed, restart the node: {error}"
        self.trouble = Trouble(Kind.STOPPED, reason)
        self._call(self._break)

    def _step(self) -> bool:
        """One batch; False when told to stop."""
        batch, go_on = self._gather()
        if self.trouble is not None:
            self._try_disk(self.trouble)
        if batch:
            ended = self._commit(batch)
            self._call(lambda: self._deliver(ended))
            for end in ended:
                for name in end.changes.unlinked if end.changes is not None else ():
                    self._clean_up(name)
            self._checkpoint(len(batch))
        return go_on

    def _gather(self) -> tuple[list[Job[Any]], bool]:
        """Whatever waits; nothing, if the disk is in trouble and it is time for a trial."""
        batch: list[Job[Any]] = []
        try:
            job = self._waiting.get(timeout=None if self.trouble is None else TRIAL_S)
        except queue.Empty:
            return batch, True
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

    def _commit(self, batch: list[Job[Any]]) -> list[Ended]:
        if self.trouble is not None and self.trouble.kind is Kind.SUSPECT:
            return [Ended(job, error=self.trouble.error) for job in batch]
        try:
            return self._commit_once(batch)
        except Exception as error:
            self._note(error)
            found = find_trouble(error)
            if found is not None and found.kind is Kind.FULL:
                return self._commit_on_full_disk(batch, found)
            if len(batch) == 1 or (self.trouble is not None and self.trouble.kind is Kind.SUSPECT):
                self._doubtful |= {job.file for job in batch} - {""}
                return [Ended(job, error=translate(error)) for job in batch]
        return [ended for job in batch for ended in self._commit([job])]

    def _commit_on_full_disk(self, batch: list[Job[Any]], trouble: Trouble) -> list[Ended]:
        """Once more without new mail, with the reserve if there is one, and in the end one by one."""
        urgent = [job for job in batch if not job.adds_mail]
        ended = [Ended(job, error=trouble.error) for job in batch if job.adds_mail]
        if not urgent:
            return ended
        if self._on_full() or len(urgent) < len(batch):
            return ended + self._commit(urgent)
        if len(urgent) == 1:
            return [*ended, Ended(urgent[0], error=trouble.error)]
        return ended + [one for job in urgent for one in self._commit([job])]

    def _commit_once(self, batch: list[Job[Any]]) -> list[Ended]:
        ended: list[Ended] = []
        connection = self._connection
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

    def _checkpoint(self, jobs_count: int) -> None:
        """Between commits: whoever waits for the next one waits for this, too, but nobody's answer does."""
        try:
            self._wal.note(jobs_count)
        except sqlite3.Error as error:
            self._note(error)

    # -- trouble -------------------------------------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        """Remember what an error says of the disk; damage stays."""
        found, known = find_trouble(error), self.trouble
        if found is None:
            if not isinstance(error, (StoreError, sqlite3.Error)):
                log.error("queue.bug", exc_info=error)
            return
        if known is not None and (known.kind is Kind.DAMAGED or known == found):
            return
        log.error("queue.trouble", kind=found.kind.value, reason=found.reason)
        self.trouble = found
        if known is None:
            self._tried_at = time.monotonic()

    def _end_trouble(self) -> None:
        log.warning("queue.trouble_over", reason=self.trouble.reason if self.trouble is not None else "")
        self.trouble = None

    def _try_disk(self, trouble: Trouble) -> None:
        """Is it well again? At most every `TRIAL_S`, however many ask."""
        now = time.monotonic()
        if trouble.kind is Kind.DAMAGED or now - self._tried_at < TRIAL_S:
            return
        self._tried_at = now
        if not self._empty_log() and trouble.kind is Kind.SUSPECT:
            return
        try:
            self._trial()
            self._wal.try_commit()
        except Exception as error:
            self._on_full()
            self._note(error)
        else:
            self._end_trouble()

    def _empty_log(self) -> bool:
        """What failed is gone for good then, and so are its files."""
        try:
            self._wal.empty()
        except Exception as error:
            log.error("queue.trouble_goes_on", reason=str(error))
            return False
        for name in self._doubtful:
            self._clean_up(name)
        self._doubtful.clear()
        return True

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

    def _break(self) -> None:
        assert self.trouble is not None
        for job in self._pending:
            if not job.future.done():
                job.future.set_exception(self.trouble.error)
        self._pending.clear()
