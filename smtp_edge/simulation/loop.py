"""An asyncio event loop in virtual time: when nothing is to be done, the clock jumps to what is due next.

    run(main(), start_s=0.0)      # asyncio.run, without waiting for anything

What runs on it may use tasks, timers, events, queues and executors (a job of an executor is done at once, in the loop's
own thread, so that every run is the same). It may not wait for sockets, pipes or threads: if nothing is due, and the
main task is not done, nothing will ever happen, and that is an error.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class NothingDueError(RuntimeError):
    """Every task waits for something that no timer will bring."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module. Its time begins at `start_s`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        super().__init__(_Jumper(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def jump(self, duration_s: float) -> None:
        """Let time pass."""
        self._now_s += duration_s

    def run_in_executor(  # type: ignore[override]  # asyncio's is generic over a tuple of types; a job is a job
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do a job at once."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class _Jumper(selectors.DefaultSelector):
    """Jumps instead of waiting. It never asks the system: the loop's own wake-up pipe is for threads, and none come."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingDueError("nothing is due, and the main task is not done: it would wait for ever")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


def run(main: Coroutine[Any, Any, T], *, start_s: float = 0.0) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start_s)) as runner:
        return runner.run(main)
