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
import contextlib
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from router.decision import Hop, HopKind, OutcomeKind
from router.forwarding import EVERY_WAY_BACK
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.counters import Counters
from smtp_edge.envelope import Transfer
from smtp_edge.lines import ClassQueue, Key, Line, Standing, Waiting, explain_standing
from smtp_edge.queue.entry import Claim, DeliveryState, HistoryNote, Settlement, utc_now
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.queue.shares import Shares
from smtp_edge.queue.store import MessageStore, StoreError
from smtp_edge.settlement import UNTOLD, Reporting, keep_schedule, note_of_attempt, plan_parking, plan_settlement
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Unreachable
from smtp_edge.sinks.bindings import SinkChain

log = structlog.get_logger()

HEADS_SCANNED_MAX = 8
"""Waiting deliveries asked before the class counts as held: those of one class differ only in trace and back-off."""
PARK_AFTER_S = 5.0
SWEEP_S = 1.0
AVOID_FIRST_S = 1.0
AVOID_MAX_S = 60.0
REFILL_BATCH_MAX = 200
REFILL_IDLE_S = 30.0
"""The disk is looked at this often even when nothing says that mail is there (a claim that was given back)."""
SETTLE_RETRY_S = 2.0
"""When the store refuses a settlement (disk trouble) the end of the attempt is kept in memory and offered again."""


class Attempter(Protocol):
    """The outbound client."""

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        """Try once; the world's faults come back as values."""
        ...


