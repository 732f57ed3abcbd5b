"""Tokens into text as they come: whole characters only, and nothing that a stop string may turn out to swallow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from seektune.data.tokenizer import Tokenizer
from seektune.generate.decodable import DecodableModel
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Drafts, Request, Token


@dataclass(frozen=True)
class TextDelta:
    """What a token added to an answer."""

    request: int
    text: str
    """Often empty: part of a character, or the beginning of what may be a stop string."""
    token: Token
    end: str | None
    """`stop` or `length` where the answer ends here."""


@dataclass
class Answer:
    """What the model went on with."""

    text: str = ""
    """Up to the stop string or token, without it."""
    tokens: list[Token] = field(default_factory=list)
    end: str | None = None
    """`stop` or `length`."""


class Detokenizer:
    """Hears the tokens of one answer; what it gives out is final."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._decode = tokenizer.decoder()
        self._ids: list[int] = []
        self._text = ""
        self._given = 0

    def hear(self, token: int) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string was found."""
        self._ids.append(token)
        new = self._decode(token)
        reach = len(self._text) - max(map(len, self._stops), default=1) + 1
        self._text += new
        places = [place for stop in self._stops if (place := self._text.find(stop, max(reach, 0))) >= 0]
        if places:
            return self._give(min(places)), True
        return self._give(len(self._text) - undecided(self._text, self._stops)), False

    def rest(self) -> str:
        """What was held back, once no more tokens come; an incomplete character is shown as such."""
        self._text = self._tokenizer.decode(self._ids)
        return self._give(len(self._text))

    def _give(self, stop: int) -> str:
        start = self._given
        self._given = max(stop, self._given)
        return self._text[start : self._given]


def undecided(text: str, marks: Sequence[str]) -> int:
    """Characters at the end of a text with which one of the marks may begin."""
    sizes = [size for mark in marks for size in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:size])]
    return max(sizes, default=0)


class TextStream:
    """A decoding heard as text: answers that grow together, and others that join them."""

    def __init__(self, decoding: DecodeEngine, requests: Sequence[Request], tokenizer: Tokenizer):
        """Of a decoding that has not begun, with the requests that it was made with."""
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._heard = {i: (request, Detokenizer(tokenizer, request.stops)) for i, request in enumerate(requests)}

    @property
    def done(self) -> bool:
        """Whether every answer has ended."""
        return self._decoding.done

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Let more join; returns the numbers by which their pieces are known.

        Raises:
            ValueError: one of them cannot be met; then none joins.
        """
        numbers = self._decoding.add(requests)
        self._heard |= {
            i: (each, Detokenizer(self._tokenizer, each.stops)) for i, each in zip(numbers, requests, strict=True)
        }
        return numbers

    def end(self, request: int) -> None:
        """Let no more come of an answer."""
        self._decoding.end(request)
        self._heard.pop(request, None)

    def step(self) -> list[TextDelta]:
        """What each answer grows by; stop tokens add no text.

        Raises:
            ArithmeticError: the model gives no numbers.
        """
        return [piece for token in self._decoding.step() for piece in self._hear(token)]

    def _hear(self, token: Token) -> Iterator[TextDelta]:
        if token.request not in self._heard:  # a draft that was right beyond a stop string
            return
        request, ear = self._heard[token.request]
        if token.id in request.stop_ids:
            text = ear.rest()
            end = token.end
        else:
            text, stopped = ear.hear(token.id)
            end = "stop" if stopped else token.end
            if end is not None and not stopped:
                text += ear.rest()
        if end is not None:
            self.end(token.request)
        yield TextDelta(token.request, text, token, end)


def pieces(decoding: DecodeEngine, requests: Sequence[Request], tokenizer: Tokenizer) -> Iterator[TextDelta]:
    """The answers of a decoding that has not begun, piece by piece."""
    speech = TextStream(decoding, requests, tokenizer)
    while not speech.done:
        yield from speech.step()


def answer_all(
    model: DecodableModel,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    rows: int = 8,
    speculative: bool = False,
    cpu_kernels: bool = True,
) -> tuple[list[Answer], Drafts]:
    """The answers to all requests, in their order, `rows` at a time, and how well drafts did.

    `cpu_kernels` is that of `DecodeEngine`.

    Raises:
        ValueError: a request cannot be met.
    """
    answers = [Answer() for _ in requests]
    drafts = Drafts()
    # neighbours of one length leave little padding
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        asked = [requests[i] for i in places]
        decoding = DecodeEngine(model, asked, speculative, cpu_kernels=cpu_kernels)
        for piece in pieces(decoding, asked, tokenizer):
            answer = answers[places[piece.request]]
            answer.text += piece.text
            answer.tokens.append(piece.token)
            answer.end = piece.end
        drafts.made += decoding.drafts.made
        drafts.accepted += decoding.drafts.accepted
    return answers, drafts
