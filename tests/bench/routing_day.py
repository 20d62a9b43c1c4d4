"""A day of a mesh in virtual time: 24 hours, 20 relays, one failure after another; where every message went.

    python3 deploy/run.py bench routing_day [--hours 24] [--relays 20] [--seed 1]

Clients at all relays submit at a rate that goes up and down with the hour, 1.5 messages a second on average; six smart
hosts, each at some of the relays. On average every four minutes something breaks: a relay is killed (and comes back
with its disk), a smart host is killed, goes silent, becomes gray or answers 451 to all, a way between two relays goes
silent, or the mesh is parted. Each failure lasts 5 s to 10 min, so several overlap; the last one ends before the day
does, and then the queues must become empty.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from smtp_edge.simulation import Mesh
from tests.bench.lab.bars import bar, show
from tests.bench.lab.figures import percentile
from tests.bench.lab.runs import hush

HOSTS, HOST_MPS = 6, (4.0, 20.0)
EXITS_MAX = 3
LOAD_MPS, SWING = 1.5, 0.6
BREAK_S = 240.0
LASTS_S = (5.0, 600.0)
DRAIN_MAX_S = 7200.0
DAY_S = 86_400.0
HOUR_S = 3600.0
QUIET_S = 900.0
"""Before the end nothing breaks any more."""
KINDS = ("relay dies", "host dies", "host silent", "host gray", "host refuses for a while", "way silent", "mesh parted")


@dataclass
class Day:
    """What became of it."""

    relays: int
    hours: float
    seed: int
    broken: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    delivered: int = 0
    queued: int = 0
    lost: int = 0
    doubled: int = 0
    doubled_inside: int = 0
    flying: int = 0
    """Transactions on smart hosts that a failure cut off."""
    revisits: int = 0
    longest: int = 0
    p50_s: float = 0.0
    p99_s: float = 0.0
    drained_s: float = 0.0
    took_s: float = 0.0


class Breaker:
    """Breaks things at random and mends each again. Nothing is broken twice at once."""

    def __init__(self, mesh: Mesh, day: Day, exits: dict[str, list[str]], rng: random.Random) -> None:
        self._mesh, self._day, self._exits, self._rng = mesh, day, exits, rng
        self._busy: dict[str, float] = {}

    def strike(self, latest_s: float) -> None:
        """One failure now, which ends by then; none if what was chosen is broken already."""
        rng, mesh, now = self._rng, self._mesh, self._mesh.now
        kind = rng.choice(KINDS)
        what = self._choose(kind)
        low, high = map(math.log, LASTS_S)
        ends = min(latest_s, now + math.exp(rng.uniform(low, high)))
        if self._busy.get(what or "mesh", 0.0) > now or ends <= now:
            return
        self._busy[what or "mesh"] = ends
        self._day.broken[kind] += 1
        match kind:
            case "relay dies":
                self._day.flying += sum(mesh.inflight(what, host) for host in self._exits[what])
                mesh.kill(what)
                mesh.restart(what, at=ends)
            case "host dies" | "host silent":
                self._note_flying(what)
                (mesh.kill if kind == "host dies" else mesh.silence)(what)
                mesh.restart(what, at=ends)
            case "host gray" | "host refuses for a while":
                gray = kind == "host gray"
                mesh.degrade(what, speed=0.2 if gray else 1.0, error_rate=0.5 if gray else 1.0)
                mesh.degrade(what, speed=1.0, error_rate=0.0, at=ends)
            case "way silent":
                here, there = rng.sample(sorted(self._exits), 2)
                mesh.block(here, there)
                mesh.unblock(here, there, at=ends)
            case _:
                names = sorted(self._exits)
                rng.shuffle(names)
                cut = rng.randint(1, len(names) - 1)
                mesh.partition(names[:cut], names[cut:])
                mesh.heal(at=ends)

    def _choose(self, kind: str) -> str:
        """A relay or a host; nothing for failures of the mesh."""
        if kind.startswith("relay"):
            return self._rng.choice(sorted(self._exits))
        return f"h{self._rng.randrange(HOSTS)}" if kind.startswith("host") else ""

    def _note_flying(self, host: str) -> None:
        for relay, hosts in self._exits.items():
            if host in hosts and self._mesh.relays[relay].alive:
                self._day.flying += self._mesh.inflight(relay, host)


def play(relays: int, hours: float, seed: int, *, commentary: bool = False) -> Day:
    """One day."""
    hush()
    began, rng, day = time.process_time(), random.Random(seed), Day(relays, hours, seed)
    end = hours * HOUR_S
    with Mesh(seed=seed, sample_s=0) as mesh:
        exits = build(mesh, relays, end, rng)
        breaker = Breaker(mesh, day, exits, rng)
        told = HOUR_S
        while True:
            pause_s = rng.expovariate(1 / BREAK_S)
            if mesh.now + pause_s >= end - QUIET_S:
                break
            mesh.run(pause_s)
            breaker.strike(end - QUIET_S)
            if commentary and mesh.now >= told:
                took_s = time.process_time() - began
                print(f"{mesh.now / HOUR_S:.0f} h: {mesh.delivered} of {mesh.accepted}, {took_s:.0f} s", flush=True)
                told += HOUR_S
        mesh.run(end - mesh.now)
        mesh.run_until(lambda: mesh.queued == 0, DRAIN_MAX_S)
        ledger = mesh.ledger
        day.accepted, day.delivered, day.queued = mesh.accepted, mesh.delivered, mesh.queued
        day.lost, day.doubled, day.doubled_inside = mesh.lost, mesh.doubled, mesh.doubled_inside
        day.revisits, day.longest, day.drained_s = ledger.revisits, ledger.longest, mesh.now - end
        day.p50_s, day.p99_s = (percentile(ledger.delays_s, share) for share in (0.5, 0.99))
    day.took_s = time.process_time() - began
    return day


def build(mesh: Mesh, relays: int, end: float, rng: random.Random) -> dict[str, list[str]]:
    """Hosts, relays and clients; which relay has which hosts (some have none)."""
    for number in range(HOSTS):
        mesh.host(f"h{number}", rng.uniform(*HOST_MPS))
    exits: dict[str, list[str]] = {}
    for number in range(relays):
        names = sorted(rng.sample([f"h{host}" for host in range(HOSTS)], rng.randint(0, EXITS_MAX)))
        exits[f"r{number}"] = names or ([f"h{number % HOSTS}"] if number < 2 else [])
        mesh.relay(f"r{number}", exits[f"r{number}"])

    def rate(now: float) -> float:
        return LOAD_MPS / relays * (1 + SWING * math.sin(2 * math.pi * now / DAY_S))

    for name in exits:
        mesh.load(name, rate, until=end)
    return exits


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--relays", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    day = play(arguments.relays, arguments.hours, arguments.seed, commentary=True)
    print("failures: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(day.broken.items())))
    doubled = day.doubled - day.doubled_inside
    print(
        show(
            [
                bar("lost", "0", f"{day.lost} of {day.accepted}", met=not day.lost),
                bar(
                    "in the queues at the end",
                    "0",
                    f"{day.queued}, empty {day.drained_s:.0f} s after it",
                    met=not day.queued,
                ),
                bar("doubled inside the mesh", "0", str(day.doubled_inside), met=not day.doubled_inside),
                bar("doubled at exits / in flight there", "1", f"{doubled} / {day.flying}", met=doubled <= day.flying),
                bar("revisits; longest way", "0; 25", f"{day.revisits}; {day.longest}", met=day.longest <= 25),
                bar("delay p50, p99", "", f"{day.p50_s:.2f} s, {day.p99_s:.0f} s", met=True),
            ]
        )
    )
    took = f"{day.took_s:.0f} s of processor time, {time.monotonic() - began:.0f} s"
    print(f"{day.hours:g} h of {day.relays} relays: {took}")


if __name__ == "__main__":
    main()
