"""The MTA-STS policies that a node knows: kept in memory and in a file, refreshed before they expire.

A domain that is known costs a look into a dictionary, and even that only where a connection is opened. The first mail
to a domain waits for its policy, once, for a bounded time; everything later happens beside the mail. A policy that is
kept outlives trouble with DNS or HTTPS until its own max_age is over; the decisions are those of `mta_sts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from dns.rdtypes.ANY.TXT import TXT

from smtp_edge.client.mta_sts import (
    ABSENT_S,
    CachedPolicy,
    Policy,
    PolicyError,
    pack,
    parse_policy,
    parse_record,
    unpack,
)
from smtp_edge.client.resolver import LookupFailed, Resolver, parse_name
from smtp_edge.client.sts_fetch import Fetcher, FetchFailed

log = structlog.get_logger()

FILE = "mta-sts.json"
SAVE_S = 2.0
"""Changes are written after this, all that came together in one file."""
REFRESH_S = 3600.0
"""Between two looks for policies that grow old."""
LEARNING_MAX = 50
"""Domains asked at once; further ones wait for their turn."""


class PolicyKeeper:
    """See the module. One event loop; `start` it once, `close` it once."""

    def __init__(
        self,
        resolver: Resolver,
        fetcher: Fetcher,
        *,
        path: Path,
        clock: Callable[[], datetime],
        policies_max: int,
        wait_s: float,
    ) -> None:
        self._path, self._clock = path, clock
        self.configure(resolver, fetcher, policies_max=policies_max, wait_s=wait_s)
        self._known: OrderedDict[str, CachedPolicy] = OrderedDict()
        self._absent: OrderedDict[str, datetime] = OrderedDict()
        """Until when a domain counts as having no policy."""
        self._used: set[str] = set()
        """Domains that had mail since their policy was fetched: these are refreshed ahead."""
        self._learning: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(LEARNING_MAX)
        self._saving: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    def configure(self, resolver: Resolver, fetcher: Fetcher, *, policies_max: int, wait_s: float) -> None:
        """Ask these from now on; what is known stays known."""
        self._resolver, self._fetcher = resolver, fetcher
        self._policies_max, self._wait_s = policies_max, wait_s

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the file and begin to refresh. A damaged file is left out, with a line in the log."""
        try:
            self._load(await asyncio.to_thread(self._path.read_text, "utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.error("mta_sts.file_unreadable", path=str(self._path), reason=str(error))
        self._refreshing = asyncio.create_task(self._refresh_loop())

    async def close(self) -> None:
        """End what is under way and write the file."""
        tasks = [*self._learning.values(), *(task for task in (self._refreshing, self._saving) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._saving is not None:
            await self._save()

    def _load(self, text: str) -> None:
        table = json.loads(text)
        if not isinstance(table, dict):
            raise ValueError("it holds no table")
        for domain, packed in table.items():
            try:
                self._known[str(domain)] = unpack(packed)
            except PolicyError as error:
                log.error("mta_sts.entry_unreadable", domain=str(domain), reason=str(error))

    # -- asking --------------------------------------------------------------------------------------------------------

    async def find(self, domain: str) -> Policy | None:
        """The policy that counts for a domain now; None if it has none."""
        if not domain.isascii():
            domain = _to_ascii(domain)
        at = self._clock()
        cached = self._known.get(domain)
        if cached is not None and cached.is_fresh(at):
            self._known.move_to_end(domain)
            self._used.add(domain)
            if cached.wants_check(at):
                self._learn_soon(domain)
            return cached.policy
        if at < self._absent.get(domain, at):
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(self._learn_soon(domain))
        cached = self._known.get(domain)
        return cached.policy if cached is not None and cached.is_fresh(at) else None

    def _learn_soon(self, domain: str) -> asyncio.Task[None]:
        """Ask about a domain once, however many wait for the answer."""
        task = self._learning.get(domain)
        if task is None:
            task = self._learning[domain] = asyncio.create_task(self._learn(domain))
            task.add_done_callback(lambda done: self._learned(domain, done))
        return task

    def _learned(self, domain: str, task: asyncio.Task[None]) -> None:
        del self._learning[domain]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("mta_sts.bug", domain=domain, exc_info=error)
            self._note_nothing_new(domain)

    # -- learning ------------------------------------------------------------------------------------------------------

    async def _learn(self, domain: str) -> None:
        async with self._turns:
            record_id = await self._look_up(domain)
            at, cached = self._clock(), self._known.get(domain)
            current = cached is not None and cached.is_fresh(at) and cached.record_id == record_id
            if record_id is None or (current and cached is not None and not cached.wants_refresh(at)):
                self._note_nothing_new(domain)
                return
            try:
                policy = parse_policy(await self._fetcher.fetch(domain))
            except (FetchFailed, PolicyError) as error:
                log.warning("mta_sts.no_policy", domain=domain, reason=str(error), kept=cached is not None)
                self._note_nothing_new(domain)
                return
        self._remember(domain, CachedPolicy(policy, record_id, self._clock(), self._clock()))

    async def _look_up(self, domain: str) -> str | None:
        try:
            answer = await self._resolver.lookup(f"_mta-sts.{domain}", "TXT")
        except LookupFailed:
            return None
        texts = [record for record in answer.records if isinstance(record, TXT)]
        return parse_record([b"".join(text.strings).decode("utf-8", "replace") for text in texts])

    def _note_nothing_new(self, domain: str) -> None:
        at, cached = self._clock(), self._known.get(domain)
        if cached is not None and cached.is_fresh(at):
            self._known[domain] = replace(cached, checked_at=at)
            return
        self._known.pop(domain, None)
        self._absent[domain] = at + timedelta(seconds=ABSENT_S)
        self._absent.move_to_end(domain)
        while len(self._absent) > self._policies_max:
            self._absent.popitem(last=False)

    def _remember(self, domain: str, cached: CachedPolicy) -> None:
        log.info("mta_sts.policy", domain=domain, mode=cached.policy.mode.value, max_age_s=cached.policy.max_age_s)
        self._known[domain] = cached
        self._known.move_to_end(domain)
        self._absent.pop(domain, None)
        self._used.discard(domain)
        while len(self._known) > self._policies_max:
            self._used.discard(self._known.popitem(last=False)[0])
        self._save_soon()

    async def _refresh_loop(self) -> None:
        """Fetch anew what grows old and is in use; the rest may expire."""
        while True:
            await asyncio.sleep(REFRESH_S)
            self.refresh()

    def refresh(self) -> None:
        """One look at all policies."""
        at = self._clock()
        for domain in [name for name in self._used if name in self._known]:
            if self._known[domain].wants_refresh(at):
                self._learn_soon(domain)

    # -- the file ------------------------------------------------------------------------------------------------------

    def _save_soon(self) -> None:
        if self._saving is None:
            self._saving = asyncio.create_task(self._save_later())

    async def _save_later(self) -> None:
        await asyncio.sleep(SAVE_S)
        self._saving = None
        await self._save()

    async def _save(self) -> None:
        text = json.dumps({domain: pack(cached) for domain, cached in self._known.items()}, indent=0)
        try:
            await asyncio.to_thread(_write, self._path, text)
        except OSError as error:
            log.error("mta_sts.file_not_written", path=str(self._path), reason=str(error))


def _write(path: Path, text: str) -> None:
    """In one step: a crash leaves the old file or the new one."""
    draft = path.with_suffix(".new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _to_ascii(domain: str) -> str:
    try:
        return parse_name(domain).to_text(omit_final_dot=True).lower()
    except LookupFailed:
        return domain
