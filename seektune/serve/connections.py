"""Connections of the HTTP server: how many there may be, and how long one may wait for a request."""

import asyncio
import resource
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MOST_CONNECTIONS = 4096
MOST_ACCEPTED_AT_ONCE = 64
LISTEN_QUEUE = 1024
"""Connections that the kernel holds until the server accepts them."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds on connections; with them the server never runs out of file descriptors."""

    timeout: float
    """Seconds that a connection may be without a complete request header."""
    connections: int
    accepted_at_once: int
    """Connections accepted in one turn of the event loop; up to four times as many are open beyond `connections`,
    until the event loop has closed others in their favour."""

    @classmethod
    def of_process(cls, timeout: float) -> "ConnectionLimits":
        """Bounds that follow from the process's limit of open files."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return cls(timeout, MOST_CONNECTIONS, MOST_ACCEPTED_AT_ONCE)
        return cls(timeout, min(MOST_CONNECTIONS, files // 2), min(MOST_ACCEPTED_AT_ONCE, max(1, files // 16)))


class ServerConfig(uvicorn.Config):
    """Uvicorn's settings, and bounds on connections."""

    def __init__(self, app: FastAPI, limits: ConnectionLimits, shutdown_timeout: float):
        super().__init__(
            app,
            http=Connection,
            # uvloop, where it is installed, accepts without a bound, and its clock cannot tell who waits longest
            loop="asyncio",
            ws="none",
            log_level="error",  # else each malformed request is a line in the log
            access_log=False,
            server_header=False,
            backlog=limits.accepted_at_once,
            timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
        )
        self.connection_limits = limits


class Connection(H11Protocol):
    """A connection that is closed when it waits too long for a request, or when a new one needs its place.

    Uvicorn's own deadline begins only after a response and ends with the first byte of the next request.
    """

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.connection_limits
        self._timer: asyncio.TimerHandle | None = None
        self._aborted = False
        self.waits_since = 0.0
        """By the event loop's clock: when it was accepted, or when the last response was complete."""

    @property
    def is_idle(self) -> bool:
        """Whether there is no request; also while the rest of a response is waiting for its client."""
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    @property
    def can_be_closed(self) -> bool:
        """Whether no whole request is being answered."""
        return self.is_idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, and close another if there are too many."""
        super().connection_made(transport)
        self._restart_timer()
        alive = [each for each in self.connections if isinstance(each, Connection) and not each._aborted]
        if len(alive) > self._limits.connections:
            candidates = [each for each in alive if each.can_be_closed]  # at least this one
            min(candidates, key=lambda each: each.waits_since).abort()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection at once, even if the client does not read what was sent."""
        self._aborted = True
        self.transport.abort()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.waits_since = self.loop.time()
        self._timer = self.loop.call_later(self._limits.timeout, self._check)

    def _check(self) -> None:
        if self.is_idle:
            self.abort()
        else:  # `request_timeout` limits the request
            self._timer = self.loop.call_later(self._limits.timeout, self._check)
