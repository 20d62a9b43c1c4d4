"""Addresses that failed a moment ago: they are tried last, so that a dead one does not cost every session its timeout.

Pure: `now` in seconds. Nothing is ever left out for it: where all are shunned, all are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

SHUN_S = 60.0
ADDRESSES_MAX = 10_000
"""Remembered; past it the memory starts again: strangers' addresses cannot grow it."""


class Shunned:
    """See the module."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note_failure(self, address: str, now: float) -> None:
        """No session came about there."""
        if len(self._until) >= ADDRESSES_MAX:
            self._until.clear()
        self._until[address] = now + SHUN_S

    def note_session(self, address: str) -> None:
        """It answers."""
        self._until.pop(address, None)

    def order(self, addresses: Sequence[str], now: float) -> list[str]:
        """The same addresses, shunned ones last, else in their order."""
        return sorted(addresses, key=lambda address: self._until.get(address, 0.0) > now)
