"""gRPC's C core says on descriptor 2, and nowhere else, that it refused a TLS handshake. Here it becomes a log event.

Python's own `sys.stderr` keeps the real descriptor; only what the core writes goes through a pipe. Lines about refused
handshakes become `gossip.handshake_refused` events, the same reason once a minute (the core does not say who called);
the core's chatter (level I) ends here, and everything else passes unchanged.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from typing import BinaryIO

import structlog

from gossip.repeats import Repeats

log = structlog.get_logger()

_HANDSHAKE = re.compile(rb"Handshake failed with error (.*)")
PERIOD_S = 1.0
"""The core names no caller, so callers with the same fault are one line only within this."""
_CHATTER = re.compile(rb"I\d{4} \d\d:")
LINE_BYTES_MAX = 64 * 1024
REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "the caller's certificate is not of this cluster's authority",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the caller showed no certificate",
}


def install_core_log() -> None:
    """Once for a process, before logging is configured and before gRPC starts its threads."""
    real = os.dup(2)
    sys.stderr = os.fdopen(real, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    source = os.fdopen(reading, "rb", buffering=0)
    threading.Thread(target=_pump, args=(source, real), name="core-log", daemon=True).start()


def _pump(source: BinaryIO, real: int) -> None:
    """Must never end: a pipe that nobody reads would block the core, and everybody who writes to descriptor 2."""
    pending, said = b"", Repeats(PERIOD_S)
    while chunk := source.read(4096):
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > LINE_BYTES_MAX:
            lines, pending = [*lines, pending], b""
        for line in lines:
            with contextlib.suppress(Exception):
                _handle(line, real, said)


def _handle(line: bytes, real: int, said: Repeats) -> None:
    reason = parse_refusal(line)
    if reason is None:
        if not _CHATTER.match(line):
            os.write(real, line + b"\n")
    elif said.is_new(reason, time.monotonic()):
        log.warning("gossip.handshake_refused", reason=reason)


def parse_refusal(line: bytes) -> str | None:
    """Why the core refused a handshake, in our words; None for any other line."""
    match = _HANDSHAKE.search(line)
    if match is None:
        return None
    words: list[str] = [word.decode() for word in re.findall(rb"[A-Z][A-Z_]{9,}", match[1])]
    for word in words:
        if word in REASONS:
            return REASONS[word]
    return words[-1].lower().replace("_", " ") if words else match[1].decode("utf-8", "replace")[:200]
