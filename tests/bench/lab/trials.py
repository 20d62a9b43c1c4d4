"""Trials on a cluster: crash, silence, pause, restart in place. Each leaves the cluster whole, as it found it.

A false loss is a declaration, by any member, about one that was neither dead nor paused. The one that was paused or
restarted is healthy again `VERDICT_S` after it woke or was ready: verdicts on their way until then were true.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from tests.bench.lab.cluster import Cluster, Loss

VERDICT_S = 2.0
DETECTION_MAX_S = 60.0
WHOLE_MAX_S = 90.0
SETTLE_S = 3.0
PAUSE_S = 12.0
WATCH_S = 15.0
"""After a pause or restart: longer than any verdict that follows from it takes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial saw. Seconds since the break; None = not within `DETECTION_MAX_S`."""

    first_s: float | None = None
    all_s: float | None = None
    seen_by: int = 0
    observers: int = 0
    false_losses: tuple[Loss, ...] = field(default=())
    back_s: float | None = None
    """Until everybody had everybody within reach again, counted from its return."""

    @property
    def pairs(self) -> int:
        """Different (observer, member) pairs among the false losses."""
        return len({(loss.observer, loss.member) for loss in self.false_losses})

    @property
    def accused(self) -> int:
        """Different members falsely declared lost."""
        return len({loss.member for loss in self.false_losses})

    def __str__(self) -> str:
        """For the running commentary."""
        words = [f"false losses {self.pairs} about {self.accused} members"]
        if self.observers:
            words.insert(
                0, f"seen by {self.seen_by} of {self.observers}, first {_s(self.first_s)}, all {_s(self.all_s)}"
            )
        if self.back_s is not None:
            words.append(f"whole again after {_s(self.back_s)}")
        return ", ".join(words)


def _s(seconds: float | None) -> str:
    return f"{seconds:.3f} s" if seconds is not None else "never"


def crash(cluster: Cluster, victim: str) -> Outcome:
    """kill -9, until all the others know; then it is started again."""
    observers = [name for name in cluster.names if name != victim]
    at = cluster.processes[victim].kill()
    return _detected(cluster, victim, observers, at)


def silence(cluster: Cluster, victim: str) -> Outcome:
    """SIGSTOP for ever: no connection is reset, nothing is answered. Then it is killed and started again."""
    observers = [name for name in cluster.names if name != victim]
    at = cluster.processes[victim].send(signal.SIGSTOP)
    return _detected(cluster, victim, observers, at)


def _detected(cluster: Cluster, victim: str, observers: list[str], at: float) -> Outcome:
    seen = cluster.wait_lost(victim, observers, at, DETECTION_MAX_S)
    false = tuple(loss for loss in cluster.losses(at) if loss.member != victim)
    if cluster.processes[victim].paused:
        cluster.processes[victim].kill()
    back_s = _return(cluster, victim)
    times = sorted(moment - at for moment in seen.values())
    return Outcome(
        times[0] if times else None,
        times[-1] if len(times) == len(observers) else None,
        len(times),
        len(observers),
        false,
        back_s,
    )


def pause(cluster: Cluster, victim: str, pause_s: float = PAUSE_S) -> Outcome:
    """SIGSTOP, then SIGCONT. What the others said of it meanwhile was true; what anybody says later is not."""
    at = cluster.processes[victim].send(signal.SIGSTOP)
    time.sleep(pause_s)
    woken = cluster.processes[victim].send(signal.SIGCONT)
    time.sleep(WATCH_S)
    false = _false(cluster, victim, at, woken)
    back_s = cluster.wait_whole(WHOLE_MAX_S) - woken
    return Outcome(false_losses=false, back_s=back_s if back_s > WATCH_S + 1 else None)


def restart(cluster: Cluster, victim: str) -> Outcome:
    """kill -9 and started again at once, same identity and port."""
    at = cluster.processes[victim].kill()
    process = cluster.spawn(victim)
    ready = process.await_event("ready", WHOLE_MAX_S)["at"]
    back_s = cluster.wait_whole(WHOLE_MAX_S) - ready
    time.sleep(max(0.0, ready + WATCH_S - time.monotonic()))
    return Outcome(false_losses=_false(cluster, victim, at, ready), back_s=back_s)


def _false(cluster: Cluster, victim: str, at: float, healthy: float) -> tuple[Loss, ...]:
    return tuple(loss for loss in cluster.losses(at) if loss.member != victim or loss.at > healthy + VERDICT_S)


def _return(cluster: Cluster, victim: str) -> float:
    ready = cluster.spawn(victim).await_event("ready", WHOLE_MAX_S)["at"]
    back_s = cluster.wait_whole(WHOLE_MAX_S) - ready
    time.sleep(SETTLE_S)
    return back_s
