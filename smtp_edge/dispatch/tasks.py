"""The work that a dispatcher has under way: started here, waited for and ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

log = structlog.get_logger()


class Tasks:
    """Tasks of one event loop. A fault that leaves one is a bug and is logged as one."""

    def __init__(self) -> None:
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start work that ends by itself."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def repeat(self, *loops: Coroutine[None, None, None]) -> None:
        """Start work that goes on until the stop."""
        self._loops += [asyncio.create_task(loop) for loop in loops]

    async def stop(self, grace_s: float) -> None:
        """End the loops, wait up to `grace_s` for the rest, cancel what is left."""
        self.stopping = True
        for loop in self._loops:
            loop.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        self.abandon()
        await asyncio.gather(*self._tasks, *self._loops, return_exceptions=True)

    def abandon(self) -> None:
        """Cancel everything, and wait for nothing."""
        self.stopping = True
        for task in [*self._tasks, *self._loops]:
            task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("dispatcher.bug", exc_info=error)
