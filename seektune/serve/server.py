"""Runs an application on a socket until a signal arrives."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from seektune.serve.connections import LISTEN_QUEUE, ConnectionLimits, ServerConfig
from seektune.signals import StopRequests


class _Server(uvicorn.Server):
    def __init__(self, config: ServerConfig, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready
        self._requests = StopRequests()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `ready`."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(LISTEN_QUEUE)  # asyncio accepts as many at once as it lets wait, which would be too many
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second request breaks off running answers, one that is delivered twice does not."""
        if self._requests.is_second(sig) or not self.should_exit:
            super().handle_exit(sig, frame)


def server(app: FastAPI, shutdown_timeout: float, client_timeout: float, ready: Callable[[], None]) -> uvicorn.Server:
    """A server that is not running yet; `run(sockets=[...])` runs it, `should_exit` stops it.

    A connection may be without a request for `client_timeout` seconds.
    """
    limits = ConnectionLimits.of_process(client_timeout)
    return _Server(ServerConfig(app, limits, shutdown_timeout), ready)


def run(
    app: FastAPI, bound: socket.socket, shutdown_timeout: float, client_timeout: float, ready: Callable[[], None]
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT; running requests then get `shutdown_timeout` seconds to finish.

    Raises:
        OSError: the server could not start.
    """
    running = server(app, shutdown_timeout, client_timeout, ready)
    running.run(sockets=[bound])
    if not running.started:
        raise OSError("the server could not start")
