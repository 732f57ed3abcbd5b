"""Tokens into text as they come: whole characters only, and nothing that a stop string may turn out to swallow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decoding, Drafts, Request, Token
from seektune.model.causal_lm import DeepseekV4ForCausalLM


@dataclass(frozen=True)
class Piece:
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


class Ear:
    """Hears the tokens of one answer; what it gives out is final."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
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
        return self._give(len(self._text) - self._doubtful()), False

    def rest(self) -> str:
        """What was held back, once no more tokens come; an incomplete character is shown as such."""
        self._text = self._tokenizer.decode(self._ids)
        return self._give(len(self._text))

    def _give(self, stop: int) -> str:
        start, self._given = self._given, max(stop, self._given)
        return self._text[start : self._given]

    def _doubtful(self) -> int:
        """Characters at the end with which a stop string may begin."""
        sizes = [size for stop in self._stops for size in range(1, len(stop)) if self._text.endswith(stop[:size])]
        return max(sizes, default=0)


def pieces(decoding: Decoding, requests: Sequence[Request], tokenizer: Tokenizer) -> Iterator[Piece]:
    """The answers of a decoding that has not begun, piece by piece; stop tokens add no text."""
    ears = {i: Ear(tokenizer, request.stops) for i, request in enumerate(requests)}
    for token in decoding.tokens():
        ear = ears.get(token.request)
        if ear is None:  # a draft that was right beyond a stop string
            continue
        if token.id in requests[token.request].stop_ids:
            text, end = ear.rest(), token.end
        else:
            text, stopped = ear.hear(token.id)
            end = "stop" if stopped else token.end
            if stopped:
                decoding.end(token.request)
            elif end is not None:
                text += ear.rest()
        if end is not None:
            del ears[token.request]
        yield Piece(token.request, text, token, end)


def answer_all(
    model: DeepseekV4ForCausalLM,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    rows: int = 8,
    speculative: bool = False,
) -> tuple[list[Answer], Drafts]:
    """The answers to all requests, in their order, `rows` at a time, and how well drafts did.

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
        decoding = Decoding(model, asked, speculative)
        for piece in pieces(decoding, asked, tokenizer):
            answer = answers[places[piece.request]]
            answer.text += piece.text
            answer.tokens.append(piece.token)
            answer.end = piece.end
        drafts.made += decoding.drafts.made
        drafts.accepted += decoding.drafts.accepted
    return answers, drafts
