"""The rate of a smart host: a few workers that serve in turn, so that latency grows as soon as work queues up.

Pure: `now` is an argument. A worker is taken when the client says DATA and given back after the final reply; a message
holds it for `workers / rate` seconds. So at most `workers` messages are between their final dot and its reply, as in a
real server whose content filter has so many processes.
"""

from __future__ import annotations

import heapq

LATE_S = 0.25
"""A turn that ends this much later than planned (a slow client, a paused process) moves the worker's next turn; what
ends less late (timers overshoot) is made up for, so that the rate is kept."""


class Pace:
    """`workers` turns at a time, `rate_mps` turns per second altogether."""

    def __init__(self, rate_mps: float, workers: int) -> None:
        if rate_mps <= 0 or workers < 1:
            raise ValueError("a pace needs a positive rate and at least one worker")
        self._turn_s = workers / rate_mps
        self._free_at = [0.0] * workers

    def take(self, asked_at: float) -> float | None:
        """Take a worker for one who has waited since `asked_at`; when its turn ends, or None if all are busy."""
        if not self._free_at:
            return None
        return max(heapq.heappop(self._free_at), asked_at) + self._turn_s

    def give_back(self, ends_at: float, now: float) -> None:
        """The turn that was to end at `ends_at` is over."""
        heapq.heappush(self._free_at, now if now < ends_at or now - ends_at > LATE_S else ends_at)
