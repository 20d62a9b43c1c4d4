"""Reports to sinks after the fact (`outcome`, `link`): in order, off every path that mail takes.

What cannot be told in time is counted and dropped: a sink that is slow delays nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from smtp_edge.sinks.api import DeliveryOutcome, LinkOutcome, Sink
from smtp_edge.sinks.chain import SinkChain, SinkFailure
from smtp_edge.sinks.rules import Facts

log = structlog.get_logger()

WAITING_MAX = 10_000
Report = DeliveryOutcome | LinkOutcome


class Reports:
    """`chain` gives the bindings of the moment."""

    def __init__(self, chain: Callable[[], SinkChain]) -> None:
        self._chain = chain
        self._waiting: deque[Report] = deque()
        self._news = asyncio.Event()
        self.dropped = 0
        """Reports that nobody was told."""

    def wanted(self, event: str) -> bool:
        """Some binding listens: it is worth making a report."""
        return bool(self._chain().of(event))

    def tell(self, report: Report) -> None:
        """Sooner or later. The oldest go first."""
        if len(self._waiting) >= WAITING_MAX:
            self.dropped += 1
            if self.dropped % WAITING_MAX == 1:
                log.warning("sink.reports_dropped", count=self.dropped)
            return
        self._waiting.append(report)
        self._news.set()

    async def run(self) -> None:
        """Tell; ends by cancellation."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._tell(self._waiting.popleft())

    async def _tell(self, report: Report) -> None:
        chain = self._chain()
        chain.hold()
        try:
            if isinstance(report, LinkOutcome):
                await _ask(chain, "link", Facts(), lambda sink: sink.link(report))
            else:
                facts = Facts(None, report.sender, report.recipients)
                await _ask(chain, "outcome", facts, lambda sink: sink.outcome(report))
        finally:
            chain.release()


async def _ask(chain: SinkChain, event: str, facts: Facts, question: Callable[[Sink], Awaitable[None]]) -> None:
    for binding, _ in chain.matching(event, lambda: facts):
        if binding.trust.permits(asyncio.get_running_loop().time()):
            try:
                await binding.ask(event, question(binding.sink), ())
            except SinkFailure:
                continue  # it is in the log
