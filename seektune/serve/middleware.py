"""ASGI middleware that checks the Host header and the API key, and limits a request's size and a client's time."""

import asyncio
import contextlib
from collections.abc import Sequence
from secrets import compare_digest

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits

DRAIN_FACTOR = 8
"""Up to this many times `max_body` is read and discarded, so that the client can still read the 413 response."""


class SlowClientError(Exception):
    """A client did not receive the response in time."""


class HostMiddleware:
    """Starlette's check of the Host header; a refusal has the form of the API's errors."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if await self._is_allowed(scope, receive):
            await self._app(scope, receive, send)
            return
        error = ApiError(400, "Invalid host header: this server does not answer to that name", code="invalid_host")
        await error.response(scope["path"])(scope, receive, send)

    async def _is_allowed(self, scope: Scope, receive: Receive) -> bool:
        passed = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            passed.append(scope)

        async def discard(message: Message) -> None:
            """The refusal in plain text."""

        await TrustedHostMiddleware(app, self._hosts, www_redirect=False)(scope, receive, discard)
        return bool(passed)


class LimitsMiddleware:
    """Reads a whole request, within the limits, before the application sees it; a slash at a path's end is dropped."""

    def __init__(self, app: ASGIApp, limits: Limits, key: str | None):
        self._app = app
        self._limits = limits
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        try:
            self._check_key(scope)
            async with asyncio.timeout(self._limits.client_timeout):
                body = await self._body(receive)
        except TimeoutError:
            late = ApiError(408, "the request did not arrive in time")
            await late.response(scope["path"])(scope, receive, send)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
        else:
            if body is not None:
                with contextlib.suppress(SlowClientError):  # returning closes the connection
                    await self._app(scope, _replay(body, receive), self._timed(send))

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or not scope["path"].startswith("/v1"):
            return
        headers = dict(scope["headers"])
        bearer = compare_digest(headers.get(b"authorization", b""), f"Bearer {self._key}".encode())
        # as Anthropic's clients send it
        plain = compare_digest(headers.get(b"x-api-key", b""), self._key.encode())
        if not bearer and not plain:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _body(self, receive: Receive) -> bytes | None:
        """The request's body; None if the client disconnects."""
        parts: list[bytes] = []
        size = 0
        limit = self._limits.max_body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            else:
                parts.clear()
            more = message.get("more_body", False)
            if size > limit and (not more or size > DRAIN_FACTOR * limit):
                raise ApiError(413, f"the request body exceeds the limit of {limit} bytes")
            if not more:
                return b"".join(parts)

    def _timed(self, send: Send) -> Send:
        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.client_timeout):
                    await send(message)
            except TimeoutError:
                raise SlowClientError from None

        return timed


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns the body once, then the client's next messages."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
