"""How fast a disk keeps what it promises: small appends, each made durable before the next (fdatasync)."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

APPEND = b"x" * 4096


@dataclass(slots=True)
class Syncs:
    """What was measured."""

    seconds: list[float] = field(default_factory=list)
    """Each sync."""
    took_s: float = 0.0

    @property
    def rate(self) -> float:
        """Syncs per second, of all threads together."""
        return len(self.seconds) / self.took_s


def measure_syncs(folder: Path, threads: int, lasting_s: float) -> Syncs:
    """So many threads, each with a file of its own, append and sync for so long."""
    syncs, began = Syncs(), time.monotonic()

    def work(number: int) -> None:
        file = os.open(folder / f"sync-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while (before := time.monotonic()) < began + lasting_s:
                os.write(file, APPEND)
                os.fdatasync(file)
                syncs.seconds.append(time.monotonic() - before)
        finally:
            os.close(file)
            os.unlink(folder / f"sync-{number}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    syncs.took_s = time.monotonic() - began
    return syncs
