"""Examples that consist of several answers: pairs of a chosen and a rejected one, or one beside a mismatched one.

Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seektune.data.example import AnswerPart, Example, Role
from seektune.data.examples import Column, Examples, Weights, count_taught
from seektune.sequence import PAIRS

SIGNS: dict[Role, int] = {"chosen": 1, "rejected": -1, "mismatched": 0}
"""By which the number of an answer's example is multiplied in the column `pairs`."""
TRIED = 64
"""Following answers among which one to another prompt is sought."""


class PairExamples:
    """Pairs of answers to one prompt: examples 2n, the chosen one, and 2n + 1 of `single` are example n."""

    weights: Weights | None = None

    def __init__(self, single: Examples):
        assert len(single) % 2 == 0, "each row has two answers"
        self._single = single
        self.lengths: Column = _sums(single.lengths)
        self.counted: Column = _sums(single.counted)

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, number: int) -> Example:
        """As `Examples.example`: the chosen answer, then the rejected one."""
        return joined([self.single(2 * number), self.single(2 * number + 1)], ("chosen", "rejected"))

    def single(self, number: int) -> Example:
        """Answer `number` of all: 2n and 2n + 1 are those of pair n."""
        return self._single.example(number)

    def singles(self) -> "SingleAnswers":
        """All answers one by one."""
        roles: list[Role] = ["chosen", "rejected"]
        return SingleAnswers(self._single, roles * len(self), stride=2)


@dataclass(frozen=True)
class SingleAnswers:
    """Answers with their roles."""

    examples: Examples
    roles: Sequence[Role]
    stride: int = 1
    """From an answer to the next that may be mismatched: 2 keeps the roles of pairs apart, so that both are taken."""

    @classmethod
    def labelled(cls, examples: Examples) -> "SingleAnswers":
        """Answers whose weights say by their sign whether they are good."""
        weights = np.ones(len(examples)) if examples.weights is None else examples.weights
        roles: list[Role] = ["chosen" if weight > 0 else "rejected" for weight in weights]
        return cls(examples, roles)


class AnswerExamples:
    """Single answers, each beside its prompt with the next answer to another prompt, if both fit into a row.

    Other prompts' answers are what KTO estimates the divergence from the reference with.
    """

    weights: Weights | None = None

    def __init__(self, answers: SingleAnswers, length: int):
        """`length` is the most tokens of a row."""
        self._answers = answers
        self._length = length
        examples = [self.example(number) for number in range(len(self))]
        self.lengths: Column = np.array([len(each.tokens) for each in examples], np.int32)
        self.counted: Column = np.array([_counted(each) for each in examples], np.int32)

    def __len__(self) -> int:
        return len(self._answers.roles)

    def example(self, number: int) -> Example:
        """As `Examples.example`."""
        answers = self._answers
        role = answers.roles[number]
        own = answers.examples.example(number)
        prompt = _prompt(own)
        following = ((number + step * answers.stride) % len(self) for step in range(1, TRIED + 1))
        others = map(answers.examples.example, following)
        other = next((each for each in others if not np.array_equal(_prompt(each), prompt)), None)
        if other is None:
            return joined([own], (role,))
        mismatched = with_answer_of(own, other)
        if len(own.tokens) + len(mismatched.tokens) > self._length:
            return joined([own], (role,))
        return joined([own, mismatched], (role, "mismatched"))


def joined(documents: Sequence[Example], roles: Sequence[Role]) -> Example:
    """One example of several documents."""
    answers = tuple(AnswerPart(role, len(each.tokens)) for role, each in zip(roles, documents, strict=True))
    tokens = np.concatenate([np.asarray(each.tokens) for each in documents])
    taught = np.concatenate([np.asarray(each.taught, np.bool_) for each in documents])
    return replace(documents[0], tokens=tokens, taught=taught, weight=1.0, answers=answers)


def documents_of(example: Example) -> list[Example]:
    """The documents of an example, each as an example of its own."""
    if not example.answers:
        return [example]
    stops = np.cumsum([answer.tokens for answer in example.answers]).tolist()
    starts = [0, *stops[:-1]]
    return [
        Example(example.tokens[start:stop], example.taught[start:stop], f"{example.name}, {answer.role}")
        for start, stop, answer in zip(starts, stops, example.answers, strict=True)
    ]


def with_answer_of(own: Example, other: Example) -> Example:
    """The prompt of one example, which is what comes before its taught tokens, with the answer of another."""
    start = _answer_start(own)
    answer = _answer_start(other)
    tokens = np.concatenate([_prompt(own), np.asarray(other.tokens)[answer:]])
    taught = np.concatenate([np.asarray(own.taught)[:start], np.asarray(other.taught)[answer:]])
    return replace(own, tokens=tokens, taught=taught)


def document_numbers(row: Sequence[Example]) -> NDArray[np.int64]:
    """The document of each token of a row, counted from 1: an example, or each of its answers."""
    sizes = [size for example in row for size in _sizes(example)]
    return np.repeat(np.arange(1, len(sizes) + 1), sizes)


def answer_columns(rows: Sequence[Sequence[Example]], width: int) -> dict[str, Tensor]:
    """The column `pairs` of rows, `[B, T]`: the number of each token's example, from 1, signed by its answer's role.

    Empty if no example has answers.
    """
    if not any(example.answers for row in rows for example in row):
        return {}
    pairs = np.zeros((len(rows), width), np.int64)
    number = 0
    for b, row in enumerate(rows):
        start = 0
        for example in row:
            number += 1
            for answer in example.answers:
                pairs[b, start : start + answer.tokens] = number * SIGNS[answer.role]
                start += answer.tokens
    return {PAIRS: torch.from_numpy(pairs)}


def _answer_start(example: Example) -> int:
    """The place of the first taught token."""
    return int(np.argmax(example.taught))


def _prompt(example: Example) -> NDArray[np.uint32]:
    """The tokens before the answer."""
    return np.asarray(example.tokens[: _answer_start(example)], np.uint32)


def _sizes(example: Example) -> list[int]:
    return [answer.tokens for answer in example.answers] or [len(example.tokens)]


def _sums(column: Column) -> Column:
    return np.asarray(column).reshape(-1, 2).sum(axis=1, dtype=np.int32)


def _counted(example: Example) -> int:
    return sum(count_taught(each) for each in documents_of(example))
