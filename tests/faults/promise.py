"""Where a message may stand when its relay is killed: the last table of smtp_edge/queue/PROMISE.md, and what was seen.

Every kill is looked up in the table: what is on disk, what the client was told, what the next hop has. A standing that
the table does not know is a fault, and so is, over all kills, a row of the table that never occurs.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smtp_edge import queue
from tests.faults.trial import Trial
from tests.faults.world import LETTERS

PAGE = Path(queue.__file__).with_name("PROMISE.md")
NONE = "-"
_CELLS = re.compile(r"^\| (.+) \|$", re.MULTILINE)
WIDTH = 8
"""Columns of the second table."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one message, at the instant of the kill."""

    file: str
    """`-`, `arriving` or `whole`."""
    entry: str
    """State of its delivery."""
    report: str
    """State of the delivery of its report."""
    client: str
    """`250`, or `-`: not that."""
    hop: str
    """`has it` (or the report of it), or `-`."""


def read_table() -> dict[Standing, str]:
    """What the page allows; each with the name of its row."""
    rows = [line.split(" | ") for line in _CELLS.findall(PAGE.read_text("utf-8"))]
    found: dict[Standing, str] = {}
    for row in rows:
        if len(row) == WIDTH and not row[0].startswith("-") and row[1] != "file":
            cells = [cell.strip().split(", ") for cell in row[1:6]]
            found |= {Standing(*values): row[0].strip() for values in itertools.product(*cells)}
    return found


def find_standings(trial: Trial) -> dict[str, Standing]:
    """Of each letter that the struck life may have met."""
    found = {}
    for letter in LETTERS:
        name = letter.name
        found[name] = Standing(
            file=_find_file(trial) if name == "spooled" else NONE,
            entry=_find_state(trial, name),
            report=_find_state(trial, f"report {name}"),
            client="250" if name in trial.answered else NONE,
            hop="has it" if trial.taken.get(name) else NONE,
        )
    return found


def _find_file(trial: Trial) -> str:
    names = trial.disk.files
    if any("/" not in name for name in names):
        return "whole"
    return "arriving" if names else NONE


def _find_state(trial: Trial, name: str) -> str:
    return ", ".join(sorted(trial.disk.states.get(name, ()))) or NONE


def count_rows(trials: Iterable[Trial]) -> tuple[Counter[str], list[str]]:
    """How often each row of the table was seen, and what was seen that it does not have."""
    table = read_table()
    counts: Counter[str] = Counter(dict.fromkeys(table.values(), 0))
    unknown = []
    for trial in trials:
        for name, standing in find_standings(trial).items():
            if standing in table:
                counts[table[standing]] += 1
            else:
                unknown.append(f"{trial.point}: {name} stands nowhere in the table: {standing}")
    return counts, unknown
