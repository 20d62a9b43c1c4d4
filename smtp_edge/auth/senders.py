"""Which reverse-paths a user may use: a file of `user: address, @domain` lines. Pure but for reading it.

    sue: sue@example.org, @sue.example.org
    robot: *

A user who is not in the file may use none. The null reverse-path is everybody's: reports and receipts come from it.
"""

from __future__ import annotations

from pathlib import Path

from smtp_edge.auth.api import AuthError
from smtp_edge.auth.users import read_lines

EVERY = "*"


class SenderMap:
    """The lines of a file."""

    def __init__(self, allowed: dict[str, frozenset[str]]) -> None:
        self._allowed = allowed

    @classmethod
    def load(cls, path: Path) -> SenderMap:
        """Read a file. AuthError names the line."""
        allowed: dict[str, frozenset[str]] = {}
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, colon, rest = line.partition(":")
            words = [word.strip().lower() for word in rest.split(",")]
            if not colon or not user.strip() or not all(word == EVERY or "@" in word for word in words):
                raise AuthError(f"{path}, line {number}: expected user: address, @domain, or user: *")
            allowed[user.strip()] = frozenset(words)
        return cls(allowed)

    def permits(self, user: str, sender: str) -> bool:
        """True if the user may send as the reverse-path."""
        words = self._allowed.get(user, frozenset())
        address = sender.lower()
        return not address or EVERY in words or address in words or f"@{address.rpartition('@')[2]}" in words
