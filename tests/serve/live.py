"""A server in a thread, a plain HTTP client, and models that a test controls."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from seektune.data.tokenizer import Tokenizer
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.serve.app import Served, make_app
from seektune.serve.server import server
from tests.patience import HUNG


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        found = self.body["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found

    def events(self) -> list[Any]:
        lines = [line.removeprefix("data: ") for line in self.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Live:
    """A server's address, and its event loop."""

    url: str
    loop: asyncio.AbstractEventLoop

    def advance(self, seconds: float) -> None:
        """Move the clock of the server's deadlines, for connections that were accepted before."""
        self.health()  # accepted after them
        now = self.loop.time
        self.loop.call_soon_threadsafe(setattr, self.loop, "time", lambda: now() + seconds)

    @contextmanager
    def response(self, method: str, path: str, body: Any = None, **headers: str) -> Iterator[http.client.HTTPResponse]:
        """A response whose body is not read yet; a stream's begins with its first token."""
        place = urlsplit(self.url)
        link = http.client.HTTPConnection(place.hostname, place.port, timeout=HUNG)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        link.request(method, path, sent, {"Content-Type": "application/json", **headers})
        yield link.getresponse()
        link.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with self.response(method, path, body, **headers) as answer:
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def health(self) -> Any:
        return self.ask("GET", "/health").body

    def until(self, holds: Callable[[Any], bool]) -> None:
        """Wait until `/health` satisfies the condition."""
        end = time.monotonic() + HUNG
        while not holds(found := self.health()):
            assert time.monotonic() < end, found
            time.sleep(0.02)


@contextmanager
def live(served: Served, clock: Callable[[], float] = time.monotonic) -> Iterator[Live]:
    place = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def started() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    made = server(make_app(served, clock), 1.0, served.limits.client_timeout, started)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        assert ready.wait(HUNG)
        yield Live(f"http://127.0.0.1:{place.getsockname()[1]}", loops[0])
    finally:
        made.should_exit = True
        thread.join(HUNG)
        assert not thread.is_alive()


def parrot(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer, text: str) -> DeepseekV4ForCausalLM:
    """Make a model generate `text`, over and over, for requests that run alone."""
    ids = iter([*tokenizer.encode_prompt(text)] * 50)
    logits = model.logits

    def said(hidden: Any) -> Any:
        found = logits(hidden)
        assert found.shape[:2] == (1, 1)
        found[..., next(ids)] += 1000
        return found

    model.__setattr__("logits", said)
    return model


def endless(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> DeepseekV4ForCausalLM:
    """Make a model that never ends a text by itself."""
    logits = model.logits

    def without_end(hidden: Any) -> Any:
        found = logits(hidden)
        found[..., tokenizer.eos_id] -= 1000
        return found

    model.__setattr__("logits", without_end)
    return model


class Gate:
    """Holds a model wherever it computes logits until a test lets it pass; a context manager that opens at the end."""

    def __init__(self, model: DeepseekV4ForCausalLM):
        self.model = model
        self._passes = threading.Semaphore(0)
        self._is_open = False
        logits = model.logits

        def held(hidden: Any) -> Any:
            if not self._is_open:
                self._passes.acquire()
            return logits(hidden)

        model.__setattr__("logits", held)

    def let(self, times: int) -> None:
        """Let the model pass so often."""
        self._passes.release(times)

    def open(self) -> None:
        """Hold it no more."""
        self._is_open = True
        self.let(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
