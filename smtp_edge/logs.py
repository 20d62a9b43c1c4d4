"""Logging: one canonical line per finished thing, to standard error, as JSON or for people.

Libraries that use the standard `logging` module are re-emitted through the same renderer, warnings and worse only.

Mail goes on without a log. A line that cannot be written (a full disk, a reader that is gone) is lost and counted; it
must not end the task that says it, between a delivery and its record of all places.

What is merely told (`info`, `debug`) is gathered for up to `GATHER_S` and written at once: a system call for each line
was a twelfth of the processor time of a message. Warnings and errors are written where they arise, with all that came
before them.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import sys
import threading
import time
from typing import Any, Literal, TextIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
GATHER_S = 0.02
GATHER_LINES_MAX = 500
EVENT_WIDTH = 24
"""Columns of an event's name, so that what follows begins at the same one."""


class Lossy:
    """A text stream whose writes never fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0
        """Lines that could not be written."""

    def write(self, text: str) -> int:
        """Write, or not."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            self.lost += 1
            return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Outlet:
    """Where finished lines go: the logger that structlog wraps, with a method for each level."""

    def __init__(self, stream: Lossy) -> None:
        self.stream = stream
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        """That will see to what was gathered."""

    def tell(self, line: str) -> None:
        """Write it soon; at once where no event loop could see to that."""
        with self._lock:
            self._lines.append(line)
        if len(self._lines) >= GATHER_LINES_MAX:
            self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(GATHER_S, self.flush)

    def warn(self, line: str) -> None:
        """Write it now."""
        with self._lock:
            self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what was gathered. From any thread."""
        with self._lock:
            self._loop = None
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
                self.stream.flush()

    debug = info = tell
    warning = error = critical = exception = log = msg = warn


class _Reemit(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info
        )


def escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """No control character reaches a line, whoever let it through: what others say could move a terminal's cursor."""
    for key, value in event.items():
        if type(value) is str and not value.isprintable():
            event[key] = _printable(value)
    return event


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class Leveled(structlog.BoundLoggerBase):
    """A logger whose methods are those of the level of the moment, for loggers that were made before as well."""


_STEPS: list[structlog.typing.Processor] = []
"""What a line goes through. Loggers keep this list, so that other steps in it are theirs, too."""
_OUTLET = Outlet(Lossy(sys.stderr))


def flush_logs() -> None:
    """Write what was gathered; before the process ends."""
    _OUTLET.flush()


atexit.register(flush_logs)


class Stamp:
    """The time of a line, in UTC (RFC 3339), to the microsecond; what is the same for all of a second is made once."""

    def __init__(self) -> None:
        self._second, self._text = -1, ""

    def at(self, now: float) -> str:
        """Seconds since 1970, as text."""
        second = int(now)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((now - second) * 1_000_000):06d}Z"


def _finish_json(node: str) -> structlog.typing.Processor:
    """All steps of a line in one: each message costs two lines."""
    encode, stamp = json.JSONEncoder(default=repr).encode, Stamp()

    def finish(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        event["level"] = method
        event["timestamp"] = stamp.at(time.time())
        event["node"] = node
        exception = event.pop("exc_info", None)
        line = encode(event)
        if exception or "\\" in line or "\x7f" in line:  # only then can there be anything to escape
            event = escape(logger, method, event)
            if exception:
                event = structlog.processors.format_exc_info(logger, method, {**event, "exc_info": exception})
            line = encode(event)
        return line

    return finish


def _finish_text(node: str) -> structlog.typing.Processor:
    """As `_finish_for_people`, without colours: what a pipe or a file gets, in one step."""
    stamp = Stamp()

    def finish(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        at, name, exception = stamp.at(time.time()), event.pop("event", ""), event.pop("exc_info", None)
        event["node"] = node
        line = f"{at} [{method:<9}] {name:<{EVENT_WIDTH}}"
        for key, value in event.items():
            if isinstance(value, str) and not (" " in value or "=" in value or '"' in value or "'" in value):
                line += f" {key}={value}"
            else:
                line += f" {key}={value!r}"
        if not line.isprintable():
            line = _printable(line)
        if exception:
            told = structlog.processors.format_exc_info(logger, method, {"exc_info": exception})
            line = "\n".join([line, *map(_printable, told["exception"].split("\n"))])
        return line

    return finish


def _finish_for_people(node: str) -> structlog.typing.Processor:
    """With colours, where somebody looks at them."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    render = structlog.dev.ConsoleRenderer(pad_event_to=EVENT_WIDTH, sort_keys=False)

    def finish(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        event["node"] = node
        event = stamp(logger, method, structlog.processors.add_log_level(logger, method, event))
        return render(logger, method, escape(logger, method, event))

    return finish


def _finisher(form: Literal["json", "console"], node: str) -> structlog.typing.Processor:
    if form == "json":
        return _finish_json(node)
    return _finish_for_people(node) if sys.stderr.isatty() else _finish_text(node)


def configure_logs(form: Literal["json", "console"], level: str, node: str) -> None:
    """Set up both for the process, or change them; `node` stands on every line."""
    _STEPS[:] = [_finisher(form, node)]
    _OUTLET.flush()
    _OUTLET.stream = Lossy(sys.stderr)
    for name, method in vars(structlog.make_filtering_bound_logger(LEVELS[level])).items():
        if not name.startswith("__"):
            setattr(Leveled, name, method)
    structlog.configure(
        processors=_STEPS,
        wrapper_class=Leveled,
        logger_factory=lambda *_: _OUTLET,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Reemit()], level=logging.WARNING, force=True)
