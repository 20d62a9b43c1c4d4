"""The feed of events behind `smtpmesh monitor`: what gossip tells goes to every subscriber, and the last ones are kept.

    publish ──> recent (the last RECENT_MAX, for those who come later)
           └──> backlog of each subscriber (BACKLOG_MAX) ──> its stream

The publisher never waits. A subscriber that does not keep up loses the oldest events of its backlog, and the next one
that it gets says how many were lost. On one event loop; nothing here is safe to share between threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from gossip.linkstate import NodeId
from gossip.status import Event, EventKind

RECENT_MAX = 256
"""Events kept for subscribers to come."""
BACKLOG_MAX = 1024
"""Events waiting for one subscriber; a minute of a storm, some 200 KiB. Holds all recent ones."""
SUBSCRIBERS_MAX = 16
"""Each costs a stream and a backlog; more are refused."""
NAMES_MAX = 4096
"""Names remembered of nodes that left, so that their last event can still name them."""


class FeedError(Exception):
    """No subscription to be had; `str()` says why."""


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An event, dated, with the names of its nodes as they were then; empty where nobody knew one."""

    at: datetime
    event: Event
    node_name: str
    peer_name: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """One event for one subscriber."""

    named: NamedEvent
    lost: int
    """Events that this subscriber would have got before this one, had it been faster."""


class Subscription:
    """One subscriber's backlog: `async for told in subscription`, inside `with`. It ends when the feed does."""

    def __init__(self, feed: EventFeed, kinds: Collection[EventKind]) -> None:
        self._feed, self._kinds = feed, frozenset(kinds)
        self._backlog: deque[NamedEvent] = deque()
        self._lost = 0
        self._news = asyncio.Event()
        self._ended = False

    def wants(self, event: Event) -> bool:
        """No kinds mean all kinds."""
        return not self._kinds or event.kind in self._kinds

    def offer(self, named: NamedEvent) -> None:
        """Take it if it is wanted; when the backlog is full the oldest makes room."""
        if not self.wants(named.event):
            return
        if len(self._backlog) >= BACKLOG_MAX:
            self._backlog.popleft()
            self._lost += 1
        self._backlog.append(named)
        self._news.set()

    def end(self) -> None:
        """Nothing more will come; what waits can still be read."""
        self._ended = True
        self._news.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.remove(self)

    async def __aiter__(self) -> AsyncIterator[Told]:
        while True:
            while self._backlog:
                lost, self._lost = self._lost, 0
                yield Told(self._backlog.popleft(), lost)
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class EventFeed:
    """See the module. `name_of`: a node's name as it is known now, empty for an unknown one; `clock`: aware UTC."""

    def __init__(self, name_of: Callable[[NodeId], str], clock: Callable[[], datetime]) -> None:
        self._name_of, self._clock = name_of, clock
        self._recent: deque[NamedEvent] = deque(maxlen=RECENT_MAX)
        self._subscriptions: list[Subscription] = []
        self._names: dict[NodeId, str] = {}
        self._closed = False

    @property
    def subscriber_count(self) -> int:
        """Who listens now."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Tell everybody; with nobody there it is only remembered."""
        peer_name = self._find_name(event.peer) if event.peer is not None else ""
        named = NamedEvent(self._clock(), event, self._find_name(event.node_id), peer_name)
        self._recent.append(named)
        for subscription in self._subscriptions:
            subscription.offer(named)

    def subscribe(self, kinds: Collection[EventKind] = (), recent_count: int = 0) -> Subscription:
        """From now on, after the last `recent_count` (of `RECENT_MAX`) of these kinds. FeedError if it is full."""
        if len(self._subscriptions) >= SUBSCRIBERS_MAX:
            raise FeedError(f"{SUBSCRIBERS_MAX} monitors watch already; end one of them")
        subscription = Subscription(self, kinds)
        wanted = [named for named in self._recent if subscription.wants(named.event)]
        for named in wanted[max(0, len(wanted) - recent_count) :]:
            subscription.offer(named)
        self._subscriptions.append(subscription)
        if self._closed:
            subscription.end()
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """It listens no more."""
        self._subscriptions.remove(subscription)

    def close(self) -> None:
        """The node stops: every subscription ends after what it still has to tell."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()

    def _find_name(self, node: NodeId) -> str:
        name = self._name_of(node)
        if not name:
            return self._names.get(node, "")
        if node not in self._names and len(self._names) >= NAMES_MAX:
            del self._names[next(iter(self._names))]
        self._names[node] = name
        return name
