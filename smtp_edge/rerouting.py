"""Mail that is stored follows the routes: after they changed, deliveries get the classes that they belong to now.

    round:   what waits in memory ──take_out──> regroup ──> disk
             what waits on disk   ── page by page ──> regroup
             until a round changes nothing and nothing under way is misplaced (it ends by itself, and is seen then)

It runs beside the mail: a delivery that was not seen yet holds, because its class has no exit, or goes the way that it
would have gone before. What may be at a peer already and would have to be parted (the parts have tokens that the peer
does not know) waits until its doubt has had its time.

The routes by which everything on disk is sorted are noted in a file, so that a start with others begins a round, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from smtp_edge.dispatch.dispatcher import Dispatcher
from smtp_edge.dispatch.lines import Waiting
from smtp_edge.queue.entry import Claim, Regrouping
from smtp_edge.queue.store import MessageStore, StoreError
from smtp_edge.sorting import Sorter

log = structlog.get_logger()

FILE = "routes.digest"
PAGE_COUNT = 500
ROUND_S = 1.0
"""Between two rounds: an attempt under way, or a disk that refuses, wants time."""
FIRST = ("", -1)
"""Before every delivery."""


class Rerouter:
    """See the module. `run` is its loop; `sorter` gives the routes of the moment."""

    def __init__(
        self,
        store: MessageStore,
        dispatcher: Dispatcher,
        *,
        sorter: Callable[[], Sorter],
        path: Path,
        doubt_s: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._store, self._dispatcher, self._sorter = store, dispatcher, sorter
        self._path, self._doubt_s, self._now = path, doubt_s, now
        self._wanted = asyncio.Event()
        self.busy = False
        """Not everything is where it belongs yet."""

    def begin(self) -> None:
        """The routes are other ones."""
        self.busy = True
        self._wanted.set()

    async def begin_if_changed(self) -> None:
        """At the start of a node: were they other ones when it stopped?"""
        known = await asyncio.to_thread(_read, self._path)
        if known == self._sorter().table.digest():
            return
        if self._store.entries_count:
            self.begin()
        else:
            await self._note()

    async def run(self) -> None:
        """Work while there is some; ends by cancellation."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._sort()

    async def _sort(self) -> None:
        """Rounds by the routes of now. Should they change meanwhile the next call goes by those."""
        sorter, began, moved = self._sorter(), self._now(), Counter[str]()
        while not self._wanted.is_set():
            left = await self._round(sorter, moved, parts_doubts=self._now() - began >= self._doubt_s())
            if not left:
                await self._note()
                self.busy = False
                break
            await asyncio.sleep(ROUND_S)
        if moved:
            log.info("queue.rerouted", deliveries=moved.total(), classes=dict(moved.most_common(10)))

    async def _round(self, sorter: Sorter, moved: Counter[str], *, parts_doubts: bool) -> bool:
        """True if another one is needed."""
        misplaced = False
        try:
            misplaced = await self._sort_memory(sorter, moved, parts_doubts)
            misplaced |= await self._sort_disk(sorter, moved, parts_doubts)
        except StoreError as error:
            log.error("queue.reroute_failed", reason=str(error))
            return True
        return misplaced or self._dispatcher.holds(lambda claim: sorter.plan(claim) is not None)

    async def _sort_memory(self, sorter: Sorter, moved: Counter[str], parts_doubts: bool) -> bool:
        taken = self._dispatcher.take_out(lambda claim: _plan(sorter, claim, parts_doubts) is not None)
        items = [replace(_must(sorter.plan(waiting.claim)), notes=tuple(waiting.notes)) for waiting in taken]
        await self._regroup(items, moved, taken)
        return bool(items)

    async def _sort_disk(self, sorter: Sorter, moved: Counter[str], parts_doubts: bool) -> bool:
        """True if something was changed, or left because of a doubt."""
        after, misplaced = FIRST, False
        while claims := await self._store.page(after, PAGE_COUNT):
            after = (claims[-1].delivery.queue_id, claims[-1].delivery.copy)
            misplaced |= any(sorter.plan(claim) is not None for claim in claims)
            plans = [_plan(sorter, claim, parts_doubts) for claim in claims]
            await self._regroup([plan for plan in plans if plan is not None], moved)
            await asyncio.sleep(0)
        return misplaced

    async def _regroup(self, items: Sequence[Regrouping], moved: Counter[str], taken: Sequence[Waiting] = ()) -> None:
        if not items:
            return
        try:
            await self._store.regroup(items)
        except StoreError:
            self._dispatcher.take_back(taken)
            raise
        moved.update(group.class_id for item in items for group in item.groups)
        self._dispatcher.note_unclaimed()

    async def _note(self) -> None:
        try:
            await asyncio.to_thread(self._path.write_text, self._sorter().table.digest())
        except OSError as error:  # the next start looks through the queue once more
            log.warning("queue.routes_not_noted", path=str(self._path), reason=error.strerror)


def _plan(sorter: Sorter, claim: Claim, parts_doubts: bool) -> Regrouping | None:
    """What is to be done about a delivery now."""
    plan = sorter.plan(claim)
    if plan is not None and len(plan.groups) > 1 and claim.delivery.in_doubt_hop and not parts_doubts:
        return None
    return plan


def _must(plan: Regrouping | None) -> Regrouping:
    assert plan is not None
    return plan


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
