"""Logging must not be able to hurt mail."""

from __future__ import annotations

import errno
import io

from smtp_edge.logs import Lossy


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
