"""A relay killed at every system call of a few messages' life, and a disk that fails each call once, in turn.

    python3 deploy/run.py bench crash [--every 1] [--stories files,network,peers] [--errors EIO,ENOSPC,EDQUOT]

Each point is a process of its own and the next start after it (tests/faults): some two seconds, half an hour in all.
What the columns say: points that were struck; faults (a false 250, a loss, a start that fails, damage, what was left
behind): must be none; doubles: letters that arrived twice because nobody could know that they had arrived. The last
table says how often a letter stood in each row of smtp_edge/queue/PROMISE.md when the relay was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench.lab.figures import table
from tests.faults.nursery import Nursery
from tests.faults.pair import Ground, Role, dry_run_pair, kill_one
from tests.faults.promise import count_rows
from tests.faults.strace import Point, find_points
from tests.faults.trial import (
    FILES,
    FIRST_START,
    NETWORK,
    PASSING,
    READS,
    Story,
    Strike,
    Trial,
    dry_run,
    fail_at,
    fail_for_good,
    kill_at,
    strike_all,
)

STORIES = {story.name: story for story in (FIRST_START, FILES, NETWORK, PASSING, READS)}
PEERS = "peers"
"""Not a story: two relays, each killed while it sends to the other, or receives from it."""


def main() -> int:
    """See the module; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth point")
    parser.add_argument("--stories", default=",".join((*STORIES, PEERS)))
    parser.add_argument("--errors", default="EIO,ENOSPC,EDQUOT")
    words = parser.parse_args()
    names = words.stories.split(",")
    stories = [STORIES[name] for name in names if name != PEERS]
    with tempfile.TemporaryDirectory() as folder, Nursery(Path(folder)) as nursery:
        return asyncio.run(run(nursery, stories, words.errors.split(","), words.every, peers=PEERS in names))


async def run(nursery: Nursery, stories: list[Story], errors: list[str], every: int, *, peers: bool) -> int:
    """All stories, each with all that may happen in it."""
    rows = [["story", "at each of", "what", "struck", "faults", "doubles", "s"]]
    wrong: list[str] = []
    kills: list[Trial] = []
    for story in stories:
        with tempfile.TemporaryDirectory() as folder:
            points = list(find_points(await dry_run(nursery, Path(folder), story)))[::every]
        for name, strike in build_strikes(story, errors).items():
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                trials = await strike_all(nursery, Path(folder), story, points, strike)
            wrong += report(rows, story.name, points, name, trials, began)
            kills += trials if name == "kill" else []
    for story, victim in itertools.product((FILES, NETWORK), Role) if peers else ():
        wrong += await run_pair(nursery, story, victim, every, rows)
    counts, unknown = count_rows(kills)
    wrong += unknown
    seen = [["killed when it was", "letters"], *([row, str(count)] for row, count in counts.items())]
    print(f"\n{table(rows)}\n\n{table(seen)}")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


async def run_pair(nursery: Nursery, story: Story, victim: Role, every: int, rows: list[list[str]]) -> list[str]:
    """One of two relays is killed; what was wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        await ground.make(nursery)
        points = list(find_points(await dry_run_pair(nursery, ground.folder / "dry", ground, story, victim)))[::every]

        async def strike(nursery: Nursery, folder: Path, story: Story, point: Point) -> Trial:
            return await kill_one(nursery, folder, ground, story, victim, point)

        trials = await strike_all(nursery, ground.folder, story, points, strike)
    return report(rows, f"{victim}, {story.name}", points, "kill", trials, began)


def report(
    rows: list[list[str]], story: str, points: list[Point], name: str, trials: list[Trial], began: float
) -> list[str]:
    """Add a row, and show it at once; what was wrong."""
    rows.append([story, show_points(points), name, *show(trials), f"{time.monotonic() - began:.0f}"])
    print(table([rows[0], rows[-1]]), flush=True)
    return [f"{story}, {name}, {trial.point}: {fault}" for trial in trials for fault in trial.faults]


def build_strikes(story: Story, errors: list[str]) -> dict[str, Strike]:
    """What may happen at a point of a story."""
    strikes: dict[str, Strike] = {}
    if story is not READS:
        strikes["kill"] = kill_at
    if story is not NETWORK:
        for error in errors if story is not READS else ["EIO"]:
            strikes[f"{error} once"] = lambda *where, error=error: fail_at(*where, error)  # type: ignore[misc]
    if story is FILES:
        strikes["EIO from then on, kill"] = lambda *where: fail_for_good(*where, "EIO")
    return strikes


def show_points(points: list[Point]) -> str:
    """How many of which call."""
    counts = Counter(point.call for point in points)
    return ", ".join(f"{count} {call}" for call, count in counts.most_common(3)) + (" ..." if len(counts) > 3 else "")


def show(trials: list[Trial]) -> list[str]:
    """Columns of one row."""
    doubles = Counter(text.partition(": ")[2] for trial in trials for text in trial.doubled)
    return [
        f"{sum(trial.struck for trial in trials)} of {len(trials)}",
        str(sum(len(trial.faults) for trial in trials)),
        "; ".join(f"{count} ({why})" for why, count in doubles.most_common()) or "0",
    ]


if __name__ == "__main__":
    sys.exit(main())
