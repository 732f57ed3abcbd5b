"""The FastAPI application: OpenAI's routes, the chat page at `/`, and errors in OpenAI's form."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.message import shown
from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decodes
from seektune.serve.body import Body, check_content_type, read_body
from seektune.serve.errors import ApiError
from seektune.serve.event_stream import EventStream, collect, events
from seektune.serve.generation_request import GenerationRequest
from seektune.serve.hosts import LOOPBACK_NAMES
from seektune.serve.job_stream import ClientDisconnectedError, JobStream, cancel_on_disconnect
from seektune.serve.limits import Limits
from seektune.serve.middleware import HostMiddleware, LimitsMiddleware
from seektune.serve.request_builder import PreparedRequest, RequestBuilder
from seektune.serve.responses import ChatResponse, CompletionResponse, Envelope, ResponseWriter
from seektune.serve.scheduler import Scheduler
from seektune.serve.schema import ChatRequest, CompletionRequest
from seektune.serve.thread_work import run_to_the_end

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The page may not load anything from another host."""
SHORT_BODY = 64 * 2**10
"""Bytes of a body that is read without waiting for others."""
LONG_BODIES = 2
"""Longer bodies read and tokenized at the same time; they take memory."""
COMPILED_AT_ONCE = 2
"""Grammars compiled at the same time; each takes a core."""
CLIENT_CLOSED_REQUEST = 499
READ_METHODS = ["GET", "HEAD"]
"""The server sends no body in reply to HEAD."""


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
        body, prepared = await self._read(http, ChatRequest, self._builder.chat)
        writer = ChatResponse(prepared, self.served.tokenizer, bool(body.logprobs))
        return await self._respond(body, prepared, writer, "chat.completion", http)

    async def complete(self, http: Request) -> Response:
        """`/v1/completions`."""
        body, prepared = await self._read(http, CompletionRequest, self._builder.completion)
        writer = CompletionResponse(prepared, self.served.tokenizer, body.logprobs is not None, body.max_tokens != 0)
        return await self._respond(body, prepared, writer, "text_completion", http)

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

    async def _read(
        self, http: Request, schema: type[Body], build: Callable[[Body], PreparedRequest]
    ) -> tuple[Body, PreparedRequest]:
        """The body and its prompts, read in a thread: a long one stops no other client."""
        check_content_type(http.headers.get("content-type", ""))
        content = await http.body()

        def read() -> tuple[Body, PreparedRequest]:
            body = read_body(content, schema)
            self.resolve_model(body.model)
            return body, build(body)

        async def wait_and_read() -> tuple[Body, PreparedRequest]:
            async with nullcontext() if len(content) <= SHORT_BODY else self._reading_long:
                body, prepared = await run_to_the_end(read)
            if prepared.constraint is None:
                return body, prepared
            async with self._compiling:
                return body, await run_to_the_end(partial(prepared.compiled, self._vocab_size))

        return await cancel_on_disconnect(http.receive, wait_and_read())

    async def _respond(
        self, body: GenerationRequest, prepared: PreparedRequest, writer: ResponseWriter, kind: str, http: Request
    ) -> Response:
        generates = body.max_tokens != 0
        envelope = Envelope(kind, self.resolve_model(body.model), prepared.prompt_tokens, generates=generates)
        timeout = self.served.limits.request_timeout
        stream = JobStream(self.scheduler, envelope.model, prepared.requests, timeout)
        deltas = stream.deltas()
        try:
            if not body.stream:
                await cancel_on_disconnect(http.receive, collect(deltas, writer, envelope))
                return JSONResponse(envelope.body(writer.choices(), chunk=False))
            # wait for the first token: until then an error can still be an HTTP status
            first = await cancel_on_disconnect(http.receive, anext(deltas))
        except BaseException:
            stream.close()
            raise
        return EventStream(stream, events(first, deltas, writer, envelope, body.wants_usage))


def make_app(served: Served, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The application; its scheduler starts and stops with it. `clock` counts the seconds of `request_timeout`."""
    scheduler = Scheduler(served.models, served.tokenizer, served.limits, served.speculative, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await run_in_threadpool(scheduler.stop)

    # FastAPI's documentation pages are off: they load scripts from other hosts
    app = FastAPI(title="SeekTune", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    _add_routes(app, Api(served, scheduler))
    _add_errors(app)
    # the last is the first to see a request
    app.add_middleware(LimitsMiddleware, limits=served.limits, key=served.key)
    if served.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=served.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(HostMiddleware, hosts=served.hosts)
    return app


def _add_routes(app: FastAPI, api: Api) -> None:
    @app.api_route("/", methods=READ_METHODS)
    async def page() -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    @app.api_route("/health", methods=READ_METHODS)
    async def health() -> Response:
        running, waiting = api.scheduler.load
        alive = api.scheduler.alive
        body = {"status": "ok" if alive else "stopping", "running": running, "waiting": waiting}
        return JSONResponse(body, 200 if alive else 503)

    @app.api_route("/v1/models", methods=READ_METHODS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [api.model_entry(name) for name in api.served.models]}

    @app.api_route("/v1/models/{name:path}", methods=READ_METHODS)
    async def model(name: str) -> dict[str, Any]:
        return api.model_entry(api.resolve_model(name))

    app.add_api_route("/v1/completions", api.complete, methods=["POST"])
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"])


def _add_errors(app: FastAPI) -> None:
    def handle(exception: type[Exception], to_api_error: Callable[[Any], ApiError]) -> None:
        async def handler(_: Request, error: Exception) -> Response:
            return to_api_error(error).response()

        app.add_exception_handler(exception, handler)

    async def disconnected(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    handle(ApiError, lambda error: error)
    handle(HTTPException, lambda error: ApiError(error.status_code, str(error.detail), headers=error.headers))
    handle(Exception, lambda error: ApiError(500, "internal server error; see the server's log"))
    app.add_exception_handler(ClientDisconnectedError, disconnected)
