"""What an operator does to the queue: find what is meant, end it as ordered, say what was done (one log line).

    find (a page) ──> in memory? take it out of its line ──> decide (pure) ──> change, all or each as it was found
          ^                                                                          │ somebody was faster
          └───────────────────────── once more, twice at most ───────────────────────┘

What is under way at this moment cannot be changed; it is counted, and the operator may ask again. An order that means a
great many goes page by page: the caller asks again with the place where the last page ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from smtp_edge.dispatch.dispatcher import Dispatcher
from smtp_edge.dispatch.lines import Waiting
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.queue.entry import Claim, DeliveryState, Key, utc_now
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.store import MessageStore
from smtp_edge.queue.survey import FIRST, Place
from smtp_edge.rulings import APPLIES_TO, Action, Ruling, decide

log = structlog.get_logger()

PAGE = 500
"""Deliveries changed in one call."""
ROUNDS_MAX = 3
ROUND_PAUSE_S = 0.05
"""Before it is looked for again: what was claimed on disk is not in memory yet, for a moment."""
DAMAGED_ACTIONS = {Action.RETRY, Action.RELEASE, Action.REMOVE}
"""What can be done to deliveries that cannot be read; they must be named by their ids."""


class QueueOrderError(Exception):
    """It cannot be ordered so; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a page."""

    changed: tuple[Key, ...] = ()
    under_way: int = 0
    """In a transaction: they cannot be changed now."""
    unfit: int = 0
    """Meant, but not in a state that the order is for."""
    damaged: int = 0
    """Changed although they cannot be read."""
    after: Place | None = None
    """Where the next page begins."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked."""

    action: Action
    selection: Selection
    by: str
    reason: str = ""
    class_id: str = ""
    """Of a move to another class."""
    hop: str = ""
    """Of a move to a peer: its hop id."""
    all: bool = False
    """Also if nothing narrows the selection down."""
    dry_run: bool = False


