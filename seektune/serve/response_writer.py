"""What writes the response of a dialect: server-sent events, or one body; and the tokens that it counts."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from seektune.generate.detokenize import TextDelta
from seektune.serve.errors import ApiError
from seektune.serve.request_builder import PreparedRequest

Body = dict[str, Any]


class ResponseWriter(Protocol):
    """Takes the deltas of a request and writes its response; events are the text of server-sent events."""

    def opening(self, first: TextDelta) -> list[str]:
        """Events before any text; the first delta is known, but not added yet."""

    def add(self, delta: TextDelta) -> list[str]:
        """Take a delta; returns its events."""

    def closing(self) -> list[str]:
        """Events after the last delta."""

    def failure(self, error: ApiError) -> list[str]:
        """Events that end a stream with an error."""

    def body(self) -> Body:
        """The whole response, for a client that does not stream."""


@dataclass
class TokenCounts:
    """The tokens of a request and of its response."""

    prompt: int
    """Of all prompts."""
    samples: int = 1
    """Completions of each prompt."""
    cached: int = 0
    """Of the prompts, those that were taken from the prefix cache."""
    generated: int = 0
    """So far over all completions, EOS included."""

    @classmethod
    def of(cls, prepared: PreparedRequest) -> "TokenCounts":
        """Before any token is generated."""
        return cls(prepared.prompt_tokens, prepared.samples)

    def add(self, delta: TextDelta) -> None:
        """Count a delta's token."""
        self.generated += 1
        if delta.request % self.samples == 0:  # further completions of a prompt count it no more
            self.cached += delta.token.cached


def event_text(data: Body, name: str | None = None) -> str:
    """A server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"
