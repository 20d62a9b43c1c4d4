"""A mistake in a configuration, as a value: the key, and what is wrong with the way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to repair."""

    key: str
    text: str
    rests_on: tuple[str, ...] = ()
    """Other sections that the rule read."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text
