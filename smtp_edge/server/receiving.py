"""Mail data of one session: DATA and BDAT, up to the reply that passes responsibility.

    DATA     354, lines up to CRLF.CRLF, reply
    BDAT     octets by count, a reply for each chunk; BDAT LAST ends the message (RFC 3030)

A chunk that is not wanted (no MAIL, no recipient, a message already refused) is read and thrown away, because the
client may have sent it along: its octets must never be taken for commands. A refused chunk ends the transaction.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable

import structlog

from smtp_edge.envelope import BodyType, MailData, ReceivedMessage
from smtp_edge.reply import Goodbye, Reply
from smtp_edge.server.bulk import DataReader
from smtp_edge.server.chunks import BinaryChunks, Conversion, TextChunks
from smtp_edge.server.conversation import OK, Conversation, Transaction
from smtp_edge.server.inbox import Inbox
from smtp_edge.server.intake import TOO_LARGE, Intake
from smtp_edge.server.options import Acceptor
from smtp_edge.server.pace import Pace
from smtp_edge.server.pressure import Memory
from smtp_edge.sinks.screen import Screen

log = structlog.get_logger()

DRAIN_FACTOR = 2
"""Mail data beyond SIZE is read on this far for the sake of a proper 552; past it the connection is closed."""
GO_AHEAD = Reply(354, "end data with <CR><LF>.<CR><LF>")
_CHUNK = re.compile(r"(\d{1,19})( +LAST)?", re.IGNORECASE | re.ASCII)


class TooLarge(Exception):
    """The client went on far beyond the limit it was told; the connection is not worth keeping."""


class Receiver:
    """See the module. `say` sends a reply at once."""

    def __init__(
        self,
        conversation: Conversation,
        inbox: Inbox,
        acceptor: Acceptor,
        memory: Memory,
        pace: Pace,
        say: Callable[[Reply], Awaitable[None]],
    ) -> None:
        self._conversation, self._inbox, self._acceptor = conversation, inbox, acceptor
        self._memory, self._pace, self._say = memory, pace, say
        self.screen: Screen | None = None
        """Where sinks are asked; None = nobody is."""
        self._options = conversation.options.intake
        self._chunks: tuple[Transaction, Intake] | None = None
        """A message that comes by BDAT."""

    async def data(self, argument: str) -> Reply:
        """DATA."""
        transaction = self._conversation.begin_data(argument)
        began = time.monotonic()
        await self._say(GO_AHEAD)
        intake = Intake(self._options, self._acceptor.spool, self._memory)
        reader, total = DataReader(), 0
        drain_max = self._options.size_bytes_max * DRAIN_FACTOR

        def take(segment: bytes) -> bytes | None:
            nonlocal total
            data = reader.feed(segment)
            total += len(data)
            if total > drain_max:
                raise TooLarge
            intake.feed(data)
            return reader.rest

        try:
            await self._pour(take)
            return await self._complete(transaction, intake, began)
        except BaseException:
            await intake.abort()
            raise

    async def bdat(self, argument: str) -> Reply:
        """BDAT."""
        match = _CHUNK.fullmatch(argument)
        if match is None:  # how far its octets go nobody can know
            raise Goodbye(Reply(501, "syntax: BDAT size [LAST]", "5.5.4"))
        size, last = int(match[1]), match[2] is not None
        began = time.monotonic()
        transaction = self._conversation.begin_chunk()
        if isinstance(transaction, Reply):
            await self._skip(size)
            return transaction
        intake = self._intake_of(transaction)
        try:
            await self._take_chunk(size, intake)
            if last or intake.refusal is not None:
                self._chunks = None
                return await self._complete(transaction, intake, began)
        except BaseException:
            self._chunks = None
            await intake.abort()
            raise
        return OK

    async def drop(self) -> None:
        """Forget a message of which only chunks have come."""
        if self._chunks is not None:
            _, intake = self._chunks
            self._chunks = None
            await intake.abort()

    @property
    def stale(self) -> bool:
        """Chunks are kept whose transaction is over: `drop` them."""
        return self._chunks is not None and self._chunks[0] is not self._conversation.transaction

    # -- private -------------------------------------------------------------------------------------------------------

    async def _complete(self, transaction: Transaction, intake: Intake, began: float) -> Reply:
        """The end of the mail data: the acceptor's reply, or why it is not even asked."""
        data = await intake.finish()
        try:
            if isinstance(data, MailData):
                message = self._conversation.build_message(transaction, data)
                screened = message if self.screen is None else await self._ask_sinks(self.screen, message)
                reply = screened if isinstance(screened, Reply) else await self._acceptor.accept(screened)
            else:
                reply = data
        finally:
            intake.close()
            self._conversation.note_message()
            self._conversation.end_transaction()
        self._log(transaction, reply, data.size_bytes if isinstance(data, MailData) else 0, began)
        return reply

    async def _ask_sinks(self, screen: Screen, message: ReceivedMessage) -> ReceivedMessage | Reply:
        """The message as sinks leave it, or their reply."""
        return await screen.data(message, self._acceptor.spool) if screen.concerns(message) else message

    def _intake_of(self, transaction: Transaction) -> Intake:
        if self._chunks is None or self._chunks[0] is not transaction:
            intake = Intake(self._options, self._acceptor.spool, self._memory, self._conversion(transaction))
            self._chunks = transaction, intake
        return self._chunks[1]

    def _conversion(self, transaction: Transaction) -> Conversion:
        if transaction.mail.body_type is BodyType.BINARY_MIME:
            return BinaryChunks()
        return TextChunks(repair=self._options.bare_newlines == "normalise")

    async def _take_chunk(self, size: int, intake: Intake) -> None:
        if size > self._options.size_bytes_max:
            intake.refuse(TOO_LARGE)
        if intake.refusal is None:
            await self._pour_count(size, intake.feed)
        else:
            await self._skip(size)

    async def _skip(self, size: int) -> None:
        """Read octets that nobody wants. Goodbye if they are far too many."""
        if size > self._options.size_bytes_max * DRAIN_FACTOR:
            raise Goodbye(TOO_LARGE)
        await self._pour_count(size, lambda _octets: None)

    async def _pour_count(self, size: int, take: Callable[[bytes], None]) -> None:
        missing = size

        def take_some(segment: bytes) -> bytes | None:
            nonlocal missing
            if len(segment) < missing:
                missing -= len(segment)
                take(segment)
                return None
            take(segment[:missing])
            return segment[missing:]

        if size:
            await self._pour(take_some)

    async def _pour(self, take: Callable[[bytes], bytes | None]) -> None:
        self._pace.await_client(time.monotonic(), data=True)
        try:
            await self._inbox.pour(take)
        except TooLarge:
            raise Goodbye(TOO_LARGE) from None
        finally:
            self._pace.work()

    def _log(self, transaction: Transaction, reply: Reply, size_bytes: int, began: float) -> None:
        client = self._conversation.client
        log.info(
            "transaction",
            listener=client.listener,
            client=client.address,
            peer=client.peer_id,
            user=client.user,
            sender=transaction.sender,
            recipients=len(transaction.recipients),
            size_bytes=size_bytes,
            reply=str(reply),
            duration_s=round(time.monotonic() - began, 4),
        )
