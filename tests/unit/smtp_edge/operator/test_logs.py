"""Logging must not be able to hurt mail."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog

from smtp_edge.logs import GATHER_LINES_MAX, GATHER_S, Lossy, Outlet, Stamp, configure_logs, escape


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_line_that_cannot_be_written_is_lost_and_counted() -> None:
    stream = Lossy(FullDisk())
    assert stream.write("a line\n") == 7
    assert stream.lost == 1


def test_a_closed_stream_is_no_error() -> None:
    closed = io.StringIO()
    closed.close()
    Lossy(closed).write("a line\n")
    Lossy(closed).flush()


def test_what_can_be_written_is() -> None:
    stream = io.StringIO()
    Lossy(stream).write("a line\n")
    assert stream.getvalue() == "a line\n"


def test_no_control_character_reaches_a_line() -> None:
    event = {"reply": "450 a\x1b[2Jb\r\nc\x85 grün \u202e", "count": 3, "names": ["x"]}
    assert escape(None, "info", event) == {
        "reply": "450 a\\x1b[2Jb\\r\\nc\\x85 grün \\u202e",
        "count": 3,
        "names": ["x"],
    }


def outlet() -> tuple[Outlet, io.StringIO]:
    stream = io.StringIO()
    return Outlet(Lossy(stream)), stream


def test_without_a_loop_a_line_is_written_at_once() -> None:
    out, stream = outlet()
    out.info("one")
    assert stream.getvalue() == "one\n"


async def test_lines_are_gathered_for_a_moment() -> None:
    out, stream = outlet()
    out.info("one")
    out.debug("two")
    assert stream.getvalue() == ""
    async with asyncio.timeout(10):
        while not stream.getvalue():  # noqa: ASYNC110
            await asyncio.sleep(GATHER_S)
    assert stream.getvalue() == "one\ntwo\n"
    out.info("three")
    async with asyncio.timeout(10):
        while "three" not in stream.getvalue():  # noqa: ASYNC110
            await asyncio.sleep(GATHER_S)


async def test_a_warning_is_written_at_once_behind_what_came_before() -> None:
    out, stream = outlet()
    out.info("one")
    out.warning("two")
    assert stream.getvalue() == "one\ntwo\n"


async def test_many_lines_wait_for_nobody() -> None:
    out, stream = outlet()
    for number in range(GATHER_LINES_MAX):
        out.info(str(number))
    assert stream.getvalue().count("\n") == GATHER_LINES_MAX


def test_a_loop_that_has_ended_holds_nothing_back() -> None:
    out, stream = outlet()

    async def say() -> None:
        out.info("one")

    asyncio.run(say())

    async def say_more() -> None:
        out.info("two")
        async with asyncio.timeout(10):
            while not stream.getvalue():  # noqa: ASYNC110
                await asyncio.sleep(GATHER_S)

    asyncio.run(say_more())
    assert stream.getvalue() == "one\ntwo\n"


@pytest.mark.usefixtures("as_before")
def test_an_exception_stands_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("json", "info", "mx1")
    try:
        raise ValueError("no\nway")
    except ValueError:
        structlog.get_logger().exception("bad", thing=b"x")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["node"], line["thing"]) == ("bad", "error", "mx1", "b'x'")
    assert "ValueError: no\nway" in line["exception"]
    assert datetime.fromisoformat(line["timestamp"]).tzinfo is UTC


@pytest.mark.usefixtures("as_before")
def test_a_line_for_a_file_is_text_that_people_and_programs_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("console", "info", "mx1")
    log = structlog.get_logger()
    log.info("attempt", queue_id="Q1", tls="", reply="250 2.0.0 Ok", count=3, said="a\x1b[2Jb\u202e", pair='a="b"')
    try:
        raise ValueError("no \x1b[2J way")
    except ValueError:
        log.exception("bad")
    first, second, *trace = stream.getvalue().splitlines()
    stamp, _, told = first.partition(" ")
    assert datetime.fromisoformat(stamp).tzinfo is UTC
    words = "queue_id=Q1 tls= reply='250 2.0.0 Ok' count=3 said=a\\x1b[2Jb\\u202e pair='a=\"b\"' node=mx1"
    assert told == f"[info     ] attempt                  {words}"
    assert "[error    ] bad " in second
    assert trace[0].startswith("Traceback")
    assert trace[-1] == "ValueError: no \\x1b[2J way"


@pytest.mark.usefixtures("as_before")
def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("console", "info", "mx1")
    structlog.get_logger().info("attempt", reply="250\x1b[2J")
    assert "\x1b[" in stream.getvalue()
    assert "250\\x1b[2J" in stream.getvalue()


@pytest.mark.parametrize("now", [0.0, 1_764_139_165.0, 1_764_139_165.999_999_9, 1_764_139_166.25])
def test_a_stamp_is_the_time_to_the_microsecond(now: float) -> None:
    assert abs(datetime.fromisoformat(Stamp().at(now)).timestamp() - now) <= 1e-6


def test_a_stamp_follows_the_seconds_in_both_directions() -> None:
    stamp = Stamp()
    assert [stamp.at(now)[17:] for now in (1.5, 1.75, 2.0, 1.0)] == [
        "01.500000Z",
        "01.750000Z",
        "02.000000Z",
        "01.000000Z",
    ]


@pytest.fixture
def as_before() -> Iterator[None]:
    """What is set for the whole process is put back."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.mark.usefixtures("as_before")
def test_level_and_format_change_for_loggers_that_have_spoken_already(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("json", "warning", "mx1")
    log = structlog.get_logger()
    bound = log.bind(queue_id="Q")
    for level, form in (("warning", "json"), ("debug", "json"), ("error", "console")):
        configure_logs(form, level, "mx1")  # type: ignore[arg-type]
        for logger in (log, bound):
            logger.debug("small", step=level)
            logger.error("large", step=level)
    lines = stream.getvalue().splitlines()
    assert [("small" in line, "large" in line) for line in lines] == [
        (False, True),
        (False, True),
        (True, False),
        (False, True),
        (True, False),
        (False, True),
        (False, True),
        (False, True),
    ]
    assert [line.startswith("{") for line in lines] == [True] * 6 + [False] * 2
