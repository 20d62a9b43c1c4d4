"""Which mail on disk is next: the oldest, but of no class more than its share, however many classes there are."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.queue import picking
from smtp_edge.queue.shares import Shares
from smtp_edge.queue.sqlite import SQLiteStore
from tests.unit.smtp_edge.queue.builders import AT, build_deferral, build_new
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    store = build_store(tmp_path / "queue")
    await store.open()
    yield store
    await store.close()


async def put(store: SQLiteStore, class_id: str, minutes: float = 0) -> None:
    await store.put(build_new(class_id, received_at=AT + timedelta(minutes=minutes)), claim=False)


async def claim(store: SQLiteStore, limit: int, shares: Shares | None = None) -> list[str]:
    return [claim.delivery.class_id for claim in await store.claim(limit, AT, shares=shares)]


@pytest.mark.parametrize(
    ("free", "taken", "room"),
    [(10, 0, 5), (10, 4, 3), (10, 9, 1), (10, 10, 0), (10, 50, 0), (1, 0, 1), (0, 0, 0), (2000, 0, 1000)],
)
def test_a_class_may_have_as_many_places_as_it_leaves_free(free: int, taken: int, room: int) -> None:
    shares = Shares(free, {"one": taken})
    assert shares.room("one") == room
    assert shares.admits(["one"]) is (taken < free)


def test_there_is_room_for_a_class_that_comes_as_long_as_any_place_is_free() -> None:
    assert Shares(1, {"one": 500, "two": 499}).admits(["three"])


async def test_a_long_queue_of_one_class_does_not_stand_before_another(store: SQLiteStore) -> None:
    for number in range(30):
        await put(store, "long", minutes=number - 60)
    await put(store, "short")
    assert await claim(store, 20) == ["long"] * 20
    assert sorted(await claim(store, 20, Shares(12, {"long": 8}))) == ["long", "long", "short"]


async def test_due_and_queued_mail_of_a_class_share_its_room(store: SQLiteStore) -> None:
    for _ in range(4):
        (found,) = (await store.put(build_new("one"))).claims
        await store.settle([build_deferral(found, -1)])
        await put(store, "one")
    assert len(await claim(store, 20, Shares(9, {}))) == 5


async def test_those_that_could_go_longest_come_first_whatever_their_class(store: SQLiteStore) -> None:
    for minutes, class_id in [(-1, "b"), (-5, "c"), (-3, "a"), (-4, "b")]:
        await put(store, class_id, minutes)
    assert await claim(store, 3) == ["c", "b", "a"]


async def test_with_more_classes_than_one_pick_asks_all_get_their_turn(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picking, "CLASSES_MAX", 3)
    classes = [f"mx:d{number}.example" for number in range(8)]
    for class_id in classes * 2:
        await put(store, class_id)
    found = [await claim(store, 3) for _ in range(6)]
    assert sorted({class_id for batch in found for class_id in batch}) == classes
    assert sum(map(len, found)) == 16
