"""Work in a thread that holds its caller's place: cancelling the caller does not end a thread."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


async def run_to_the_end(work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread.

    A task that is cancelled waits for the thread, so that a semaphore that it holds counts threads.
    """
    thread = asyncio.ensure_future(run_in_threadpool(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.gather(thread, return_exceptions=True)
        raise
