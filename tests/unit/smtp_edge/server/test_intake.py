"""Mail data on its way in: what is refused and why, what goes to a file, what is kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smtp_edge.envelope import MailData
from smtp_edge.queue.spool import Spool, SpoolWriter
from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.reply import Reply
from smtp_edge.server.chunks import BinaryChunks
from smtp_edge.server.intake import PARTS_MAX, Intake, IntakeOptions
from smtp_edge.server.pressure import Memory

HEADER = b"Subject: x\r\n\r\n"


class Room:
    """Makes intakes of one spool and one memory."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.memory = Spool(folder), Memory(1_000_000)
        self.begin: Callable[[], SpoolWriter] = self.spool.begin

    def intake(self, **options: object) -> Intake:
        bounds = IntakeOptions(**{"size_bytes_max": 100_000, "inline_bytes_max": 1000, **options})  # type: ignore[arg-type]
        return Intake(bounds, lambda: self.begin(), self.memory)

    def files(self) -> list[Path]:
        return [path for path in self.spool.path.rglob("*") if path.is_file()]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "queue")


async def take(intake: Intake, *chunks: bytes) -> MailData | Reply:
    for chunk in chunks:
        intake.feed(chunk)
    return await intake.finish()


async def test_small_mail_stays_in_memory_and_counts_there_until_it_is_the_queues(room: Room) -> None:
    intake = room.intake()
    data = await take(intake, HEADER, b"body\r\n")
    assert data == MailData(len(HEADER) + 6, inline=HEADER + b"body\r\n", header=HEADER)
    assert room.memory.kept_bytes == len(HEADER) + 6
    intake.close()
    assert room.memory.kept_bytes == 0


async def test_large_mail_goes_to_a_file_and_counts_no_more(room: Room) -> None:
    data = await take(room.intake(), HEADER, b"x" * 990 + b"\r\n", b"y\r\n")
    assert isinstance(data, MailData)
    assert data.path is not None
    assert data.path.read_bytes() == HEADER + b"x" * 990 + b"\r\ny\r\n"
    assert room.memory.kept_bytes == 0


async def test_large_mail_that_may_pass_stays_in_memory_and_counts_there_as_long_as_somebody_has_it(room: Room) -> None:
    intake = room.intake(kept_bytes_max=50_000)
    data = await take(intake, HEADER, *[b"x" * 998 + b"\r\n"] * 40)
    intake.close()
    assert isinstance(data, MailData)
    assert (data.path, data.size_bytes) == (None, len(HEADER) + 40_000)
    assert (room.memory.kept_bytes, room.memory.large_bytes) == (data.size_bytes, data.size_bytes)
    del data
    assert (room.memory.kept_bytes, room.memory.large_bytes) == (0, 0)
    assert room.files() == []


@pytest.mark.parametrize(("count", "taken_bytes"), [(51, 0), (40, 240_000)])
async def test_past_that_bound_or_past_its_share_of_the_memory_it_goes_to_a_file(
    room: Room, count: int, taken_bytes: int
) -> None:
    assert room.memory.take_large(taken_bytes)
    body = [b"x" * 998 + b"\r\n"] * count
    data = await take(room.intake(kept_bytes_max=50_000), HEADER, *body)
    assert isinstance(data, MailData)
    assert data.path is not None
    assert data.path.read_bytes() == HEADER + b"".join(body)
    assert (room.memory.kept_bytes, room.memory.large_bytes) == (taken_bytes, taken_bytes)


async def test_large_mail_that_is_given_up_counts_no_more(room: Room) -> None:
    intake = room.intake(kept_bytes_max=50_000)
    intake.feed(b"x" * 40_000)
    await intake.abort()
    assert (room.memory.kept_bytes, room.memory.large_bytes) == (0, 0)


async def test_small_mail_goes_to_a_file_when_memory_is_short(room: Room) -> None:
    assert room.memory.take(899_990)
    data = await take(room.intake(), HEADER, b"body\r\n")
    assert isinstance(data, MailData)
    assert data.path is not None
    assert room.memory.kept_bytes == 899_990


async def test_many_tiny_segments_do_not_pile_up(room: Room) -> None:
    intake = room.intake()
    for _ in range(900):
        intake.feed(b"x")
    assert len(intake._parts) <= PARTS_MAX
    assert await intake.finish() == MailData(900, inline=b"x" * 900, header=b"x" * 900)


