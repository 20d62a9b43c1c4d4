"""The dispatcher: from claimed deliveries to attempts, bound to a next hop as late as possible.

    submit (fresh mail) ─┐
    refill (from disk) ──┴─> waiting, per class ──route sinks──> attempt ──> settle ──> store
                                  ^       │ nothing allowed: hold                │
                                  └───────┴── a slot, link, backlog changed ─────┘

A relay that drains also gives away what is not due (`submit_early`): those deliveries wait apart from the others, only
a peer may take them, and what none takes goes back to disk with its time, its attempts and its last reply as they were.

Nothing is bound to a next hop before a slot is free there. When a class stands still for `PARK_AFTER_S` its mail waits
on disk, so that one dead destination cannot fill the memory that others need. Everything here may vanish at any
instant: the store still holds every delivery, and the next incarnation claims it again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from router.decision import Hop, HopKind
from smtp_edge.client.attempt import AttemptResult, Target
from smtp_edge.counters import Counters
from smtp_edge.dispatch.attempts import Attempter, AttemptObserver, Attempts
from smtp_edge.dispatch.choosing import answer_order, answer_refusal, choose_free, make_request
from smtp_edge.dispatch.endings import Endings
from smtp_edge.dispatch.expanding import expand, postpone
from smtp_edge.dispatch.lines import ClassQueue, Line, Lines, Standing, Waiting, explain_standing
from smtp_edge.dispatch.places import Places
from smtp_edge.dispatch.refill import Refill
from smtp_edge.dispatch.settlement import Reporting, keep_schedule, note_of_attempt, plan_settlement
from smtp_edge.dispatch.tasks import Tasks
from smtp_edge.originator import Originator
from smtp_edge.queue.entry import Claim, HistoryNote, Settlement, utc_now
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.queue.store import MessageStore, StoreError
from smtp_edge.sinks.api import Route, RouteRequest, Unreachable
from smtp_edge.sinks.chain import SinkChain, SinkFailure
from smtp_edge.sinks.reports import Reports
from smtp_edge.sinks.rules import Facts
from smtp_edge.sorting import EXPANSION, REFUSED

log = structlog.get_logger()

HEADS_SCANNED_MAX = 8
"""Waiting deliveries asked before the class counts as held: those of one class differ only in trace and back-off."""
EXPANSIONS_MAX = 8
"""Under way at once."""
PARK_AFTER_S = 5.0
SWEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class DispatcherLimits:
    """Bounds, from [queue] of the configuration."""

    active_max: int
    in_doubt_hold_s: float
    park_retry_s: float


class Dispatcher:
    """See the module. Runs on one event loop; `start` it once, `stop` it once."""

    def __init__(
        self,
        store: MessageStore,
        sinks: SinkChain,
        client: Attempter,
        observer: AttemptObserver,
        *,
        node_id: str,
        target_of: Callable[[str], Target | None],
        reporting: Reporting,
        limits: DispatcherLimits,
        counters: Counters,
        now: Callable[[], float],
        rng: random.Random,
        clock: Callable[[], datetime] = utc_now,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_late`: a report was stored by routes that were exchanged while the disk was busy with it."""
        self._store = store
        self.sinks = sinks
        """Asked from the next question on; may be exchanged at any time."""
        self._target_of = target_of
        self._in_doubt_hold_s = limits.in_doubt_hold_s
        self._now = now
        self._rng = rng
        self._clock = clock
        self.originator: Originator | None = None
        """Makes entries of expansions; set before the start, where a sink expands."""
        self._expanding = 0
        self._tasks = Tasks()
        self._lines = Lines()
        self._places = Places(limits.active_max)
        self._refill = Refill(store, self._places, self.submit, clock)
        self._attempts = Attempts(store, client, observer, node_id, now, clock)
        self._endings = Endings(
            store, self._places, self._refill, self._tasks, observer, counters, clock, reporting, limits.park_retry_s
        )
        self._endings.on_late = on_late
        self.reports = self._endings.reports = Reports(lambda: self.sinks)
        """To sinks, of what became of mail and links."""

    def configure(self, reporting: Reporting, limits: DispatcherLimits) -> None:
        """Go by these from the next end of an attempt on."""
        self._endings.reporting, self._endings.park_retry_s = reporting, limits.park_retry_s
        self._places.limit, self._in_doubt_hold_s = limits.active_max, limits.in_doubt_hold_s

    # -- from outside --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to attempt what the store holds."""
        self._tasks.repeat(self._refill.run(), self._sweep(), self.reports.run())

    async def stop(self, grace_s: float) -> None:
        """Start nothing more, let attempts in flight finish within `grace_s`, abandon the rest (they stay claimed)."""
        await self._tasks.stop(grace_s)

    def abandon(self) -> None:
        """Drop everything at once, as a kill would: for simulations of one."""
        self._tasks.abandon()

    def has_room(self, class_ids: Iterable[str]) -> bool:
        """True if fresh mail of these classes may be born claimed; else it waits on disk for the refill."""
        return not self._tasks.stopping and self._places.shares().admits(class_ids)

    def early_room(self) -> int:
        """How many deliveries that are not due may come."""
        return 0 if self._tasks.stopping else self._places.early_free()

    def submit(self, claims: Iterable[Claim]) -> None:
        """Take over claims."""
        for claim in claims:
            self._admit(Waiting(claim, self._now()))

    def submit_early(self, claims: Iterable[Claim]) -> None:
        """Take over claims of what is not due, for peers only."""
        for claim in claims:
            self._admit(Waiting(claim, self._now(), early=True))

    def hand_over(self, claims: Iterable[Claim], hop: str, note: HistoryNote) -> None:
        """Take over claims that the operator moves to a peer; what it does not take goes back to disk as it was."""
        for claim in claims:
            self._admit(Waiting(claim, self._now(), notes=[note], early=True, only=hop))

    def return_early(self) -> None:
        """No longer draining: what is not due and not under way goes back to disk."""
        for waiting in self._lines.take_early():
            self._tasks.spawn(self._endings.give_back(waiting))

    def take_out(self, unwanted: Callable[[Claim], bool]) -> list[Waiting]:
        """Give up what waits here and is unwanted: its claims are the caller's. What is under way ends by itself."""
        taken = self._lines.take(unwanted)
        for waiting in taken:
            self._places.leave(waiting)
        return taken

    def take_back(self, taken: Iterable[Waiting]) -> None:
        """What was taken out could not be put elsewhere."""
        for waiting in taken:
            self._places.enter(waiting)
            self._requeue(waiting)

    def forget_doubts(self, taken: Iterable[Waiting]) -> None:
        """What was taken out has come to its end: nobody waits any more for who may have it."""
        self._places.forget_doubts(waiting.key for waiting in taken)

    def holds(self, unwanted: Callable[[Claim], bool]) -> bool:
        """Something unwanted is here, waiting or under way."""
        return self._places.holds(unwanted)

    def note_unclaimed(self) -> None:
        """Mail was stored without being claimed."""
        self._refill.note_unclaimed()

    def ask_again(self, *, news: bool = False, back: Collection[str] = ()) -> None:
        """A slot or a link changed: ask for held deliveries again, the deepest class first.

        With `news` (a link came or went) those that rest are asked again too; from hops that are `back` nobody backs
        off any longer.
        """
        if not self._lines:
            return
        for line, queue in self._lines.deepest_first():
            if back:
                queue.forgive(back)
            if news:
                queue.end_rest(self._now(), everybody=True)
            self._kick(line, queue)

    async def wake(self, class_ids: Sequence[str]) -> None:
        """A hop that serves these classes is back: their deferred mail is due now."""
        self._endings.note_wake(class_ids, self._now())
        try:
            woken = await self._store.wake(class_ids, self._clock())
        except StoreError as error:  # it is due in its time
            log.error("queue.wake_failed", classes=list(class_ids), reason=str(error))
            return
        if woken:
            log.info("queue.woken", classes=list(class_ids), deliveries=woken)
        self._refill.note_unclaimed()

    def request_of(self, claim: Claim) -> RouteRequest:
        """What is asked of route sinks about a delivery, whether or not it is in memory."""
        now = self._now()
        found = self._places.find((claim.delivery.queue_id, claim.delivery.copy))
        return make_request(found if found is not None else Waiting(claim, now), now)

    def expanders_of(self, facts: Facts) -> tuple[str, ...]:
        """Sinks that are asked who gets such a message instead of its recipients."""
        return self.sinks.names_of("expand", facts)

    def standing(self, queue_id: str, copy: int) -> Standing | None:
        """Where a delivery in memory is, and why; None for one that is not."""
        waiting = self._places.find((queue_id, copy))
        return explain_standing(waiting, self._lines.get(waiting.line), self._now()) if waiting else None

    @property
    def active_count(self) -> int:
        """Deliveries in memory."""
        return len(self._places)

    def count_of(self, class_id: str) -> int:
        """Deliveries of a class in memory."""
        return self._places.count(class_id)

    def inflight_count(self, hop_id: str) -> int:
        """Transactions in flight on a hop."""
        return self._attempts.inflight.get(hop_id, 0)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _admit(self, waiting: Waiting) -> None:
        if waiting.claim.delivery.in_doubt_hop.startswith(HopKind.PEER.value):
            waiting.prefer_until = self._places.doubt(waiting.key, waiting.since + self._in_doubt_hold_s)
        self._places.enter(waiting)
        queue = self._lines.open(waiting.line, waiting.since)
        queue.waiting.append(waiting)
        self._kick(waiting.line, queue)

    def _requeue(self, waiting: Waiting) -> None:
        waiting.since = self._now()
        queue = self._lines.open(waiting.line, waiting.since)
        queue.waiting.appendleft(waiting)
        self._kick(waiting.line, queue)

    def _kick(self, line: Line, queue: ClassQueue) -> None:
        if queue.task is not None:
            queue.again = True
        elif queue.waiting and not self._tasks.stopping:
            queue.task = self._tasks.spawn(self._serve(line, queue))

    async def _serve(self, line: Line, queue: ClassQueue) -> None:
        """Start attempts for a class until nothing more is allowed."""
        try:
            while queue.waiting:
                queue.again = False
                if not await self._serve_heads(queue) and not queue.again:
                    break
        finally:
            queue.task = None
            self._lines.close_if_empty(line, queue)
        last, queue.last = queue.last, None
        if last is not None:
            await self._attempt(*last)

    async def _serve_heads(self, queue: ClassQueue) -> bool:
        """Ask for the first few deliveries; True if one was started, settled, or laid to rest."""
        moved = False
        for waiting in queue.heads(HEADS_SCANNED_MAX):
            if waiting.claim.delivery.class_id == EXPANSION:
                return self._begin_expansion(waiting, queue)
            answer = await self._ask(waiting)
            if waiting not in queue.waiting:  # it left while the sink thought
                continue
            if isinstance(answer, Route):
                target = choose_free(waiting, answer, self._target_of, self._attempts.inflight, self._now())
                if isinstance(target, Target):
                    self._begin(waiting, queue, target)
                    return True
                queue.held_because = target or queue.held_because
            else:
                queue.held_because = answer.reason
                if answer.for_good or answer.retry_in_s is not None:
                    queue.waiting.remove(waiting)
                    for_good = answer.status if answer.for_good else ""
                    parking = self._endings.park(waiting, answer.reason, self._now(), for_good, answer.retry_in_s)
                    self._tasks.spawn(parking)
                    return True
            if waiting.held_alone(self._now()):
                queue.lay_to_rest(waiting)
                moved = True
        return moved

    async def _ask(self, waiting: Waiting) -> Route | Unreachable:
        if waiting.claim.delivery.class_id == REFUSED:
            return answer_refusal(waiting)
        if waiting.only:
            return answer_order(waiting, self._now())
        return await self.sinks.route(make_request(waiting, self._now()))

    # -- expansions ----------------------------------------------------------------------------------------------------

    def _begin_expansion(self, waiting: Waiting, queue: ClassQueue) -> bool:
        if self._expanding >= EXPANSIONS_MAX:
            queue.held_because = "other messages are being expanded"
            return False
        queue.waiting.remove(waiting)
        queue.progress_at = self._now()
        self._expanding += 1
        self._tasks.spawn(self._expand(waiting))
        return True

    async def _expand(self, waiting: Waiting) -> None:
        claim, at, sinks, reporting = waiting.claim, self._clock(), self.sinks, self._endings.reporting
        assert self.originator is not None
        sinks.hold()
        try:
            ending = await expand(claim, sinks, self.originator, reporting.reporter, at)
        except (SinkFailure, StoreError, MailDataLost) as error:
            log.error("queue.expansion_failed", queue_id=claim.entry.queue_id, reason=str(error))
            ending = postpone(claim, str(error), reporting.policy, at, self._rng)
        finally:
            sinks.release()
            self._expanding -= 1
        if isinstance(ending, Settlement):
            await self._endings.settle(waiting, ending)
        else:
            await self._endings.regroup(waiting, ending)
        self.ask_again()

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _begin(self, waiting: Waiting, queue: ClassQueue, target: Target) -> None:
        queue.waiting.remove(waiting)
        queue.progress_at = self._now()
        self._attempts.take_slot(waiting, target)
        if queue.waiting:
            self._tasks.spawn(self._attempt(waiting, target))
        else:
            queue.last = waiting, target

    async def _attempt(self, waiting: Waiting, target: Target) -> None:
        try:
            result = await self._attempts.run(waiting, target, self.sinks)
        except MailDataLost as error:
            await self._endings.park(waiting, str(error), self._now())
        else:
            await self._end(waiting, target.hop, result)
        self.ask_again()

    async def _end(self, waiting: Waiting, hop: Hop, result: AttemptResult) -> None:
        """Settle a claim after an attempt, or ask for another hop at once."""
        at = self._clock()
        settlement = plan_settlement(
            waiting.claim,
            hop,
            result,
            tries=waiting.tries,
            notes=waiting.notes,
            reporting=self._endings.reporting,
            at=at,
            rng=self._rng,
        )
        if settlement is None:
            waiting.notes.append(note_of_attempt(hop, result, at))
            waiting.back_off_from(hop.id, self._now())
            self._requeue(waiting)
        else:
            await self._endings.settle(
                waiting, keep_schedule(waiting.claim, settlement) if waiting.early else settlement
            )

    async def _sweep(self) -> None:
        """Park what found no hop for a while; ask again for what was backing off."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._now()
            for line, queue in self._lines.all():
                queue.end_rest(now, everybody=False)
                if now - queue.progress_at >= PARK_AFTER_S:
                    for waiting in queue.take_since(now - PARK_AFTER_S):
                        self._tasks.spawn(self._endings.park(waiting, queue.held_because, now))
                self._kick(line, queue)
