"""What every mail store must do: a store's test class inherits `StoreContract` and gives the fixture `shelf`."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest

from smtp_edge.envelope import Client, Envelope, MailData, Recipient
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Delivery, Reject, Sink
from smtp_edge.sinks.message import Content
from smtp_edge.stuffing import DotStuffing

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRACE = b"Received: from client.test\r\n\tby relay.test; Sun, 1 Mar 2026 12:00:00 +0000\r\n"
ANN, BOB, EVE = "ann@box.test", "bob@box.test", "eve@box.test"
"""Ann and Bob have a mailbox."""
TEXT = b"Subject: dots\r\n\r\n.one\r\n..two\r\n\xff\xfe 8 bit\r\n" + b"x" * 997 + b"\r\n.\r\nend\r\n"
LARGE_BYTES = 24 * 1024 * 1024
MEMORY_BYTES_MAX = LARGE_BYTES // 3
UNKNOWN = Reply(550, "no such mailbox", "5.1.1")


class Shelf(Protocol):
    """A store under test."""

    sink: Sink

    async def mails(self, address: str) -> list[bytes]:
        """What a reader of this mailbox sees: from the trace field on."""
        ...


async def delivery_of(
    *addresses: str, text: bytes = TEXT, key: str = "node/queue-id/0", sender: str = "sender@example.net"
) -> Delivery:
    """As a node would describe it."""
    stuffed = DotStuffing().feed(text)
    end = stuffed.find(b"\r\n\r\n") + 4
    return await _describe(MailData(len(stuffed), inline=stuffed, header=stuffed[:end]), addresses, key, sender)


async def spooled_delivery(path: Path, size_bytes: int, *addresses: str) -> Delivery:
    """A large one, from a file that is written here."""
    return await _describe(_spool(path, size_bytes), addresses, "node/large/0", "")


def _spool(path: Path, size_bytes: int) -> MailData:
    header, line = b"Subject: large\r\n\r\n", b"0123456789abcdef" * 4 + b"\r\n"
    with path.open("wb") as file:
        file.write(header)
        for _ in range(size_bytes // len(line) // 1024):
            file.write(line * 1024)
    return MailData(path.stat().st_size, path=path, header=header)


async def _describe(data: MailData, addresses: Sequence[str], key: str, sender: str) -> Delivery:
    envelope = Envelope(sender, tuple(map(Recipient, addresses)))
    return Delivery("queue-id", key, envelope, AT, 0, "192.0.2.1", await Content.load(data), TRACE)


async def deliver(sink: Sink, delivery: Delivery) -> list[Reply]:
    """One reply for each recipient, however the sink gives them."""
    answer = await sink.deliver(delivery)
    if answer is None or isinstance(answer, Reply):
        answer = [answer or Reply(250, "delivered", "2.0.0")] * len(delivery.envelope.recipients)
    assert all(isinstance(reply, Reply) for reply in answer)
    return list(answer)  # type: ignore[arg-type]


async def codes(sink: Sink, delivery: Delivery) -> list[int]:
    return [reply.code for reply in await deliver(sink, delivery)]


class StoreContract:
    """The store has mailboxes of Ann and Bob at box.test, empty, and nobody else's."""

    async def test_received_bytes_are_the_bytes_that_are_read(self, shelf: Shelf) -> None:
        assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
        assert await shelf.mails(ANN) == [TRACE + TEXT]
        assert await shelf.mails(BOB) == []

    async def test_mail_of_any_octets_is_kept(self, shelf: Shelf) -> None:
        text = b"Subject: binary\r\n\r\n" + bytes(range(256)) * 3 + b"\r.\n.\n\r\n.\0no line end"
        assert await codes(shelf.sink, await delivery_of(ANN, text=text)) == [250]
        assert await shelf.mails(ANN) == [TRACE + text]

    async def test_asked_again_it_is_there_once(self, shelf: Shelf) -> None:
        for _ in range(3):
            assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
        assert len(await shelf.mails(ANN)) == 1

    async def test_asked_twice_at_once_it_is_there_once(self, shelf: Shelf) -> None:
        answers = await asyncio.gather(*[codes(shelf.sink, await delivery_of(ANN)) for _ in range(4)])
        assert {code for answer in answers for code in answer} <= {250, 451}
        assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
        assert await shelf.mails(ANN) == [TRACE + TEXT]

    async def test_another_message_is_another_one(self, shelf: Shelf) -> None:
        for number in range(3):
            assert await codes(shelf.sink, await delivery_of(ANN, key=f"node/{number}/0")) == [250]
        assert len(await shelf.mails(ANN)) == 3

    async def test_each_recipient_has_a_copy_and_a_fate_of_its_own(self, shelf: Shelf) -> None:
        delivery = await delivery_of(ANN, EVE, BOB)
        for _ in range(2):
            replies = await deliver(shelf.sink, delivery)
            assert [reply.code for reply in replies] == [250, 550, 250]
            assert replies[1] == UNKNOWN
        assert [len(await shelf.mails(name)) for name in (ANN, BOB, EVE)] == [1, 1, 0]

    async def test_who_has_no_mailbox_is_refused_before_the_mail_is_taken(self, shelf: Shelf) -> None:
        envelope = Envelope("sender@example.net", ())
        verdicts = [await shelf.sink.rcpt(Client("192.0.2.1"), envelope, Recipient(name)) for name in (ANN, BOB, EVE)]
        assert verdicts == [None, None, Reject("no such mailbox", 550, "5.1.1")]

    async def test_large_mail_is_never_whole_in_memory(self, shelf: Shelf, tmp_path: Path) -> None:
        delivery = await spooled_delivery(tmp_path / "large", LARGE_BYTES, ANN)
        await codes(shelf.sink, await delivery_of(BOB))  # what is imported by then is not counted
        tracemalloc.start()
        try:
            assert await codes(shelf.sink, delivery) == [250]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_BYTES_MAX
        assert await shelf.mails(ANN) == [TRACE + (tmp_path / "large").read_bytes()]

    async def test_mail_whose_data_is_damaged_is_not_stored_in_part(self, shelf: Shelf, tmp_path: Path) -> None:
        delivery = await spooled_delivery(tmp_path / "large", 3_000_000, ANN)
        with (tmp_path / "large").open("r+b") as file:
            file.truncate(2_000_000)
        with pytest.raises(MailDataLost):
            await deliver(shelf.sink, delivery)
        assert await shelf.mails(ANN) == []

    async def test_a_try_that_is_given_up_leaves_nothing_in_the_way(self, shelf: Shelf, tmp_path: Path) -> None:
        delivery = await spooled_delivery(tmp_path / "large", 4_000_000, ANN)
        for patience in range(0, 40, 3):
            task = asyncio.create_task(deliver(shelf.sink, delivery))
            for _ in range(patience):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert len(await shelf.mails(ANN)) <= 1
        assert await codes(shelf.sink, delivery) == [250]
        assert await shelf.mails(ANN) == [TRACE + (tmp_path / "large").read_bytes()]
