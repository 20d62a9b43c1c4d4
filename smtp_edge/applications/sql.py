"""Mail in a database: a `deliver` sink for SQLite and PostgreSQL (SQLAlchemy; the extra `sql`).

    [[sink]]
    name = "archive"
    use = "sql"
    rule = "rcpt to=*@example.org"
    with = { url = "postgresql+asyncpg://smtpmesh@127.0.0.1/mail", password_file = "/etc/smtpmesh/mail.password" }

    [[smart_host]]
    name = "archive"
    sink = "archive"

    [[route]]
    domains = ["example.org"]
    via = ["archive"]

    url                     sqlite+aiosqlite:////var/lib/mail/mail.db, or postgresql+asyncpg://USER@HOST/DATABASE
    mailboxes               "listed": who is not in smtpmesh_mailbox is unknown, 550 5.1.1, also at RCPT; "any"
    size_bytes_max          0 = no limit; larger messages are 552 5.2.3
    timeout_s               10: for a connection, and for each `CHUNK_BYTES` of a message; then mail waits (451)
    connections_max         5

Three tables are made if they are not there. The bytes of a message are in order of `number`, as a next hop would get
them: this relay's trace field first.

    smtpmesh_mailbox        address (in small letters)
    smtpmesh_message        id, key, message, recipient, sender, received_at, size_bytes
    smtpmesh_chunk          message_id, number, content

A message is there once for each recipient and whole, or not at all: `key` is unique, made of the message's key and the
recipient, and all of it is one transaction. A database that is down, locked or slow makes mail wait, and no more.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog

from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Delivery, Reject, Sink, TempFail, Verdict

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger()

CHUNK_BYTES = 256 * 1024
STORED = Reply(250, "stored", "2.0.0")
UNKNOWN = Reject("no such mailbox", 550, "5.1.1")
TOO_LARGE = Reply(552, "the message is too large for this mailbox", "5.2.3")
UNAVAILABLE = TempFail("the mail store is not available now", 451, "4.3.0")
DRIVERS = {"sqlite+aiosqlite": "aiosqlite", "postgresql+asyncpg": "asyncpg"}


class Sql(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for a password file that cannot be read."""

    def __init__(
        self,
        url: str,
        password_file: str = "",
        mailboxes: Literal["listed", "any"] = "listed",
        size_bytes_max: int = 0,
        timeout_s: float = 10.0,
        connections_max: int = 5,
    ) -> None:
        if mailboxes not in ("listed", "any"):
            raise ValueError(f"mailboxes = {mailboxes!r} is none of: any, listed")
        if size_bytes_max < 0 or timeout_s <= 0 or connections_max < 1:
            raise ValueError("size_bytes_max is at least 0, timeout_s more than 0, connections_max at least 1")
        password = Path(password_file).read_text("utf-8").strip() if password_file else ""
        self._listed, self._size_bytes_max, self._timeout_s = mailboxes == "listed", size_bytes_max, timeout_s
        self._tables = _Tables()
        self._engine = _open(url, password, timeout_s, connections_max)
        self._ready = False
        self._tries: set[asyncio.Task[Reply]] = set()

    async def start(self) -> None:
        """The tables are made with the first mail, if the database is not there yet."""
        await self._try_to_prepare()

    async def stop(self) -> None:
        """Close the connections, when what was begun has ended."""
        await asyncio.gather(*self._tries, return_exceptions=True)
        await self._engine.dispose()

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """Refuse who has no mailbox."""
        if not self._listed:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                known = await self._knows(recipient)
        except _faults() as error:
            _note("rcpt", error)
            return UNAVAILABLE
        return None if known else UNKNOWN

    async def deliver(self, delivery: Delivery) -> list[Reply]:
        """A copy for each recipient. MailDataLost."""
        return [await self._try(delivery, recipient) for recipient in delivery.envelope.recipients]

    async def _try(self, delivery: Delivery, recipient: Recipient) -> Reply:
        """One that nobody waits for any more goes on to its end: cut off, its transaction would lock out the next."""
        task = asyncio.create_task(self._deliver_to(delivery, recipient))
        self._tries.add(task)
        task.add_done_callback(self._end_try)
        return await asyncio.shield(task)

    def _end_try(self, task: asyncio.Task[Reply]) -> None:
        self._tries.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits, or of use to nobody

    async def _deliver_to(self, delivery: Delivery, recipient: Recipient) -> Reply:
        if self._size_bytes_max and delivery.size_bytes > self._size_bytes_max:
            return TOO_LARGE
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                if self._listed and not await self._knows(recipient):
                    return UNKNOWN.reply
                await self._store(delivery, recipient, limit)
        except _faults() as error:
            _note("deliver", error)
            return UNAVAILABLE.reply
        return STORED

    async def _knows(self, recipient: Recipient) -> bool:
        await self._prepare()
        async with self._engine.connect() as connection:
            return await self._tables.has_mailbox(connection, recipient.address)

    async def _store(self, delivery: Delivery, recipient: Recipient, limit: asyncio.Timeout) -> None:
        """What goes on is given time: a large message is no reason to begin again."""
        await self._prepare()
        async with self._engine.begin() as connection:
            identity = await self._tables.begin(connection, delivery, recipient)
            if identity is None:  # it was committed before
                return
            number = 0
            async for piece in _pieces(delivery):
                await self._tables.append(connection, identity, number, piece)
                limit.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                number += 1

    async def _prepare(self) -> None:
        if not self._ready:
            async with self._engine.begin() as connection:
                await connection.run_sync(self._tables.create)
            self._ready = True

    async def _try_to_prepare(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._prepare()
        except _faults() as error:
            _note("start", error)


class _Tables:
    """See the module; SQLAlchemy is imported here, because it is an extra."""

    def __init__(self) -> None:
        try:
            import sqlalchemy as sa
        except ImportError as error:
            raise ValueError("SQLAlchemy is missing: pip install 'smtpmesh[sql]'") from error
        self._sa = sa
        meta = self._meta = sa.MetaData()
        big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
        self.mailbox = sa.Table("smtpmesh_mailbox", meta, sa.Column("address", sa.Text, primary_key=True))
        self.message = sa.Table(
            "smtpmesh_message",
            meta,
            sa.Column("id", big, primary_key=True, autoincrement=True),
            sa.Column("key", sa.String(64), nullable=False, unique=True),
            sa.Column("message", sa.Text, nullable=False),
            sa.Column("recipient", sa.Text, nullable=False, index=True),
            sa.Column("sender", sa.Text, nullable=False),
            sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("size_bytes", big, nullable=False),
        )
        self.chunk = sa.Table(
            "smtpmesh_chunk",
            meta,
            sa.Column("message_id", big, sa.ForeignKey("smtpmesh_message.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("number", sa.Integer, primary_key=True),
            sa.Column("content", sa.LargeBinary, nullable=False),
        )

    def create(self, connection: Any) -> None:
        """What is not there yet."""
        self._meta.create_all(connection)

    async def has_mailbox(self, connection: AsyncConnection, address: str) -> bool:
        """Letters count as small."""
        asked = self._sa.select(self.mailbox.c.address).where(self.mailbox.c.address == _clean(address).lower())
        return (await connection.execute(asked)).first() is not None

    async def begin(self, connection: AsyncConnection, delivery: Delivery, recipient: Recipient) -> int | None:
        """The id of a new message; None if it is there."""
        from sqlalchemy.dialects import postgresql, sqlite

        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = {
            "key": hashlib.sha256(delivery.key_of(recipient).encode("utf-8", "surrogateescape")).hexdigest(),
            "message": _clean(delivery.key),
            "recipient": _clean(recipient.address),
            "sender": _clean(delivery.envelope.sender),
            "received_at": delivery.received_at,
            "size_bytes": delivery.size_bytes,
        }
        added = insert(self.message).values(**row).on_conflict_do_nothing(index_elements=["key"])
        found = (await connection.execute(added.returning(self.message.c.id))).first()
        return None if found is None else int(found[0])

    async def append(self, connection: AsyncConnection, identity: int, number: int, piece: bytes) -> None:
        """The next bytes of a message."""
        values = {"message_id": identity, "number": number, "content": piece}
        await connection.execute(self.chunk.insert().values(**values))


async def _pieces(delivery: Delivery) -> AsyncIterator[bytes]:
    """Of about `CHUNK_BYTES`."""
    waiting: list[bytes] = []
    length = 0
    async for chunk in delivery.content():
        waiting.append(chunk)
        length += len(chunk)
        if length >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)


def _open(url: str, password: str, timeout_s: float, connections_max: int) -> AsyncEngine:
    from sqlalchemy import event
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.ext.asyncio import create_async_engine

    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in DRIVERS:
        raise ValueError(f"url is none of: {', '.join(f'{name}://...' for name in DRIVERS)}")
    if parsed.password is not None:
        raise ValueError("a password does not belong into url: name its file in password_file")
    timeouts: dict[str, float] = {"timeout": timeout_s}
    if parsed.drivername == "postgresql+asyncpg":
        timeouts["command_timeout"] = timeout_s
    try:
        engine = create_async_engine(
            parsed.set(password=password or None),
            connect_args=timeouts,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=timeout_s,
            pool_pre_ping=True,
        )
    except ImportError as error:
        raise ValueError(f"{DRIVERS[parsed.drivername]} is missing: pip install 'smtpmesh[sql]'") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: object) -> None:
    """Who reads does not wait for who writes, and a commit is on stable storage."""
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _faults() -> tuple[type[Exception], ...]:
    """What a database that is down, stopped or no database makes of a question."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, OSError, TimeoutError


def _note(event: str, error: Exception) -> None:
    log.warning("sql.failed", event_name=event, error=type(error).__name__, reason=str(error).partition("\n")[0][:300])


def _clean(text: str) -> str:
    """As a database takes it: what UTF-8 cannot carry becomes `?`."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
