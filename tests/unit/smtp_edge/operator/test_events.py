"""The feed of events: who gets what, what is lost when somebody is slow, and how it ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from gossip.linkstate import NodeId
from gossip.status import Event, EventKind
from smtp_edge.admin.events import (
    BACKLOG_MAX,
    NAMES_MAX,
    RECENT_MAX,
    SUBSCRIBERS_MAX,
    EventFeed,
    FeedError,
    Subscription,
)

A, B = NodeId("a" * 32), NodeId("b" * 32)
AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Feed(EventFeed):
    """A feed with a clock that stands and a list of names."""

    def __init__(self, names: dict[NodeId, str] | None = None) -> None:
        self.names = {A: "relay-a", B: "relay-b"} if names is None else names
        super().__init__(lambda node: self.names.get(node, ""), lambda: AT)

    def tell(self, first: int, last: int, kind: EventKind = EventKind.CHANGED) -> None:
        """Events with these numbers as texts, both included."""
        for number in range(first, last + 1):
            self.publish(Event(kind, A, str(number)))


async def read(subscription: Subscription) -> list[tuple[str, int]]:
    """Text and losses of all that comes until the feed ends."""
    return [(told.named.event.text, told.lost) async for told in subscription]


async def test_an_event_is_told_to_every_subscriber_with_names_and_date() -> None:
    feed = Feed()
    with feed.subscribe() as first, feed.subscribe() as second:
        event = Event(EventKind.SUSPECT, A, "silent for 3.1 s", B)
        feed.publish(event)
        feed.close()
        for subscription in (first, second):
            (told,) = [told async for told in subscription]
            assert told.named.event is event
            assert (told.named.at, told.named.node_name, told.named.peer_name) == (AT, "relay-a", "relay-b")
            assert told.lost == 0


async def test_a_subscriber_waits_for_what_comes_later() -> None:
    feed = Feed()
    with feed.subscribe() as subscription:
        reader = asyncio.create_task(read(subscription))
        await asyncio.sleep(0)
        feed.tell(1, 1)
        await asyncio.sleep(0)
        feed.tell(2, 2)
        feed.close()
        assert await reader == [("1", 0), ("2", 0)]


async def test_a_slow_subscriber_loses_the_oldest_and_is_told_how_many() -> None:
    feed = Feed()
    with feed.subscribe() as slow:
        feed.tell(1, BACKLOG_MAX + 3)
        feed.close()
        told = await read(slow)
    assert len(told) == BACKLOG_MAX
    assert told[0] == ("4", 3)
    assert {lost for _, lost in told[1:]} == {0}


async def test_losses_are_told_once() -> None:
    feed = Feed()
    with feed.subscribe() as slow:
        stream = aiter(slow)
        feed.tell(1, BACKLOG_MAX + 1)
        assert (await anext(stream)).lost == 1
        assert (await anext(stream)).lost == 0
        feed.tell(BACKLOG_MAX + 2, BACKLOG_MAX + 8)  # two places were free
        told = await anext(stream)
        assert (told.named.event.text, told.lost) == ("9", 5)


async def test_one_slow_subscriber_costs_the_others_nothing() -> None:
    feed = Feed()
    with feed.subscribe(), feed.subscribe() as quick:
        stream = aiter(quick)
        for number in range(BACKLOG_MAX + 10):
            feed.tell(number, number)
            told = await anext(stream)
            assert (told.named.event.text, told.lost) == (str(number), 0)


async def test_only_the_wanted_kinds_are_told_and_the_others_fill_no_backlog() -> None:
    feed = Feed()
    with feed.subscribe({EventKind.SUSPECT, EventKind.CLEARED}) as choosy:
        feed.tell(1, 1, EventKind.SUSPECT)
        feed.tell(2, BACKLOG_MAX + 2)
        feed.tell(5000, 5000, EventKind.CLEARED)
        feed.close()
        assert await read(choosy) == [("1", 0), ("5000", 0)]


async def test_recent_events_come_first_the_last_of_the_wanted_kinds() -> None:
    feed = Feed()
    feed.tell(1, 2, EventKind.SUSPECT)
    feed.tell(3, 5)
    with feed.subscribe((), 2) as everything, feed.subscribe({EventKind.SUSPECT}, 9) as choosy, feed.subscribe() as new:
        feed.tell(6, 6, EventKind.SUSPECT)
        feed.close()
        assert await read(everything) == [("4", 0), ("5", 0), ("6", 0)]
        assert await read(choosy) == [("1", 0), ("2", 0), ("6", 0)]
        assert await read(new) == [("6", 0)]


async def test_so_many_recent_events_are_kept_and_no_more() -> None:
    feed = Feed()
    feed.tell(1, RECENT_MAX + 5)
    with feed.subscribe((), 10 * RECENT_MAX) as subscription:
        feed.close()
        told = await read(subscription)
    assert [told[0], told[-1]] == [("6", 0), (str(RECENT_MAX + 5), 0)]
    assert len(told) == RECENT_MAX


async def test_places_are_bounded_and_come_back() -> None:
    feed = Feed()
    held = [feed.subscribe() for _ in range(SUBSCRIBERS_MAX)]
    with pytest.raises(FeedError, match=r"^16 monitors watch already; end one of them$"):
        feed.subscribe()
    with held[0]:
        pass
    assert feed.subscriber_count == SUBSCRIBERS_MAX - 1
    feed.subscribe()


async def test_a_closed_feed_still_tells_what_it_knows_and_ends() -> None:
    feed = Feed()
    feed.tell(1, 1)
    feed.close()
    with feed.subscribe((), 1) as late:
        assert await read(late) == [("1", 0)]


async def test_a_node_that_left_is_named_as_it_was_called() -> None:
    feed = Feed()
    feed.tell(1, 1)
    del feed.names[A]
    feed.publish(Event(EventKind.NODE_EXPIRED, A))
    feed.publish(Event(EventKind.REFUSED, NodeId("f" * 32)))
    feed.close()
    with feed.subscribe((), 2) as subscription:
        names = [told.named.node_name async for told in subscription]
    assert names == ["relay-a", ""]


async def test_names_remembered_are_bounded() -> None:
    feed = Feed({NodeId(f"{number:032x}"): str(number) for number in range(NAMES_MAX + 2)})
    for node in feed.names:
        feed.publish(Event(EventKind.NODE_JOINED, node))
    assert len(feed._names) == NAMES_MAX