class Postmaster:
    """See the module. One event loop."""

    def __init__(
        self,
        store: MessageStore,
        dispatcher: Dispatcher,
        reporting: Reporting,
        on_late: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store, self._dispatcher, self.reporting, self._clock = store, dispatcher, reporting, clock
        self._on_late = on_late

    async def carry_out(self, order: Order, after: Place = FIRST) -> Done:
        """One page of an order. QueueOrderError, StoreError."""
        if order.selection.everything and not order.all:
            kinds = "ids, a class, a domain, a sender, a state, an age, or all"
            raise QueueOrderError(f"say which deliveries are meant: {kinds}")
        page = await self._store.find(order.selection, PAGE, after=after, with_data=order.action is Action.BOUNCE)
        done = replace(await self._change(order, page.found), after=page.after)
        if order.action in DAMAGED_ACTIONS and after == FIRST and not order.dry_run:
            done = replace(done, damaged=await self._change_damaged(order))
        if not order.dry_run:
            self._tell(order, done)
        return done

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def _change(self, order: Order, found: Sequence[Claim]) -> Done:
        todo = [claim for claim in found if self._fits(order, claim)]
        unfit = len(found) - len(todo)
        if order.dry_run:
            return Done(tuple(_key(claim) for claim in todo), unfit=unfit)
        if order.hop:
            return replace(await self._hand_over(order, todo), unfit=unfit)
        changed: list[Key] = []
        for number in range(ROUNDS_MAX):
            if number:
                await asyncio.sleep(ROUND_PAUSE_S)
            changed += await self._change_once(order, todo)
            todo = await self._find_again(order, todo, changed)
            if not todo:
                break
        return Done(tuple(changed), under_way=len(todo), unfit=unfit)

    async def _change_once(self, order: Order, claims: Sequence[Claim]) -> list[Key]:
        """Those that could be changed."""
        ruling = Ruling(order.action, order.by, self._clock(), order.reason, order.class_id)
        taken, reporting = self._take_out(claims), self.reporting
        try:
            decided = [
                (claim, decision)
                for claim in claims
                if (claim.delivery.state is not DeliveryState.CLAIMED or _key(claim) in taken)
                and (decision := decide(ruling, claim, reporting)) is not None
            ]
            outcomes = await self._store.change([decision for _, decision in decided]) if decided else []
        except BaseException:
            self._dispatcher.take_back(taken.values())
            raise
        changed = [_key(claim) for (claim, _), applied in zip(decided, outcomes, strict=True) if applied]
        if order.action in (Action.BOUNCE, Action.REMOVE):
            self._dispatcher.forget_doubts([taken[key] for key in changed if key in taken])
        self._dispatcher.take_back([waiting for key, waiting in taken.items() if key not in set(changed)])
        if changed:
            self._dispatcher.note_unclaimed()
        if changed and reporting is not self.reporting:  # routes were exchanged, and reports may lie by the old ones
            self._on_late()
        return changed

    def _take_out(self, claims: Sequence[Claim]) -> dict[Key, Waiting]:
        """Of these, what waits in memory: nobody begins it now."""
        wanted = {_key(claim) for claim in claims}
        return {waiting.key: waiting for waiting in self._dispatcher.take_out(lambda claim: _key(claim) in wanted)}

    async def _find_again(self, order: Order, todo: Sequence[Claim], changed: Sequence[Key]) -> list[Claim]:
        """Those that somebody took meanwhile, as they are now; without those that are final by now."""
        left = {_key(claim) for claim in todo} - set(changed)
        if not left:
            return []
        ids = tuple(sorted({queue_id for queue_id, _ in left}))
        page = await self._store.find(Selection(queue_ids=ids), 2 * PAGE, with_data=order.action is Action.BOUNCE)
        return [claim for claim in page.found if _key(claim) in left]

    async def _change_damaged(self, order: Order) -> int:
        """Deliveries that cannot be read do not answer to a selection: only to their ids."""
        ids = order.selection.queue_ids
        if not ids:
            return 0
        note = Ruling(order.action, order.by, self._clock(), order.reason).note
        if order.action is Action.REMOVE:
            return await self._store.bury(ids, note)
        revived = await self._store.revive(ids, note)
        if revived:
            self._dispatcher.note_unclaimed()
        return revived

    # -- to a peer -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _fits(order: Order, claim: Claim) -> bool:
        """To a peer: held mail stays where it is, none goes back to where it was, and what another may have waits."""
        if not order.hop:
            return claim.delivery.state in APPLIES_TO[order.action]
        delivery, node_id = claim.delivery, order.hop.partition(":")[2]
        in_doubt = delivery.in_doubt_hop not in ("", order.hop)
        return delivery.state is not DeliveryState.HELD and node_id not in claim.entry.trace and not in_doubt

    async def _hand_over(self, order: Order, claims: Sequence[Claim]) -> Done:
        taken = [waiting.claim for waiting in self._take_out(claims).values()]
        idle = [claim for claim in claims if claim.delivery.state is not DeliveryState.CLAIMED]
        taken += await self._store.claim_these([_key(claim) for claim in idle], self._clock())
        note = Ruling(order.action, order.by, self._clock(), order.reason).note
        self._dispatcher.hand_over(taken, order.hop, replace(note, hop=order.hop))
        return Done(tuple(_key(claim) for claim in taken), under_way=len(claims) - len(taken))

    def _tell(self, order: Order, done: Done) -> None:
        log.warning(
            "queue.order",
            action=order.action.value,
            by=order.by,
            reason=order.reason,
            to=order.class_id or order.hop,
            changed=len(done.changed) + done.damaged,
            under_way=done.under_way,
            queue_ids=[queue_id for queue_id, _ in done.changed[:20]],
        )


def _key(claim: Claim) -> Key:
    return claim.delivery.queue_id, claim.delivery.copy
