"""The next hop dies at full speed and stays away until 100,000 messages wait; then it is back, and all of it arrives.

    python3 deploy/run.py bench relay_dead_sink [--messages 100000] [--workers N] [--size-kib 4] [--queue disk]

The client sends over 20 sessions without a pause and notes each reply, the server behind the relay notes each message
before it answers; it is killed with kill -9 while mail passes. The client goes on until so many of its messages wait
in the relay. Bars: the relay's memory (all of its processes, at its peak) stays within the bar for 100,000 queued
messages; nothing is lost; a second copy is explained only if the server was killed before its 250 was heard.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.demo.ledger import Kill, Ledger
from tests.bench.lab.bars import Row, bar, exit_code, show
from tests.bench.relays import accounting, ground, own
from tests.bench.relays.accounting import Receiver, Sender, add_options, describe_doubles, draw_up, receiving, sending
from tests.bench.relays.process import PORT, Relay
from tests.bench.relays.sender import ACCEPTED, Plan
from tests.bench.relays.watch import Samples, watching

MEMORY_MB = 300.0
WARM_UP_S = 5.0
REST_S = 5.0
STALL_S = 90.0
"""A relay may wait so long before it tries a dead hop again."""
QUIET_S = 3.0
POLL_S = 0.2
FOREVER_S = 86400.0


@dataclass(slots=True)
class Story:
    """What was seen."""

    before_rate: float = 0.0
    """Messages per second that arrived before the kill."""
    queued: int = 0
    queueing_rate: float = 0.0
    """Of 250s while the next hop was dead."""
    first_s: float | None = None
    """From the next hop's start until its first message."""
    drain_rate: float = 0.0
    idle_mb: float = 0.0
    samples: Samples = field(default_factory=Samples)


def main() -> int:
    """See the module; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    add_options(parser)
    arguments = parser.parse_args()
    ground.enter()
    with ground.folders(arguments.folder) as place:
        story, ledger = run(arguments, place.folder(arguments.queue))
    rows = build_rows(story, ledger)
    print(show(rows))
    print(describe(story, ledger))
    return exit_code(rows)


def run(arguments: argparse.Namespace, folder: Path) -> tuple[Story, Ledger]:
    """All of it, and the account."""
    story = Story()
    plan = Plan(PORT, size_bytes=arguments.size_kib * 1024, seconds=FOREVER_S)
    with receiving(folder / "received") as receiver, Relay(own.build(arguments.workers), folder / "relay") as relay:
        story.idle_mb = relay.memory_mb()
        with watching(relay) as samples, sending(plan, folder / "sent") as sender:
            time.sleep(WARM_UP_S)
            kill = Kill(accounting.RECEIVER, receiver.kill())
            arrived = receiver.count()
            story.before_rate = arrived / WARM_UP_S
            fill(sender, arrived + arguments.messages, story)
            sent = sender.sent()
            accepted = sum(one.code == ACCEPTED for one in sent)
            story.queued = accepted - arrived
            time.sleep(REST_S)
            kill = Kill(kill.name, kill.at, time.monotonic())
            drain(receiver, accepted, story)
        story.samples = samples
        return story, draw_up(sent, receiver.received(), [kill])


def fill(sender: Sender, wanted: int, story: Story) -> None:
    """Until so many were answered."""
    began, had = time.monotonic(), sender.count()
    while (count := sender.count()) < wanted:
        time.sleep(POLL_S)
    story.queueing_rate = (count - had) / (time.monotonic() - began)
    sender.finish()


def drain(receiver: Receiver, accepted: int, story: Story) -> None:
    """The next hop is back."""
    had, began = receiver.count(), time.monotonic()
    receiver.start()
    first = None
    if receiver.wait(had + 1, STALL_S) > had:
        first = time.monotonic()
        story.first_s = first - began
    receiver.wait(accepted, STALL_S)
    if first is not None:
        story.drain_rate = (receiver.count() - had) / max(0.001, time.monotonic() - first)
    receiver.settle(QUIET_S)


def build_rows(story: Story, ledger: Ledger) -> list[Row]:
    """The bars."""
    peak = story.samples.peak_mb
    return [
        *accounting.build_rows(ledger),
        bar(f"memory with {story.queued} queued", f"< {MEMORY_MB:.0f} MB", f"{peak:.0f} MB", met=peak < MEMORY_MB),
    ]


def describe(story: Story, ledger: Ledger) -> str:
    """What is no bar."""
    first = "never" if story.first_s is None else f"{story.first_s:.1f} s"
    lines = [
        f"{story.before_rate:.0f} messages/s through it before, {story.queueing_rate:.0f} into the queue meanwhile",
        f"the next hop is back: first message after {first}, then {story.drain_rate:.0f} messages/s",
        f"memory: {story.idle_mb:.0f} MB idle at first, {story.samples.rows[-1].memory_mb:.0f} MB at the end",
        *describe_doubles(ledger),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
