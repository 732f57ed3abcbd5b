"""Client of an OpenAI-compatible server (vLLM, SGLang, our own): log-probabilities and prompts of chats.

vLLM names tokens by their ids if asked to; other servers refuse or ignore that, and name them by their texts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from math import isfinite
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from seektune.data.tokenizer import name_of_bytes
from seektune.io.text import on_one_line

TIMEOUT = 300.0
"""Seconds for one response; a server may compile kernels at the first request."""
LARGEST_ANSWER = 16 * 2**20


@dataclass(frozen=True)
class ServedChat:
    """What a server makes of a conversation."""

    prompt_tokens: int
    prompt_ids: tuple[int, ...] | None
    """None if the server does not say."""
    best: Mapping[str, float]
    """Log-probabilities of the most likely first tokens, by what the server calls them; empty if it does not say."""


@dataclass(frozen=True)
class ServedModel:
    """One model of a server."""

    url: str
    """The server's address, with or without `/v1`."""
    name: str | None = None
    """What the server calls the model; None for the first that it lists."""
    key: str | None = None

    def best_logprobs(self, prompt: Sequence[int], count: int) -> dict[str, float]:
        """Log-probabilities of the most likely tokens after a prompt of ids, by what the server calls them.

        That is `token_id:` and an id, or a text. vLLM also lists the chosen token.

        Raises:
            ValueError: the server refuses the request, or its answer holds no log-probabilities.
            OSError: it cannot be reached.
        """
        body = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": count}
        answer = self._post_wishing("/completions", body, {"return_tokens_as_token_ids": True})
        try:
            best = answer["choices"][0]["logprobs"]["top_logprobs"][0]
            found = {str(name): float(value) for name, value in best.items()}
        except (KeyError, IndexError, TypeError, AttributeError):
            found = {}
        if not found or not all(map(isfinite, found.values())):
            raise ValueError(f"{self.url} returned no log-probabilities for logprobs: {count}")
        return found

    def chat(self, messages: Sequence[Mapping[str, Any]], count: int) -> ServedChat:
        """The prompt of a conversation, with the server's default options.

        Raises:
            ValueError: the server refuses the request, or does not count tokens.
            OSError: it cannot be reached.
        """
        body = {"messages": list(messages), "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": count}
        wishes = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        answer = self._post_wishing("/chat/completions", body, wishes)
        try:
            tokens = int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError):
            raise ValueError(f"{self.url} did not return usage.prompt_tokens") from None
        ids = answer.get("prompt_token_ids")
        known = isinstance(ids, list) and all(type(id) is int for id in ids)
        return ServedChat(tokens, tuple(ids) if known else None, _first_logprobs(answer))

    def _post_wishing(self, path: str, body: Mapping[str, Any], wishes: Mapping[str, Any]) -> Any:
        """As `_post`, with fields that not every server knows if it takes them."""
        try:
            return self._post(path, {**body, **wishes})
        except ValueError:
            return self._post(path, body)

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


def _name(entry: Mapping[str, Any]) -> str:
    """The text of a token of a chat, or its bytes where they are not a whole character."""
    text = str(entry["token"])
    found = entry.get("bytes")
    return name_of_bytes(bytes(found)) if "\ufffd" in text and found else text


def _first_logprobs(answer: Mapping[str, Any]) -> dict[str, float]:
    try:
        best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {_name(each): float(each["logprob"]) for each in best}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
