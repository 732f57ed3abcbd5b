"""Turns generated tokens into streamed text: whole characters only, and never part of a stop string."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from seektune.data.tokenizer import Tokenizer
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.request import DraftCounts, Request, Token


@dataclass(frozen=True)
class TextDelta:
    """The text that a token adds to a completion."""

    request: int
    text: str
    """Often empty: the token ends inside a character, or may begin a stop string."""
    token: Token
    end: str | None
    """As `Token.end`, if the completion ends here."""
    stop: str | None = None
    """The stop string that ends it."""


@dataclass
class GeneratedText:
    """The completion of a request."""

    text: str = ""
    """Up to the stop string or token, without it."""
    tokens: list[Token] = field(default_factory=list)
    end: str | None = None
    """As `Token.end`."""


class Detokenizer:
    """Detokenizes one completion; the text that it returns is final."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._decode = tokenizer.decoder()
        self._ids: list[int] = []
        self._text = ""
        self._returned = 0

    def add(self, token: int) -> tuple[str, str | None]:
        """The text that has become certain, and the stop string that was found."""
        self._ids.append(token)
        new = self._decode(token)
        start = len(self._text) - max(map(len, self._stops), default=1) + 1
        self._text += new
        found = [(at, stop) for stop in self._stops if (at := self._text.find(stop, max(start, 0))) >= 0]
        if found:
            position, stop = min(found)
            return self._return_until(position), stop
        return self._return_until(len(self._text) - partial_match_length(self._text, self._stops)), None

    def flush(self) -> str:
        """The text that was held back, after the last token; an incomplete character becomes U+FFFD."""
        self._text = self._tokenizer.decode(self._ids)
        return self._return_until(len(self._text))

    def _return_until(self, stop: int) -> str:
        start = self._returned
        self._returned = max(stop, self._returned)
        return self._text[start : self._returned]


def partial_match_length(text: str, marks: Sequence[str]) -> int:
    """Number of characters at the end of `text` that may begin one of the marks."""
    sizes = [size for mark in marks for size in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:size])]
    return max(sizes, default=0)


class TextStream:
    """A decode engine whose tokens are returned as text; requests may join while others run."""

    def __init__(self, engine: DecodeEngine, requests: Sequence[Request], tokenizer: Tokenizer):
        """Wrap an engine before its first step; `requests` are those that it was created with."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._running = {i: (request, Detokenizer(tokenizer, request.stops)) for i, request in enumerate(requests)}

    @property
    def done(self) -> bool:
        """Whether every completion has ended."""
        return self._engine.done

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Add requests; returns the numbers that identify them in deltas.

        Raises:
            ValueError: one of them is invalid; then none is added.
        """
        numbers = self._engine.add(requests)
        self._running |= {
            i: (each, Detokenizer(self._tokenizer, each.stops)) for i, each in zip(numbers, requests, strict=True)
        }
        return numbers

    def end(self, request: int) -> None:
        """Stop decoding a request."""
        self._engine.end(request)
        self._running.pop(request, None)

    def step(self) -> list[TextDelta]:
        """The deltas of one decoding step; stop tokens add no text.

        Raises:
            ArithmeticError: the model's logits are NaN.
        """
        return [delta for token in self._engine.step() for delta in self._deltas(token)]

    def _deltas(self, token: Token) -> Iterator[TextDelta]:
        if token.request not in self._running:  # an accepted draft token after a stop string
            return
        request, detokenizer = self._running[token.request]
        stop = None
        if token.id in request.stop_ids:
            text = detokenizer.flush()
            end = token.end
        else:
            text, stop = detokenizer.add(token.id)
            end = token.end if stop is None else "stop"
            if end is not None and stop is None:
                text += detokenizer.flush()
        if end is not None:
            self.end(token.request)
        yield TextDelta(token.request, text, token, end, stop)


def stream_text(engine: DecodeEngine, requests: Sequence[Request], tokenizer: Tokenizer) -> Iterator[TextDelta]:
    """The deltas of all requests of an engine before its first step."""
    stream = TextStream(engine, requests, tokenizer)
    while not stream.done:
        yield from stream.step()


def generate_all(
    model: Decodes,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    rows: int = 8,
    speculative: bool = False,
    cpu_kernels: bool = True,
    memory: CacheLimit | None = None,
    static_steps: bool = False,
) -> tuple[list[GeneratedText], DraftCounts]:
    """The completions of all requests, in order, with up to `rows` decoded together; also the counts of drafts.

    `cpu_kernels`, `memory` and `static_steps` are those of `DecodeEngine`.

    Raises:
        ValueError: a request is invalid, or can never fit into `memory`.
    """
    if not requests:
        return [], DraftCounts()
    # sorted by prompt length, so that a prefill needs little padding
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    asked = [requests[i] for i in order]
    longest = max(each.longest for each in requests)
    engine = DecodeEngine(
        model,
        asked,
        speculative,
        longest,
        cpu_kernels,
        max_num_seqs=rows,
        memory=memory,
        static_steps=static_steps,
    )
    completions = [GeneratedText() for _ in requests]
    for delta in stream_text(engine, asked, tokenizer):
        completion = completions[order[delta.request]]
        completion.text += delta.text
        completion.tokens.append(delta.token)
        completion.end = delta.end
    return completions, engine.drafts
