"""What a relay uses while something happens to it: memory, file descriptors, and how much mail has passed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.bench.relays.process import Relay


@dataclass(frozen=True, slots=True)
class Sample:
    """At an instant (monotonic seconds)."""

    at: float
    memory_mb: float
    files: int


@dataclass(slots=True)
class Samples:
    """In order."""

    rows: list[Sample] = field(default_factory=list)

    @property
    def peak_mb(self) -> float:
        """Most memory."""
        return max((row.memory_mb for row in self.rows), default=0.0)

    def quarter(self, number: int) -> list[Sample]:
        """0 is the first, 3 the last."""
        size = max(1, len(self.rows) // 4)
        return self.rows[size * number : size * (number + 1)] if number < 3 else self.rows[-size:]


@contextlib.contextmanager
def watching(relay: Relay, every_s: float = 0.5) -> Iterator[Samples]:
    """In a thread, for the time of the block. The relay must not be started or stopped in it."""
    samples, over = Samples(), threading.Event()

    def look() -> None:
        while True:
            samples.rows.append(Sample(time.monotonic(), relay.memory_mb(), relay.files_count()))
            if over.wait(every_s):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
