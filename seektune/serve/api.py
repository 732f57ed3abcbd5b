"""The handlers of the API's routes: OpenAI's chat completions, completions and responses, and Anthropic's messages."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.message import shown
from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decodes
from seektune.serve.body import Body, check_headers, read_body, refusals
from seektune.serve.completion_response import CompletionResponse
from seektune.serve.errors import ApiError
from seektune.serve.event_stream import EventStream, collect, events
from seektune.serve.generation_request import ApiRequest
from seektune.serve.hosts import LOOPBACK_NAMES
from seektune.serve.job_stream import JobStream, cancel_on_disconnect
from seektune.serve.limits import Limits
from seektune.serve.messages_api.request import CountTokensRequest, MessagesRequest
from seektune.serve.messages_api.response import MessagesResponse
from seektune.serve.request_builder import PreparedRequest, RequestBuilder
from seektune.serve.response_writer import ResponseWriter, TokenCounts
from seektune.serve.responses import ChatResponse, ChoicesResponse, Envelope
from seektune.serve.responses_api.request import ResponsesRequest
from seektune.serve.responses_api.response import ResponsesResponse
from seektune.serve.scheduler import Scheduler
from seektune.serve.schema import ChatRequest, CompletionRequest
from seektune.serve.thread_work import run_to_the_end

Built = TypeVar("Built")
SHORT_BODY = 64 * 2**10
"""Bytes of a body that is read without waiting for others."""
LONG_BODIES = 2
"""Longer bodies read and tokenized at the same time; they take memory."""
COMPILED_AT_ONCE = 2
"""Grammars compiled at the same time; each takes a core."""


@dataclass(frozen=True)
class Served:
    """The models that a server offers, and its settings."""

    models: Mapping[str, Decodes]
    """By the names that clients use; the first is the default."""
    tokenizer: Tokenizer
    limits: Limits = field(default_factory=Limits)
    key: str | None = None
    thinking: bool = False
    encoding: EncodingName = DEFAULT
    """Of chats."""
    speculative: bool = False
    static_steps: bool = False
    """As of `DecodeEngine`."""
    hosts: Sequence[str] = LOOPBACK_NAMES
    """Names that the Host header may have."""
    origins: Sequence[str] = ()
    """Origins of other web pages that may use the API (CORS)."""


class Api:
    """The handlers of the API's routes."""

    def __init__(self, served: Served, scheduler: Scheduler):
        model = next(iter(served.models.values()))
        self.served = served
        self.scheduler = scheduler
        self.started = int(time.time())
        encoding = find_encoding(served.encoding)
        self._builder = RequestBuilder(
            served.tokenizer, model.config.vocab_size, served.limits, served.thinking, encoding
        )
        self._vocab_size = model.config.vocab_size
        self._reading_long = asyncio.Semaphore(LONG_BODIES)
        self._compiling = asyncio.Semaphore(COMPILED_AT_ONCE)

    async def chat(self, http: Request) -> Response:
        """`/v1/chat/completions`."""
        body, prepared = await self._prepare(http, ChatRequest, self._builder.chat)
        choices = ChatResponse(prepared, self.served.tokenizer, bool(body.logprobs))
        envelope = Envelope("chat.completion", self.resolve_model(body.model), TokenCounts.of(prepared))
        return await self._respond(body, prepared, ChoicesResponse(choices, envelope, body.wants_usage), http)

    async def complete(self, http: Request) -> Response:
        """`/v1/completions`."""
        body, prepared = await self._prepare(http, CompletionRequest, self._builder.completion)
        generates = body.max_tokens != 0
        model = self.resolve_model(body.model)
        choices = CompletionResponse(prepared, self.served.tokenizer, body.logprobs is not None, generates)
        envelope = Envelope("text_completion", model, TokenCounts.of(prepared), generates=generates)
        return await self._respond(body, prepared, ChoicesResponse(choices, envelope, body.wants_usage), http)

    async def respond(self, http: Request) -> Response:
        """`/v1/responses`."""
        body, prepared = await self._prepare(http, ResponsesRequest, self._as_chat)
        writer = ResponsesResponse(self.resolve_model(body.model), prepared, body.settings())
        return await self._respond(body, prepared, writer, http)

    async def message(self, http: Request) -> Response:
        """`/v1/messages`."""
        body, prepared = await self._prepare(http, MessagesRequest, self._as_chat)
        writer = MessagesResponse(self.resolve_model(body.model), prepared)
        return await self._respond(body, prepared, writer, http)

    async def count_tokens(self, http: Request) -> Response:
        """`/v1/messages/count_tokens`."""
        _, tokens = await self._read(http, CountTokensRequest, self._count)
        return JSONResponse({"input_tokens": tokens})

    def resolve_model(self, name: str | None) -> str:
        """The model that a request names, or the default for None.

        Raises:
            ApiError: there is no such model.
        """
        names = list(self.served.models)
        if name is not None and name not in names:
            raise ApiError(
                404, f"model {shown(name)} not found; available: {', '.join(names)}", "model", "model_not_found"
            )
        return names[0] if name is None else name

    def model_entry(self, name: str) -> dict[str, Any]:
        """A model as `/v1/models` lists it."""
        base = next(iter(self.served.models))
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "seektune",
            "max_model_len": self.served.limits.max_model_len,
            "parent": None if name == base else base,
        }

    def _as_chat(self, body: MessagesRequest | ResponsesRequest) -> PreparedRequest:
        with refusals(body.chat_fields):
            return self._builder.chat(body.as_chat(self._builder.encoding))

    def _count(self, body: CountTokensRequest) -> int:
        with refusals(body.chat_fields):
            return self._builder.count(body.as_chat(self._builder.encoding))

    async def _prepare(
        self, http: Request, schema: type[Body], build: Callable[[Body], PreparedRequest]
    ) -> tuple[Body, PreparedRequest]:
        """The body and its requests, with the grammar that they follow."""
        body, prepared = await self._read(http, schema, build)
        if prepared.constraint is None:
            return body, prepared

        async def wait_and_compile() -> PreparedRequest:
            async with self._compiling:
                return await run_to_the_end(partial(prepared.compiled, self._vocab_size))

        with refusals(body.chat_fields):
            return body, await cancel_on_disconnect(http.receive, wait_and_compile())

    async def _read(self, http: Request, schema: type[Body], build: Callable[[Body], Built]) -> tuple[Body, Built]:
        """The body and what is built of it, in a thread: a long one stops no other client."""
        check_headers(http.headers)
        content = await http.body()

        def read() -> tuple[Body, Built]:
            body = read_body(content, schema)
            self.resolve_model(body.model)
            return body, build(body)

        async def wait_and_read() -> tuple[Body, Built]:
            async with nullcontext() if len(content) <= SHORT_BODY else self._reading_long:
                return await run_to_the_end(read)

        return await cancel_on_disconnect(http.receive, wait_and_read())

    async def _respond(
        self, body: ApiRequest, prepared: PreparedRequest, writer: ResponseWriter, http: Request
    ) -> Response:
        timeout = self.served.limits.request_timeout
        stream = JobStream(self.scheduler, self.resolve_model(body.model), prepared.requests, timeout)
        deltas = stream.deltas()
        try:
            if not body.stream:
                await cancel_on_disconnect(http.receive, collect(deltas, writer))
                return JSONResponse(writer.body())
            # wait for the first token: until then an error can still be an HTTP status
            first = await cancel_on_disconnect(http.receive, anext(deltas))
        except BaseException:
            stream.close()
            raise
        return EventStream(stream, events(first, deltas, writer))
