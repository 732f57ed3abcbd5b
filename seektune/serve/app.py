"""The FastAPI application: the routes of OpenAI's and Anthropic's APIs, and the chat page at `/`."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from seektune.serve.api import Api, Served
from seektune.serve.errors import MESSAGES_ROUTE, ApiError
from seektune.serve.job_stream import ClientDisconnectedError
from seektune.serve.middleware import HostMiddleware, LimitsMiddleware
from seektune.serve.scheduler import Scheduler

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The page may not load anything from another host."""
CLIENT_CLOSED_REQUEST = 499
READ_METHODS = ["GET", "HEAD"]
"""The server sends no body in reply to HEAD."""


def make_app(served: Served, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The application; its scheduler starts and stops with it. `clock` counts the seconds of `request_timeout`."""
    decoding = served.speculative, served.static_steps
    scheduler = Scheduler(served.models, served.tokenizer, served.limits, *decoding, clock)

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
    app.add_api_route("/v1/responses", api.respond, methods=["POST"])
    app.add_api_route(MESSAGES_ROUTE, api.message, methods=["POST"])
    app.add_api_route(f"{MESSAGES_ROUTE}/count_tokens", api.count_tokens, methods=["POST"])


def _add_errors(app: FastAPI) -> None:
    def handle(exception: type[Exception], to_api_error: Callable[[Any], ApiError]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            return to_api_error(error).response(request.url.path)

        app.add_exception_handler(exception, handler)

    async def disconnected(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    handle(ApiError, lambda error: error)
    handle(HTTPException, lambda error: ApiError(error.status_code, str(error.detail), headers=error.headers))
    handle(Exception, lambda error: ApiError(500, "internal server error; see the server's log"))
    app.add_exception_handler(ClientDisconnectedError, disconnected)
