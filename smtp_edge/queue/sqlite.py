"""The embedded queue: `MessageStore` on SQLite.

    queue.db    WAL, synchronous=FULL: a commit has returned = its bytes are on stable storage
    reserve     disk space for the ends of what is under way (reserve.py)
    spool/      mail data above the inline bound (spool.py), durable before the entry that names it
    lock        held by the process that has the store open (lock.py)

Changes go through one writing thread with group commit (writer.py); questions through a second connection in a thread
of its own; totals are answered from memory (tally.py). What happens to a claim when its asker is gone (a cancelled
task) is the one subtle thing here: the commit stands, so the claim is given back, else it would rest until the next
start.

What a failing disk means is in faults.py. Not guaranteed: that a put which failed with a disk error is absent after a
crash in the same second. The client was told 4yz and sends it again, so the message may exist twice, never not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from smtp_edge.envelope import MailData
from smtp_edge.queue import decisions, questions, regroup, statements, survey
from smtp_edge.queue.cutthrough import CutThrough, Passage, Passed
from smtp_edge.queue.directory import DATABASE, demand_fresh, demand_no_repair, demand_whole_log
from smtp_edge.queue.entry import (
    Claim,
    Decision,
    DeliveryState,
    EarlyMark,
    HistoryNote,
    Key,
    MessageHistory,
    NewEntry,
    QueueSummary,
    Regrouping,
    Settlement,
    Stored,
)
from smtp_edge.queue.faults import Kind, Trouble, translate
from smtp_edge.queue.gate import Gate
from smtp_edge.queue.lock import DirectoryLock
from smtp_edge.queue.migrations import migrate
from smtp_edge.queue.offers import FILE as OFFERS
from smtp_edge.queue.offers import Offers
from smtp_edge.queue.picking import Pick, pick
from smtp_edge.queue.reserve import Reserve
from smtp_edge.queue.rows import PAGE_BYTES, SCHEMA_VERSION, CorruptRow
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.shape import Shape, ShapeBy
from smtp_edge.queue.shares import Shares
from smtp_edge.queue.spool import (
    SPOOL,
    create_directories,
    make_durable,
    remove_orphans,
    sync_directory,
    translate_os_error,
    try_disk,
    write_whole,
)
from smtp_edge.queue.statements import Claimant
from smtp_edge.queue.store import MessageStore, StoreDoubt, StoreError, StoreFull
from smtp_edge.queue.survey import FIRST, Damaged, Page, Place
from smtp_edge.queue.tally import Changes, Tally
from smtp_edge.queue.wal import WriteAheadLog
from smtp_edge.queue.writer import Writer

log = structlog.get_logger()
T = TypeVar("T")

STEP_COUNT_MAX = 200
"""Entries pruned, or deliveries woken, in one transaction: fresh mail commits in between."""
PRUNE_STEPS_MAX = 5000
"""Steps of one `prune`; the rest waits for the next."""
HISTORY_MAX = 1_000_000
BUSY_TIMEOUT_S = 5.0
INLINE_BYTES_MAX = 100 * 1024
COUNT_WAIT_S = 0.2
"""So long a start waits for the totals; small queues are counted by then."""


class SQLiteStore(MessageStore):
    """A queue directory that this process owns. Not reusable after `close`."""

    def __init__(
        self,
        directory: Path,
        *,
        incarnation: str,
        history_s: float,
        entries_max: int,
        clock: Callable[[], datetime],
        history_max: int = HISTORY_MAX,
        cut_through: bool = False,
        inline_bytes_max: int = INLINE_BYTES_MAX,
    ) -> None:
        self._directory = directory.absolute()
        self._spool = self._directory / SPOOL
        self._incarnation = incarnation
        self._asked: dict[str, str] = {}
        """Of `pick`: how far the classes were asked. The writer's."""
        self.configure(
            history_s=history_s,
            entries_max=entries_max,
            history_max=history_max,
            cut_through=cut_through,
            inline_bytes_max=inline_bytes_max,
        )
        self._clock = clock
        self._lock = DirectoryLock(self._directory)
        self._reserve = Reserve(self._directory)
        self._offers = Offers(self._directory / OFFERS)
        self._tally = Tally()
        self._puts_pending = 0
        self._writer: Writer | None = None
        self._cut: CutThrough | None = None
        self._reader: sqlite3.Connection | None = None
        self._gate = Gate()
        self._counting: asyncio.Task[None] | None = None
        self._reading = ThreadPoolExecutor(1, "queue-reader")
        self._giving_back: set[asyncio.Task[None]] = set()

    def configure(
        self,
        *,
        history_s: float,
        entries_max: int,
        history_max: int,
        cut_through: bool = False,
        inline_bytes_max: int = INLINE_BYTES_MAX,
    ) -> None:
        """Go by these from now on. `inline_bytes_max`: larger mail data is no row, it goes to a file."""
        self._cuts_through, self._inline_bytes_max = cut_through, inline_bytes_max
        self._history = timedelta(seconds=history_s)
        self._entries_max, self._history_max = entries_max, history_max

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See MessageStore. Also creates the directory (mode 0700) and removes orphaned spool files."""
        if self._writer is not None:
            raise StoreError(f"{self._directory} is open already")
        connection, snapshot = await self._read(self._open)
        wal = WriteAheadLog(connection, self._gate)
        self._writer = Writer(connection, wal, self._try_disk, self._reserve.release, self._tally.apply, self._unlink)
        self._writer.start()
        self._cut = CutThrough(self._keep, self._record, self._clock, self._tally.note_passing)
        self._counting = asyncio.get_running_loop().create_task(self._count(snapshot, self._writer))
        await asyncio.wait({self._counting}, timeout=COUNT_WAIT_S)

    async def _count(self, snapshot: sqlite3.Connection, writer: Writer) -> None:
        """The totals, of the instant before the first change: with history that takes longer than a start may.

        Until they are there `summary` waits, and whoever does not ask for it sees nothing waiting.
        """

        def count() -> Changes:
            with self._gate.reading(), contextlib.closing(snapshot):
                return questions.count_everything(snapshot)

        try:
            self._tally.begin(await asyncio.to_thread(count))
        except sqlite3.Error as error:
            writer.report(error)
            self._tally.begin(Changes())

    async def close(self) -> None:
        """See MessageStore; harmless when repeated."""
        if self._counting is not None:
            await self._counting
        cut, self._cut = self._cut, None
        if cut is not None:
            await cut.close()
        await asyncio.gather(*self._giving_back, return_exceptions=True)
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.stop)
        if self._reader is not None:
            await self._read(self._close_reader)
        self._offers.close()
        self._lock.release()
        self._reading.shutdown(wait=False)

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """The connection for the writer, and one that sees the queue as it is now."""
        try:
            create_directories(self._directory)
            self._lock.acquire(self._incarnation)
            demand_no_repair(self._directory)
            demand_whole_log(self._directory)
            self._recover()
            return self._connect(), self._take_snapshot()
        except BaseException as error:
            self._close_reader()
            self._lock.release()
            if isinstance(error, OSError):
                raise translate_os_error(error, self._directory) from error
            raise

    def _take_snapshot(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM entry LIMIT 1").fetchall()  # here the snapshot is taken
        return connection

    def _recover(self) -> None:
        """Create or check the schema, void claims, remove orphans.

        First of all the log is emptied: what an earlier process could not sync may stand in it as if it were stored.
        """
        self._reader = connection = self._connect()
        WriteAheadLog(connection, Gate()).empty()
        connection.execute("BEGIN IMMEDIATE")
        schema = migrate(connection, str(self._directory / DATABASE))
        if not schema:
            demand_fresh(self._directory)
        voided = statements.void_claims(connection, self._clock(), self._offers.read())
        connection.execute("COMMIT")
        self._offers.restart()
        if schema not in (0, SCHEMA_VERSION):
            log.warning("queue.migrated", schema_before=schema, schema=SCHEMA_VERSION)
        orphans = remove_orphans(self._directory, questions.find_spooled(connection))
        sync_directory(self._directory)
        sync_directory(self._directory.parent)
        with contextlib.suppress(OSError):  # a start on a full disk delivers what is there
            self._reserve.hold()
        log.info("queue.open", claims_voided=voided, orphans_removed=orphans)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._directory / DATABASE, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def _close_reader(self) -> None:
        """Last of the two connections: SQLite empties the log as it closes."""
        reader, self._reader = self._reader, None
        if reader is not None:
            with contextlib.suppress(sqlite3.Error):
                reader.close()

    def _try_disk(self) -> None:
        self._reserve.hold()
        try_disk(self._directory)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):  # what stays is an orphan, removed at the next open
            (self._spool / name).unlink()

    # -- changes -------------------------------------------------------------------------------------------------------

    async def put(self, new: NewEntry, *, accept_token: str = "", claim: bool = True) -> Stored:
        """See MessageStore. StoreFull also when `entries_max` messages are undelivered."""
        if self.trouble is not None and self.trouble.kind in (Kind.DAMAGED, Kind.FULL):
            raise self.trouble.error
        if self._tally.entries + self._puts_pending >= self._entries_max:
            raise StoreFull(f"queue.entries_max: {self._entries_max} messages are undelivered")
        return await self._keep(new, accept_token=accept_token, claim=claim)

    async def _keep(self, new: NewEntry, *, accept_token: str = "", claim: bool = True) -> Stored:
        data = new.entry.data
        if data.inline is None or data.size_bytes <= self._inline_bytes_max:
            return await self._keep_as_it_is(new, accept_token=accept_token, claim=claim)
        data = await write_whole(self._directory, data)
        try:
            entry = replace(new.entry, data=data)
            stored = await self._keep_as_it_is(replace(new, entry=entry), accept_token=accept_token, claim=claim)
        except StoreError as error:
            if not isinstance(error, StoreDoubt):
                await self._unlink_soon(data)
            raise
        if stored.duplicate_of:
            await self._unlink_soon(data)
        return stored

    async def _unlink_soon(self, data: MailData) -> None:
        if data.path is not None:
            await asyncio.to_thread(self._unlink, data.path.name)

    async def _keep_as_it_is(self, new: NewEntry, *, accept_token: str = "", claim: bool = True) -> Stored:
        path, at = new.entry.data.path, self._clock()
        if path is not None and path.parent != self._spool:
            raise StoreError(f"{path} is not a spool file of {self._directory}")
        incarnation = self._incarnation if claim else ""
        self._puts_pending += 1
        try:
            if path is not None:
                await asyncio.to_thread(make_durable, path)
            return await self._open_writer().submit(
                lambda connection, changes: statements.put(
                    connection, changes, new, accept_token=accept_token, incarnation=incarnation, at=at
                ),
                on_abandoned=lambda stored: self._give_back(stored.claims),
                adds_mail=True,
                file=path.name if path is not None else "",
            )
        finally:
            self._puts_pending -= 1

    def begin(self, new: NewEntry) -> Passage | None:
        """See MessageStore."""
        cut = self._cut
        if not self._cuts_through or cut is None or len(new.deliveries) != 1 or self.trouble is not None:
            return None
        if self._tally.entries + self._puts_pending + len(cut) >= self._entries_max:
            return None
        path = new.entry.data.path
        if path is not None and path.parent != self._spool:
            return None
        return cut.begin(new)

    async def _record(self, passed: Sequence[Passed]) -> None:
        try:
            await self._open_writer().submit(
                lambda connection, changes: statements.record(connection, changes, passed), adds_mail=True
            )
        except StoreError:
            for item in passed:
                await self._unlink_soon(item.new.entry.data)
            raise

    async def claim(self, limit: int, now_at: datetime, *, shares: Shares | None = None) -> list[Claim]:
        """See MessageStore."""

        def work(connection: sqlite3.Connection, changes: Changes) -> list[Claim]:
            picked = pick(connection, limit, now_at, shares, self._asked)
            self._asked = picked.after
            return statements.claim(connection, changes, picked.picks, now_at, self._claimant)

        return await self._open_writer().submit(work, on_abandoned=self._give_back)

    async def claim_these(self, keys: Sequence[Key], now_at: datetime) -> list[Claim]:
        """See MessageStore."""
        picks = [Pick(0, *key) for key in keys]
        return await self._open_writer().submit(
            lambda connection, changes: statements.claim(connection, changes, picks, now_at, self._claimant),
            on_abandoned=self._give_back,
        )

    async def claim_early(
        self, class_id: str, limit: int, now_at: datetime, *, after: EarlyMark | None = None
    ) -> list[Claim]:
        """See MessageStore."""
        return await self._open_writer().submit(
            lambda connection, changes: statements.claim_early(
                connection, changes, class_id, limit, now_at, after, self._claimant
            ),
            on_abandoned=self._give_back,
        )

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See MessageStore. All of them or none are committed."""
        if self._cut is not None and len(self._cut):
            settlements = await self._cut.settle(settlements)
            if not settlements:
                return
        at = self._clock()
        for path in _files_of(settlements):
            await asyncio.to_thread(make_durable, path)

        def work(connection: sqlite3.Connection, changes: Changes) -> None:
            for settlement in settlements:
                statements.settle(connection, changes, settlement, self._incarnation, at)

        await self._open_writer().submit(work)
        self._offers.forget((settlement.queue_id, settlement.copy) for settlement in settlements)

    def note_offer(self, queue_id: str, copy: int, hop: str) -> None:
        """See MessageStore."""
        self._offers.note((queue_id, copy), hop)

    def withdraw_offer(self, queue_id: str, copy: int) -> None:
        """See MessageStore."""
        self._offers.withdraw((queue_id, copy))

    async def regroup(self, items: Sequence[Regrouping]) -> int:
        """See MessageStore."""
        if self._cut is not None:
            await self._cut.store(item.queue_id for item in items)
        at = self._clock()
        return await self._open_writer().submit(
            lambda connection, changes: sum(
                regroup.regroup(connection, changes, item, self._incarnation, at) for item in items
            )
        )

    async def wake(self, class_ids: Sequence[str], now_at: datetime) -> int:
        """See MessageStore. In bounded steps."""
        woken = 0
        for class_id in class_ids:
            step = STEP_COUNT_MAX
            while step == STEP_COUNT_MAX:
                work = partial(statements.wake, class_id=class_id, at=now_at, limit=STEP_COUNT_MAX)
                step = await self._open_writer().submit(work)
                woken += step
        return woken

    async def change(self, decided: Sequence[Decision]) -> list[bool]:
        """See MessageStore."""
        at = self._clock()
        return await self._open_writer().submit(
            lambda connection, changes: [
                decisions.apply(connection, changes, decision, self._incarnation, at) for decision in decided
            ]
        )

    async def revive(self, queue_ids: Sequence[str], note: HistoryNote) -> int:
        """See MessageStore."""
        return await self._open_writer().submit(
            lambda connection, changes: decisions.revive(connection, changes, queue_ids, note)
        )

    async def bury(self, queue_ids: Sequence[str], note: HistoryNote) -> int:
        """See MessageStore."""
        return await self._open_writer().submit(
            lambda connection, changes: decisions.bury(connection, changes, queue_ids, note)
        )

    async def prune(self, now_at: datetime) -> int:
        """See MessageStore. In bounded steps; a transfer token is forgotten with its entry."""
        removed = 0
        for _ in range(PRUNE_STEPS_MAX):
            excess = max(0, self._tally.finished - self._history_max)
            work = partial(statements.prune, before=now_at - self._history, excess=excess, limit=STEP_COUNT_MAX)
            entries, rows = await self._open_writer().submit(work)
            removed += rows
            if entries < STEP_COUNT_MAX:
                break
        return removed

    def _give_back(self, claims: Iterable[Claim]) -> None:
        """Nobody waited for these claims any more (the task was cancelled): others may claim them."""
        settlements = [
            Settlement(claim.delivery.queue_id, claim.delivery.copy, claim.token, DeliveryState.QUEUED)
            for claim in claims
        ]
        if settlements:
            task = asyncio.get_running_loop().create_task(self._settle_quietly(settlements))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _settle_quietly(self, settlements: Sequence[Settlement]) -> None:
        try:
            await self.settle(settlements)
        except StoreError as error:
            log.error("queue.give_back_failed", claims=len(settlements), reason=str(error))

    # -- questions -----------------------------------------------------------------------------------------------------

    async def next_due_at(self) -> datetime | None:
        """See MessageStore."""
        return await self._ask(questions.next_due_at)

    async def find_accepted(self, new: NewEntry, accept_token: str) -> str:
        """See MessageStore."""
        return await self._ask(lambda connection: questions.find_accepted(connection, new, accept_token))

    async def data(self, queue_id: str) -> MailData:
        """See MessageStore. StoreError if it is unknown, finished or damaged."""
        return await self._ask(lambda connection: questions.mail_data(connection, queue_id, self._spool))

    async def page(self, after: Key, limit: int) -> list[Claim]:
        """See MessageStore."""
        return await self._ask(lambda connection: questions.page(connection, after, limit, self._spool))

    async def list(self, *, states: Sequence[DeliveryState] = (), class_id: str = "", limit: int = 100) -> list[Claim]:
        """See MessageStore. Without states: all not final. Mail data is left out (empty, with its true size)."""
        return await self._ask(
            lambda connection: questions.list_deliveries(connection, states, class_id, limit, self._spool)
        )

    async def find(self, selection: Selection, limit: int, *, after: Place = FIRST, with_data: bool = False) -> Page:
        """See MessageStore."""
        return await self._ask(
            lambda connection: survey.find(connection, selection, limit, after, self._spool, with_data=with_data)
        )

    async def damaged(self, limit: int) -> tuple[Damaged, ...]:
        """See MessageStore."""
        return await self._ask(lambda connection: survey.find_damaged(connection, limit))

    async def shape(self, by: ShapeBy, states: Sequence[DeliveryState], at: datetime) -> Shape:
        """See MessageStore. Page by page: other questions are answered in between."""
        shape, after = Shape(), FIRST
        while True:
            page = partial(survey.add_page, shape=shape, by=by, states=states, at=at, after=after)
            found = await self._ask(page)
            if found is None:
                return shape
            after = found

    async def history(self, queue_id: str) -> MessageHistory | None:
        """See MessageStore."""
        if self._cut is not None:
            await self._cut.write_history()
        return await self._ask(lambda connection: questions.history(connection, queue_id, self._spool))

    async def summary(self) -> QueueSummary:
        """See MessageStore. Answered from memory, once everything has been counted."""
        if self._counting is not None:
            await asyncio.shield(self._counting)
        return self._tally.summary()

    def backlog_counts(self) -> dict[str, int]:
        """Undelivered deliveries by class, held ones not counted; from memory."""
        return self._tally.backlogs()

    def moving(self) -> Mapping[str, int]:
        """See MessageStore."""
        return self._tally.moving

    @property
    def queued_count(self) -> int:
        """See MessageStore."""
        return self._tally.queued

    @property
    def entries_count(self) -> int:
        """See MessageStore."""
        return self._tally.entries

    @property
    def trouble(self) -> Trouble | None:
        """See MessageStore."""
        return self._writer.trouble if self._writer is not None else None

    @property
    def commits_count(self) -> int:
        """Transactions committed since the opening; for measurements."""
        return self._writer.commits if self._writer is not None else 0

    @property
    def _claimant(self) -> Claimant:
        return Claimant(self._incarnation, self._spool)

    # -- threads -------------------------------------------------------------------------------------------------------

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise StoreError("the queue is not open")
        return self._writer

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        reader = self._reader
        if self._writer is None or reader is None:
            raise StoreError("the queue is not open")

        def ask() -> T:
            with self._gate.reading():
                return question(reader)

        return await self._read(ask)

    async def _read(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, function)
        except (sqlite3.Error, StoreError, CorruptRow) as error:
            raise translate(error) from error


def _files_of(settlements: Sequence[Settlement]) -> list[Path]:
    """Spool files of the reports that come with them."""
    paths = (report.entry.data.path for settlement in settlements for report in settlement.reports)
    return [path for path in paths if path is not None]
