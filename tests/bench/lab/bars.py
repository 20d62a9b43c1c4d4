"""Rows of the table of bars (4-routing.md): what was wanted beside what was measured, and what was missed says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from tests.bench.lab.figures import table

Row = list[str]
"""Bar (its number first), wanted, measured."""
MISSED = "MISSED"


def bar(text: str, wanted: str, measured: str, *, met: bool) -> Row:
    """One row."""
    return [text, wanted, measured if met else f"{measured} {MISSED}"]


def number_of(row: Row) -> int:
    """Of the design's table; what has none comes last."""
    first = row[0].split()[0]
    return int(first) if first.isdigit() else 99


def show(rows: Iterable[Row]) -> str:
    """The table, by number."""
    ordered = sorted(rows, key=number_of)
    missed = sum(MISSED in row[2] for row in ordered)
    return f"{table([['bar', 'wanted', 'measured'], *ordered])}\n{len(ordered) - missed} of {len(ordered)} met"


def exit_code(rows: Iterable[Row]) -> int:
    """Of a command: 1 if a bar was missed."""
    return int(any(MISSED in row[2] for row in rows))


def median_and_worst(values: Sequence[float], *, best: float = math.inf, digits: int = 2) -> str:
    """`median (worst)`: the worst is the smallest, or with `best=0` the largest."""
    worst = max(values) if best == 0 else min(values)
    return f"{statistics.median(values):.{digits}f} ({worst:.{digits}f})"
