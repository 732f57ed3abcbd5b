"""A server that answers JSON with JSON over HTTP: tries, pauses between them, and errors of one line."""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from http.client import HTTPException
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from seektune.io.strict_json import parse_json
from seektune.io.text import on_one_line

MOST_BYTES = 64 * 2**20
"""Maximum size of a server's answer."""
LONGEST_PAUSE = 30
"""Maximum seconds between two tries."""

TRIED_AGAIN = (408, 429)
"""Statuses below 500 of a server that is busy, not of a wrong request."""


def pause_after(attempt: int) -> int:
    """Seconds of the pause after a failed try; the first is 0."""
    return min(2 ** min(attempt, 8), LONGEST_PAUSE)


def longest_request(timeout: float, retries: int) -> float:
    """Seconds that a request takes if every try does, with the pauses between them."""
    growing = min(retries, LONGEST_PAUSE)
    pauses = sum(map(pause_after, range(growing))) + (retries - growing) * LONGEST_PAUSE
    return timeout * (retries + 1) + pauses


@dataclass(frozen=True)
class JsonServer:
    """Sends a value and gives the value that comes back."""

    name: str
    """What it serves, for messages."""
    sent: str
    """What is sent to it, for messages."""
    url: str
    timeout: float
    """Maximum seconds of a try."""
    retries: int
    """Further tries after a failed one."""
    stop: Callable[[], None] = lambda: None
    """Called before each try, and each second of it and of a pause; may raise `Interrupted`."""
    sleep: Callable[[float], None] = time.sleep

    def post(self, value: Any) -> Any:
        """The server's answer to a value.

        Raises:
            Interrupted: `stop` raised it.
            OSError: the server cannot be reached, or answers with an error at each try.
            ValueError: it refuses the value, or its answer is not JSON.
        """
        body = json.dumps(value).encode()
        for attempt in range(self.retries):
            try:
                return self._once(body)
            except OSError:
                self._pause(pause_after(attempt))
        try:
            return self._once(body)
        except OSError as error:
            tries = f"after {self.retries + 1} tries" if self.retries else "at the only try"
            raise OSError(
                f"the {self.name} server {self.url} failed {tries}: {on_one_line(str(error))[:160]}"
            ) from None

    def _pause(self, seconds: int) -> None:
        for _ in range(seconds):
            self.stop()
            self.sleep(1.0)
        self.stop()

    def _once(self, body: bytes) -> Any:
        """A try, on a thread of its own: a server that sends nothing, or little at a time, does not delay a signal."""
        self.stop()
        ends = time.monotonic() + self.timeout
        answer: Future[bytes] = Future()
        Thread(target=self._fetch, args=(body, ends, answer), daemon=True).start()
        while not wait([answer], max(0.0, min(1.0, ends - time.monotonic()))).done:
            self.stop()
            if time.monotonic() >= ends:
                raise self._late()
        return self._parsed(self._received(answer))

    def _fetch(self, body: bytes, ends: float, answer: Future[bytes]) -> None:
        """Set the answer, or its error, which is `TimeoutError` where a part of it comes later than `ends`."""
        request = Request(self.url, body, {"Content-Type": "application/json"})
        found = bytearray()
        try:
            with urlopen(request, timeout=self.timeout) as stream:
                while len(found) < MOST_BYTES and (part := stream.read1(MOST_BYTES)):
                    found += part
                    if time.monotonic() >= ends:
                        raise TimeoutError
            answer.set_result(bytes(found))
        except Exception as error:
            answer.set_exception(error)

    def _received(self, answer: Future[bytes]) -> bytes:
        try:
            return answer.result()
        except HTTPError as error:
            if error.code < 500 and error.code not in TRIED_AGAIN:
                raise ValueError(
                    f"the {self.name} server {self.url} refuses the {self.sent}: HTTP {error.code}"
                ) from None
            raise
        except URLError as error:
            raise (self._late() if isinstance(error.reason, TimeoutError) else error) from None
        except TimeoutError:
            raise self._late() from None
        except HTTPException as error:
            raise OSError(f"its answer broke off ({type(error).__name__})") from None

    def _late(self) -> TimeoutError:
        return TimeoutError(f"it gave no whole answer in {self.timeout:g} seconds")

    def _parsed(self, answer: bytes) -> Any:
        try:
            return parse_json(answer)
        except ValueError as error:
            raise ValueError(
                f"the {self.name} server {self.url} answered with something else than JSON: {error}"
            ) from None
