"""Watches how long a sink holds the event loop in one step, and takes its blocking work off it.

answer = await steps(question, on_held)     as `await question`; each step is timed
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

    def __init__(self, question: Awaitable[T], on_held: Callable[[float], None]) -> None:
        self._question, self._on_held = question, on_held

    def __await__(self) -> Generator[Any, Any, T]:
        """One step of the question between two of ours."""
        work, thrown = self._question.__await__(), None
        while True:
            began = perf_counter()
            try:
                waited_for = next(work) if thrown is None else work.throw(thrown)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                if (took_s := perf_counter() - began) > HELD_S:
                    self._on_held(took_s)
            try:
                thrown = yield waited_for
            except BaseException as error:
                thrown = error


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run something that blocks in a thread of the sinks. A time limit ends the wait for it, not the work."""
    return await asyncio.get_running_loop().run_in_executor(_threads, lambda: function(*args, **kwargs))
