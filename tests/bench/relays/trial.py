"""One contender, one mix of mail, some seconds: started, warmed up, loaded, counted, ended.

What is timed is the way of all messages: from the first connection of the generator until the sink has the last one.
How many they are follows from the rate that the warm-up showed, so that slow and fast relays run equally long.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.bench.relays.contender import Contender, RelayError
from tests.bench.relays.ground import Ground, Queue, read_moment, wait_quiet
from tests.bench.relays.load import LoadError, Mix, Sink, feeling, send, sink
from tests.bench.relays.process import PORT, SINK_PORT, Relay

STALL_S = 15.0
WARM_UP_S = 1.0
COUNT_MAX = 200_000
SYNC_CALLS = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "msync")
SYNC_SHARE = 4
"""Syncs are counted over so many times the messages of a first warm-up."""
SYNC_LINE = re.compile(rb"^\d+ +(?:%s)\(" % "|".join(SYNC_CALLS).encode(), re.MULTILINE)


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
    middle_rate: float = 0.0
    """Of arrivals, without the start and the end."""
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
    def tail_s(self) -> float:
        """From the last 250 until the last message was there."""
        return max(0.0, self.seconds - self.sent / self.accept_rate) if self.accept_rate else 0.0

    @property
    def disturbed_cores(self) -> float:
        """That were not ours to use."""
        return self.others_cores + self.stolen_cores

    @property
    def counts(self) -> bool:
        """All that was sent has arrived."""
        return not self.error and self.sent > 0 and self.arrived == self.sent


def pass_on(end: Sink, mix: Mix, count: int) -> float:
    """Send so many and see them arrive; messages per second in the middle of it. RelayError if some do not."""
    had = end.count()
    with feeling(end) as pulse:
        send(PORT, mix, count)
        arrived = end.wait(had + count, STALL_S) - had
    if arrived != count:
        raise RelayError(f"{arrived} of {count} arrived in the warm-up")
    return pulse.middle_rate()


def play(trial: Trial, ground: Ground) -> Score:
    """Measure rates and processor time; a failure is a score with its error."""
    name = trial.contender.name
    wait_quiet(trial.quiet_s)
    try:
        folder = ground.folder(trial.queue) / "relay"
        with sink(SINK_PORT, ground.memory) as end, Relay(trial.contender, folder, tls=trial.mix.tls) as relay:
            return _measure(trial, relay, end)
    except (RelayError, LoadError, OSError) as error:
        return Score(name, trial.mix.name, trial.queue.value, error=str(error))


def _measure(trial: Trial, relay: Relay, end: Sink) -> Score:
    score = measure(trial.mix, trial.seconds, end, relay.spent_s)
    contender = trial.contender
    return replace(score, relay=contender.name, queue=trial.queue.value, yardstick=contender.yardstick)


def measure(mix: Mix, seconds: float, end: Sink, spent_s: Callable[[], float]) -> Score:
    """Of whatever takes mail here and has it arrive at the sink; `spent_s` is its processor time so far."""
    rate = pass_on(end, mix, mix.first_count)
    rate = pass_on(end, mix, max(mix.first_count, int(rate * min(WARM_UP_S, seconds))))
    count = min(COUNT_MAX, max(mix.first_count, int(rate * seconds)))
    had, spent, sink_spent, before = end.count(), spent_s(), end.spent_s(), read_moment()
    with feeling(end) as pulse:
        source_s = send(PORT, mix, count)
        answered = time.monotonic()
        arrived = end.wait(had + count, STALL_S) - had
        after = read_moment()
    took = after.at - before.at
    relay_s, load_s = spent_s() - spent, source_s + end.spent_s() - sink_spent
    return Score(
        "",
        mix.name,
        "",
        sent=count,
        arrived=arrived,
        seconds=took,
        rate=arrived / took,
        accept_rate=count / (answered - before.at),
        middle_rate=pulse.middle_rate(),
        cpu_ms=1000 * relay_s / count,
        load_ms=1000 * load_s / count,
        others_cores=(after.busy_s - before.busy_s - relay_s - load_s) / took,
        stolen_cores=(after.stolen_s - before.stolen_s) / took,
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
        folder = ground.folder(trial.queue) / "relay"
        with sink(SINK_PORT, ground.memory) as end, Relay(trial.contender, folder, tracer=tracer, tls=trial.mix.tls):
            pass_on(end, mix, mix.first_count)
            read_to = os.stat(calls).st_size
            count = SYNC_SHARE * mix.first_count
            pass_on(end, mix, count)
        with calls.open("rb") as file:
            file.seek(read_to)
            found = len(SYNC_LINE.findall(file.read()))
    except (RelayError, LoadError, OSError) as error:
        return Score(name, mix.name, queue, error=f"counting syncs: {error}")
    return Score(name, mix.name, queue, sent=count, arrived=count, syncs=found / count)


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
