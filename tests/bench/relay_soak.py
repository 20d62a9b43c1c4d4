"""Half an hour at 70 % of what a node can carry: memory and files stay flat, nothing is lost or doubled, latencies.

    python3 deploy/run.py bench relay_soak [--minutes 30] [--share 0.7] [--rate N] [--size-kib 4] [--workers N]

First the maximum is measured, for some seconds over 20 sessions without a pause (or --rate says it); then messages are
begun at a steady share of it. The client notes each reply, the server behind the relay notes each message before it
answers. `answered` is from MAIL to the 250, `through` from MAIL to the receiver's note. Flat: the medians of the last
quarter and of the first differ by no more than the bound. Memory is of all processes of the relay.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.demo.ledger import Ledger
from tests.bench.lab.bars import Row, bar, exit_code, show
from tests.bench.lab.figures import percentile, table
from tests.bench.relays import ground, own
from tests.bench.relays.accounting import Receiver, Sent, add_options, draw_up, receiving, sending
from tests.bench.relays.process import PORT, Relay
from tests.bench.relays.sender import ACCEPTED, Plan
from tests.bench.relays.watch import Sample, Samples, watching

MAXIMUM_S = 10.0
MEMORY_GROWTH = 0.05
FILES_GROWTH = 5
EVERY_S = 1.0
STALL_S = 30.0
QUIET_S = 3.0
KEPT_PACE = 0.95
"""Share of what was to be begun that was."""
SHARES = (0.5, 0.9, 0.99, 0.999)


@dataclass(slots=True)
class Story:
    """What was seen."""

    maximum: float = 0.0
    rate: float = 0.0
    begun: int = 0
    seconds: float = 0.0
    """Of the steady part."""
    answered_s: list[float] = field(default_factory=list)
    through_s: list[float] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    cores: float = 0.0
    """That the relay used."""


def main() -> int:
    """See the module; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--rate", type=float, default=0, help="the maximum, messages per second; 0 = measure it")
    add_options(parser)
    arguments = parser.parse_args()
    ground.enter()
    with ground.folders(arguments.folder) as place:
        story, ledger = run(arguments, place.folder(arguments.queue))
    rows = build_rows(story, ledger)
    print(show(rows))
    print(describe(story))
    return exit_code(rows)


def run(arguments: argparse.Namespace, folder: Path) -> tuple[Story, Ledger]:
    """The maximum, the steady part, the account of both."""
    story, size_bytes = Story(), arguments.size_kib * 1024
    with receiving(folder / "received") as receiver, Relay(own.build(arguments.workers), folder / "relay") as relay:
        plan = Plan(PORT, size_bytes=size_bytes, seconds=MAXIMUM_S)
        begun, first = 0, list[Sent]()
        if arguments.rate:
            story.maximum = arguments.rate
        else:
            story.maximum, begun, first = measure_maximum(folder, receiver, plan)
        story.rate = story.maximum * arguments.share
        print(f"maximum {story.maximum:.0f} messages/s, now {story.rate:.0f}", flush=True)
        plan = Plan(PORT, size_bytes=size_bytes, seconds=60 * arguments.minutes, rate=story.rate, first=begun)
        spent, began = relay.spent_s(), time.monotonic()
        with watching(relay, EVERY_S) as story.samples, sending(plan, folder / "sent") as sender:
            story.begun = int(sender.wait()["begun"])
            steady = sender.sent()
        story.seconds = time.monotonic() - began
        story.cores = (relay.spent_s() - spent) / story.seconds
        receiver.wait(sum(one.code == ACCEPTED for one in [*first, *steady]), STALL_S)
        receiver.settle(QUIET_S)
        received = receiver.received()
    note_latencies(story, steady, received)
    return story, draw_up([*first, *steady], received)


def measure_maximum(folder: Path, receiver: Receiver, plan: Plan) -> tuple[float, int, list[Sent]]:
    """Messages per second until all have arrived, how many were begun, and what became of them."""
    began = time.monotonic()
    with sending(plan, folder / "sent-first") as sender:
        begun = int(sender.wait()["begun"])
        sent = sender.sent()
    arrived = receiver.wait(len(sent), STALL_S)
    return arrived / (time.monotonic() - began), begun, sent


def note_latencies(story: Story, sent: list[Sent], received: list[tuple[int, float]]) -> None:
    """Of the steady part."""
    arrived = dict(reversed(received))
    good = [one for one in sent if one.code == ACCEPTED]
    story.answered_s = [one.answered - one.began for one in good]
    story.through_s = [arrived[one.number] - one.began for one in good if one.number in arrived]


def build_rows(story: Story, ledger: Ledger) -> list[Row]:
    """The bars."""
    first, last = story.samples.quarter(0), story.samples.quarter(3)
    memory, memory_last = (_median_mb(part) for part in (first, last))
    files, files_last = (statistics.median(row.files for row in part) for part in (first, last))
    wanted, lost = story.rate * story.seconds, len(ledger.lost)
    return [
        bar(f"lost of {ledger.accepted} that were answered 250", "0", str(lost), met=not lost),
        bar("doubled", "0", str(len(ledger.doubled)), met=not ledger.doubled),
        bar("memory, last quarter against first", f"<= +{MEMORY_GROWTH:.0%}", f"{memory:.0f} > {memory_last:.0f} MB",
            met=memory_last <= memory * (1 + MEMORY_GROWTH)),
        bar("file descriptors, last quarter against first", f"<= +{FILES_GROWTH}", f"{files:.0f} > {files_last:.0f}",
            met=files_last <= files + FILES_GROWTH),
        bar("pace kept", f">= {KEPT_PACE:.0%}", f"{story.begun / wanted:.0%}", met=story.begun >= KEPT_PACE * wanted),
    ]  # fmt: skip


def _median_mb(samples: list[Sample]) -> float:
    return statistics.median(sample.memory_mb for sample in samples)


def describe(story: Story) -> str:
    """What is no bar."""
    rows = [["ms", *(f"p{100 * share:g}" for share in SHARES), "most"]]
    for name, seconds in (("answered", story.answered_s), ("through", story.through_s)):
        if seconds:
            values = [*(percentile(seconds, share) for share in SHARES), max(seconds)]
            rows.append([name, *(f"{1000 * value:.1f}" for value in values)])
    quarters = [f"{_median_mb(story.samples.quarter(number)):.0f}" for number in range(4)]
    return "\n".join(
        [
            f"{story.begun} messages in {story.seconds:.0f} s, {story.rate:.0f}/s of {story.maximum:.0f}/s",
            f"the relay used {story.cores:.2f} cores; memory by quarters: {', '.join(quarters)} MB,"
            f" at its peak {story.samples.peak_mb:.0f} MB",
            table(rows),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
