"""Medians with spread, and tables, for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float | None], unit: str = "", digits: int = 2) -> str:
    """`median (smallest-largest) unit`; what never happened within its limit is counted apart."""
    known = [value for value in values if value is not None]
    never = len(values) - len(known)
    missing = f"{never} of {len(values)} never" if never else ""
    if not known:
        return missing or "-"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(known), statistics.median(known), max(known)))
    text = f"{middle} ({low}-{high})" if len(known) > 1 else middle
    return " ".join(word for word in (text, unit, missing) if word)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
