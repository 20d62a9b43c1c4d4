"""One contender, one mix of mail, some seconds: started, warmed up, loaded, counted, ended.

What is timed is the way of all messages: from the first connection of the generator until the sink has the last one.
How many they are follows from the rate that the warm-up showed, so that slow and fast relays run equally long.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.relays.account import Account, open_account
from tests.bench.relays.contender import Contender, Place
from tests.bench.relays.ground import Ground, Queue, read_moment, wait_quiet
from tests.bench.relays.load import LoadError, Mix, Sink, send, sink
from tests.bench.relays.own import environment

PORT, SINK_PORT = 2525, 2600
START_S = 40.0
STOP_S = 5.0
STALL_S = 15.0
WARM_UP_S = 1.0
COUNT_MAX = 200_000
SYNC_CALLS = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "msync")
SYNC_COUNT = 400
SYNC_LINE = re.compile(rb"^\d+ +(?:%s)\(" % "|".join(SYNC_CALLS).encode(), re.MULTILINE)
LOG_LINE_MAX = 200


class TrialError(Exception):
    """The contender did not start, or lost its way; `str()` says how."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be measured."""

    contender: Contender
    mix: Mix
    queue: Queue
    seconds: float
    quiet_s: float = 8.0
    """How long to wait for a quiet machine."""


@dataclass(frozen=True, slots=True)
class Score:
    """What was measured. Rates in messages per second, processor time in milliseconds per message."""

    relay: str
    mix: str
    queue: str
    sent: int = 0
    arrived: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    """Until the sink had all."""
    accept_rate: float = 0.0
    """Until the generator had its last 250."""
    cpu_ms: float = 0.0
    load_ms: float = 0.0
    """Of generator and sink."""
    others_cores: float = 0.0
    """Cores that were used by nobody of us meanwhile."""
    stolen_cores: float = 0.0
    syncs: float | None = None
    """For each message; measured apart, and nothing else with it."""
    yardstick: bool = False
    """Others are measured by it."""
    error: str = ""
    round: int = 0

    @property
    def counts(self) -> bool:
        """All that was sent has arrived."""
        return not self.error and self.sent > 0 and self.arrived == self.sent


class Running:
    """A contender that takes mail, and the sink behind it."""

    def __init__(self, process: subprocess.Popen[bytes], account: Account, end: Sink) -> None:
        self._process = process
        self._account = account
        self.sink = end

    def spent_s(self) -> float:
        """Processor seconds of the contender so far."""
        return self._account.spent_s(self._process.pid)

    def pass_on(self, mix: Mix, count: int) -> float:
        """Send so many and see them arrive; messages per second. TrialError if some do not."""
        had, began = self.sink.count(), time.monotonic()
        send(PORT, mix, count)
        arrived = self.sink.wait(had + count, STALL_S) - had
        if arrived != count:
            raise TrialError(f"{arrived} of {count} arrived in the warm-up")
        return count / (time.monotonic() - began)


@contextlib.contextmanager
def running(contender: Contender, folder: Path, memory: Path, tracer: Sequence[str] = ()) -> Iterator[Running]:
    """Start a contender in a fresh folder, with a sink behind it. TrialError if it does not greet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = contender.prepare(Place(folder, PORT, SINK_PORT))
    account, log = open_account(), folder / "out.log"
    with contextlib.ExitStack() as stack:
        end = stack.enter_context(sink(SINK_PORT, memory))
        with log.open("wb") as out:
            process = subprocess.Popen(
                account.wrap([*tracer, *command]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder,
                env=environment(),
                start_new_session=True,
            )
        stack.callback(stop, process, account)
        wait_greeting(process, PORT, log)
        yield Running(process, account, end)


def stop(process: subprocess.Popen[bytes], account: Account) -> None:
    """SIGTERM, and after a while the end."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    account.close(process.pid)
    process.kill()
    process.wait()


