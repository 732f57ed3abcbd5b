"""Response bodies in OpenAI's form, whole or as streamed chunks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta
from seektune.generate.request import Token
from seektune.serve.output_parser import OutputParser, ParsedDelta
from seektune.serve.request_builder import PreparedRequest

Body = dict[str, Any]


class ResponseWriter(Protocol):
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
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"seektune-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0
    """Generated so far over all choices, EOS included."""

    def body(self, choices: Sequence[Body], chunk: bool) -> Body:
        """A response, or a chunk of one."""
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        body = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
        return body if chunk else {**body, "usage": self.usage()}

    def usage(self) -> Body:
        """The token counts."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


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


@dataclass
class _Completion:
    """One completion of a text prompt, so far."""

    decode: Callable[[int], str]
    text: str = ""
    decoded: int = 0
    """Characters of all tokens, including those that are held back."""
    tokens: list[tuple[int, Token]] = field(default_factory=list)
    """Each with its offset in the text."""
    end: str | None = None


class CompletionResponse:
    """The choices of `/v1/completions`."""

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer, logprobs: bool):
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._requests = prepared.requests
        self._completions = [_Completion(tokenizer.decoder()) for _ in prepared.requests]

    def opening(self) -> list[Body]:
        """Nothing."""
        return []

    def add(self, delta: TextDelta) -> Body | None:
        """Take a delta; returns the choice of a chunk, or None if there is nothing to send."""
        completion = self._completions[delta.request]
        completion.text = completion.text + delta.text
        completion.end = delta.end
        is_stop = delta.token.id in self._requests[delta.request].stop_ids
        tokens = [] if is_stop else [(completion.decoded, delta.token)]
        completion.decoded += len(completion.decode(delta.token.id))
        completion.tokens += tokens
        if not delta.text and delta.end is None and not self._logprobs:
            return None
        return self._choice(delta.request, delta.text, tokens, delta.end)

    def choices(self) -> list[Body]:
        """The texts."""
        return [self._choice(i, each.text, each.tokens, each.end) for i, each in enumerate(self._completions)]

    def _choice(self, index: int, text: str, tokens: list[tuple[int, Token]], end: str | None) -> Body:
        logprobs = _text_logprobs(tokens, self._tokenizer) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}


def _chat_logprob(token: Token, tokenizer: Tokenizer) -> Body:
    def entry(id: int, logprob: float) -> Body:
        return {"token": tokenizer.decode([id]), "logprob": logprob, "bytes": list(tokenizer.bytes_of(id))}

    others = [entry(id, logprob) for id, logprob in token.alternatives]
    return {**entry(token.id, token.logprob), "top_logprobs": others}


def _text_logprobs(with_offsets: Sequence[tuple[int, Token]], tokenizer: Tokenizer) -> Body:
    tokens = [token for _, token in with_offsets]
    best = [{_token_name(id, tokenizer): logprob for id, logprob in token.alternatives} for token in tokens]
    return {
        "tokens": [_token_name(token.id, tokenizer) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": best,
        "text_offset": [offset for offset, _ in with_offsets],
    }


def _token_name(id: int, tokenizer: Tokenizer) -> str:
    """The token's text; its bytes, as in OpenAI's API, where they are not whole characters, which all look alike."""
    found = tokenizer.bytes_of(id)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
