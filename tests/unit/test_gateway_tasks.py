"""Tasks that are told to end do end."""

from __future__ import annotations

import asyncio

from tokenrelay.gateway.http.tasks import cancel_all


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
