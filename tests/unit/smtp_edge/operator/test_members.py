"""What the gossip service says of its members, on real sockets: states are dated when they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority, Identity
from gossip.linkstate import NodeId, NodeInfo
from gossip.service import GossipService
from gossip.settings import GossipSettings
from gossip.status import Event, EventKind, MemberState, MemberStatus

WAIT_S = 20.0


class Member:
    """A gossip service with the events that it told."""

    def __init__(self, folder: Path, authority: Authority, name: str, join: tuple[str, ...] = ()) -> None:
        certificate, key = authority.issue(name, at=datetime.now(UTC))
        self.name = name
        self.identity = Identity(authority.certificate_pem, certificate, key)
        self.events: list[Event] = []
        self.names: dict[NodeId, str] = {}
        """As they were known at a node's first event."""
        self.service = GossipService(
            self.identity,
            GossipSettings(listen="127.0.0.1:0", join=join),
            state_path=folder / name,
            on_change=lambda _: None,
            on_session=lambda *_: None,
            on_event=self.note,
        )

    def note(self, event: Event) -> None:
        self.events.append(event)
        self.names.setdefault(event.node_id, self.service.name_of(event.node_id))

    async def start(self) -> str:
        address = await self.service.start()
        self.service.publish_info(NodeInfo(self.name, address, "127.0.0.1:1"))
        return address

    def sees(self, other: Member) -> MemberStatus:
        """It must know it."""
        (status,) = [status for status in self.service.members() if status.node_id == other.identity.node_id]
        return status

    def told(self, kind: EventKind, other: Member) -> bool:
        return any(event.kind is kind and event.node_id == other.identity.node_id for event in self.events)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  (the other side is another service, with no event of ours)
            await asyncio.sleep(0.01)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Member, Member]]:
    authority = Authority.create("test", at=datetime.now(UTC))
    first = Member(tmp_path, authority, "first")
    second = Member(tmp_path, authority, "second", join=(await first.start(),))
    await second.start()
    await until(lambda: first.told(EventKind.NODE_JOINED, second))
    yield first, second
    for member in (first, second):
        await member.service.stop()


async def test_a_state_counts_from_its_change_and_not_from_the_first_question(pair: tuple[Member, Member]) -> None:
    first, second = pair
    await until(lambda: first.told(EventKind.SESSION_UP, second))
    noticed = time.monotonic()
    await until(lambda: first.told(EventKind.IN_SYNC, first))
    asked = time.monotonic()
    assert first.sees(second).state is MemberState.UP
    assert first.sees(second).since_s >= asked - noticed > 0
    assert first.sees(first).since_s >= first.sees(second).since_s


async def test_a_member_that_went_is_unreachable_and_those_who_lost_it_say_so(pair: tuple[Member, Member]) -> None:
    first, second = pair
    own = first.identity.node_id
    await until(lambda: second.identity.node_id in first.sees(first).sources and first.sees(second).in_sync)
    assert first.sees(second).sources == (own,)
    assert first.sees(second).round_trip_ms is not None
    await second.service.stop()
    await until(lambda: first.sees(second).state is MemberState.UNREACHABLE)
    assert first.sees(second).sources == (own,)
    assert first.sees(second).reason
    assert first.sees(second).in_sync is None


async def test_a_session_has_a_name_as_soon_as_it_is_told(pair: tuple[Member, Member]) -> None:
    first, second = pair
    await until(lambda: first.told(EventKind.SESSION_UP, second))
    assert first.names[second.identity.node_id] == "second"


def test_who_is_no_member_has_no_name(pair: tuple[Member, Member]) -> None:
    assert pair[0].service.name_of(NodeId("f" * 32)) == ""
