"""So much mail for each user, sender or client in so much time: a sink at `mail` and `rcpt`.

    [[sink]]
    use = "ratelimit"
    rule = "listener=submission"
    with = { by = "user", messages = 200, recipients = 1000, per_s = 3600 }

Token buckets: a full one is the allowance of the whole time at once, and it fills evenly. What is too much is answered
450 and may be tried again; nothing is counted for it. Counts are this node's own and live in memory: a cluster of n
nodes behind one name allows up to n times as much. Beyond `KEYS_MAX` keys the ones that are nearest to full again are
forgotten first.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from typing import Literal

import structlog

from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.sinks.api import Sink, TempFail, Verdict

log = structlog.get_logger()

KEYS_MAX = 100_000
KEYS = ("user", "sender", "sender domain", "client")


@dataclass(slots=True)
class Buckets:
    """Token buckets by key. Pure."""

    size: float
    """Tokens of a full one."""
    per_s: float
    """In which an empty one fills."""
    levels: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Key -> (tokens, when); a key that is not here has a full one."""

    def take(self, key: str, now: float) -> float:
        """Take a token; 0, or the seconds until there is one (then none is taken)."""
        tokens = self._at(key, now)
        if tokens < 1:
            return (1 - tokens) * self.per_s / self.size
        if key not in self.levels and len(self.levels) >= KEYS_MAX:
            self._make_room(now)
        self.levels[key] = tokens - 1, now
        return 0.0

    def _at(self, key: str, now: float) -> float:
        tokens, since = self.levels.get(key, (self.size, now))
        return min(self.size, tokens + max(0.0, now - since) * self.size / self.per_s)

    def _make_room(self, now: float) -> None:
        """A tenth goes, the fullest first: to forget a full one changes nothing."""
        for key in heapq.nlargest(KEYS_MAX // 10, self.levels, key=lambda key: self._at(key, now)):
            del self.levels[key]


class RateLimit(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(
        self,
        by: Literal["user", "sender", "sender domain", "client"] = "user",
        messages: int = 0,
        recipients: int = 0,
        per_s: float = 3600,
    ) -> None:
        """`messages`, `recipients`: 0 = any number."""
        if by not in KEYS:
            raise ValueError(f"by = {by!r} is none of: {', '.join(KEYS)}")
        if messages < 0 or recipients < 0 or not messages + recipients:
            raise ValueError("say how many: messages or recipients, or both")
        if per_s <= 0:
            raise ValueError("per_s is a number of seconds above 0")
        self._by = by
        self._messages = Buckets(messages, per_s) if messages else None
        self._recipients = Buckets(recipients, per_s) if recipients else None

    async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
        """One message more."""
        return self._take(self._messages, "messages", client, envelope)

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """One recipient more."""
        return self._take(self._recipients, "recipients", client, envelope)

    def _take(self, buckets: Buckets | None, what: str, client: Client, envelope: Envelope) -> Verdict | None:
        key = self._key(client, envelope)
        if buckets is None or not key:
            return None
        wait_s = buckets.take(key, asyncio.get_running_loop().time())
        if not wait_s:
            return None
        log.info("ratelimit.reached", what=what, by=self._by, key=key, wait_s=round(wait_s, 1))
        return TempFail(f"too many {what}, try again in {max(1, round(wait_s))} s", 450, "4.7.1")

    def _key(self, client: Client, envelope: Envelope) -> str:
        """Empty for one that has none: a rule says whether such mail is taken at all."""
        match self._by:
            case "user":
                return client.user
            case "client":
                return client.address
            case "sender":
                return envelope.sender.lower()
            case _:
                return envelope.sender.rpartition("@")[2].lower()
