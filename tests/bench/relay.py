"""smtpmesh beside other relays: messages per second, processor time, syncs; the generator and the sink are others'.

    python3 deploy/run.py bench relay [--mix 4k,4k1,50k,512k] [--queue disk,memory] [--rounds 5] [--seconds 6]
        [--relays smtpmesh,postfix,postfix-tuned,exim,opensmtpd,haraka,haraka-cluster] [--workers 1,2]
        [--cut-through on,off] [--folder ON-THE-DISK] [--no-syncs] [--again 2]
        [--keep FILE]
    python3 deploy/run.py bench relay --from FILE ...    the tables of what --keep kept, of several parts
    python3 deploy/run.py bench relay --quick            one short round with the tuned Postfix, under a minute

smtp-source --20 sessions--> relay --> smtp-sink, on a loopback of their own (needs root and Debian's postfix). `4k` is
a body of 4 KiB over lasting connections, `4k1` a connection for each message, `4kx5` five recipients, `4k+tls` STARTTLS
(sent by a client of ours, to all relays: smtp-source has no TLS). A round is every relay once, in an order that
rotates; a run counts if all that was sent has arrived. Ratios are to the better Postfix of the same round, and shown
with the smallest and the largest of all rounds. `CPU ms` is of all processes of the relay, for each message; `others`
is how many cores somebody else used in the worst run: look at it before you believe a figure. Syncs are counted apart,
under strace: who makes none says 250 for what a loss of power takes (OpenSMTPD, Haraka). The limits are what generator
and sink do without a relay (`CPU ms` is theirs), and how often the disk can sync.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.bench.lab import bars
from tests.bench.lab.figures import percentile, table
from tests.bench.relays import ground, load, own
from tests.bench.relays.contender import Contender
from tests.bench.relays.disk import measure_syncs
from tests.bench.relays.exim import EXIM
from tests.bench.relays.ground import Ground, Queue
from tests.bench.relays.haraka import HARAKA, HARAKA_CLUSTER
from tests.bench.relays.load import Mix, parse_mix
from tests.bench.relays.opensmtpd import OPENSMTPD
from tests.bench.relays.postfix import DEFAULT_POSTFIX, TUNED_POSTFIX
from tests.bench.relays.scores import Scores, build_bars, find_failures, keep, read, show_noise, show_runs, show_syncs
from tests.bench.relays.trial import Score, Trial, count_syncs, measure_limit, play

T = TypeVar("T")
OTHERS = {
    contender.name: contender for contender in (DEFAULT_POSTFIX, TUNED_POSTFIX, EXIM, OPENSMTPD, HARAKA, HARAKA_CLUSTER)
}
OWN = "smtpmesh"
DEFAULT = ",".join((OWN, DEFAULT_POSTFIX.name, TUNED_POSTFIX.name))
SYNC_THREADS = (1, 20)
SYNC_S = 2.0
QUICK = ["--mix", "4k", "--queue", "disk", "--rounds", "1", "--seconds", "4", "--quiet", "3"]
QUICK += ["--relays", f"{OWN},{TUNED_POSTFIX.name}"]


def main() -> int:
    """See the module; 1 if a run failed."""
    arguments = parse_arguments(sys.argv[1:])
    if arguments.old:
        return show(Scores(read(arguments.old)))
    ground.enter()
    if reason := load.missing():
        sys.exit(f"nothing to measure with: {reason}")
    contenders = list(choose(arguments))
    append = keep(arguments.keep.resolve()) if arguments.keep else lambda score: None
    scores: list[Score] = []
    with ground.folders(arguments.folder) as place:
        print(show_disk(place), flush=True)
        for score in run(arguments, contenders, place):
            append(score)
            scores.append(score)
    return show(Scores(scores))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line; --quick is short for others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", type=listed(parse_mix), default="4k,4k1,50k,512k")
    parser.add_argument("--queue", type=listed(Queue), default="disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="that each run lasts, about")
    parser.add_argument("--relays", type=listed(str), default=DEFAULT, help=" ".join((OWN, *OTHERS)))
    parser.add_argument("--workers", type=listed(int), default="0", help="0 = as it comes")
    parser.add_argument("--cut-through", type=listed(str), default="", help="on, off; nothing = as it comes")
    parser.add_argument("--quiet", type=float, default=8.0, help="seconds to wait for a quiet machine, before each run")
    parser.add_argument("--again", type=int, default=0, help="times that a run is made anew if others were at work")
    parser.add_argument("--no-syncs", action="store_true", help="do not count sync calls")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--from", type=Path, nargs="+", dest="old")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.relays if name not in (OWN, *OTHERS)]:
        parser.error(f"--relays: {unknown[0]!r} is not known; there are {', '.join((OWN, *OTHERS))}")
    return parser.parse_args([*words, *QUICK]) if arguments.quick else arguments


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Words with commas between them."""

    def split(text: str) -> list[T]:
        try:
            return [parse(word) for word in text.split(",") if word]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return split


