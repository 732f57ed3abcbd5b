"""Responses of chat completions and the envelope that completions share, whole or as streamed chunks."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta
from seektune.generate.request import Token
from seektune.serve.errors import ApiError
from seektune.serve.output_parser import OutputParser, ParsedDelta
from seektune.serve.request_builder import PreparedRequest
from seektune.serve.response_writer import Body, TokenCounts, event_text

DONE = "data: [DONE]\n\n"


class ChoiceWriter(Protocol):
    """Collects the deltas of a request and writes the `choices` of its response."""

    def add(self, delta: TextDelta) -> Body | None:
        """Take a delta; returns the choice of a chunk, or None if there is nothing to send."""

    def opening(self) -> list[Body]:
        """Choices of the chunks before any text."""

    def choices(self) -> list[Body]:
        """The choices of a whole response."""


@dataclass
class Envelope:
    """The fields of a response around its choices."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    counts: TokenCounts
    id: str = field(default_factory=lambda: f"seektune-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    generates: bool = True
    """Whether what is generated is part of the response."""

    def body(self, choices: Sequence[Body], chunk: bool) -> Body:
        """A response, or a chunk of one."""
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        body = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
        return body if chunk else {**body, "usage": self.usage()}

    def usage(self) -> Body:
        """The token counts."""
        prompt = self.counts.prompt
        tokens = self.counts.generated if self.generates else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": self.counts.cached},
        }


@dataclass(frozen=True)
class ChoicesResponse:
    """A `ResponseWriter` of choices in their envelope."""

    writer: ChoiceWriter
    envelope: Envelope
    wants_usage: bool
    """Whether a stream ends with the token counts."""

    def opening(self, first: TextDelta) -> list[str]:
        """Events before any text."""
        return [self._event([choice]) for choice in self.writer.opening()]

    def add(self, delta: TextDelta) -> list[str]:
        """Take a delta; returns its events."""
        self.envelope.counts.add(delta)
        choice = self.writer.add(delta)
        return [] if choice is None else [self._event([choice])]

    def closing(self) -> list[str]:
        """Events after the last delta."""
        usage = [self._event([], usage=self.envelope.usage())] if self.wants_usage else []
        return [*usage, DONE]

    def failure(self, error: ApiError) -> list[str]:
        """The error as an event."""
        return [f"data: {json.dumps(error.body())}\n\n"]

    def body(self) -> Body:
        """The whole response."""
        return self.envelope.body(self.writer.choices(), chunk=False)

    def _event(self, choices: list[Body], **more: object) -> str:
        return event_text({**self.envelope.body(choices, chunk=True), **more})


@dataclass
class _ResponseMessage:
    """One response to a chat, so far."""

    parser: OutputParser
    parts: ParsedDelta = field(default_factory=ParsedDelta)
    tokens: list[Body] = field(default_factory=list)
    unsent: list[Body] = field(default_factory=list)
    """Log-probabilities that no chunk has sent yet."""
    end: str | None = None


class ChatResponse:
    """The choices of `/v1/chat/completions`."""

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer, logprobs: bool):
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._requests = prepared.requests
        self._messages = [_ResponseMessage(OutputParser(prepared.thinking, prepared.tags)) for _ in prepared.requests]

    def opening(self) -> list[Body]:
        """The role of each message."""
        first = {"role": "assistant", "content": ""}
        return [self._choice(i, first, None) for i in range(len(self._messages))]

    def add(self, delta: TextDelta) -> Body | None:
        """Take a delta; returns the choice of a chunk, or None if there is nothing to send."""
        message = self._messages[delta.request]
        if self._logprobs and delta.token.id not in self._requests[delta.request].stop_ids:
            logprob = _chat_logprob(delta.token, self._tokenizer)
            message.tokens.append(logprob)
            message.unsent.append(logprob)
        parsed = message.parser.feed(delta.text)
        if delta.end is not None:
            parsed.add(message.parser.flush())
        message.parts.add(parsed)
        if delta.end is not None:
            message.end = "tool_calls" if message.parts.calls else delta.end
        if not parsed and not message.unsent and message.end is None:
            return None
        body: Body = {"reasoning_content": parsed.reasoning} if parsed.reasoning else {}
        body |= {"content": parsed.content} if parsed.content else {}
        body |= {"tool_calls": [{"index": i, **call} for i, call in enumerate(parsed.calls)]} if parsed.calls else {}
        unsent = message.unsent
        message.unsent = []
        return self._choice(delta.request, body, message.end, unsent)

    def choices(self) -> list[Body]:
        """The messages."""
        choices = []
        for i, each in enumerate(self._messages):
            parts = each.parts
            message: Body = {
                "role": "assistant",
                "content": parts.content if parts.content or not parts.calls else None,
            }
            message |= {"reasoning_content": parts.reasoning} if parts.reasoning else {}
            message |= {"tool_calls": parts.calls} if parts.calls else {}
            logprobs = {"content": each.tokens} if self._logprobs else None
            choices.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": each.end})
        return choices

    def _choice(self, index: int, delta: Body, end: str | None, tokens: list[Body] | None = None) -> Body:
        logprobs = {"content": tokens} if self._logprobs and tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}


def _chat_logprob(token: Token, tokenizer: Tokenizer) -> Body:
    def entry(id: int, logprob: float) -> Body:
        return {"token": tokenizer.decode([id]), "logprob": logprob, "bytes": list(tokenizer.bytes_of(id))}

    others = [entry(id, logprob) for id, logprob in token.alternatives]
    return {**entry(token.id, token.logprob), "top_logprobs": others}