class AttemptObserver(Protocol):
    """Who learns from attempts (the routing engine, through the node)."""

    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None:
        """A transaction starts and takes a slot of the hop."""
        ...

    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None:
        """It ended; the slot is free."""
        ...

    def arrived(self, class_id: str) -> None:
        """A client (not a peer) submitted a message of a class."""
        ...

    def backlog_changed(self, class_id: str) -> None:
        """The number of stored messages of a class changed."""
        ...


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
    ) -> None:
        self._store = store
        self._sinks = sinks
        self._client = client
        self._observer = observer
        self._node_id = node_id
        self._target_of = target_of
        self.configure(reporting, limits)
        self._counters = counters
        self._now = now
        self._rng = rng
        self._clock = clock
        self._classes: dict[Line, ClassQueue] = {}
        self._active: dict[Key, Waiting] = {}
        self._taken: dict[str, int] = {}
        """Class id -> how many of those are of it."""
        self._inflight: dict[str, int] = {}
        self._doubts: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unclaimed = True
        self._dry = False
        """Nothing could be claimed the last time."""
        self._refill = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False

    def configure(self, reporting: Reporting, limits: DispatcherLimits) -> None:
        """Go by these from the next end of an attempt on."""
        self._reporting, self._limits = reporting, limits

    # -- from outside --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to attempt what the store holds."""
        self._refill.set()
        self._loops = [asyncio.create_task(self._refill_loop()), asyncio.create_task(self._sweep_loop())]

    async def stop(self, grace_s: float) -> None:
        """Start nothing more, let attempts in flight finish within `grace_s`, abandon the rest (they stay claimed)."""
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in [*self._tasks, *self._loops]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._loops, return_exceptions=True)

    def abandon(self) -> None:
        """Drop everything at once, as a kill would: for simulations of one."""
        self._stopping = True
        for task in [*self._tasks, *self._loops]:
            task.cancel()

    def has_room(self, class_ids: Iterable[str]) -> bool:
        """True if fresh mail of these classes may be born claimed; else it waits on disk for the refill."""
        return not self._stopping and self._shares().admits(class_ids)

    def _shares(self) -> Shares:
        return Shares(self._limits.active_max - len(self._active), self._taken)

    def submit(self, claims: Iterable[Claim]) -> None:
        """Take over claims."""
        for claim in claims:
            self._admit(claim)

    def submit_early(self, claims: Iterable[Claim]) -> None:
        """Take over claims of what is not due, for peers only."""
        for claim in claims:
            self._admit(claim, early=True)

    def request_of(self, claim: Claim) -> RouteRequest:
        """What is asked of route sinks about a delivery, whether or not it is in memory."""
        delivery = claim.delivery
        waiting = self._active.get((delivery.queue_id, delivery.copy))
        return self._request(waiting if waiting is not None else Waiting(claim, self._now()))

    def count_of(self, class_id: str) -> int:
        """Deliveries of a class in memory."""
        return self._taken.get(class_id, 0)

    def hand_over(self, claims: Iterable[Claim], hop: str, note: HistoryNote) -> None:
        """Take over claims that the operator moves to a peer; what it does not take goes back to disk as it was."""
        for claim in claims:
            self._admit(claim, early=True, only=hop)
            self._active[claim.delivery.queue_id, claim.delivery.copy].notes.append(note)

    def forget_doubts(self, taken: Iterable[Waiting]) -> None:
        """What was taken out has come to its end: nobody waits any more for who may have it."""
        for waiting in taken:
            self._doubts.pop(waiting.key, None)

    def early_room(self) -> int:
        """How many more of those may come: due mail has the other half of the memory."""
        if self._stopping:
            return 0
        return self._limits.active_max // 2 - sum(waiting.early for waiting in self._active.values())

    def return_early(self) -> None:
        """No longer draining: what is not due and not under way goes back to disk."""
        for (_, early), queue in list(self._classes.items()):
            if early:
                for waiting in [*queue.waiting, *queue.resting]:
                    self._spawn(self._return(waiting))
                queue.waiting.clear()
                queue.resting.clear()

    def take_out(self, unwanted: Callable[[Claim], bool]) -> list[Waiting]:
        """Give up what waits here and is unwanted: its claims are the caller's. What is under way ends by itself."""
        taken: list[Waiting] = []
        for line, queue in list(self._classes.items()):
            found = [waiting for waiting in (*queue.waiting, *queue.resting) if unwanted(waiting.claim)]
            for waiting in found:
                (queue.waiting if waiting in queue.waiting else queue.resting).remove(waiting)
                self._leave(waiting)
            if found and queue.task is None and not (queue.waiting or queue.resting):
                del self._classes[line]
            taken += found
        return taken

    def take_back(self, taken: Iterable[Waiting]) -> None:
        """What was taken out could not be put elsewhere."""
        for waiting in taken:
            self._enter(waiting)
            self._requeue(waiting)

    def holds(self, unwanted: Callable[[Claim], bool]) -> bool:
        """Something unwanted is here, waiting or under way."""
        return any(unwanted(waiting.claim) for waiting in self._active.values())

    def note_unclaimed(self) -> None:
        """Mail was stored without being claimed."""
        self._unclaimed = True
        self._refill.set()

    def ask_again(self, *, news: bool = False) -> None:
        """A slot or a link changed: ask for held deliveries again, the deepest class first.

        With `news` (a link came or went) those that rest are asked again too.
        """
        for line in sorted(self._classes, key=lambda line: (line[1], -len(self._classes[line].waiting))):
            if news:
                self._end_rest(self._classes[line], everybody=True)
            self._kick(line)

    async def wake(self, class_ids: Sequence[str]) -> None:
        """A hop that serves these classes is back: their deferred mail is due now."""
        try:
            woken = await self._store.wake(class_ids, self._clock())
        except StoreError as error:  # it is due in its time
            log.error("queue.wake_failed", classes=list(class_ids), reason=str(error))
            return
        if woken:
            log.info("queue.woken", classes=list(class_ids), deliveries=woken)
        self.note_unclaimed()

    def standing(self, queue_id: str, copy: int) -> Standing | None:
        """Where a delivery in memory is, and why; None for one that is not."""
        waiting = self._active.get((queue_id, copy))
        return explain_standing(waiting, self._classes.get(waiting.line), self._now()) if waiting else None

    @property
    def active_count(self) -> int:
        """Deliveries in memory."""
        return len(self._active)

    def inflight_count(self, hop_id: str) -> int:
        """Transactions in flight on a hop."""
        return self._inflight.get(hop_id, 0)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _admit(self, claim: Claim, *, early: bool = False, only: str = "") -> None:
        now = self._now()
        waiting = Waiting(claim, now, early=early, only=only)
        delivery = claim.delivery
        if delivery.in_doubt_hop.startswith(HopKind.PEER.value):
            waiting.prefer_until = self._doubts.setdefault(waiting.key, now + self._limits.in_doubt_hold_s)
        self._enter(waiting)
        self._queue_of(waiting.line).waiting.append(waiting)
        self._kick(waiting.line)

    def _queue_of(self, line: Line) -> ClassQueue:
        queue = self._classes.get(line)
        if queue is None:
            queue = self._classes[line] = ClassQueue(self._now())
        return queue

    def _kick(self, line: Line) -> None:
        queue = self._classes[line]
        if queue.task is not None:
            queue.again = True
        elif queue.waiting and not self._stopping:
            queue.task = self._spawn(self._serve(line, queue))

    async def _serve(self, line: Line, queue: ClassQueue) -> None:
        """Start attempts for a class until nothing more is allowed."""
        try:
            while queue.waiting:
                queue.again = False
                if not await self._serve_heads(queue) and not queue.again:
                    break
        finally:
            queue.task = None
            if not (queue.waiting or queue.resting) and self._classes.get(line) is queue:
                del self._classes[line]

    async def _serve_heads(self, queue: ClassQueue) -> bool:
        """Ask for the first few deliveries; True if one was started, settled, or laid to rest."""
        moved = False
        for waiting in [queue.waiting[i] for i in range(min(HEADS_SCANNED_MAX, len(queue.waiting)))]:
            answer = await self._ask(waiting)
            match answer:
                case Route():
                    target = self._first_free(waiting, queue, answer)
                    if target is not None and waiting in queue.waiting:  # else it left while the sink thought
                        queue.waiting.remove(waiting)
                        queue.progress_at = self._now()
                        self._begin(waiting, target)
                        return True
                case Unreachable():
                    queue.held_because = answer.reason
                    if (answer.for_good or answer.retry_in_s is not None) and waiting in queue.waiting:
                        queue.waiting.remove(waiting)
                        for_good = answer.status if answer.for_good else ""
                        self._spawn(self._park(waiting, answer.reason, for_good, answer.retry_in_s))
                        return True
            if self._is_held_alone(waiting) and waiting in queue.waiting:
                queue.waiting.remove(waiting)
                queue.resting.append(waiting)
                moved = True
        return moved

    async def _ask(self, waiting: Waiting) -> Route | Unreachable:
        if waiting.only:
            until, _ = waiting.avoid.get(waiting.only, (0.0, 0.0))
            return Route((NextHop(waiting.only),)) if until <= self._now() else Unreachable(f"{waiting.only} failed")
        return await self._sinks.route(self._request(waiting))

    def _is_held_alone(self, waiting: Waiting) -> bool:
        now = self._now()
        return now < waiting.prefer_until or any(now < until for until, _ in waiting.avoid.values())

    def _end_rest(self, queue: ClassQueue, *, everybody: bool) -> None:
        """Those whose pause is over wait again, before the others: they are the oldest."""
        resting, queue.resting = queue.resting, []
        for waiting in resting:
            if everybody or not self._is_held_alone(waiting):
                queue.waiting.appendleft(waiting)
            else:
                queue.resting.append(waiting)

    def _request(self, waiting: Waiting) -> RouteRequest:
        """The question for the sinks.

        A delivery that was parked because every relay had seen it begins a second round: one of them may have a way out
        by now. The trace that travels goes on growing, and its length bounds the rounds.
        """
        claim, now = waiting.claim, self._now()
        prefer = claim.delivery.in_doubt_hop if now < waiting.prefer_until else ""
        again = claim.delivery.last_reply == EVERY_WAY_BACK
        return RouteRequest(
            queue_id=claim.delivery.queue_id,
            sender=claim.entry.envelope.sender,
            recipients=claim.delivery.recipients,
            class_id=claim.delivery.class_id,
            size_bytes=claim.entry.data.size_bytes,
            trace=() if again else claim.entry.trace,
            attempts=claim.delivery.attempts,
            avoid=tuple(hop for hop, (until, _) in waiting.avoid.items() if now < until),
            prefer=prefer,
            hand_over=waiting.early,
        )

    def _first_free(self, waiting: Waiting, queue: ClassQueue, route: Route) -> Target | None:
        in_doubt = waiting.claim.delivery.in_doubt_hop if self._now() < waiting.prefer_until else ""
        for hop in route.hops:
            if in_doubt and hop.hop != in_doubt:
                queue.held_because = f"{in_doubt} may have it already; waiting for it to come back"
                continue
            target = self._target_of(hop.hop)
            if target is None:
                queue.held_because = f"{hop.hop} is not known here"
            elif waiting.early and target.hop.kind is not HopKind.PEER:
                queue.held_because = f"{hop.hop} is no relay, and the next attempt is not due"
            elif self._inflight.get(hop.hop, 0) < target.connections_max:
                return target
        return None

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _begin(self, waiting: Waiting, target: Target) -> None:
        hop_id = target.hop.id
        self._inflight[hop_id] = self._inflight.get(hop_id, 0) + 1
        waiting.hop, waiting.hop_since = hop_id, self._now()
        self._observer.began(target.hop, waiting.claim.delivery.class_id, waiting.claim.entry.data.size_bytes)
        self._spawn(self._attempt(waiting, target))

    async def _attempt(self, waiting: Waiting, target: Target) -> None:
        hop, delivery, began = target.hop, waiting.claim.delivery, self._now()
        result, lost = AttemptResult(OutcomeKind.CANCELLED, reason="abandoned"), ""
        try:
            result = await self._client.attempt(target, self._job(waiting, target))
        except MailDataLost as error:  # nothing was sent that counts; the next claim sets it aside if it is damaged
            lost = str(error)
        finally:
            self._inflight[hop.id] -= 1
            waiting.hop = ""
            size_bytes = waiting.claim.entry.data.size_bytes
            self._observer.ended(hop, delivery.class_id, result, began, size_bytes, delivery.queue_id)
        if lost:
            log.error("queue.mail_data_lost", queue_id=delivery.queue_id, reason=lost)
            await self._park(waiting, lost)
            self.ask_again()
            return
        waiting.tries += 1
        self._log_attempt(waiting, hop, result, self._now() - began)
        at = self._clock()
        settlement = plan_settlement(
            waiting.claim,
            hop,
            result,
            tries=waiting.tries,
            notes=waiting.notes,
            reporting=self._reporting,
            at=at,
            rng=self._rng,
        )
        if settlement is None:
            waiting.notes.append(note_of_attempt(hop, result, at))
            self._avoid(waiting, hop)
            self._requeue(waiting)
        else:
            await self._settle(waiting, keep_schedule(waiting.claim, settlement) if waiting.early else settlement)
        self.ask_again()

    def _job(self, waiting: Waiting, target: Target) -> Job:
        entry, delivery = waiting.claim.entry, waiting.claim.delivery
        transfer = None
        if target.hop.kind is HopKind.PEER:
            transfer = self._transfer(waiting)
        envelope = replace(entry.envelope, recipients=delivery.recipients)
        return Job(delivery.queue_id, envelope, entry.data, entry.received_field, transfer)

    def _transfer(self, waiting: Waiting) -> Transfer:
        entry, delivery, at = waiting.claim.entry, waiting.claim.delivery, self._clock()
        age_s = max(0, int((at - entry.received_at).total_seconds()))
        due_at = delivery.next_attempt_at
        due_s = math.ceil((due_at - at).total_seconds()) if due_at is not None and due_at > at else 0
        return Transfer(
            delivery.transfer_token,
            (*entry.trace, self._node_id),
            age_s,
            delivery.attempts,
            due_s,
            delivery.delay_notified,
        )

    def _avoid(self, waiting: Waiting, hop: Hop) -> None:
        _, pause_s = waiting.avoid.get(hop.id, (0.0, AVOID_FIRST_S / 2))
        pause_s = min(AVOID_MAX_S, pause_s * 2)
        waiting.avoid[hop.id] = (self._now() + pause_s, pause_s)

    def _requeue(self, waiting: Waiting) -> None:
        waiting.since = self._now()
        self._queue_of(waiting.line).waiting.appendleft(waiting)
        self._kick(waiting.line)

    async def _settle(self, waiting: Waiting, settlement: Settlement) -> None:
        """Commit the end of a claim. A disk that refuses is asked again: the attempt must not be repeated."""
        while True:
            try:
                await self._store.settle([settlement])
                break
            except StoreError as error:
                log.error("queue.settle_failed", queue_id=settlement.queue_id, reason=str(error))
                if self._stopping:
                    return
                await asyncio.sleep(SETTLE_RETRY_S)
        self._leave(waiting)
        if not settlement.in_doubt_hop and settlement.state is not DeliveryState.QUEUED:
            self._doubts.pop(waiting.key, None)
        self._count(settlement.state)
        if settlement.state.final and any(note.event == UNTOLD for note in settlement.notes):
            log.warning("dsn.nobody_told", queue_id=settlement.queue_id, reply=settlement.reply)
        self._observer.backlog_changed(waiting.claim.delivery.class_id)
        if settlement.reports or settlement.next_attempt_at is not None:
            self.note_unclaimed()
        elif self._unclaimed and self._shares().room(waiting.claim.delivery.class_id) >= self._batch_min:
            self._refill.set()

    def _enter(self, waiting: Waiting) -> None:
        """Into memory."""
        class_id = waiting.claim.delivery.class_id
        self._active[waiting.key] = waiting
        self._taken[class_id] = self._taken.get(class_id, 0) + 1

    def _leave(self, waiting: Waiting) -> None:
        """Out of memory."""
        if self._active.pop(waiting.key, None) is not None:
            class_id = waiting.claim.delivery.class_id
            self._taken[class_id] -= 1
            if not self._taken[class_id]:
                del self._taken[class_id]

    @property
    def _batch_min(self) -> int:
        """Not for every single place that becomes free is the disk asked."""
        return max(1, min(REFILL_BATCH_MAX // 2, self._limits.active_max // 16))

    def _count(self, state: DeliveryState) -> None:
        match state:
            case DeliveryState.RELAYED:
                self._counters.relayed += 1
            case DeliveryState.DEFERRED:
                self._counters.deferred += 1
            case DeliveryState.FAILED | DeliveryState.EXPIRED:
                self._counters.failed += 1
            case _:
                pass

    async def _park(self, waiting: Waiting, reason: str, for_good: str = "", retry_s: float | None = None) -> None:
        if waiting.early:
            await self._return(waiting)
            return
        at = self._clock()
        pause = timedelta(seconds=retry_s if retry_s is not None else self._limits.park_retry_s)
        settlement = plan_parking(
            waiting.claim,
            reason or "no next hop",
            for_good=for_good,
            notes=waiting.notes,
            next_attempt_at=at + pause,
            reporting=self._reporting,
            at=at,
        )
        await self._settle(waiting, settlement)

    async def _return(self, waiting: Waiting) -> None:
        """Not due, and no peer took it: back to disk as it was."""
        key, token = waiting.key, waiting.claim.token
        await self._settle(waiting, Settlement(*key, token, DeliveryState.QUEUED, notes=tuple(waiting.notes)))

    def _log_attempt(self, waiting: Waiting, hop: Hop, result: AttemptResult, duration_s: float) -> None:
        delivery = waiting.claim.delivery
        log.info(
            "attempt",
            queue_id=delivery.queue_id,
            next_hop=hop.id,
            remote=result.remote,
            tls=result.tls,
            outcome=result.kind.value,
            reply=str(result.reply) if result.reply else result.reason,
            duration_s=round(duration_s, 4),
            recipients=len(delivery.recipients),
            refused=sum(answer is not None and not answer.positive for answer in result.replies),
            class_id=delivery.class_id,
        )

    # -- loops ---------------------------------------------------------------------------------------------------------

    async def _refill_loop(self) -> None:
        """Claim from disk whenever there is room and something may be there."""
        while True:
            try:
                await self._wait_for_refill()
                self._refill.clear()
                await self._claim_while_room()
            except StoreError as error:
                log.error("queue.claim_failed", reason=str(error))
                self._unclaimed = True
                await asyncio.sleep(SETTLE_RETRY_S)
                self._refill.set()

    async def _claim_while_room(self) -> None:
        """Until nothing more is there, or what is there is of classes that have their share."""
        self._dry = True
        while (room := self._limits.active_max - len(self._active)) > 0:
            claims = await self._store.claim(min(REFILL_BATCH_MAX, room), self._clock(), shares=self._shares())
            if not claims:
                break
            self._dry = False
            self.submit(claims)
        self._unclaimed = bool(self._store.queued_count)

    async def _wait_for_refill(self) -> None:
        due_at = await self._store.next_due_at()
        delay_s = None if due_at is None else max(0.0, (due_at - self._clock()).total_seconds())
        if delay_s is not None and self._dry:  # what is due is of a class that has its share
            delay_s = max(delay_s, SWEEP_S)
        limit_s = REFILL_IDLE_S if delay_s is None else min(delay_s, REFILL_IDLE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._refill.wait()

    async def _sweep_loop(self) -> None:
        """Park what found no hop for a while; ask again for what was backing off."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._now()
            for line, queue in list(self._classes.items()):
                self._end_rest(queue, everybody=False)
                if now - queue.progress_at >= PARK_AFTER_S:
                    self._park_all(queue, now)
                self._kick(line)

    def _park_all(self, queue: ClassQueue, now: float) -> None:
        """The class stands still: its mail waits on disk, and its place in memory is for others."""
        for waiting in [waiting for waiting in queue.waiting if now - waiting.since >= PARK_AFTER_S]:
            queue.waiting.remove(waiting)
            self._spawn(self._park(waiting, queue.held_because))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("dispatcher.bug", exc_info=error)
