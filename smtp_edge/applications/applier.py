"""The applier: a `deliver` sink that applies changes which come as mail to tables of PostgreSQL or SQLite, each once.

    [[sink]]
    name = "apply"
    use = "applier"
    [sink.with]
    database = "postgresql://smtpmesh@127.0.0.1/stock"     # or "sqlite:/var/lib/stock/stock.db"
    password_file = "/etc/smtpmesh/stock.password"
    secret_file = "/etc/smtpmesh/replication.secret"
    tables.parts = { key = "id", columns = { id = "integer", name = "text", price = "number" } }

    [[smart_host]]
    name = "apply"
    sink = "apply"
    connections_max = 4

    [[route]]
    domains = ["b.replication"]
    via = ["apply"]

What a message holds is said in `changes`; `replicate` sends such messages. Only listed tables and columns are written.
The tables are the operator's, with a primary key of one column; three of our own, `smtpmesh_...`, are made beside them
(`databases`). We need the rights to SELECT, INSERT, UPDATE and DELETE, and once to CREATE. PostgreSQL needs the extra
`postgres`; on another machine it should be `...?sslmode=verify-full`.

Exactly once: the message's idempotency key is written in the transaction of its effects, so a message that comes again,
after a crash or a lost reply, is answered 250 and does nothing. Keys are kept `remember_days`, which has to be longer
than mail lives in a queue. In order: an older version of a row never overwrites a newer one, and what was deleted stays
deleted, whatever comes late. Not promised: that rows of different messages appear in the order of their making.

    250        applied, or applied before, or nothing in it was new
    451        the database is down, locked, slower than `statement_timeout_s`, or set up wrong; a row that it refers to
               (foreign key) is not there yet
    parked     it can never be applied: no JSON, not signed, unknown table or column, a value of the wrong type, a
               constraint. It waits in the queue as held, with the reason: `smtpmesh queue --state held`

Whoever can send mail to its route can write into the tables: give both ends the same `secret_file`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from smtp_edge.applications.changes import (
    Change,
    Poisoned,
    parse_changes,
    parse_tables,
    read_document,
)
from smtp_edge.applications.databases import NotYet, Unavailable, open_database
from smtp_edge.applications.secret import load_secret
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Delivery, Quarantine, Sink

log = structlog.get_logger()

SIZE_BYTES_MAX = 4 * 1024 * 1024
"""A message is read whole; larger ones are parked."""
FORGET_EVERY_S = 3600.0
APPLIED = Reply(250, "applied", "2.0.0")
REPEATED = Reply(250, "applied before", "2.0.0")
LATER = Reply(451, "the database cannot be written now", "4.3.0")
NOT_YET = Reply(451, "a row that it refers to is not there yet", "4.2.0")
"""Nothing against the database: other mail goes on."""


class Applier(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for files that cannot be read."""

    def __init__(
        self,
        database: str,
        tables: Mapping[str, object],
        password_file: str = "",
        secret_file: str = "",
        statement_timeout_s: float = 10,
        remember_days: int = 30,
    ) -> None:
        if remember_days < 1:
            raise ValueError("remember_days is 1 at least, and longer than mail lives in a queue")
        self._tables = parse_tables(tables)
        self._secret = load_secret(secret_file) if secret_file else b""
        self._database = open_database(database, password_file, self._tables, statement_timeout_s)
        self._remember_days = remember_days
        self._forget_at = 0.0

    async def stop(self) -> None:
        """Let go of the database."""
        await self._database.close()

    async def deliver(self, delivery: Delivery) -> Sequence[Reply | Quarantine]:
        """Apply it, once for each recipient. MailDataLost."""
        try:
            changes, count = await self._read(delivery)
        except Poisoned as error:
            log.warning("applier.parked", queue_id=delivery.queue_id, reason=str(error))
            return [Quarantine(str(error))] * len(delivery.envelope.recipients)
        keys = [delivery.key_of(recipient) for recipient in delivery.envelope.recipients]
        answers = [await self._apply(delivery, key, changes, count) for key in keys]
        await self._forget()
        return answers

    async def _read(self, delivery: Delivery) -> tuple[list[Change], int]:
        if delivery.size_bytes > SIZE_BYTES_MAX:
            raise Poisoned(f"it has {delivery.size_bytes} bytes; {SIZE_BYTES_MAX} are taken")
        return parse_changes(read_document(await delivery.read(), self._secret), self._tables)

    async def _apply(self, delivery: Delivery, key: str, changes: Sequence[Change], count: int) -> Reply | Quarantine:
        try:
            applied = await self._database.apply(key, changes, count)
        except Poisoned as error:
            log.warning("applier.parked", queue_id=delivery.queue_id, reason=str(error))
            return Quarantine(str(error))
        except (NotYet, Unavailable) as error:
            log.warning("applier.later", queue_id=delivery.queue_id, reason=str(error))
            return NOT_YET if isinstance(error, NotYet) else LATER
        log.debug(
            "applier.applied",
            queue_id=delivery.queue_id,
            repeated=applied.repeated,
            changes=applied.changes,
            stale=applied.stale,
        )
        return REPEATED if applied.repeated else APPLIED

    async def _forget(self) -> None:
        """Old keys go, now and then; it does not matter when."""
        now = asyncio.get_running_loop().time()
        if now < self._forget_at:
            return
        self._forget_at = now + FORGET_EVERY_S
        try:
            await self._database.forget(self._remember_days)
        except (Unavailable, Poisoned) as error:
            log.warning("applier.forget", reason=str(error))
