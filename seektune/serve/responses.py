"""Answers in the form of OpenAI's API: whole, or chunk by chunk as they grow."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta
from seektune.generate.request import Token
from seektune.serve.output_parser import OutputParser, ParsedDelta
from seektune.serve.request_builder import GenerationOrder

Body = dict[str, Any]


class ResponseWriter(Protocol):
    """All answers to a request, as they grow."""

    def hear(self, piece: TextDelta) -> Body | None:
        """The choice of a chunk, where there is anything to tell."""

    def opening(self) -> list[Body]:
        """Choices of chunks before any text."""

    def choices(self) -> list[Body]:
        """All answers, whole."""


@dataclass
class Envelope:
    """What surrounds choices."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"seektune-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0
    """Of all answers so far, EOS included."""

    def body(self, choices: Sequence[Body], chunk: bool) -> Body:
        """A response, or a chunk of one."""
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        made = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
        return made if chunk else {**made, "usage": self.usage()}

    def usage(self) -> Body:
        """How many tokens it took."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


@dataclass
class _Choice:
    """One answer to a conversation."""

    splitter: OutputParser
    parts: ParsedDelta = field(default_factory=ParsedDelta)
    tokens: list[Body] = field(default_factory=list)
    unsent: list[Body] = field(default_factory=list)
    """Log-probabilities that no chunk has told yet."""
    end: str | None = None


class ChatResponse:
    """Answers to a conversation."""

    def __init__(self, order: GenerationOrder, tokenizer: Tokenizer, logprobs: bool):
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._requests = order.requests
        self._answers = [_Choice(OutputParser(order.thinking)) for _ in order.requests]

    def opening(self) -> list[Body]:
        """Who speaks."""
        first = {"role": "assistant", "content": ""}
        return [self._choice(i, first, None) for i in range(len(self._answers))]

    def hear(self, piece: TextDelta) -> Body | None:
        """What the message grew by."""
        answer = self._answers[piece.request]
        if self._logprobs and piece.token.id not in self._requests[piece.request].stop_ids:
            told = _chat_logprob(piece.token, self._tokenizer)
            answer.tokens.append(told)
            answer.unsent.append(told)
        grown = answer.splitter.hear(piece.text)
        if piece.end is not None:
            grown.add(answer.splitter.rest())
        answer.parts.add(grown)
        if piece.end is not None:
            answer.end = "tool_calls" if answer.parts.calls else piece.end
        if not grown and not answer.unsent and answer.end is None:
            return None
        delta: Body = {"reasoning_content": grown.reasoning} if grown.reasoning else {}
        delta |= {"content": grown.content} if grown.content else {}
        delta |= {"tool_calls": [{"index": i, **call} for i, call in enumerate(grown.calls)]} if grown.calls else {}
        unsent = answer.unsent
        answer.unsent = []
        return self._choice(piece.request, delta, answer.end, unsent)

    def choices(self) -> list[Body]:
        """The messages."""
        made = []
        for i, answer in enumerate(self._answers):
            parts = answer.parts
            message: Body = {
                "role": "assistant",
                "content": parts.content if parts.content or not parts.calls else None,
            }
            message |= {"reasoning_content": parts.reasoning} if parts.reasoning else {}
            message |= {"tool_calls": parts.calls} if parts.calls else {}
            logprobs = {"content": answer.tokens} if self._logprobs else None
            made.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": answer.end})
        return made

    def _choice(self, index: int, delta: Body, end: str | None, logprobs: list[Body] | None = None) -> Body:
        told = {"content": logprobs} if self._logprobs and logprobs else None
        return {"index": index, "delta": delta, "logprobs": told, "finish_reason": end}


@dataclass
class _Continuation:
    """One text that a prompt was continued with."""

    decode: Callable[[int], str]
    text: str = ""
    reach: int = 0
    """Characters of all tokens, those that are held back included."""
    tokens: list[tuple[int, Token]] = field(default_factory=list)
    """Each with the place of the text at which it begins."""
    end: str | None = None


class CompletionResponse:
    """Texts that prompts were continued with."""

    def __init__(self, order: GenerationOrder, tokenizer: Tokenizer, logprobs: bool):
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._requests = order.requests
        self._answers = [_Continuation(tokenizer.decoder()) for _ in order.requests]

    def opening(self) -> list[Body]:
        """Nothing."""
        return []

    def hear(self, piece: TextDelta) -> Body | None:
        """What the text grew by."""
        answer = self._answers[piece.request]
        answer.text = answer.text + piece.text
        answer.end = piece.end
        told = [] if piece.token.id in self._requests[piece.request].stop_ids else [(answer.reach, piece.token)]
        answer.reach += len(answer.decode(piece.token.id))
        answer.tokens += told
        if not piece.text and piece.end is None and not self._logprobs:
            return None
        return self._choice(piece.request, piece.text, told, piece.end)

    def choices(self) -> list[Body]:
        """The texts."""
        return [self._choice(i, each.text, each.tokens, each.end) for i, each in enumerate(self._answers)]

    def _choice(self, index: int, text: str, tokens: list[tuple[int, Token]], end: str | None) -> Body:
        logprobs = _text_logprobs(tokens, self._tokenizer) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}


def _chat_logprob(token: Token, tokenizer: Tokenizer) -> Body:
    def told(id: int, logprob: float) -> Body:
        return {"token": tokenizer.decode([id]), "logprob": logprob, "bytes": list(tokenizer.bytes_of(id))}

    others = [told(id, logprob) for id, logprob in token.alternatives]
    return {**told(token.id, token.logprob), "top_logprobs": others}


def _text_logprobs(placed: Sequence[tuple[int, Token]], tokenizer: Tokenizer) -> Body:
    tokens = [token for _, token in placed]
    best = [{tokenizer.decode([id]): logprob for id, logprob in token.alternatives} for token in tokens]
    return {
        "tokens": [tokenizer.decode([token.id]) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": best,
        "text_offset": [place for place, _ in placed],
    }
