"""Responses as server-sent events, chunk by chunk, and the collecting of those that are sent whole."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from seektune.generate.detokenize import TextDelta
from seektune.serve.errors import ApiError
from seektune.serve.job_stream import JobStream
from seektune.serve.responses import Envelope, ResponseWriter

DONE = "data: [DONE]\n\n"


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


async def collect(deltas: AsyncIterator[TextDelta], writer: ResponseWriter, envelope: Envelope) -> None:
    """Add every delta to a response.

    Raises:
        ApiError: the job failed.
    """
    async for delta in deltas:
        envelope.tokens += 1
        writer.add(delta)


async def events(
    first: TextDelta, others: AsyncIterator[TextDelta], writer: ResponseWriter, envelope: Envelope, usage: bool
) -> AsyncIterator[str]:
    """The events of a stream."""

    def event(choices: list[dict[str, Any]], **more: object) -> str:
        return f"data: {json.dumps({**envelope.body(choices, chunk=True), **more}, ensure_ascii=False)}\n\n"

    async def all_deltas() -> AsyncIterator[TextDelta]:
        yield first
        async for delta in others:
            yield delta

    try:
        for opening in writer.opening():
            yield event([opening])
        async for delta in all_deltas():
            envelope.tokens += 1
            if (choice := writer.add(delta)) is not None:
                yield event([choice])
        if usage:
            yield event([], usage=envelope.usage())
        yield DONE
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
