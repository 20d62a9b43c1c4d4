"""What every MessageStore backend must do: a backend's test class inherits `StoreContract` and gives `make_store`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import (
    Claim,
    ClassBacklog,
    Decision,
    DeliveryState,
    EarlyMark,
    Group,
    Regrouping,
    Settlement,
)
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.shape import ShapeBy
from smtp_edge.queue.store import MessageStore, StoreError, StoreFull
from smtp_edge.queue.survey import FIRST
from tests.unit.smtp_edge.queue.builders import (
    AT,
    IDS,
    build_deferral,
    build_end,
    build_new,
    build_note,
    hold,
    release,
)

ENTRIES_MAX = 8
HISTORY = timedelta(hours=1)
MakeStore = Callable[[], Awaitable[MessageStore]]


class StoreContract:
    """The clock of a store under test stands at AT, it keeps history for HISTORY and at most ENTRIES_MAX entries."""

    @pytest.fixture
    async def store(self, make_store: MakeStore) -> AsyncIterator[MessageStore]:
        store = await make_store()
        yield store
        await store.close()

    # -- put and claim -------------------------------------------------------------------------------------------------

    async def test_fresh_mail_is_born_claimed(self, store: MessageStore) -> None:
        new = build_new("one", "two")
        stored = await store.put(new)
        assert [claim.entry for claim in stored.claims] == [new.entry, new.entry]
        assert [claim.delivery for claim in stored.claims] == [
            delivery.but(state=DeliveryState.CLAIMED) for delivery in new.deliveries
        ]
        assert await store.claim(10, AT) == []

    async def test_unclaimed_mail_comes_back_whole(self, store: MessageStore) -> None:
        new = build_new(addresses=("ä@exämple.org", "b@example.org"))
        assert (await store.put(new, claim=False)).claims == ()
        (claim,) = await store.claim(10, AT)
        assert claim.entry == new.entry
        assert claim.delivery == new.deliveries[0].but(state=DeliveryState.CLAIMED)

    async def test_no_delivery_is_claimed_twice(self, store: MessageStore) -> None:
        for _ in range(6):
            await store.put(build_new(), claim=False)
        batches = await asyncio.gather(*(store.claim(2, AT) for _ in range(5)))
        ids = [claim.delivery.queue_id for batch in batches for claim in batch]
        assert len(ids) == len(set(ids)) == 6

    async def test_claims_come_oldest_first(self, store: MessageStore) -> None:
        late = build_new(received_at=AT - timedelta(minutes=1))
        early = build_new(received_at=AT - timedelta(minutes=2))
        await store.put(late, claim=False)
        await store.put(early, claim=False)
        claims = await store.claim(10, AT)
        assert [claim.entry.queue_id for claim in claims] == [early.entry.queue_id, late.entry.queue_id]

    async def test_deferred_mail_waits_until_it_is_due(self, store: MessageStore) -> None:
        stored = await store.put(build_new())
        await store.settle([build_deferral(stored.claims[0], 10)])
        assert await store.next_due_at() == AT + timedelta(minutes=10)
        assert await store.claim(10, AT + timedelta(minutes=9)) == []
        (claim,) = await store.claim(10, AT + timedelta(minutes=10))
        assert claim.token > stored.claims[0].token
        assert (claim.delivery.attempts, claim.delivery.last_hop, claim.delivery.last_reply) == (
            1,
            "host:a",
            "451 later",
        )
        assert await store.next_due_at() is None

    async def test_repeated_transfer_stores_nothing(self, store: MessageStore) -> None:
        first = build_new()
        await store.put(first, accept_token="n/q/0")
        again = await store.put(build_new(), accept_token="n/q/0")
        assert again.duplicate_of == first.entry.queue_id
        assert again.claims == ()
        assert store.backlog_counts() == {"default": 1}

    async def test_simultaneous_repeats_store_one(self, store: MessageStore) -> None:
        answers = await asyncio.gather(*(store.put(build_new(), accept_token="n/q/0") for _ in range(5)))
        assert sorted(bool(answer.duplicate_of) for answer in answers) == [False, True, True, True, True]

    async def test_repeat_is_known_after_delivery_until_history_is_over(self, store: MessageStore) -> None:
        first = build_new()
        stored = await store.put(first, accept_token="n/q/0")
        await store.settle([build_end(stored.claims[0])])
        await store.prune(AT + HISTORY / 2)
        assert (await store.put(build_new(), accept_token="n/q/0")).duplicate_of == first.entry.queue_id
        await store.prune(AT + HISTORY * 2)
        assert (await store.put(build_new(), accept_token="n/q/0")).duplicate_of == ""

    async def test_same_token_with_other_recipients_is_another_transfer(self, store: MessageStore) -> None:
        await store.put(build_new(addresses=("a@example.org",)), accept_token="n/q/0")
        other = await store.put(build_new(addresses=("b@example.org",)), accept_token="n/q/0")
        assert other.duplicate_of == ""
        assert store.backlog_counts() == {"default": 2}

    async def test_queue_id_that_is_taken_is_refused_and_spoils_no_neighbour(self, store: MessageStore) -> None:
        taken = build_new()
        await store.put(taken)
        answers = await asyncio.gather(store.put(taken), store.put(build_new()), return_exceptions=True)
        assert isinstance(answers[0], StoreError)
        assert not isinstance(answers[1], BaseException)
        assert store.backlog_counts() == {"default": 2}

    async def test_full_queue_refuses_until_something_is_delivered(self, store: MessageStore) -> None:
        stored = [await store.put(build_new()) for _ in range(ENTRIES_MAX)]
        with pytest.raises(StoreFull):
            await store.put(build_new())
        await store.settle([build_end(stored[0].claims[0])])
        await store.put(build_new())

    async def test_cancelled_put_leaves_mail_that_can_be_claimed(self, store: MessageStore) -> None:
        task = asyncio.create_task(store.put(build_new()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.put(build_new("marker"), claim=False)  # commits after whatever the cancelled one did
        await hold(store, "marker")
        claims = await store.claim(10, AT)
        stuck = await store.list(states=[DeliveryState.CLAIMED])
        assert len(stuck) == len(claims)

    # -- settlements ---------------------------------------------------------------------------------------------------

    async def test_late_finisher_changes_nothing(self, store: MessageStore) -> None:
        stored = await store.put(build_new())
        await store.settle([build_deferral(stored.claims[0], 0)])
        (second,) = await store.claim(10, AT)
        await store.settle([build_end(stored.claims[0], notes=(build_note("relayed"),))])
        (listed,) = await store.list()
        assert listed.delivery.state is DeliveryState.CLAIMED
        await store.settle([build_end(second)])
        assert await store.list() == []

    async def test_second_settlement_of_a_claim_changes_nothing(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        await store.settle([build_end(claim), build_deferral(claim, 1)])
        await store.settle([build_end(claim, DeliveryState.FAILED)])
        summary = await store.summary()
        assert (summary.relayed, summary.failed, summary.classes) == (1, 0, ())

    async def test_recipients_that_remain_are_kept(self, store: MessageStore) -> None:
        claim = (await store.put(build_new(addresses=("a@example.org", "b@example.org")))).claims[0]
        left = (Recipient("b@example.org"),)
        await store.settle([build_deferral(claim, 1, recipients=left, in_doubt_hop="peer:x", delay_notified=True)])
        (again,) = await store.claim(10, AT + timedelta(minutes=1))
        assert again.delivery.recipients == left
        assert again.delivery.in_doubt_hop == "peer:x"
        assert again.delivery.delay_notified
        assert again.entry.envelope.recipients == claim.entry.envelope.recipients

    async def test_waiting_without_an_attempt_counts_none(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        await store.settle([build_deferral(claim, 0, attempted=False)])
        (again,) = await store.claim(10, AT)
        assert again.delivery.attempts == 0

    async def test_claim_given_back_is_untouched(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        await store.settle([build_end(claim, DeliveryState.QUEUED)])
        (again,) = await store.claim(10, AT)
        assert again.delivery == claim.delivery

    # -- before the time -----------------------------------------------------------------------------------------------

    async def _defer(self, store: MessageStore, minutes: float, class_id: str = "default") -> str:
        claim = (await store.put(build_new(class_id))).claims[0]
        await store.settle([build_deferral(claim, minutes, delay_notified=True)])
        return claim.delivery.queue_id

    async def test_what_is_not_due_is_claimed_early_in_the_order_of_the_times(self, store: MessageStore) -> None:
        late, soon, due = [await self._defer(store, minutes) for minutes in (9, 3, -1)]
        await self._defer(store, 3, "other")
        first = await store.claim_early("default", 1, AT)
        assert [claim.delivery.queue_id for claim in first] == [soon]
        assert first[0].delivery.next_attempt_at == AT + timedelta(minutes=3)
        assert first[0].delivery.attempts == 1
        second = await store.claim_early("default", 5, AT, after=EarlyMark.of(first[0]))
        assert [claim.delivery.queue_id for claim in second] == [late]
        assert await store.claim_early("default", 5, AT, after=EarlyMark.of(second[0])) == []
        assert [claim.delivery.queue_id for claim in await store.claim(5, AT)] == [due]

    async def test_a_mark_parts_deliveries_of_one_time(self, store: MessageStore) -> None:
        ids = sorted([await self._defer(store, 3) for _ in range(3)])
        found, mark = [], None
        while claims := await store.claim_early("default", 1, AT, after=mark):
            found.append(claims[0].delivery.queue_id)
            mark = EarlyMark.of(claims[0])
        assert found == ids

    async def test_an_early_claim_given_back_is_deferred_as_it_was(self, store: MessageStore) -> None:
        await self._defer(store, 3)
        before = await store.list()
        (claim,) = await store.claim_early("default", 5, AT)
        assert (await store.summary()).classes == (ClassBacklog("default", 1, 0, AT),)
        await store.settle([build_end(claim, DeliveryState.QUEUED, notes=(build_note("attempt"),))])
        assert await store.list() == before
        assert (await store.summary()).classes == (ClassBacklog("default", 1, 1, AT),)
        assert await store.next_due_at() == AT + timedelta(minutes=3)
        assert await store.claim(5, AT) == []

    async def test_an_early_claim_of_a_dead_incarnation_is_deferred_as_it_was(self, make_store: MakeStore) -> None:
        store = await make_store()
        await self._defer(store, 3)
        before, summary = await store.list(), await store.summary()
        await store.claim_early("default", 5, AT)
        await store.close()
        store = await make_store()
        assert (await store.list(), await store.summary()) == (before, summary)
        await store.close()

    async def test_mail_that_arrives_deferred_waits_for_its_time(self, store: MessageStore) -> None:
        new = build_new()
        due_at = AT + timedelta(minutes=5)
        state = {"state": DeliveryState.DEFERRED, "next_attempt_at": due_at, "attempts": 4, "delay_notified": True}
        deferred = replace(new, deliveries=(new.deliveries[0].but(**state),))
        assert (await store.put(deferred, claim=False)).claims == ()
        assert await store.claim(5, AT) == []
        assert await store.next_due_at() == due_at
        (claim,) = await store.claim(5, due_at)
        assert (claim.delivery.attempts, claim.delivery.delay_notified) == (4, True)

    async def test_a_transfer_that_is_here_is_found_without_storing_anything(self, store: MessageStore) -> None:
        new = build_new()
        assert await store.find_accepted(new, "n/q/0") == ""
        await store.put(new, accept_token="n/q/0")
        again = build_new()
        assert await store.find_accepted(again, "n/q/0") == new.entry.queue_id
        assert await store.find_accepted(build_new(addresses=("other@example.org",)), "n/q/0") == ""
        assert len(await store.list()) == 1

    async def test_report_is_committed_with_the_failure(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        report = build_new("mx:sender.example")
        await store.settle([build_end(claim, DeliveryState.FAILED, reports=(report,))])
        (found,) = await store.claim(10, AT)
        assert found.entry == report.entry

    async def test_report_that_cannot_be_stored_keeps_the_claim(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        bad = build_new(queue_id=claim.entry.queue_id)
        with pytest.raises(StoreError):
            await store.settle([build_end(claim, DeliveryState.FAILED, reports=(bad,))])
        assert (await store.list())[0].delivery.state is DeliveryState.CLAIMED
        await store.settle([build_end(claim)])
        assert await store.list() == []

    async def test_stale_settlement_stores_no_report(self, store: MessageStore) -> None:
        claim = (await store.put(build_new())).claims[0]
        stale = replace(build_end(claim, DeliveryState.FAILED, reports=(build_new(),)), token=claim.token + 1)
        await store.settle([stale])
        assert await store.claim(10, AT) == []

    async def test_settling_what_is_unknown_is_harmless(self, store: MessageStore) -> None:
        await store.settle([Settlement("unknown", 0, 1, DeliveryState.RELAYED)])

    async def test_mail_data_lasts_until_the_last_delivery(self, store: MessageStore) -> None:
        new = build_new("one", "two")
        one, two = (await store.put(new)).claims
        await store.settle([build_end(one)])
        assert await store.data(new.entry.queue_id) == new.entry.data
        await store.settle([build_end(two)])
        with pytest.raises(StoreError):
            await store.data(new.entry.queue_id)

    # -- operators -----------------------------------------------------------------------------------------------------

    async def test_wake_makes_deferred_mail_of_a_class_due(self, store: MessageStore) -> None:
        for class_id in ("one", "two"):
            claim = (await store.put(build_new(class_id))).claims[0]
            await store.settle([build_deferral(claim, 60)])
        assert await store.wake(["one", "unknown"], AT) == 1
        (claim,) = await store.claim(10, AT)
        assert claim.delivery.class_id == "one"

    async def test_held_mail_rests_until_it_is_released(self, store: MessageStore) -> None:
        new = build_new()
        await store.put(new, claim=False)
        assert await hold(store, new.entry.queue_id) == 1
        assert await hold(store, new.entry.queue_id) == 0
        assert await store.claim(10, AT + timedelta(days=9)) == []
        assert await store.wake(["default"], AT) == 0
        assert (await store.summary()).held == 1
        assert store.backlog_counts() == {}
        assert await release(store, new.entry.queue_id) == 1
        assert len(await store.claim(10, AT)) == 1

    async def test_what_is_in_flight_is_not_changed_from_outside(self, store: MessageStore) -> None:
        new = build_new()
        await store.put(new)
        assert await hold(store, new.entry.queue_id) == 0

    async def test_a_decision_counts_only_for_what_is_still_as_it_was_found(self, store: MessageStore) -> None:
        await store.put(build_new(), claim=False)
        (found,) = (await store.find(Selection(), 10)).found
        ended = Decision(DeliveryState.QUEUED, build_end(found, DeliveryState.FAILED))
        (claim,) = await store.claim(10, AT)
        assert await store.change([ended]) == [False]
        (found,) = (await store.find(Selection(), 10)).found
        assert found.delivery.state is DeliveryState.CLAIMED
        assert await store.change([Decision(DeliveryState.CLAIMED, build_end(found, DeliveryState.FAILED))]) == [True]
        await store.settle([build_end(claim)])
        summary = await store.summary()
        assert (summary.failed, summary.relayed) == (1, 0)

    async def test_a_delivery_that_moves_to_another_class_is_counted_there(self, store: MessageStore) -> None:
        await store.put(build_new("one"), claim=False)
        (found,) = (await store.find(Selection(), 10)).found
        moved = replace(build_deferral(found, 0), class_id="two")
        assert await store.change([Decision(DeliveryState.QUEUED, moved)]) == [True]
        assert store.backlog_counts() == {"two": 1}
        (claim,) = await store.claim(10, AT)
        assert claim.delivery.class_id == "two"

    async def test_what_an_operator_means_is_found(self, store: MessageStore) -> None:
        old = build_new("one", addresses=("a@x.example",), received_at=AT - timedelta(hours=2))
        other = build_new("two", addresses=("b@Y.example", "c@z.example"))
        report = build_new("one", addresses=("d@y.example.org",))
        null = replace(report, entry=replace(report.entry, envelope=replace(report.entry.envelope, sender="")))
        for new in (old, other, null):
            await store.put(new, claim=False)
        names = {old.entry.queue_id: "old", other.entry.queue_id: "other", null.entry.queue_id: "null"}

        async def find(**criteria: Any) -> list[str]:
            page = await store.find(Selection(**criteria), 10)
            return [names[claim.delivery.queue_id] for claim in page.found]

        assert await find() == ["old", "other", "null"]
        assert await find(queue_ids=(old.entry.queue_id, other.entry.origin)) == ["old", "other"]
        assert await find(class_ids=("two",)) == ["other"]
        assert await find(domains=("y.example",)) == ["other"]
        assert await find(domains=("x.example", "z.example")) == ["old", "other"]
        assert await find(senders=("A@sender.EXAMPLE",)) == ["old", "other"]
        assert await find(senders=("@sender.example",), class_ids=("one",)) == ["old"]
        assert await find(senders=("<>",)) == ["null"]
        assert await find(senders=("<>", "a@sender.example")) == ["old", "other", "null"]
        assert await find(before_at=AT - timedelta(hours=1)) == ["old"]
        assert await find(after_at=AT - timedelta(hours=1)) == ["other", "null"]
        assert await find(states=(DeliveryState.HELD,)) == []

    async def test_pages_go_on_where_the_last_one_ended(self, store: MessageStore) -> None:
        for _ in range(5):
            await store.put(build_new("one", "two"), claim=False)
        found, after = [], FIRST
        while True:
            page = await store.find(Selection(class_ids=("two",)), 2, after=after)
            found += [claim.delivery.queue_id for claim in page.found]
            if page.after is None:
                break
            after = page.after
        assert len(found) == len(set(found)) == 5

    async def test_mail_data_is_found_only_if_asked_for(self, store: MessageStore) -> None:
        new = build_new()
        await store.put(new, claim=False)
        (bare,) = (await store.find(Selection(), 10)).found
        (whole,) = (await store.find(Selection(), 10, with_data=True)).found
        assert (bare.entry.data.inline, bare.entry.data.size_bytes) == (b"", new.entry.data.size_bytes)
        assert whole.entry == new.entry

    async def test_chosen_deliveries_are_claimed_as_far_as_they_wait(self, store: MessageStore) -> None:
        waits, flies, rests = [build_new() for _ in range(3)]
        await store.put(waits, claim=False)
        await store.put(flies)
        await store.put(rests, claim=False)
        await hold(store, rests.entry.queue_id)
        claims = await store.claim_these([(new.entry.queue_id, 0) for new in (waits, flies, rests)], AT)
        assert [claim.delivery.queue_id for claim in claims] == [waits.entry.queue_id]

    async def test_the_shape_counts_domains_by_age(self, store: MessageStore) -> None:
        for minutes, addresses in [
            (1, ("a@x.example",)),
            (7, ("b@x.example", "c@Y.example")),
            (3000, ("d@y.example",)),
        ]:
            await store.put(build_new(addresses=addresses, received_at=AT - timedelta(minutes=minutes)), claim=False)
        shape = await store.shape(ShapeBy.RECIPIENT, (), AT)
        assert [(row.name, row.counts) for row in shape.rows(10)] == [
            ("x.example", (1, 1, 0, 0, 0, 0, 0, 0, 0, 0)),
            ("y.example", (0, 1, 0, 0, 0, 0, 0, 0, 0, 1)),
        ]
        assert shape.all.counts == (1, 1, 0, 0, 0, 0, 0, 0, 0, 1)
        by_sender = await store.shape(ShapeBy.SENDER, (), AT)
        assert [(row.name, row.total) for row in by_sender.rows(10)] == [("sender.example", 3)]
        by_class = await store.shape(ShapeBy.CLASS, (DeliveryState.QUEUED,), AT)
        assert [(row.name, row.total) for row in by_class.rows(10)] == [("default", 3)]

    async def test_list_filters_and_leaves_out_finished_mail(self, store: MessageStore) -> None:
        done, waits, other = build_new("one"), build_new("one"), build_new("two")
        claim = (await store.put(done)).claims[0]
        await store.settle([build_end(claim)])
        await store.put(waits, claim=False)
        await store.put(other)
        assert await self._listed(store) == [waits.entry.queue_id, other.entry.queue_id]
        assert await self._listed(store, class_id="two") == [other.entry.queue_id]
        assert await self._listed(store, states=[DeliveryState.RELAYED]) == [done.entry.queue_id]
        assert await self._listed(store, states=[DeliveryState.QUEUED], class_id="two") == []
        assert await self._listed(store, limit=1) == [waits.entry.queue_id]

    async def _listed(self, store: MessageStore, **filters: object) -> list[str]:
        return [claim.delivery.queue_id for claim in await store.list(**filters)]  # type: ignore[arg-type]

    # -- history and totals --------------------------------------------------------------------------------------------

    async def test_history_is_found_by_queue_id_and_by_origin(self, store: MessageStore) -> None:
        new = build_new()
        claim = (await store.put(new)).claims[0]
        await store.settle([build_end(claim, notes=(build_note("attempt", 1), build_note("relayed", 2)))])
        found = await store.history(new.entry.queue_id)
        assert found is not None
        assert found == await store.history(new.entry.origin)
        assert [note.event for note in found.notes] == ["received", "attempt", "relayed"]
        assert found.notes[1] == build_note("attempt", 1)
        assert found.deliveries[0].state is DeliveryState.RELAYED
        assert found.entry.envelope == new.entry.envelope
        assert await store.history("unknown") is None

    async def test_prune_forgets_what_is_finished_and_old_only(self, store: MessageStore) -> None:
        done, waits = build_new(), build_new()
        claim = (await store.put(done)).claims[0]
        await store.settle([build_end(claim, notes=(build_note("relayed"),))])
        await store.put(waits, claim=False)
        assert await store.prune(AT + HISTORY / 2) == 0
        assert await store.prune(AT + HISTORY * 2) == 3  # entry, delivery, note
        assert await store.history(done.entry.queue_id) is None
        assert await store.history(waits.entry.queue_id) is not None
        assert (await store.summary()).relayed == 0

    async def test_summary_counts_by_class(self, store: MessageStore) -> None:
        old = AT - timedelta(minutes=5)
        first = await store.put(build_new("one", received_at=old))
        await store.put(build_new("one", "two"), claim=False)
        await store.settle([build_deferral(first.claims[0], 60)])
        summary = await store.summary()
        assert summary.classes == (ClassBacklog("one", 2, 1, old), ClassBacklog("two", 1, 0, AT))
        assert summary.bytes_stored == 2 * build_new().entry.data.size_bytes
        assert store.backlog_counts() == {"one": 2, "two": 1}
        assert store.moving() == {"one": 1, "two": 1}, "what is deferred waits for its time"
        (again,) = [claim for claim in await store.claim(9, AT + timedelta(days=1)) if claim.delivery.attempts]
        await store.settle([build_end(again)])
        assert (await store.summary()).classes[0] == ClassBacklog("one", 1, 0, AT)
        assert store.moving() == {"one": 1, "two": 1}

    # -- life ----------------------------------------------------------------------------------------------------------

    async def test_everything_survives_a_restart_and_claims_are_voided(self, make_store: MakeStore) -> None:
        store = await make_store()
        new = build_new()
        old = (await store.put(new, accept_token="n/q/0")).claims[0]
        deferred = (await store.put(build_new("two"))).claims[0]
        await store.settle([build_deferral(deferred, 60)])
        before = await store.summary()
        await store.close()
        store = await make_store()
        assert await store.summary() == before
        await store.settle([build_end(old)])  # by a late finisher of the earlier incarnation
        (claim,) = await store.claim(10, AT)
        assert claim.entry == new.entry
        assert claim.token > old.token
        await store.settle([build_end(old)])
        assert (await store.put(build_new(), accept_token="n/q/0")).duplicate_of == new.entry.queue_id
        await store.settle([build_end(claim)])
        await store.close()

    async def test_what_was_offered_to_a_peer_when_the_process_died_is_in_doubt(self, make_store: MakeStore) -> None:
        store = await make_store()
        claims = [(await store.put(build_new(name))).claims[0] for name in ("one", "two", "three", "four")]
        offered, refused, taken, never = [claim.delivery.queue_id for claim in claims]
        for queue_id in (offered, refused, taken):
            store.note_offer(queue_id, 0, "peer:b")
        store.withdraw_offer(refused, 0)
        await store.settle([build_end(claims[2])])
        await store.close()
        store = await make_store()
        doubts = {claim.delivery.queue_id: claim.delivery.in_doubt_hop for claim in await store.claim(10, AT)}
        assert doubts == {offered: "peer:b", refused: "", never: ""}
        await store.close()

    async def test_closed_store_refuses(self, store: MessageStore) -> None:
        await store.close()
        with pytest.raises(StoreError):
            await store.put(build_new(queue_id=IDS.new(AT)))
        with pytest.raises(StoreError):
            await store.next_due_at()

    # -- other classes -------------------------------------------------------------------------------------------------

    async def test_pages_show_all_that_waits_unclaimed_once(self, store: MessageStore) -> None:
        for _ in range(4):
            await store.put(build_new("one", "two"), claim=False)
        await store.claim(1, AT)
        after, seen = ("", -1), []
        while page := await store.page(after, 3):
            after = (page[-1].delivery.queue_id, page[-1].delivery.copy)
            seen += [(claim.delivery.queue_id, claim.delivery.copy, claim.token) for claim in page]
        assert len(seen) == len(set(seen)) == 7
        assert seen == sorted(seen)
        assert {token for *_, token in seen} == {0}

    async def test_a_delivery_that_waits_gets_another_class_and_is_due_at_once(self, store: MessageStore) -> None:
        (claim,) = (await store.put(build_new("old"))).claims
        await store.settle([build_deferral(claim, 30)])
        (waiting,) = await store.page(("", -1), 10)
        assert await store.regroup([build_regrouping(waiting, "new")]) == 1
        assert store.backlog_counts() == {"new": 1}
        (again,) = await store.claim(10, AT)
        assert again.delivery.class_id == "new"
        assert again.delivery.transfer_token == claim.delivery.transfer_token
        assert (again.delivery.attempts, again.delivery.last_reply) == (1, "451 later")
        history = await store.history(claim.delivery.queue_id)
        assert history is not None
        assert [(note.event, note.detail) for note in history.notes][-1] == ("rerouted", "old -> new")

    async def test_a_delivery_is_parted_with_tokens_and_rows_of_their_own(self, store: MessageStore) -> None:
        await store.put(build_new("old", "kept", addresses=("a@a.test", "b@b.test", "c@a.test")), claim=False)
        waiting = (await store.page(("", -1), 10))[0]
        assert await store.regroup([build_regrouping(waiting, "x", "y")]) == 1
        found = [claim.delivery for claim in await store.list()]
        parts = [(item.copy, item.class_id, [r.address for r in item.recipients]) for item in found]
        assert parts == [
            (0, "x", ["a@a.test", "c@a.test"]),
            (1, "kept", ["a@a.test", "b@b.test", "c@a.test"]),
            (2, "y", ["b@b.test"]),
        ]
        assert [item.transfer_token for item in found if item.class_id != "kept"] == ["t/x", "t/y"]
        assert store.backlog_counts() == {"x": 1, "kept": 1, "y": 1}
        assert store.entries_count == 1

    async def test_the_message_is_done_when_all_its_parts_are(self, store: MessageStore) -> None:
        await store.put(build_new("old", addresses=("a@a.test", "b@b.test")), claim=False)
        await store.regroup([build_regrouping((await store.page(("", -1), 10))[0], "x", "y")])
        first, second = await store.claim(10, AT)
        await store.settle([build_end(first)])
        assert store.entries_count == 1
        await store.settle([build_end(second)])
        assert (store.entries_count, store.backlog_counts()) == (0, {})

    async def test_a_claim_ends_with_its_regrouping_and_only_the_current_one(self, store: MessageStore) -> None:
        (claim,) = (await store.put(build_new("old"))).claims
        assert await store.regroup([replace(build_regrouping(claim, "new"), token=claim.token + 1)]) == 0
        assert await store.regroup([replace(build_regrouping(claim, "new"), token=0)]) == 0
        assert await store.regroup([build_regrouping(claim, "new")]) == 1
        await store.settle([build_end(claim)])  # too late
        assert store.backlog_counts() == {"new": 1}

    async def test_what_has_fewer_recipients_by_now_is_left_alone(self, store: MessageStore) -> None:
        (claim,) = (await store.put(build_new("old", addresses=("a@a.test", "b@b.test")))).claims
        plan = replace(build_regrouping(claim, "x", "y"), token=0)
        await store.settle([build_deferral(claim, 1, recipients=(Recipient("b@b.test"),))])
        assert await store.regroup([plan]) == 0
        (left,) = await store.page(("", -1), 10)
        assert [recipient.address for recipient in left.delivery.recipients] == ["b@b.test"]

    async def test_what_is_held_stays_held(self, store: MessageStore) -> None:
        new = build_new("old")
        await store.put(new, claim=False)
        await hold(store, new.entry.queue_id)
        await store.regroup([build_regrouping((await store.page(("", -1), 10))[0], "new")])
        assert await store.claim(10, AT) == []
        (held,) = await store.list(states=[DeliveryState.HELD])
        assert held.delivery.class_id == "new"

    async def test_a_doubt_stays_with_what_is_whole_and_ends_with_what_is_parted(self, store: MessageStore) -> None:
        for classes in (("new",), ("x", "y")):
            (claim,) = (await store.put(build_new("old", addresses=("a@a.test", "b@b.test")))).claims
            await store.settle([build_deferral(claim, 1, in_doubt_hop="peer:p")])
            (waiting,) = [found for found in await store.page(("", -1), 10) if found.delivery.class_id == "old"]
            await store.regroup([build_regrouping(waiting, *classes)])
        doubts = {claim.delivery.class_id: claim.delivery.in_doubt_hop for claim in await store.list()}
        assert doubts == {"new": "peer:p", "x": "", "y": ""}


def build_regrouping(claim: Claim, *class_ids: str) -> Regrouping:
    """Every recipient to one class, or each domain to one of several."""
    recipients = claim.delivery.recipients
    if len(class_ids) == 1:
        groups = (Group(class_ids[0], recipients, claim.delivery.transfer_token),)
    else:
        domains = sorted({recipient.domain for recipient in recipients})
        groups = tuple(
            Group(name, tuple(item for item in recipients if item.domain == domain), f"t/{name}")
            for name, domain in zip(class_ids, domains, strict=True)
        )
    return Regrouping(claim.delivery.queue_id, claim.delivery.copy, claim.token, recipients, groups)
