"""The inbox: lines on demand, pouring, bounds, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

from smtp_edge.server.inbox import OVERLONG_BYTES_MAX, PARTIAL_BYTES, PAUSE_BYTES, TURN_BYTES, EndlessLine, Inbox


class Socket:
    """A transport that can be paused."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return False


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox(asyncio.get_running_loop())


async def test_lines_come_whole_and_in_order(inbox: Inbox) -> None:
    for part in (b"NO", b"OP\r", b"\nQUIT\n\r\nEH"):
        inbox.feed(part)
    assert [inbox.take_line(100) for _ in range(4)] == [b"NOOP\r\n", b"QUIT\n", b"\r\n", None]
    assert len(inbox) == 2


async def test_a_line_without_end_is_given_up(inbox: Inbox) -> None:
    inbox.feed(b"x" * (100 + OVERLONG_BYTES_MAX))
    assert inbox.take_line(100) is None
    inbox.feed(b"x")
    with pytest.raises(EndlessLine):
        inbox.take_line(100)


async def test_the_socket_rests_while_nobody_reads(inbox: Inbox) -> None:
    socket = Socket()
    inbox.transport = socket  # type: ignore[assignment]
    inbox.feed(b"NOOP\r\n" * (PAUSE_BYTES // 6 + 10))
    assert socket.paused
    while socket.paused:
        assert inbox.take_line(100) == b"NOOP\r\n"
    assert len(inbox) <= PAUSE_BYTES


async def test_who_pours_much_rests_for_a_turn_of_the_loop(inbox: Inbox) -> None:
    socket = Socket()
    inbox.transport = socket  # type: ignore[assignment]
    pouring = asyncio.create_task(inbox.pour(lambda data: None))
    await asyncio.sleep(0)
    for _ in range(2):
        fed = 0
        while not socket.paused:
            inbox.feed(bytes(65536))
            fed += 65536
        assert fed == TURN_BYTES + 65536
        await asyncio.sleep(0)
        assert not socket.paused
    pouring.cancel()


async def test_what_is_poured_goes_to_its_taker_until_it_has_enough(inbox: Inbox) -> None:
    taken: list[bytes] = []

    def take(data: bytes) -> bytes | None:
        taken.append(data)
        return b"rest" if data.endswith(b"!") else None

    inbox.feed(b"ab")
    pouring = asyncio.ensure_future(inbox.pour(take))
    await asyncio.sleep(0)
    inbox.feed(b"cd")
    assert len(inbox) == 0
    inbox.feed(b"e!")
    inbox.feed(b" and more\n")
    await pouring
    assert taken == [b"ab", b"cd", b"e!"]
    assert inbox.take_line(100) == b"rest and more\n"


async def test_everything_may_have_come_before_the_pouring(inbox: Inbox) -> None:
    inbox.feed(b"data\nQUIT\n")
    await inbox.pour(lambda data: data[5:])
    assert inbox.take_line(100) == b"QUIT\n"


async def test_what_the_taker_raises_is_raised_to_who_pours(inbox: Inbox) -> None:
    def take(data: bytes) -> bytes | None:
        raise ZeroDivisionError

    pouring = asyncio.ensure_future(inbox.pour(take))
    await asyncio.sleep(0)
    inbox.feed(b"x")
    with pytest.raises(ZeroDivisionError):
        await pouring


async def test_the_end_comes_after_what_was_sent(inbox: Inbox) -> None:
    inbox.feed(b"QUIT\r\n")
    inbox.feed_eof()
    assert inbox.take_line(100) == b"QUIT\r\n"
    with pytest.raises(ConnectionResetError):
        await inbox.more()
    with pytest.raises(ConnectionResetError):
        await inbox.pour(lambda data: None)


async def test_who_waits_learns_that_it_is_over(inbox: Inbox) -> None:
    waiting = asyncio.ensure_future(inbox.more())
    await asyncio.sleep(0)
    inbox.fail(TimeoutError())
    inbox.fail(ZeroDivisionError())  # the first reason counts
    with pytest.raises(TimeoutError):
        await waiting
    with pytest.raises(TimeoutError):
        await inbox.more()


async def test_a_line_in_drops_is_looked_at_when_it_is_whole_or_long(inbox: Inbox) -> None:
    looked: list[bytes] = []

    def quick(data: bytes) -> tuple[int, bool]:
        looked.append(data)
        return (len(data), False) if data.endswith(b"\n") else (0, False)

    inbox.quick = quick
    for drop in (b"N", b"O", b"OP", b"\r\n"):
        inbox.feed(drop)
    assert looked == [b"N", b"NOOP\r\n"]
    assert len(inbox) == 0
    waiting = asyncio.ensure_future(inbox.more())
    await asyncio.sleep(0)
    for _ in range(PARTIAL_BYTES + 1):
        assert not waiting.done()
        inbox.feed(b"x")
    inbox.feed(b"x")
    await waiting
    assert len(looked) == 3