def choose(arguments: argparse.Namespace) -> Iterator[Contender]:
    """Who takes part; who cannot is named."""
    for name in arguments.relays:
        for contender in own_variants(arguments.workers, arguments.cut_through) if name == OWN else [OTHERS[name]]:
            if reason := contender.missing():
                print(f"left out: {contender.name} {reason}", flush=True)
            else:
                yield contender


def own_variants(workers: Sequence[int], cut_through: Sequence[str]) -> Iterator[Contender]:
    """smtpmesh with each number of workers, with and without cut-through."""
    for count, cut in itertools.product(workers or [0], cut_through or [""]):
        name = OWN + (f"-{count}w" if count else "") + (f"-cut-{cut}" if cut else "")
        more = f"[queue]\ncut_through = {'true' if cut == 'on' else 'false'}" if cut else ""
        yield own.build(count, more, name)


def run(arguments: argparse.Namespace, contenders: list[Contender], place: Ground) -> Iterator[Score]:
    """The limits, then rounds, then counts of syncs."""
    mixes: list[Mix] = arguments.mix
    for mix in (mix for mix in mixes if not mix.tls):  # smtp-sink does not speak TLS
        yield measure_limit(mix, place, min(2.0, arguments.seconds))
    for number in range(arguments.rounds):
        for mix, queue in itertools.product(mixes, arguments.queue):
            turn = number % max(1, len(contenders))
            for contender in able(contenders[turn:] + contenders[:turn], mix):
                trial = Trial(contender, mix, queue, arguments.seconds, arguments.quiet)
                score = dataclasses.replace(play_quietly(trial, place, arguments.again), round=number)
                print(say(score), flush=True)
                yield score
    if not arguments.no_syncs:
        for mix in mixes:
            for contender in able(contenders, mix):
                yield count_syncs(Trial(contender, mix, Queue.DISK, arguments.seconds), place)


def play_quietly(trial: Trial, place: Ground, again: int) -> Score:
    """The first run that was left alone, or the one that was disturbed least."""
    scores: list[Score] = []
    for _ in range(1 + again):
        scores.append(play(trial, place))
        if scores[-1].disturbed_cores <= ground.QUIET_CORES:
            break
    return min(scores, key=lambda score: (not score.counts, score.disturbed_cores))


def able(contenders: list[Contender], mix: Mix) -> list[Contender]:
    """Those that can take such mail."""
    return [contender for contender in contenders if contender.tls or not mix.tls]


def say(score: Score) -> str:
    """A line for those who wait."""
    if not score.counts:
        return f"round {score.round + 1}: {score.mix} {score.queue} {score.relay}: {score.error or 'lost some'}"
    return (
        f"round {score.round + 1}: {score.mix} {score.queue} {score.relay}: {score.rate:.0f}/s, {score.cpu_ms:.2f} ms"
        f" ({score.sent} in {score.seconds:.1f} s, others {score.disturbed_cores:.2f} cores)"
    )


def show(scores: Scores) -> int:
    """All tables; 1 if a run does not count."""
    failures = find_failures(scores)
    rows = build_bars(scores)
    for text in (
        show_runs(scores),
        show_noise(scores),
        show_syncs(scores),
        bars.show(rows) if rows else "",
        "\n".join(failures),
    ):
        if text:
            print(f"\n{text}")
    return 1 if failures else 0


def show_disk(place: Ground) -> str:
    """How fast it keeps promises."""
    rows = [["disk: fdatasync of 4 KiB", "syncs/s", "p50 ms", "p99 ms"]]
    for threads in SYNC_THREADS:
        syncs = measure_syncs(place.disk, threads, SYNC_S)
        times = [f"{1000 * percentile(syncs.seconds, share):.2f}" for share in (0.5, 0.99)]
        rows.append([f"{threads} at once", f"{syncs.rate:.0f}", *times])
    return table(rows)


if __name__ == "__main__":
    sys.exit(main())
