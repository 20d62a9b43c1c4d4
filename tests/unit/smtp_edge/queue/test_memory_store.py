"""The simulator's queue keeps the contract, and survives a kill."""

from __future__ import annotations

import pytest

from smtp_edge.queue.store import MessageStore
from smtp_edge.simulation.store import MemoryStore
from tests.unit.smtp_edge.queue.builders import AT, build_end, build_new
from tests.unit.smtp_edge.queue.store_contract import ENTRIES_MAX, HISTORY, MakeStore, StoreContract


def build_store() -> MemoryStore:
    return MemoryStore(name="a", history_s=HISTORY.total_seconds(), entries_max=ENTRIES_MAX, clock=lambda: AT)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = build_store()

        async def make() -> MessageStore:
            await store.open()
            return store

        return make


async def test_a_kill_voids_claims_and_loses_nothing() -> None:
    store = build_store()
    await store.open()
    old = (await store.put(build_new())).claims[0]
    store.crash()
    assert [claim.entry.queue_id for claim in store.unfinished()] == [old.entry.queue_id]
    await store.open()
    await store.settle([build_end(old)])
    (again,) = await store.claim(10, AT)
    assert again.token > old.token
    await store.settle([build_end(again)])
    assert store.unfinished() == []
