"""Queue ids: short names of stored messages.

    9 characters   microseconds since 2020, so that ids sort by the time at which they were given
    4 characters   the node, so that ids of different relays differ in a shared log
    3 characters   the process, at random: a clock that was set back does not repeat an id of an earlier process

All digits are base 62 in ASCII order, so byte order is time order. Within a process each id is later than the last,
even when the clock stands still or steps back.
"""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TIME_DIGITS = 9
NODE_DIGITS = 4
PROCESS_DIGITS = 3
EPOCH_AT = datetime(2020, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


_PAIRS = tuple(first + second for first in DIGITS for second in DIGITS)


def encode_base62(number: int, digits: int) -> str:
    """The lowest `digits` base-62 digits of a number that is not negative, most significant first."""
    text = ""
    for _ in range((digits + 1) // 2):
        number, pair = divmod(number, len(_PAIRS))
        text = _PAIRS[pair] + text
    return text[-digits:]


class QueueIds:
    """Gives queue ids for one node and process. Not for several threads at once."""

    def __init__(self, node_id: str, rng: random.Random | None = None) -> None:
        node = int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:8])
        process = (rng or random.SystemRandom()).randrange(62**PROCESS_DIGITS)
        self._suffix = encode_base62(node, NODE_DIGITS) + encode_base62(process, PROCESS_DIGITS)
        self._last_us = -1

    def new(self, at: datetime) -> str:
        """A new id for a message stored at `at` (aware); 16 characters of [0-9A-Za-z]."""
        self._last_us = max(self._last_us + 1, (at - EPOCH_AT) // _MICROSECOND)
        return encode_base62(self._last_us, TIME_DIGITS) + self._suffix
