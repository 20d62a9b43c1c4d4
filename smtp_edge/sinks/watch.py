"""Watches how long a sink holds the event loop in one step, and takes its blocking work off it.

work = steps(question, on_held)             each step of `await question` is timed
if work.begin(): work.result                its first step was its last: no time limit was needed
else: await work                            the others
result = await offload(function, *args)     for sinks: a thread of their own, never those of the queue
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

HELD_S = 0.1
"""For so long everybody else may wait for one sink without it being named."""
THREADS_MAX = 16
_threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="sink")


class steps(Awaitable[T]):
    """Awaits `question`; `on_held` gets the seconds of each step that took longer than `HELD_S`."""

    result: T

    def __init__(self, question: Awaitable[T], on_held: Callable[[float], None]) -> None:
        self._work, self._on_held = question.__await__(), on_held
        self._waited_for: Any = None

    def begin(self) -> bool:
        """Take the first step, in the task that will await the others. True if it is over: see `result`."""
        return self._step(None)

    def __await__(self) -> Generator[Any, Any, T]:
        """Each of our steps is followed by one of the question."""
        over = False
        while not over:
            thrown: BaseException | None = None
            try:
                yield self._waited_for
            except BaseException as error:
                thrown = error
            over = self._step(thrown)
        return self.result

    def _step(self, thrown: BaseException | None) -> bool:
        began = perf_counter()
        try:
            self._waited_for = next(self._work) if thrown is None else self._work.throw(thrown)
        except StopIteration as end:
            self.result = end.value
            return True
        finally:
            if (took_s := perf_counter() - began) > HELD_S:
                self._on_held(took_s)
        return False


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run something that blocks in a thread of the sinks. A time limit ends the wait for it, not the work."""
    return await asyncio.get_running_loop().run_in_executor(_threads, lambda: function(*args, **kwargs))
