"""Mail through one, two and three relays: throughput from end to end, as a share of one relay's.

    python3 deploy/run.py bench relay_mesh [--hops 1,2,3] [--mix 4k,50k] [--rounds 5] [--seconds 6] [--queue disk]

    smtp-source --20 sessions--> relay 1 == mutual TLS ==> relay 2 == mutual TLS ==> relay 3 --> smtp-sink

Each relay reaches only the next, in a network namespace of its own; only the last has an exit. Every relay keeps each
message durably before it answers. All of them, the generator and the sink share this machine's cores: `CPU ms` is of
all relays together for each message, and says what machines of their own would spend. A run counts if all has arrived.
Throughput is that of the middle: between a fifth and four fifths of all arrivals. `tail` is from the last 250 of the
first relay until the last message has arrived.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.bench.lab.figures import spread, table
from tests.bench.relays import ground, load
from tests.bench.relays.chain import chain
from tests.bench.relays.contender import RelayError
from tests.bench.relays.ground import Ground, Queue, wait_quiet
from tests.bench.relays.load import LoadError, Mix, Sink, parse_mix, send
from tests.bench.relays.process import PORT
from tests.bench.relays.trial import Score, measure

JOIN_S = 60.0
"""Until the first relay knows a way to the exit, and its mail has taken it."""
QUIET_S = 8.0


def main() -> int:
    """See the module; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hops", default="1,2,3")
    parser.add_argument("--mix", default="4k")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="that each run lasts, about")
    parser.add_argument("--queue", type=Queue, default=Queue.DISK)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    arguments = parser.parse_args()
    hops = [int(word) for word in arguments.hops.split(",")]
    mixes = [parse_mix(word) for word in arguments.mix.split(",")]
    ground.enter()
    if reason := load.missing() or ("" if shutil.which("nsenter") else "needs nsenter (util-linux)"):
        sys.exit(f"nothing to measure with: {reason}")
    scores: list[Score] = []
    with ground.folders(arguments.folder) as place:
        for number in range(arguments.rounds):
            turn = number % len(hops)
            for length in hops[turn:] + hops[:turn]:
                for score in play(length, mixes, place, arguments.queue, arguments.seconds):
                    scores.append(replace(score, round=number))
                    print(say(scores[-1]), flush=True)
    print(show(scores))
    return 0 if all(score.counts for score in scores) else 1


def play(length: int, mixes: list[Mix], place: Ground, queue: Queue, seconds: float) -> list[Score]:
    """A chain with each mail."""
    wait_quiet(QUIET_S)
    scores: list[Score] = []
    try:
        with chain(length, place.folder(queue), place.memory) as relays:
            wait_way(relays.sink)
            for mix in mixes:
                score = measure(mix, seconds, relays.sink, relays.spent_s)
                scores.append(replace(score, relay=str(length), queue=queue.value))
    except (RelayError, LoadError, OSError) as error:
        scores.append(Score(str(length), mixes[len(scores)].name, queue.value, error=str(error)))
    return scores


def wait_way(end: Sink) -> None:
    """Until a message has gone the whole way. RelayError if none does."""
    time.sleep(1)
    send(PORT, Mix(1024), 1)
    if not end.wait(1, JOIN_S):
        raise RelayError("no mail arrives at the other end")


def say(score: Score) -> str:
    """A line for those who wait."""
    name = f"round {score.round + 1}: {score.mix}, {score.relay} relays"
    if not score.counts:
        return f"{name}: {score.error or f'{score.arrived} of {score.sent} arrived'}"
    return (
        f"{name}: {score.middle_rate:.0f}/s, {score.cpu_ms:.2f} ms, tail {score.tail_s:.1f} s"
        f" ({score.sent} in {score.seconds:.1f} s, others {score.disturbed_cores:.2f} cores)"
    )


def show(scores: list[Score]) -> str:
    """A row for each length with each mail; shares are of the same round."""
    good = [score for score in scores if score.counts]
    single = {(score.mix, score.round): score for score in good if score.relay == "1"}
    rows = [["mail", "relays", "runs", "messages/s", "share of one relay's", "tail s", "CPU ms", "CPU of one relay's"]]
    for mix, relay in dict.fromkeys((score.mix, score.relay) for score in sorted(good, key=lambda one: one.relay)):
        runs = [score for score in good if (score.mix, score.relay) == (mix, relay)]
        pairs = [(run, single[mix, run.round]) for run in runs if (mix, run.round) in single]
        rows.append(
            [
                mix,
                relay,
                str(len(runs)),
                spread([run.middle_rate for run in runs], digits=0),
                spread([run.middle_rate / one.middle_rate for run, one in pairs]),
                spread([run.tail_s for run in runs]),
                spread([run.cpu_ms for run in runs]),
                spread([run.cpu_ms / one.cpu_ms for run, one in pairs], "x"),
            ]
        )
    return f"{table(rows)}\non {os.cpu_count()} cores for all of them, generator and sink"


if __name__ == "__main__":
    sys.exit(main())
