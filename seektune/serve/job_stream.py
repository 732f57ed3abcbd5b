"""Carries one request's events from the scheduler's thread to the event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from seektune.generate.detokenize import TextDelta
from seektune.generate.failed_ends import FAILED_ENDS
from seektune.generate.request import Request
from seektune.serve.errors import ApiError
from seektune.serve.scheduler import Event, GenerationJob, Scheduler

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed its connection before the response."""


class JobStream:
    """A job of the scheduler whose events are read in the event loop that made this."""

    def __init__(self, scheduler: Scheduler, model: str, requests: Sequence[Request], timeout: float):
        """Submit the job; it must be complete after `timeout` seconds.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[Event]()

        def put(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._scheduler = scheduler
        self._running = len(requests)
        self._job = GenerationJob(model, requests, put, scheduler.clock() + timeout)
        scheduler.submit(self._job)

    async def deltas(self) -> AsyncIterator[TextDelta]:
        """Every delta, until each completion has ended.

        Raises:
            ApiError: the job failed.
        """
        while self._running:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            if event.end is not None and event.end in FAILED_ENDS:
                raise ApiError(503 if event.end == "memory" else 500, FAILED_ENDS[event.end])
            self._running -= event.end is not None
            yield event

    def close(self) -> None:
        """Cancel what is still running."""
        if self._running:
            self._scheduler.cancel(self._job)


async def cancel_on_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects.

    Raises:
        ClientDisconnectedError: it did.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    result = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(wait_for_disconnect())
    tasks: list[asyncio.Future[Any]] = [result, disconnect]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnectedError
        return result.result()
    finally:
        for task in tasks:
            task.cancel()