@pytest.mark.parametrize(
    ("options", "chunks", "reply"),
    [
        ({"size_bytes_max": 20}, [HEADER, b"0123456\r\n"], "552 5.3.4"),
        ({"bare_newlines": "refuse"}, [HEADER, b"a\nb\r\n"], "550 5.6.0"),
        ({"line_bytes_max": 20}, [HEADER, b"x" * 19 + b"\r\n"], "554 5.6.0"),
        ({"line_bytes_max": 20}, [HEADER, b"x" * 10, b"x" * 10, b"\r\n"], "554 5.6.0"),
        ({"header_bytes_max": 50}, [b"X: y\r\n" * 10, b"\r\n"], "552 5.3.4"),
        ({"header_fields_max": 3}, [b"X: y\r\n" * 4, b"\r\n"], "552 5.3.4"),
        ({"hops_max": 3}, [b"Received: x\r\n" * 3, b"\r\n"], "554 5.4.6"),
    ],
)
async def test_each_bound_has_its_reply_and_leaves_nothing(
    room: Room, options: dict[str, object], chunks: list[bytes], reply: str
) -> None:
    refused = await take(room.intake(**options), *chunks)
    assert str(refused)[:9] == reply
    assert room.memory.kept_bytes == 0
    assert room.files() == []


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({"size_bytes_max": 14 + 9}, [HEADER, b"0123456\r\n"]),
        ({"line_bytes_max": 20}, [HEADER, b"x" * 18 + b"\r\n", b"x" * 18, b"\r\n"]),
        ({"line_bytes_max": 0}, [HEADER, b"x" * 50_000 + b"\r\n"]),
        ({"header_bytes_max": 62}, [b"X: y\r\n" * 10, b"\r\n"]),
        ({"header_fields_max": 3}, [b"X: y\r\n folded: not a field\r\n" * 3, b"\r\n"]),
        ({"hops_max": 3}, [b"Received: x\r\n" * 2, b"\r\nReceived: x\r\n" * 9]),
        ({"bare_newlines": "normalise"}, [HEADER, b"a\nb\rc\r\n"]),
    ],
)
@pytest.mark.rfc("1870 6.3")
async def test_at_the_bound_it_is_taken(room: Room, options: dict[str, object], chunks: list[bytes]) -> None:
    assert isinstance(await take(room.intake(**options), *chunks), MailData)


@pytest.mark.parametrize("inline_bytes_max", [10, 10_000])
async def test_doubled_dots_do_not_count_against_the_size(room: Room, inline_bytes_max: int) -> None:
    body = HEADER + b"..\r\n" * 100
    options = {"size_bytes_max": len(body) - 100, "inline_bytes_max": inline_bytes_max}
    for size in (1, 3, 50, 1000):
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        assert isinstance(await take(room.intake(**options), *chunks), MailData)
        assert str(await take(room.intake(**options), *chunks, b"xx\r\n")).startswith("552")


@pytest.mark.parametrize(("error", "code"), [(StoreFull("full"), 452), (StoreError("broken"), 451)])
async def test_a_disk_that_refuses_is_452_or_451_at_the_end(room: Room, error: StoreError, code: int) -> None:
    def refuse() -> SpoolWriter:
        raise error

    begin, room.begin = room.begin, refuse
    intake = room.intake()
    refused = await take(intake, HEADER, b"x" * 5000 + b"\r\n", b"y" * 5000 + b"\r\n")
    assert isinstance(refused, Reply)
    assert refused.code == code
    assert room.memory.kept_bytes == 0
    room.begin = begin
    assert isinstance(await take(room.intake(), HEADER, b"x" * 5000 + b"\r\n"), MailData)


async def test_a_failing_disk_is_451_and_the_next_message_is_taken(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fail)
        refused = await take(room.intake(), HEADER, b"x" * 5000 + b"\r\n")
    assert str(refused).startswith("451 4.3.0")
    assert room.files() == []
    assert isinstance(await take(room.intake(), HEADER, b"x" * 5000 + b"\r\n"), MailData)


async def test_what_is_given_up_leaves_no_file(room: Room) -> None:
    intake = room.intake()
    intake.feed(b"x" * 5000)
    assert len(room.files()) == 1
    await intake.abort()
    assert room.files() == []


async def test_binary_data_is_refused_for_nothing_but_its_size(room: Room) -> None:
    options = IntakeOptions(100_000, 1000)
    intake = Intake(options, room.spool.begin, room.memory, BinaryChunks())
    assert isinstance(await take(intake, HEADER, b"\x00\n\r.\n.\r\n.\r\n\xff"), MailData)
