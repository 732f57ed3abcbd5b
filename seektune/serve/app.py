"""The application: routes of OpenAI's API, the page at `/`, and errors in the API's form."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.serve.errors import ApiError
from seektune.serve.job_stream import ClientLeftError, JobStream, unless_gone
from seektune.serve.limits import Limits
from seektune.serve.middleware import LimitsMiddleware
from seektune.serve.request_builder import GenerationOrder, RequestBuilder
from seektune.serve.responses import ChatResponse, CompletionResponse, Envelope, ResponseWriter
from seektune.serve.scheduler import Scheduler
from seektune.serve.schema import ChatRequest, CompletionRequest, GenerationRequest

PAGE = Path(__file__).with_name("page.html")
SAFETY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of the page: it can load nothing from elsewhere."""
READERS = 2
"""Prompts that are turned into ids at a time: long ones take memory."""
DONE = "data: [DONE]\n\n"
CLIENT_LEFT = 499
READ = ["GET", "HEAD"]
"""Methods of what is only read; the server sends no body after HEAD."""


@dataclass(frozen=True)
class Served:
    """What a server offers."""

    models: Mapping[str, DeepseekV4ForCausalLM]
    """By the names that clients choose; the first is the default."""
    tokenizer: Tokenizer
    limits: Limits = field(default_factory=Limits)
    key: str | None = None
    thinking: bool = False
    speculative: bool = False


class Api:
    """Where requests are taken and answers given out."""

    def __init__(self, served: Served, worker: Scheduler):
        model = next(iter(served.models.values()))
        self.served = served
        self.worker = worker
        self.started = int(time.time())
        self._clerk = RequestBuilder(served.tokenizer, model.config.vocab_size, served.limits, served.thinking)
        self._reading = asyncio.Semaphore(READERS)

    async def chat(self, asked: ChatRequest, http: Request) -> Response:
        """`/v1/chat/completions`."""
        order = await self._read(lambda: self._clerk.chat(asked), http)
        reply = ChatResponse(order, self.served.tokenizer, bool(asked.logprobs))
        return await self._answer(asked, order, reply, "chat.completion", http)

    async def complete(self, asked: CompletionRequest, http: Request) -> Response:
        """`/v1/completions`."""
        order = await self._read(lambda: self._clerk.completion(asked), http)
        reply = CompletionResponse(order, self.served.tokenizer, asked.logprobs is not None)
        return await self._answer(asked, order, reply, "text_completion", http)

    def model_named(self, name: str | None) -> str:
        """A model's name, checked.

        Raises:
            ApiError: there is no such model.
        """
        names = list(self.served.models)
        if name is not None and name not in names:
            raise ApiError(404, f"no model {name!r} here; there is {' and '.join(names)}", "model", "model_not_found")
        return names[0] if name is None else name

    def card(self, name: str) -> dict[str, Any]:
        """A model as `/v1/models` shows it."""
        base = next(iter(self.served.models))
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "seektune",
            "max_model_len": self.served.limits.max_model_len,
            "parent": None if name == base else base,
        }

    async def _read(self, work: Callable[[], GenerationOrder], http: Request) -> GenerationOrder:
        async def read() -> GenerationOrder:
            async with self._reading:
                return await run_in_threadpool(work)

        return await unless_gone(http.receive, read())

    async def _answer(
        self, asked: GenerationRequest, order: GenerationOrder, reply: ResponseWriter, kind: str, http: Request
    ) -> Response:
        envelope = Envelope(kind, self.model_named(asked.model), order.prompt_tokens)
        call = JobStream(self.worker, envelope.model, order.requests, self.served.limits.request_timeout)
        pieces = call.pieces()
        try:
            if not asked.stream:
                await unless_gone(http.receive, _hear_all(pieces, reply, envelope))
                return JSONResponse(envelope.body(reply.choices(), chunk=False))
            # who waits in vain gets a status, not the beginning of a stream
            first = await unless_gone(http.receive, anext(pieces))
        except BaseException:
            call.leave()
            raise
        return _Stream(call, _lines(first, pieces, reply, envelope, asked.wants_usage))


