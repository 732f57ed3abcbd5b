"""A client that leaves keeps its place until its thread has ended."""

import asyncio
import threading

import pytest

from seektune.serve.thread_work import run_to_the_end
from tests.patience import HUNG


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_task_keeps_its_place_until_its_thread_ends(fails: bool) -> None:
    begun = threading.Event()
    may_end = threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(HUNG)
        if fails:
            raise ValueError

    async def cancelled() -> None:
        places = asyncio.Semaphore(1)

        async def client() -> None:
            async with places:
                await run_to_the_end(work)

        task = asyncio.ensure_future(client())
        assert await asyncio.to_thread(begun.wait, HUNG)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        holds = places.locked()
        may_end.set()
        assert holds
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not places.locked()

    asyncio.run(cancelled())


def test_results_and_errors_of_the_thread_are_the_caller_s() -> None:
    assert asyncio.run(run_to_the_end(lambda: 3)) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_to_the_end(lambda: 1 // 0))
