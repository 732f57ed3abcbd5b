"""One request's answers on their way from the worker's thread to the event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from seektune.generate.detokenize import TextDelta
from seektune.generate.request import Request
from seektune.serve.errors import ApiError
from seektune.serve.scheduler import Event, GenerationJob, Scheduler

T = TypeVar("T")


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class JobStream:
    """A job of the worker, heard from the event loop in which this is made."""

    def __init__(self, worker: Scheduler, model: str, requests: Sequence[Request], seconds: float):
        """Wait in the worker's queue.

        Raises:
            ApiError: too many wait, or the server stops.
        """
        loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._worker = worker
        self._growing = len(requests)
        self._job = GenerationJob(model, requests, tell, worker.clock() + seconds)
        worker.submit(self._job)

    async def pieces(self) -> AsyncIterator[TextDelta]:
        """All that comes, until each answer has ended.

        Raises:
            ApiError: they end otherwise.
        """
        while self._growing:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            self._growing -= event.end is not None
            yield event

    def leave(self) -> None:
        """Nobody listens any more; what still grows is cancelled."""
        if self._growing:
            self._worker.cancel(self._job)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of work, as long as the client waits for it.

    Raises:
        ClientLeftError: it left; the work is cancelled.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(leave())
    both: list[asyncio.Future[Any]] = [working, leaving]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in both:
            task.cancel()
