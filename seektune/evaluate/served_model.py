"""Client of an OpenAI-compatible server (vLLM, SGLang, our own): log-probabilities and lengths of prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from math import isfinite
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from seektune.io.text import on_one_line

TIMEOUT = 300.0
"""Seconds for one response; a server may compile kernels at the first request."""
LARGEST_ANSWER = 16 * 2**20


@dataclass(frozen=True)
class ServedModel:
    """One model of a server."""

    url: str
    """The server's address, with or without `/v1`."""
    name: str | None = None
    """What the server calls the model; None for the first that it lists."""
    key: str | None = None

    def best_logprobs(self, prompt: Sequence[int], count: int) -> list[float]:
        """Log-probabilities of the most likely tokens after a prompt of ids, the highest first.

        Raises:
            ValueError: the server refuses the request, or its answer holds no log-probabilities.
            OSError: it cannot be reached.
        """
        body = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": count}
        try:
            best = self._post("/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
            # vLLM also lists the chosen token
            found = sorted(map(float, best.values()), reverse=True)[:count]
        except (KeyError, IndexError, TypeError, AttributeError):
            found = []
        if not found or not all(map(isfinite, found)):
            raise ValueError(f"{self.url} returned no log-probabilities for logprobs: {count}")
        return found

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """The number of tokens of a conversation's prompt, with the server's default options.

        Raises:
            ValueError: the server refuses the request, or does not count tokens.
            OSError: it cannot be reached.
        """
        try:
            answer = self._post("/chat/completions", {"messages": list(messages), "max_tokens": 1})
            return int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError):
            raise ValueError(f"{self.url} did not return usage.prompt_tokens") from None

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        named = {} if self.name is None else {"model": self.name}
        return self._ask(path, {**body, **(named or {"model": self._first()})})

    def _first(self) -> str:
        try:
            return str(self._ask("/models", None)["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.url} lists no models") from None

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        address = f"{self.url.rstrip('/').removesuffix('/v1')}/v1{path}"
        headers = {"Content-Type": "application/json"}
        headers |= {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        content = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(address, content, headers), timeout=TIMEOUT) as answer:
                return json.loads(answer.read(LARGEST_ANSWER))
        except HTTPError as error:
            text = error.read(LARGEST_ANSWER).decode(errors="replace")
            raise ValueError(f"{address} answered {error.code}: {on_one_line(text)[:300]}") from None
        except URLError as error:
            raise OSError(f"{address} cannot be reached: {error.reason}") from None
        except HTTPException as error:
            raise OSError(f"{address} broke off its answer: {type(error).__name__}") from None
        except ValueError:
            raise ValueError(f"{address} did not answer with JSON") from None
