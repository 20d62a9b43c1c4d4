"""From scores to tables: medians with spread, ratios within a round, and the bars of the design (5-edge.md).

A round is every contender once with the same mail, one after the other. Ratios are taken within it, to the better rate
and to the lower processor time of the yardsticks, each by itself: whoever tuned a yardstick badly helps nobody.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.lab.bars import Row, bar
from tests.bench.lab.figures import spread, table
from tests.bench.relays.ground import QUIET_CORES
from tests.bench.relays.trial import Score

HEADING = ["mail", "queue", "relay", "runs", "messages/s", "250s/s", "CPU ms", "rate ratio", "CPU ratio", "others", "s"]
RATE_BARS = {("4k", "disk"): 5.0, ("50k", "disk"): 3.0, ("512k", "disk"): 1.5, ("4k", "memory"): 3.0,
             ("4k1", "disk"): 3.0}  # fmt: skip
"""Mail and queue -> times the better Postfix, at least."""
CPU_BARS = {("4k", "disk"): 1 / 5, ("50k", "disk"): 1 / 3, ("512k", "disk"): 1.0}
"""Mail and queue -> share of the thriftier Postfix's processor time, at most."""
SYNCS_BAR = 0.1
"""For each message of 4 KiB on disk, at 20 sessions, at most."""

Key = tuple[str, str]
"""Mail and queue."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Of one relay, a value for each round in which a yardstick ran, too."""

    rate: list[float]
    cpu: list[float]


class Scores:
    """All of a comparison."""

    def __init__(self, scores: Iterable[Score]) -> None:
        self.all = list(scores)
        self._good = [score for score in self.all if score.counts and score.syncs is None]

    def kinds(self) -> list[Key]:
        """Mail and queue that were measured, in the order of their first run."""
        return list(dict.fromkeys((score.mix, score.queue) for score in self._good))

    def relays(self, key: Key) -> list[str]:
        """Who ran with that, likewise."""
        return list(dict.fromkeys(score.relay for score in self._of(key)))

    def runs(self, key: Key, relay: str) -> list[Score]:
        """That count."""
        return [score for score in self._of(key) if score.relay == relay]

    def ratios(self, key: Key, relay: str) -> Ratios:
        """To the best yardstick of the same round."""
        ratios = Ratios([], [])
        for score in self.runs(key, relay):
            yard = [other for other in self._of(key) if other.yardstick and other.round == score.round]
            if yard and score.cpu_ms:
                ratios.rate.append(score.rate / max(other.rate for other in yard))
                ratios.cpu.append(score.cpu_ms / min(other.cpu_ms for other in yard))
        return ratios

    def syncs(self, relay: str) -> list[Score]:
        """Counts of sync calls, by mail."""
        return [score for score in self.all if score.relay == relay and score.syncs is not None]

    def own(self) -> list[str]:
        """Our own relays."""
        return list(dict.fromkeys(score.relay for score in self.all if score.relay.startswith("smtpmesh")))

    def _of(self, key: Key) -> list[Score]:
        return [score for score in self._good if (score.mix, score.queue) == key]


def show_runs(scores: Scores) -> str:
    """A row for each relay with each mail."""
    rows = [HEADING]
    for key in scores.kinds():
        for relay in scores.relays(key):
            runs, ratios = scores.runs(key, relay), scores.ratios(key, relay)
            rows.append(
                [
                    *key,
                    relay,
                    str(len(runs)),
                    spread([run.rate for run in runs], digits=0),
                    spread([run.accept_rate for run in runs], digits=0),
                    spread([run.cpu_ms or run.load_ms for run in runs]),
                    spread(ratios.rate),
                    spread(ratios.cpu),
                    f"{max(run.disturbed_cores for run in runs):.2f}",
                    f"{min(run.seconds for run in runs):.1f}",
                ]
            )
    return table(rows)


def show_noise(scores: Scores) -> str:
    """How often somebody else was at work; empty if nobody was."""
    runs = [score for score in scores.all if score.counts and score.syncs is None]
    noisy = sum(score.disturbed_cores > QUIET_CORES for score in runs)
    if not noisy:
        return ""
    return (
        f"{noisy} of {len(runs)} runs had more than {QUIET_CORES} cores of others beside them; rates mean little then"
    )


def show_syncs(scores: Scores) -> str:
    """Empty if none were counted."""
    rows = [
        [score.relay, score.mix, score.queue, f"{score.syncs:.2f}"] for score in scores.all if score.syncs is not None
    ]
    return table([["relay", "mail", "queue", "syncs/message"], *rows]) if rows else ""


def find_failures(scores: Scores) -> list[str]:
    """Runs that do not count, and why."""
    return [
        f"{score.relay} {score.mix} {score.queue}: {score.error or f'{score.arrived} of {score.sent} arrived'}"
        for score in scores.all
        if not score.counts
    ]


def build_bars(scores: Scores) -> list[Row]:
    """What the design wants of us, as far as it was measured."""
    rows = []
    for relay in scores.own():
        for key, least in RATE_BARS.items():
            rows += _ratio_bar(f"{relay}: rate, {_say(key)}", scores.ratios(key, relay).rate, least, at_least=True)
        for key, most in CPU_BARS.items():
            rows += _ratio_bar(f"{relay}: CPU, {_say(key)}", scores.ratios(key, relay).cpu, most, at_least=False)
        for score in scores.syncs(relay):
            if (score.mix, score.queue) == ("4k", "disk") and score.syncs is not None:
                text, wanted = f"{relay}: syncs for each message, 4k", f"<= {SYNCS_BAR}"
                rows.append(bar(text, wanted, f"{score.syncs:.2f}", met=score.syncs <= SYNCS_BAR))
    return rows


def _ratio_bar(text: str, ratios: Sequence[float], bound: float, *, at_least: bool) -> list[Row]:
    """Decided by the median."""
    if not ratios:
        return []
    middle = statistics.median(ratios)
    met = middle >= bound if at_least else middle <= bound
    wanted = f"{'>=' if at_least else '<='} {bound:.2g} x"
    return [bar(text, wanted, spread(ratios, "x"), met=met)]


def _say(key: Key) -> str:
    mix, queue = key
    single = ", a connection for each message" if mix.endswith("1") else ""
    return f"{mix.removesuffix('1') if single else mix}{single}, queue {'on' if queue == 'disk' else 'in'} {queue}"


# -- kept for later ----------------------------------------------------------------------------------------------------


def keep(path: Path) -> Callable[[Score], None]:
    """Something that appends scores to a file, a line of JSON each."""

    def append(score: Score) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(score)) + "\n")

    return append


def read(paths: Iterable[Path]) -> list[Score]:
    """What `keep` wrote, of several parts. Rounds of different parts stay apart."""
    scores: list[Score] = []
    for part, path in enumerate(paths):
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            scores.append(Score(**{**values, "round": values["round"] + ROUNDS_APART * part}))
    return scores


ROUNDS_APART = 100_000
"""No part has so many rounds."""
