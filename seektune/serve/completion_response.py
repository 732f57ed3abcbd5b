"""Responses of completions: texts, their echoed prompts, and log-probabilities with offsets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta
from seektune.generate.request import Token
from seektune.serve.request_builder import PreparedRequest
from seektune.serve.response_writer import Body


@dataclass(frozen=True)
class _PlacedToken:
    """A token and its offset in the text."""

    offset: int
    id: int
    token: Token | None
    """None for the first token of a prompt, which is not predicted."""


@dataclass
class _Completion:
    """One completion of a text prompt, so far."""

    decode: Callable[[int], str]
    begun: bool = False
    text: str = ""
    decoded: int = 0
    """Characters of all tokens, including those that are held back."""
    tokens: list[_PlacedToken] = field(default_factory=list)
    end: str | None = None

    def place(self, id: int, token: Token | None, visible: bool = True) -> _PlacedToken:
        """The next token of the text; one that is not visible adds no characters."""
        placed = _PlacedToken(self.decoded, id, token)
        text = self.decode(id)
        self.decoded += len(text) if visible else 0
        return placed


class CompletionResponse:
    """The choices of `/v1/completions`."""

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer, logprobs: bool, generates: bool = True):
        """Without `generates`, the response is the echo of the prompt alone."""
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._generates = generates
        self._requests = prepared.requests
        self._echoed = prepared.echoed
        self._completions = [_Completion(tokenizer.decoder()) for _ in prepared.requests]

    def opening(self) -> list[Body]:
        """Nothing."""
        return []

    def add(self, delta: TextDelta) -> Body | None:
        """Take a delta; returns the choice of a chunk, or None if there is nothing to send."""
        completion = self._completions[delta.request]
        if completion.begun and not self._generates:
            return None
        text, tokens = self._echo(completion, delta)
        if self._generates:
            text += delta.text
            placed = completion.place(delta.token.id, delta.token)
            is_stop = delta.token.id in self._requests[delta.request].stop_ids
            # clients that score an echo expect one token after the prompt's
            tokens += [] if is_stop and not self._echoed else [placed]
        completion.text += text
        completion.tokens += tokens
        completion.end = delta.end if self._generates else "length"
        if not text and completion.end is None and not self._logprobs:
            return None
        return self._choice(delta.request, text, tokens, completion.end)

    def choices(self) -> list[Body]:
        """The texts."""
        return [self._choice(i, each.text, each.tokens, each.end) for i, each in enumerate(self._completions)]

    def _echo(self, completion: _Completion, delta: TextDelta) -> tuple[str, list[_PlacedToken]]:
        """The prompt's text and tokens before the first delta of a completion; nothing without `echo`."""
        if completion.begun or not self._echoed:
            return "", []
        completion.begun = True
        text = self._echoed[delta.request]
        ids = self._requests[delta.request].prompt
        # a BOS that the server added is not in the text
        first = completion.place(ids[0], None, visible=text.startswith(self._tokenizer.decode(ids[:1])))
        return text, [first, *(completion.place(token.id, token) for token in delta.token.prompt)]

    def _choice(self, index: int, text: str, tokens: list[_PlacedToken], end: str | None) -> Body:
        logprobs = _text_logprobs(tokens, self._tokenizer) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}


def _text_logprobs(tokens: Sequence[_PlacedToken], tokenizer: Tokenizer) -> Body:
    def likely(token: Token) -> Body:
        return {tokenizer.name_of(id): logprob for id, logprob in token.alternatives}

    return {
        "tokens": [tokenizer.name_of(each.id) for each in tokens],
        "token_logprobs": [each.token and each.token.logprob for each in tokens],
        "top_logprobs": [each.token and likely(each.token) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }
