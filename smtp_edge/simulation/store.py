"""The queue of a simulated relay: the statements of the real one, on SQLite in memory, without threads or disk.

It survives what a disk survives: `crash` and `open` again is a kill -9 and a restart. Nothing survives the process.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from smtp_edge.queue import questions, statements
from smtp_edge.queue.entry import Claim, DeliveryState
from smtp_edge.queue.faults import Trouble, translate
from smtp_edge.queue.offers import Offers
from smtp_edge.queue.rows import SCHEMA
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import StoreError
from smtp_edge.queue.tally import Changes, Tally
from smtp_edge.queue.writer import Work, Writer

T = TypeVar("T")
NOWHERE = Path("/nonexistent")
UNFINISHED = (DeliveryState.QUEUED, DeliveryState.CLAIMED, DeliveryState.DEFERRED, DeliveryState.HELD)


class MemoryStore(SQLiteStore):
    """See the module. Mail data is kept inline, whatever its size."""

    def __init__(self, *, name: str, history_s: float, entries_max: int, clock: Callable[[], datetime]) -> None:
        super().__init__(NOWHERE, incarnation=name, history_s=history_s, entries_max=entries_max, clock=clock)
        self._name, self._lives, self._offers = name, 0, Offers()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        for statement in SCHEMA.split(";"):
            self._connection.execute(statement)

    async def open(self) -> None:
        """See MessageStore."""
        if self._writer is not None:
            raise StoreError(f"the queue of {self._name} is open already")
        self._lives += 1
        self._incarnation = f"{self._name}-{self._lives}"
        statements.void_claims(self._connection, self._clock(), self._offers.read())
        self._offers.restart()
        self._tally = Tally()
        self._tally.begin(questions.count_everything(self._connection))
        self._writer, self._reader = InlineWriter(self._connection, self._tally), self._connection

    async def close(self) -> None:
        """See MessageStore."""
        self.crash()

    def crash(self) -> None:
        """Its process is gone; the rows stay."""
        self._writer, self._reader = None, None

    def unfinished(self) -> list[Claim]:
        """Every delivery that is not final, also of a relay that is dead."""
        return questions.list_deliveries(self._connection, UNFINISHED, "", 2**31, NOWHERE)

    async def _read(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except sqlite3.Error as error:
            raise translate(error) from error


class InlineWriter(Writer):
    """Commits each change at once."""

    def __init__(self, connection: sqlite3.Connection, tally: Tally) -> None:
        self._connection, self._tally = connection, tally
        self.commits = 0
        self.trouble: Trouble | None = None

    async def submit(
        self,
        work: Work[T],
        on_abandoned: Callable[[T], None] | None = None,
        *,
        adds_mail: bool = False,
        file: str = "",
    ) -> T:
        """One transaction. StoreError if it failed; then nothing was changed."""
        await asyncio.sleep(0)  # others run meanwhile, as during a commit
        changes = Changes()
        self._connection.execute("BEGIN")
        try:
            result = work(self._connection, changes)
        except (sqlite3.Error, StoreError) as error:
            self._connection.execute("ROLLBACK")
            raise translate(error) from error
        self._connection.execute("COMMIT")
        self._tally.apply([changes])
        self.commits += 1
        return result
