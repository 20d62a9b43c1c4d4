"""Coarse time limits."""

from __future__ import annotations

import asyncio

import pytest

from smtp_edge.within import within


async def test_what_ends_in_time_is_left_alone() -> None:
    async with within(60):
        await asyncio.sleep(0)


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        async with within(0.01):
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_several_limits_each_end_their_own() -> None:
    async def work(limit_s: float) -> str:
        try:
            async with within(limit_s):
                await asyncio.sleep(0.5)
        except TimeoutError:
            return "late"
        return "done"

    assert await asyncio.gather(work(0.01), work(60), work(0.02)) == ["late", "done", "late"]


async def test_the_inner_limit_is_not_taken_for_the_outer_one() -> None:
    async with within(60):
        with pytest.raises(TimeoutError):
            async with within(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def work() -> None:
        async with within(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_are_a_cancellation() -> None:
    limit = within(60)

    async def work() -> None:
        async with limit:
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    limit.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with within(60):
            raise ValueError("mine")


def test_each_loop_has_its_own_watch() -> None:
    async def late() -> None:
        with pytest.raises(TimeoutError):
            async with within(0.01):
                await asyncio.sleep(60)

    asyncio.run(late())
    asyncio.run(late())
