"""Memory that holds what is arriving, for all sessions of a node together. Pure.

    below 90 %    everything goes its way
    above         MAIL is answered 452; mail that is arriving goes to spool files, whatever its size
    at the bound  connections are answered 421

What has arrived is the queue's; `queue.active_max` bounds how much of that is in memory. Large mail that may pass from
memory to the next hop counts here until it has, and gets a quarter at most: beyond it goes to files, and delays nobody.
"""

from __future__ import annotations

HIGH_SHARE = 0.9
LARGE_SHARE = 0.25
"""Of the budget, for what could be in a file as well."""


class Memory:
    """A budget in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.kept_bytes = 0
        """Mail data in memory."""
        self.large_bytes = 0
        """What of it could be in a file as well."""
        self.unread_bytes: dict[int, int] = {}
        """Bytes that nobody has read yet, by the id of the door; measured now and then."""

    @property
    def used_bytes(self) -> int:
        """All of it."""
        return self.kept_bytes + sum(self.unread_bytes.values())

    @property
    def high(self) -> bool:
        """Take no more mail."""
        return self.used_bytes >= self.bytes_max * HIGH_SHARE

    @property
    def full(self) -> bool:
        """Take no more connections."""
        return self.used_bytes >= self.bytes_max

    def take(self, size_bytes: int) -> bool:
        """Keep so much more, if there is room; `give_back` ends it."""
        if self.kept_bytes + size_bytes > self.bytes_max * HIGH_SHARE:
            return False
        self.kept_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """It is kept no longer."""
        self.kept_bytes -= size_bytes

    def take_large(self, size_bytes: int) -> bool:
        """As `take`, of the share for large mail; `give_back_large` ends it."""
        if self.large_bytes + size_bytes > self.bytes_max * LARGE_SHARE or not self.take(size_bytes):
            return False
        self.large_bytes += size_bytes
        return True

    def give_back_large(self, size_bytes: int) -> None:
        """It is kept no longer."""
        self.large_bytes -= size_bytes
        self.give_back(size_bytes)
