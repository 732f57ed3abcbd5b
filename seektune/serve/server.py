"""An application on a socket, until a signal comes."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def server(app: FastAPI, shutdown_timeout: float, ready: Callable[[], None]) -> uvicorn.Server:
    """A server that is not running; `run(sockets=[...])` runs it, `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
    )
    return _Server(config, ready)


def run(app: FastAPI, place: socket.socket, shutdown_timeout: float, ready: Callable[[], None]) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then for at most so many seconds what was begun.

    Raises:
        OSError: it could not start.
    """
    made = server(app, shutdown_timeout, ready)
    made.run(sockets=[place])
    if not made.started:
        raise OSError("the server could not start")
