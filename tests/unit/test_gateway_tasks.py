"""Cancelled tasks end."""

from __future__ import annotations

import asyncio

import pytest

from tokenrelay.gateway.http.tasks import cancel_all, insistent_timeout


def test_tasks_that_swallow_a_cancellation_end_all_the_same() -> None:
    async def deaf(times: int) -> None:
        for _ in range(times):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    async def main() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(deaf(times)) for times in range(3)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await cancel_all(tasks)
        return tasks

    assert all(task.cancelled() for task in asyncio.run(main()))


def test_no_tasks_are_no_wait() -> None:
    asyncio.run(cancel_all([]))


async def deaf_once() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)


def test_a_timeout_whose_first_cancellation_is_swallowed_ends_the_block_all_the_same() -> None:
    async def main() -> int:
        async with asyncio.timeout(30):
            with pytest.raises(TimeoutError), insistent_timeout(0.01):
                await deaf_once()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(main()) == 0


def test_a_timeout_leaves_a_result_and_anothers_cancellation_alone() -> None:
    async def main() -> None:
        with insistent_timeout(30):
            await asyncio.sleep(0)

        async def limited() -> None:
            with insistent_timeout(30):
                await asyncio.sleep(60)

        task = asyncio.create_task(limited())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
