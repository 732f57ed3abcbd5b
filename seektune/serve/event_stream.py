"""Responses as server-sent events, chunk by chunk, and the collecting of those that are sent whole."""

from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from seektune.generate.detokenize import TextDelta
from seektune.serve.errors import ApiError
from seektune.serve.job_stream import JobStream
from seektune.serve.response_writer import ResponseWriter


class EventStream(StreamingResponse):
    """Server-sent events; the job is cancelled however the response ends, even before it begins."""

    def __init__(self, stream: JobStream, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def collect(deltas: AsyncIterator[TextDelta], writer: ResponseWriter) -> None:
    """Add every delta to a response.

    Raises:
        ApiError: the job failed.
    """
    async for delta in deltas:
        writer.add(delta)


async def events(first: TextDelta, others: AsyncIterator[TextDelta], writer: ResponseWriter) -> AsyncIterator[str]:
    """The events of a stream."""
    try:
        for event in [*writer.opening(first), *writer.add(first)]:
            yield event
        async for delta in others:
            for event in writer.add(delta):
                yield event
        for event in writer.closing():
            yield event
    except ApiError as error:
        for event in writer.failure(error):
            yield event