class _Stream(StreamingResponse):
    """Server-sent events; however it ends, even before it begins, nothing grows on for nobody."""

    def __init__(self, call: JobStream, lines: AsyncIterator[str]):
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.leave()


async def _hear_all(pieces: AsyncIterator[TextDelta], reply: ResponseWriter, envelope: Envelope) -> None:
    async for piece in pieces:
        envelope.tokens += 1
        reply.hear(piece)


async def _lines(
    first: TextDelta, others: AsyncIterator[TextDelta], reply: ResponseWriter, envelope: Envelope, usage: bool
) -> AsyncIterator[str]:
    """Events of a stream."""

    def told(choices: list[dict[str, Any]], **more: object) -> str:
        return f"data: {json.dumps({**envelope.body(choices, chunk=True), **more}, ensure_ascii=False)}\n\n"

    async def all_pieces() -> AsyncIterator[TextDelta]:
        yield first
        async for piece in others:
            yield piece

    try:
        for choice in reply.opening():
            yield told([choice])
        async for piece in all_pieces():
            envelope.tokens += 1
            if (grown := reply.hear(piece)) is not None:
                yield told([grown])
        if usage:
            yield told([], usage=envelope.usage())
        yield DONE
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"


def make_app(served: Served, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The application; its worker starts and stops with it. `clock` counts the seconds of `request_timeout`."""
    worker = Scheduler(served.models, served.tokenizer, served.limits, served.speculative, clock)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.stop)

    # no pages of the framework: they load scripts from elsewhere
    app = FastAPI(title="SeekTune", lifespan=working, openapi_url=None)
    _add_routes(app, Api(served, worker))
    _add_errors(app)
    app.add_middleware(LimitsMiddleware, limits=served.limits, key=served.key)
    return app


def _add_routes(app: FastAPI, api: Api) -> None:
    @app.api_route("/", methods=READ)
    async def page() -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=SAFETY)

    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        growing, waiting = api.worker.load
        alive = api.worker.alive
        body = {"status": "ok" if alive else "stopping", "running": growing, "waiting": waiting}
        return JSONResponse(body, 200 if alive else 503)

    @app.api_route("/v1/models", methods=READ)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [api.card(name) for name in api.served.models]}

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def model(name: str) -> dict[str, Any]:
        return api.card(api.model_named(name))

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, http: Request) -> Response:
        return await api.complete(asked, http)

    @app.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, http: Request) -> Response:
        return await api.chat(asked, http)


def _add_errors(app: FastAPI) -> None:
    def answered(kind: type[Exception], translated: Callable[[Any], ApiError]) -> None:
        async def handle(_: Request, error: Exception) -> Response:
            return translated(error).response()

        app.add_exception_handler(kind, handle)

    async def left(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    answered(ApiError, lambda error: error)
    answered(HTTPException, lambda error: ApiError(error.status_code, str(error.detail), headers=error.headers))
    answered(RequestValidationError, _first_mistake)
    answered(Exception, lambda error: ApiError(500, "something failed in the server; its log says more"))
    app.add_exception_handler(ClientLeftError, left)


def _first_mistake(error: RequestValidationError) -> ApiError:
    """The first of what is wrong with a request, and how many more there are."""
    mistakes = error.errors()
    first = mistakes[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    # where a value may be of several kinds, the place ends with the kind's name, which tells the client nothing
    steps = [str(step) for step in first["loc"][1:]]
    place = ".".join(step for step in steps if step != "str" and not step.startswith(("list[", "function-")))
    said = "this field is not supported" if first["type"] == "extra_forbidden" else first["msg"]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return ApiError(400, f"{place}: {said}{more}" if place else f"{said}{more}", place or None)
