"""kill -9 of a relay at full speed, again and again: nothing that was answered with 250 is lost, doubles have reasons.

    python3 deploy/run.py bench relay_kill [--kills 20] [--victims all,supervisor,worker] [--workers N] [--size-kib 4]
        [--between 1-3] [--queue disk] [--seed N]

A client that notes each reply sends over 20 sessions without a pause; the server behind the relay notes each message
before it answers. Victims take turns: `all` processes of the relay at once, the `supervisor` alone (its workers must
not outlive it; without workers it is the node), or one `worker`, which the supervisor has to start again. After the
others the same command is started again. Random instants, from a seed that is printed. A second copy is explained if a
process was killed between the receiver's note and the relay's record of its 250 (ARCHITECTURE.md, "Where a duplicate
can arise").
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.demo.ledger import Kill, Ledger
from tests.bench.lab.account import is_alive
from tests.bench.lab.bars import exit_code, show
from tests.bench.lab.figures import spread
from tests.bench.relays import accounting, ground, own
from tests.bench.relays.accounting import add_options, describe_doubles, draw_up, receiving, sending
from tests.bench.relays.contender import RelayError
from tests.bench.relays.process import PORT, Relay
from tests.bench.relays.sender import ACCEPTED, Plan

VICTIMS = ("all", "supervisor", "worker")
WARM_UP_S = 2.0
LEFT_ALONE_S = 20.0
"""Workers that have lost their supervisor have ended their sessions by then."""
STALL_S = 60.0
"""A worker that dies again and again is started later each time."""
QUIET_S = 3.0
FOREVER_S = 86400.0


@dataclass(slots=True)
class Story:
    """What was seen."""

    kills: list[Kill] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    """From the kill until the relay greets, with all its workers."""
    seconds: float = 0.0


def main() -> int:
    """See the module; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--victims", help="all; with several workers: all,supervisor,worker")
    parser.add_argument("--between", default="1-3", help="seconds of work before each kill, from-to")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    several = arguments.workers > 1
    victims = arguments.victims.split(",") if arguments.victims else list(VICTIMS if several else VICTIMS[:1])
    if unknown := set(victims) - set(VICTIMS):
        parser.error(f"--victims: {min(unknown)!r} is not known; there are {', '.join(VICTIMS)}")
    ground.enter()
    with ground.folders(arguments.folder) as place:
        story, ledger = run(arguments, victims, place.folder(arguments.queue))
    rows = accounting.build_rows(ledger)
    print(show(rows))
    print(describe(story, ledger))
    print(f"again with --seed {arguments.seed}")
    return exit_code(rows)


def run(arguments: argparse.Namespace, victims: list[str], folder: Path) -> tuple[Story, Ledger]:
    """Send, kill, drain, and draw up the account."""
    rng, story = random.Random(arguments.seed), Story()
    least, _, most = arguments.between.partition("-")
    plan = Plan(PORT, size_bytes=arguments.size_kib * 1024, seconds=FOREVER_S)
    with receiving(folder / "received") as receiver, Relay(own.build(arguments.workers), folder / "relay") as relay:
        began = time.monotonic()
        with sending(plan, folder / "sent") as sender:
            time.sleep(WARM_UP_S)
            for number in range(arguments.kills):
                time.sleep(rng.uniform(float(least), float(most or least)))
                strike(relay, victims[number % len(victims)], rng, story)
                print(f"kill {number + 1}: {story.struck[-1]}, back after {story.back_s[-1]:.2f} s", flush=True)
            time.sleep(WARM_UP_S)
            sender.finish()
            sent = sender.sent()
        story.seconds = time.monotonic() - began
        receiver.wait(sum(one.code == ACCEPTED for one in sent), STALL_S)
        receiver.settle(QUIET_S)
        return story, draw_up(sent, receiver.received(), story.kills)


def strike(relay: Relay, victim: str, rng: random.Random, story: Story) -> None:
    """Kill, see it come back, note both."""
    supervisor, *others = relay.processes()
    if victim == "worker" and not others:
        victim = "all"
    if victim == "worker":
        chosen = rng.choice(others)
        at = relay.kill(chosen)
        wait_gone([chosen])
        relay.wait_greeting()
    else:
        at = relay.kill(*([supervisor] if victim == "supervisor" else []))
        wait_gone(others)
        relay.start()
    back_at = time.monotonic()
    story.struck.append(victim)
    story.kills.append(Kill(accounting.RELAY, at, back_at))
    story.back_s.append(back_at - at)


def wait_gone(pids: list[int]) -> None:
    """RelayError if processes outlive what was killed."""
    deadline = time.monotonic() + LEFT_ALONE_S
    while left := [pid for pid in pids if is_alive(pid)]:
        if time.monotonic() > deadline:
            raise RelayError(f"{len(left)} processes go on after the kill")
        time.sleep(0.01)


def describe(story: Story, ledger: Ledger) -> str:
    """What is no bar."""
    lines = [
        f"{len(story.kills)} kills in {story.seconds:.0f} s; {ledger.accepted / story.seconds:.0f} messages/s in all",
        f"from a kill until it greets: {spread(story.back_s, 's')}",
        f"sent to the final dot and never answered: {ledger.unanswered}",
        *describe_doubles(ledger),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
