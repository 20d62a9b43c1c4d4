"""Logging: one canonical line per finished thing, to standard error, as JSON or for people.

Libraries that use the standard `logging` module are re-emitted through the same renderer, warnings and worse only.

Mail goes on without a log. A line that cannot be written (a full disk, a reader that is gone) is lost and counted; it
must not end the task that says it, between a delivery and its record of all places.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


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
            event[key] = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in value)
    return event


class Leveled(structlog.BoundLoggerBase):
    """A logger whose methods are those of the level of the moment, for loggers that were made before as well."""


_STEPS: list[structlog.typing.Processor] = []
"""What a line goes through. Loggers keep this list, so that other steps in it are theirs, too."""


def configure_logs(form: Literal["json", "console"], level: str, node: str) -> None:
    """Set up both for the process, or change them; `node` stands on every line."""

    def add_node(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["node"] = node
        return event

    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
    _STEPS[:] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_node,
        escape,
        *([structlog.processors.format_exc_info] if form == "json" else []),
        renderer,
    ]
    for name, method in vars(structlog.make_filtering_bound_logger(LEVELS[level])).items():
        if not name.startswith("__"):
            setattr(Leveled, name, method)
    structlog.configure(
        processors=_STEPS,
        wrapper_class=Leveled,
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Reemit()], level=logging.WARNING, force=True)
