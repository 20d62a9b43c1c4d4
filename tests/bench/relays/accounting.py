"""Who knows what of each message: a sender and a receiver as processes, their notes, and the account of both.

The account is the demo's (smtp_edge/demo/ledger.py): lost is what was answered 250 and is not there, and every second
copy has a reason (who was killed between which two things), or it is unexplained.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from smtp_edge.demo.ledger import Arrival, Kill, Ledger, Submission, build_ledger
from tests.bench.lab.bars import Row, bar
from tests.bench.relays.ground import Queue
from tests.bench.relays.own import environment
from tests.bench.relays.process import SINK_PORT
from tests.bench.relays.sender import ACCEPTED, Plan

RELAY, RECEIVER = "relay", "receiver"
"""Names in the account."""
POLL_S = 0.1
START_S = 10.0
BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sent:
    """A message whose final dot was sent."""

    number: int
    code: int
    """0 = the connection ended without an answer."""
    began: float
    answered: float


class Sender:
    """A running sender.py."""

    def __init__(self, plan: Plan, notes: Path) -> None:
        self._notes = Notes(notes)
        words = [f"--{field.name.replace('_', '-')}" for field in fields(plan)]
        command = [sys.executable, "-m", "tests.bench.relays.sender", "--notes", str(notes)]
        for word, field in zip(words, fields(plan), strict=True):
            value = getattr(plan, field.name)
            if field.name == "host" or value == field.default:
                continue
            command += [word] if value is True else [word, str(value)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), start_new_session=True)

    @property
    def running(self) -> bool:
        """It still sends."""
        return self._process.poll() is None

    def finish(self) -> dict[str, float]:
        """Tell it to stop if it has not; what it says of itself."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> dict[str, float]:
        """Until it has sent all; what it says of itself."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0, f"the sender ended with {self._process.returncode}"
        return dict(json.loads(out))

    def close(self) -> None:
        """At the latest now."""
        self._process.kill()
        self._process.wait()

    def count(self) -> int:
        """Messages of which it knows what became, a moment ago."""
        return self._notes.count()

    def sent(self) -> list[Sent]:
        """What became of messages; complete when it has ended."""
        return [Sent(int(row[0]), int(row[1]), float(row[2]), float(row[3])) for row in self._notes.rows()]


@contextlib.contextmanager
def sending(plan: Plan, notes: Path) -> Iterator[Sender]:
    """Run one, for no longer than the block."""
    sender = Sender(plan, notes)
    try:
        yield sender
    finally:
        sender.close()


class Notes:
    """A growing file of lines, of which only what is new is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to, self._count = 0, 0
        path.touch()

    def count(self) -> int:
        """Lines so far."""
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            while block := file.read(BLOCK_BYTES):
                self._read_to += len(block)
                self._count += block.count(b"\n")
        return self._count

    def rows(self) -> list[list[str]]:
        """All lines, in words."""
        return [line.split() for line in self._path.read_text().splitlines()]


class Receiver:
    """A receiver.py that can be killed and started again; its notes go on."""

    def __init__(self, notes: Path, port: int = SINK_PORT) -> None:
        self._path, self._port = notes, port
        self._notes = Notes(notes)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It listens a moment later: relays try again."""
        words = ["--port", str(self._port), "--notes", str(self._path)]
        command = [sys.executable, "-m", "tests.bench.relays.receiver", *words]
        self._process = subprocess.Popen(command, env=environment(), start_new_session=True)

    def kill(self) -> float:
        """SIGKILL; the instant."""
        assert self._process is not None
        at = time.monotonic()
        self._process.kill()
        self._process.wait()
        return at

    def count(self) -> int:
        """Messages noted so far."""
        return self._notes.count()

    def received(self) -> list[tuple[int, float]]:
        """Number and instant of each copy."""
        return [(int(row[0]), float(row[1])) for row in self._notes.rows()]

    def wait(self, count: int, stall_s: float) -> int:
        """Until it has noted so many, or none for so long; how many."""
        best, since = -1, time.monotonic()
        while (now := self.count()) < count and time.monotonic() - since <= stall_s:
            if now > best:
                best, since = now, time.monotonic()
            time.sleep(POLL_S)
        return now

    def settle(self, quiet_s: float) -> int:
        """Until none has come for so long; how many."""
        return self.wait(sys.maxsize, quiet_s)


@contextlib.contextmanager
def receiving(notes: Path, port: int = SINK_PORT) -> Iterator[Receiver]:
    """Run one, for no longer than the block."""
    receiver = Receiver(notes, port)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.kill()


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command with an account can be told."""
    parser.add_argument("--workers", type=int, default=0, help="0 = as it comes")
    parser.add_argument("--size-kib", type=int, default=4)
    parser.add_argument("--queue", type=Queue, default=Queue.DISK)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")


def draw_up(sent: Iterable[Sent], received: Iterable[tuple[int, float]], kills: Sequence[Kill] = ()) -> Ledger:
    """The account. Kills are of `RELAY` or `RECEIVER`."""
    submissions = [
        Submission(str(one.number), "", one.began, one.answered if one.code == ACCEPTED else None, RELAY)
        for one in sent
    ]
    return build_ledger(
        submissions, [Arrival(str(number), RECEIVER, at, "", RELAY) for number, at in received], kills=kills
    )


def classes_of_doubles(ledger: Ledger) -> Counter[str]:
    """Reasons without their figures -> how many messages."""
    return Counter(double.reason.partition("wrote the message: ")[2] or "unexplained" for double in ledger.doubled)


def build_rows(ledger: Ledger) -> list[Row]:
    """The bars of an account in which doubles may have reasons."""
    lost, unexplained, strangers = len(ledger.lost), ledger.doubled_in_mesh, len(ledger.strangers)
    return [
        bar(f"lost of {ledger.accepted} that were answered 250", "0", str(lost), met=not lost),
        bar("doubled without a reason", "0", str(unexplained), met=not unexplained),
        bar("came, and were never sent", "0", str(strangers), met=not strangers),
    ]


def describe_doubles(ledger: Ledger) -> list[str]:
    """Lines: how many, and how many for each reason."""
    doubles = classes_of_doubles(ledger)
    return [f"doubled: {sum(doubles.values())}", *(f"  {count} {reason}" for reason, count in doubles.most_common())]
