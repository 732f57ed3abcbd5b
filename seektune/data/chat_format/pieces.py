"""Text of the chat format in pieces: control tokens of the format are kept apart from the same letters in a message."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import NamedTuple

from seektune.data.chat_format.tokens import CONTROL
from seektune.data.example import Example
from seektune.data.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A part of a chat's text."""

    text: str
    control: bool = False
    """Whether it is a control token, which is encoded as one id; any other text is encoded as plain characters."""
    taught: bool = False
    """Whether it is a part of a response that a training text teaches."""


Pieces = tuple[Piece, ...]


def from_format(text: str) -> Pieces:
    """Pieces of a text that the format itself writes: control tokens in it are control tokens."""
    parts = CONTROL.split(text)  # control tokens have odd indices
    return tuple(Piece(part, control=i % 2 == 1) for i, part in enumerate(parts) if part)


def from_message(text: str) -> Pieces:
    """Pieces of a text of a message: control tokens spelled in it are plain characters."""
    return (Piece(text),) if text else ()


def from_template(template: tuple[str, str], text: str) -> Pieces:
    """A text of a message between the two halves of a text of the format."""
    before, after = template
    return (*from_format(before), *from_message(text), *from_format(after))


def joined(parts: Iterable[Pieces], separator: str) -> Iterator[Piece]:
    """The pieces of several parts, separated by a text of the format."""
    for i, pieces in enumerate(parts):
        if i:
            yield from from_format(separator)
        yield from pieces


@dataclass(frozen=True)
class ChatText:
    """A conversation as the model reads it."""

    pieces: Pieces

    @cached_property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)

    def control_ranges(self) -> list[tuple[int, int]]:
        """Start and end of each control token in `text`, in characters."""
        ranges = []
        start = 0
        for piece in self.pieces:
            end = start + len(piece.text)
            if piece.control:
                ranges.append((start, end))
            start = end
        return ranges

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The token ids.

        Raises:
            ValueError: the vocabulary lacks a control token.
        """
        return encode_texts([self], tokenizer)[0][0]

    def example(self, tokenizer: Tokenizer, name: str) -> Example:
        """The token ids and which of them are taught; `name` is the source.

        Raises:
            ValueError: the vocabulary lacks a control token.
        """
        ids, taught = encode_texts([self], tokenizer)[0]
        return Example(ids, taught, name)

    def runs(self) -> Iterator[Piece]:
        """Each control token, and each text between two of them that is taught or read as a whole."""
        for (control, taught), pieces in groupby(self.pieces, key=lambda piece: (piece.control, piece.taught)):
            texts = [piece.text for piece in pieces]
            yield from (Piece(text, control, taught) for text in (texts if control else ["".join(texts)]))


def encode_texts(texts: Sequence[ChatText], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """The token ids of each text, and which of them are taught.

    Raises:
        ValueError: the vocabulary lacks a control token.
    """
    runs = [list(text.runs()) for text in texts]
    # tools and system messages repeat from text to text
    plain = list({run.text: None for each in runs for run in each if not run.control})
    known = dict(zip(plain, tokenizer.encode_batch(plain), strict=True))
    control = {run.text for each in runs for run in each if run.control}
    codes = {token: [tokenizer.control_id(token)] for token in control}
    return [_together([(codes if run.control else known)[run.text] for run in each], each) for each in runs]


def _together(ids: Sequence[list[int]], runs: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    taught: list[bool] = []
    for part, run in zip(ids, runs, strict=True):
        taught += [run.taught] * len(part)
    return list(chain.from_iterable(ids)), taught
