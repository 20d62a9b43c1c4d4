"""The shape of a queue: how many deliveries wait, by domain and by age, the ages in doublings (as Postfix's qshape).
Pure.

    domain         total  5  10  20  40  80  160  320  640  1280  1280+     minutes
    example.org      412  3  17  40 ...

Where the numbers are tells what happens: all in the first columns is a burst, a row with a long tail is a destination
that does not answer, a long tail in every row is a relay that cannot keep up.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

BOUNDS_S = tuple(300.0 * 2**step for step in range(9))
"""Ages up to 5, 10, ... 1280 minutes; what is older is in a last column of its own."""
ROWS_MAX = 100_000
"""Names told apart; past it the rest is one row."""
OTHERS = "(others)"


class ShapeBy(enum.StrEnum):
    """What rows are about."""

    RECIPIENT = "recipient"
    """Domains of recipients: a delivery counts once for each of its domains."""
    SENDER = "sender"
    """Domains of senders; `<>` are reports."""
    CLASS = "class"


@dataclass(frozen=True, slots=True)
class ShapeRow:
    """One name's deliveries."""

    name: str
    counts: tuple[int, ...]
    """By age: one for each of `BOUNDS_S`, and the older ones."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts)


class Shape:
    """Counts, taken one by one."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._all = [0] * (len(BOUNDS_S) + 1)

    def add(self, names: Iterable[str], age_s: float) -> None:
        """One delivery; it counts once for each name."""
        column = bisect_left(BOUNDS_S, age_s)
        self._all[column] += 1
        for name in names:
            known = name in self._counts or len(self._counts) < ROWS_MAX
            counts = self._counts.setdefault(name if known else OTHERS, [0] * (len(BOUNDS_S) + 1))
            counts[column] += 1

    def rows(self, limit: int) -> tuple[ShapeRow, ...]:
        """The names with most deliveries first; ties by name."""
        found = [ShapeRow(name, tuple(counts)) for name, counts in self._counts.items()]
        return tuple(sorted(found, key=lambda row: (-row.total, row.name))[:limit])

    @property
    def all(self) -> ShapeRow:
        """Each delivery once."""
        return ShapeRow("TOTAL", tuple(self._all))

    @property
    def name_count(self) -> int:
        """Names told apart."""
        return len(self._counts)
