"""What goes through a relay: Debian's smtp-source on the one side, smtp-sink on the other, and what they say of it.

Under TLS the one side is a client of our own (sender.py), for all relays alike: it pipelines envelopes, and needs more
processor time than smtp-source, so figures with and without TLS are not to be compared, but ratios are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.lab.account import own_s
from tests.bench.relays.own import environment
from tests.conftest import find_command

SESSIONS = 20
BACKLOG = 500
TAIL_BYTES = 200
POLL_S = 0.01
MIDDLE = (0.2, 0.8)
"""Shares of all messages."""
KIB = 1024
MIX = re.compile(r"(?P<kib>\d+)k(?P<single>1)?(?:x(?P<recipients>\d+))?(?P<tls>\+tls)?")


@dataclass(frozen=True, slots=True)
class Mix:
    """Mail of one kind.

    Named as in `4k`, `4k1` (a connection for each message), `50kx5` (five recipients), `4k+tls` (STARTTLS).
    """

    size_bytes: int
    """Of the body."""
    single: bool = False
    recipients: int = 1
    tls: bool = False

    @property
    def name(self) -> str:
        """As it is parsed."""
        many = f"x{self.recipients}" if self.recipients > 1 else ""
        return f"{self.size_bytes // KIB}k{'1' if self.single else ''}{many}{'+tls' if self.tls else ''}"

    @property
    def first_count(self) -> int:
        """Messages that wake a relay up."""
        return 300 if self.size_bytes <= 16 * KIB else 150 if self.size_bytes <= 128 * KIB else 60


def parse_mix(text: str) -> Mix:
    """ValueError with a sentence."""
    found = MIX.fullmatch(text)
    if found is None or int(found["kib"]) == 0:
        kinds = "4k1 (a connection for each message), 4kx5 (five recipients), 4k+tls (STARTTLS)"
        raise ValueError(f"{text!r} is no mix: write 4k, {kinds}")
    single, tls = (found[name] is not None for name in ("single", "tls"))
    return Mix(int(found["kib"]) * KIB, single, int(found["recipients"] or 1), tls)


def missing() -> str:
    """Why there is no load here; empty if there is."""
    absent = [name for name in ("smtp-source", "smtp-sink") if find_command(name) is None]
    return f"needs {' and '.join(absent)} (apt-get install postfix)" if absent else ""


class LoadError(Exception):
    """The generator gave up; `str()` is its last line."""


def send(port: int, mix: Mix, count: int) -> float:
    """Send so many messages and wait for all replies; processor seconds of the generator. LoadError."""
    return _send_under_tls(port, mix, count) if mix.tls else _send_in_the_clear(port, mix, count)


def _send_in_the_clear(port: int, mix: Mix, count: int) -> float:
    """By smtp-source."""
    words = ["smtp-source", "-4", "-s", str(min(SESSIONS, count)), "-m", str(count), "-l", str(mix.size_bytes)]
    words += ["-f", "sender@example.org", "-t", "reader@example.net", "-r", str(mix.recipients)]
    words += [*([] if mix.single else ["-d"]), f"127.0.0.1:{port}"]
    with subprocess.Popen(words, executable=find_command(words[0]), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise LoadError(said.strip().rpartition("\n")[2] or f"smtp-source ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def _send_under_tls(port: int, mix: Mix, count: int) -> float:
    """By our own client: smtp-source does not speak TLS."""
    words = [
        sys.executable,
        "-m",
        "tests.bench.relays.sender",
        "--starttls",
        "--port",
        str(port),
        "--count",
        str(count),
    ]
    words += ["--sessions", str(min(SESSIONS, count)), "--size-bytes", str(mix.size_bytes), "--seconds", "600"]
    words += ["--recipients", str(mix.recipients), *(["--single"] if mix.single else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise LoadError(done.stderr.strip().rpartition("\n")[2])
    seen = json.loads(done.stdout)
    if seen["accepted"] != count:
        raise LoadError(f"{seen['accepted']} of {count} were answered 250")
    return float(seen["cpu_s"])


class Sink:
    """A running smtp-sink."""

    def __init__(self, pid: int, counter: Path) -> None:
        self._pid = pid
        self._counter = counter

    def count(self) -> int:
        """Messages that it took."""
        with self._counter.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            seen = re.findall(rb"mesg=(\d+)", file.read())
        return int(seen[-1]) if seen else 0

    def spent_s(self) -> float:
        """Processor seconds so far."""
        return own_s(self._pid)

    def wait(self, count: int, stall_s: float) -> int:
        """Until it took so many, or nothing for so long; how many it took."""
        best, since = -1, time.monotonic()
        while (now := self.count()) < count:
            if now > best:
                best, since = now, time.monotonic()
            elif time.monotonic() - since > stall_s:
                break
            time.sleep(POLL_S)
        return now


@dataclass(slots=True)
class Pulse:
    """How a sink's count grew."""

    rows: list[tuple[float, int]] = field(default_factory=list)
    """Monotonic seconds and messages, in order."""

    def middle_rate(self) -> float:
        """Messages per second between a fifth and four fifths of them: without the start, and without the end."""
        begin, end = self.rows[0][1], self.rows[-1][1]
        low, high = begin + MIDDLE[0] * (end - begin), begin + MIDDLE[1] * (end - begin)
        (first, had), (last, has) = (next(row for row in self.rows if row[1] >= bound) for bound in (low, high))
        if last <= first:  # all of it came between two looks
            (first, had), (last, has) = self.rows[0], self.rows[-1]
        return (has - had) / max(POLL_S, last - first)


@contextlib.contextmanager
def feeling(end: Sink) -> Iterator[Pulse]:
    """Look at a sink again and again, in a thread, for the time of the block."""
    pulse, over = Pulse(), threading.Event()

    def look() -> None:
        while not over.wait(POLL_S):
            pulse.rows.append((time.monotonic(), end.count()))

    pulse.rows.append((time.monotonic(), end.count()))
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield pulse
    finally:
        over.set()
        thread.join()
        pulse.rows.append((time.monotonic(), end.count()))


@contextlib.contextmanager
def sink(port: int, memory: Path, inside: Sequence[str] = ()) -> Iterator[Sink]:
    """Run one; `memory` is where its counter costs nothing. `inside`: words before its command."""
    counter = memory / "sink.count"
    command = find_command("smtp-sink") or "smtp-sink"
    words = [*inside, command, "-4", "-u", "nobody", "-c", f"127.0.0.1:{port}", str(BACKLOG)]
    with counter.open("wb") as out:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=quiet, stdout=out, stderr=quiet)
    try:
        yield Sink(process.pid, counter)
    finally:
        process.kill()
        process.wait()
