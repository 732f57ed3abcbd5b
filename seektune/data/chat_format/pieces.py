"""Text of the chat format in pieces: control tokens of the format are kept apart from the same letters in a message."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
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
        return [token for ids, _ in self._encoded(tokenizer) for token in ids]

    def example(self, tokenizer: Tokenizer, name: str) -> Example:
        """The token ids and which of them are taught; `name` is the source.

        Raises:
            ValueError: the vocabulary lacks a control token.
        """
        encoded = self._encoded(tokenizer)
        taught = [is_taught for ids, is_taught in encoded for _ in ids]
        return Example([token for ids, _ in encoded for token in ids], taught, name)

    def _encoded(self, tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
        """Ids, and whether they are taught, of each control token and each text between two of them."""
        runs = []
        for (control, taught), pieces in groupby(self.pieces, key=lambda piece: (piece.control, piece.taught)):
            texts = [piece.text for piece in pieces]
            runs += [(text, control, taught) for text in (texts if control else ["".join(texts)])]
        plain = iter(tokenizer.encode_batch([text for text, control, _ in runs if not control]))
        return [([tokenizer.control_id(text)] if control else next(plain), taught) for text, control, taught in runs]