def wait_greeting(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a connection is greeted. TrialError with the last line of the log."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as probe:
            if probe.recv(100).startswith(b"220"):
                probe.sendall(b"QUIT\r\n")
                probe.recv(100)
                return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it says nothing")
    raise TrialError(f"does not serve: {last[:LOG_LINE_MAX]}")


def play(trial: Trial, ground: Ground) -> Score:
    """Measure rates and processor time; a failure is a score with its error."""
    name = trial.contender.name
    wait_quiet(trial.quiet_s)
    try:
        with running(trial.contender, ground.folder(trial.queue) / "relay", ground.memory) as relay:
            return _measure(trial, relay)
    except (TrialError, LoadError, OSError) as error:
        return Score(name, trial.mix.name, trial.queue.value, error=str(error))


def _measure(trial: Trial, relay: Running) -> Score:
    mix = trial.mix
    rate = relay.pass_on(mix, mix.first_count)
    rate = relay.pass_on(mix, max(mix.first_count, int(rate * min(WARM_UP_S, trial.seconds))))
    count = min(COUNT_MAX, max(mix.first_count, int(rate * trial.seconds)))
    had, spent, sink_spent, before = relay.sink.count(), relay.spent_s(), relay.sink.spent_s(), read_moment()
    source_s = send(PORT, mix, count)
    answered = time.monotonic()
    arrived = relay.sink.wait(had + count, STALL_S) - had
    after = read_moment()
    took = after.at - before.at
    relay_s, load_s = relay.spent_s() - spent, source_s + relay.sink.spent_s() - sink_spent
    return Score(
        trial.contender.name,
        mix.name,
        trial.queue.value,
        sent=count,
        arrived=arrived,
        seconds=took,
        rate=arrived / took,
        accept_rate=count / (answered - before.at),
        cpu_ms=1000 * relay_s / count,
        load_ms=1000 * load_s / count,
        others_cores=(after.busy_s - before.busy_s - relay_s - load_s) / took,
        stolen_cores=(after.stolen_s - before.stolen_s) / took,
        yardstick=trial.contender.yardstick,
    )


def count_syncs(trial: Trial, ground: Ground) -> Score:
    """Sync calls of all processes of a contender, for each message, under strace(1): rates mean nothing then."""
    calls = ground.memory / "syncs"
    quick = [] if trial.contender.setuid else ["--seccomp-bpf"]
    tracer = ["strace", "-f", *quick, "-qq", "-o", str(calls), "-e", f"trace={','.join(SYNC_CALLS)}"]
    name, mix, queue = trial.contender.name, trial.mix, trial.queue.value
    if shutil.which("strace") is None:
        return Score(name, mix.name, queue, error="needs strace to count syncs")
    try:
        with running(trial.contender, ground.folder(trial.queue) / "relay", ground.memory, tracer) as relay:
            relay.pass_on(mix, mix.first_count)
            read_to = os.stat(calls).st_size
            relay.pass_on(mix, SYNC_COUNT)
        with calls.open("rb") as file:
            file.seek(read_to)
            found = len(SYNC_LINE.findall(file.read()))
    except (TrialError, LoadError, OSError) as error:
        return Score(name, mix.name, queue, error=f"counting syncs: {error}")
    return Score(name, mix.name, queue, sent=SYNC_COUNT, arrived=SYNC_COUNT, syncs=found / SYNC_COUNT)


def measure_limit(mix: Mix, ground: Ground, seconds: float) -> Score:
    """The generator straight into the sink."""
    with sink(PORT, ground.memory) as end:
        time.sleep(0.5)
        began = time.monotonic()
        send(PORT, mix, mix.first_count)
        count = max(mix.first_count, int(mix.first_count / (time.monotonic() - began) * seconds))
        had, spent, began = end.count(), end.spent_s(), time.monotonic()
        source_s = send(PORT, mix, count)
        arrived = end.wait(had + count, STALL_S) - had
        took, load_s = time.monotonic() - began, source_s + end.spent_s() - spent
    rate = arrived / took
    return Score("no relay", mix.name, "-", sent=count, arrived=arrived, seconds=took, rate=rate, accept_rate=rate,
                 load_ms=1000 * load_s / count)  # fmt: skip
