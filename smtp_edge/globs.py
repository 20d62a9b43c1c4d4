"""Patterns of access rules: `*` stands for anything, case does not matter. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

NULL_SENDER = "<>"
EVERYTHING = "*"


def compile_globs(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Patterns in lower case as one expression; None if there is none."""
    return re.compile("|".join(_translate(pattern) for pattern in patterns), re.DOTALL) if patterns else None


def as_addresses(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns of addresses: one without `@` is a domain's, `<>` the null reverse-path."""
    whole = (NULL_SENDER, EVERYTHING)
    return tuple(pattern if "@" in pattern or pattern in whole else f"*@{pattern}" for pattern in patterns)


def covers(pattern: str, other: str) -> bool:
    """Whatever fits `other` fits `pattern`. A star is a character that only a star can stand for."""
    return re.fullmatch(_translate(pattern), other, re.DOTALL) is not None


def _translate(pattern: str) -> str:
    """Stars side by side are one: nothing may take a pattern's own length in steps for each character."""
    return ".*".join(re.escape(piece) for piece in re.split(r"\*+", pattern))
