"""A server in a thread, and a plain HTTP client."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from seektune.data.tokenizer import Tokenizer
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.serve.app import Served, make_app
from seektune.serve.server import server


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
    """A server's address."""

    url: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        place = urlsplit(self.url)
        link = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        link.request(method, path, sent, {"Content-Type": "application/json", **headers})
        answer = link.getresponse()
        text = answer.read().decode()
        link.close()
        return Answer(answer.status, dict(answer.getheaders()), text)

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def health(self) -> Any:
        return self.ask("GET", "/health").body

    def until(self, holds: Callable[[Any], bool]) -> None:
        """Wait until `/health` satisfies the condition."""
        end = time.monotonic() + 30
        while not holds(found := self.health()):
            assert time.monotonic() < end, found
            time.sleep(0.02)


@contextmanager
def live(served: Served) -> Iterator[Live]:
    place = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    made = server(make_app(served), 1.0, ready.set)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        assert ready.wait(30)
        yield Live(f"http://127.0.0.1:{place.getsockname()[1]}")
    finally:
        made.should_exit = True
        thread.join(30)
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
