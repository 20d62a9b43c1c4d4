"""The sending half of a replication: changes of tables go out as mail; an `applier` elsewhere in the mesh applies them.

    [[sink]]
    use = "replicate"
    [sink.with]
    database = "postgresql://smtpmesh@127.0.0.1/stock"     # or "sqlite:/var/lib/stock/stock.db"
    password_file = "/etc/smtpmesh/stock.password"
    secret_file = "/etc/smtpmesh/replication.secret"
    to = "apply@b.replication"
    sender = "stock-admin@example.org"                     # hears of what could not be delivered
    tables.parts = { key = "id", columns = { id = "integer", name = "text", price = "number" } }

Triggers, which it installs (`install = false`: they are there already), write each change of these tables into
`smtpmesh_outbox`, in the transaction that makes it. What is in there goes out in messages of at most `batch_max`
changes and is marked as sent once the message is on stable storage. At least once: a crash in between sends a change
again, and the applier knows its version. Sent rows are kept `keep_days`; to send some again, set their `sent_at` to
NULL; to send a whole table, `UPDATE parts SET id = id`.

The version of a change is its number in the outbox. One table has one sender (so `workers = 1`) and one `to`: changes
that are made on both sides are not reconciled, and nothing is said about conflicts. An outbox that is made anew, or
comes from an old backup, has to go on counting above the versions that the receivers have seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime

import structlog

from smtp_edge.applications.changes import (
    CHANGES_MAX,
    Change,
    Poisoned,
    build_message,
    dump_change,
    parse_tables,
)
from smtp_edge.applications.databases import OutboxRow, Unavailable, open_database
from smtp_edge.applications.secret import load_secret
from smtp_edge.envelope import Recipient
from smtp_edge.queue.errors import StoreError
from smtp_edge.sinks.api import DeliveryOutcome, Mail, Sink

log = structlog.get_logger()

BATCH_BYTES_MAX = 1024 * 1024
"""Of JSON in a message; one change alone may have more."""
RETRY_S = 5.0
"""After an error."""
FORGET_EVERY_S = 3600.0


class Replicate(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for files that cannot be read."""

    alone = True

    def __init__(
        self,
        database: str,
        tables: Mapping[str, object],
        to: str,
        sender: str,
        password_file: str = "",
        secret_file: str = "",
        install: bool = True,
        batch_max: int = 100,
        poll_s: float = 0.5,
        statement_timeout_s: float = 10,
        keep_days: int = 7,
    ) -> None:
        for name, address in (("to", to), ("sender", sender)):
            if address.count("@") != 1 or not address.isascii() or not address.isprintable() or " " in address:
                raise ValueError(f"{name} = {address!r} is no address")
        if not 1 <= batch_max <= CHANGES_MAX:
            raise ValueError(f"batch_max is 1 to {CHANGES_MAX}")
        if poll_s <= 0 or keep_days < 1:
            raise ValueError("poll_s is a number of seconds above 0, and keep_days 1 at least")
        self._to, self._sender, self._secret = to, sender, load_secret(secret_file) if secret_file else b""
        self._tables = parse_tables(tables)
        self._database = open_database(database, password_file, self._tables, statement_timeout_s)
        self._installed = not install
        self._batch_max, self._poll_s, self._keep_days = batch_max, poll_s, keep_days
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to send. A database that is down is asked again and again."""
        self._task = asyncio.create_task(self._run(), name="replicate")

    async def stop(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._database.close()

    async def outcome(self, outcome: DeliveryOutcome) -> None:
        """Say what did not arrive."""
        ours = outcome.sender == self._sender and any(to.address == self._to for to in outcome.recipients)
        if ours and outcome.state in ("failed", "expired", "held"):
            log.error("replicate.lost", queue_id=outcome.queue_id, state=outcome.state, reply=outcome.reply)

    # -- the task ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        forget_at = loop.time()
        while True:
            pause_s = self._poll_s
            try:
                if await self._send_next():
                    pause_s = 0.0
                elif loop.time() >= forget_at:
                    forget_at = loop.time() + FORGET_EVERY_S
                    await self._database.forget(self._keep_days)
            except (Unavailable, Poisoned, StoreError) as error:
                log.warning("replicate.later", reason=str(error))
                pause_s = RETRY_S
            except Exception:  # whatever it is, the next change may be another
                log.exception("replicate.failed")
                pause_s = RETRY_S
            await asyncio.sleep(pause_s)

    async def _send_next(self) -> int:
        """One message; how many changes were in it."""
        if not self._installed:
            await self._database.install(list(self._tables.values()))
            self._installed = True
        rows = await self._database.read_outbox(self._batch_max)
        if not rows:
            return 0
        texts = self._fill(rows)
        sent = [row.id for row in rows[: len(texts)]]
        content = build_message(texts, self._header(sent[0], sent[-1]), self._secret)
        queue_id = await self.node.submit(Mail(self._sender, (Recipient(self._to),), content))
        await self._database.mark_sent(sent, queue_id)
        log.info("replicate.sent", queue_id=queue_id, changes=len(sent), first=sent[0], last=sent[-1])
        return len(sent)

    def _fill(self, rows: Sequence[OutboxRow]) -> list[str]:
        """The changes that go into a message: of the first rows as many as it takes, one at least."""
        texts: list[str] = []
        size_bytes = 0
        for row in rows:
            columns = self._tables[row.table].columns
            values = {column: value for column, value in (row.row or {}).items() if column in columns}
            text = dump_change(Change(row.table, row.key, row.op, row.id, values))
            size_bytes += len(text)
            if texts and size_bytes > BATCH_BYTES_MAX:
                break
            texts.append(text)
        return texts

    def _header(self, first: int, last: int) -> dict[str, str]:
        at = datetime.now(UTC)
        return {
            "From": self._sender,
            "To": self._to,
            "Date": format_datetime(at),
            "Message-ID": f"<{first}-{last}.{int(at.timestamp() * 1000)}@{self.node.hostname}>",
            "Subject": f"changes {first} to {last}",
            "Auto-Submitted": "auto-generated",
        }
