"""Time limits for work that nearly always ends in time: as `asyncio.timeout`, but late by up to `TICK_S`.

    async with within(300):
        ...                     TimeoutError

A timer of the event loop for each message costs more than all that is done with one. Here one timer looks at all
limits of a loop, ten times a second while there are any.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

TICK_S = 0.1


class _Watch:
    """Of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.limits: set[within] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, limit: within) -> None:
        self.limits.add(limit)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        for limit in [limit for limit in self.limits if limit.until <= now]:
            self.limits.discard(limit)
            limit.expire()
        self._timer = self.loop.call_later(TICK_S, self._look) if self.limits else None


class within:
    """See the module. For one use."""

    __slots__ = ("_cancelling", "_expired", "_task", "_watch", "delay_s", "until")
    _current: _Watch | None = None

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self._expired = delay_s, False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop, watch = task.get_loop(), within._current
        if watch is None or watch.loop is not loop:
            watch = within._current = _Watch(loop)
        self._task, self._cancelling, self._watch = task, task.cancelling(), watch
        self.until = loop.time() + self.delay_s
        watch.add(self)

    def expire(self) -> None:
        """Time is up."""
        self._expired = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.limits.discard(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
